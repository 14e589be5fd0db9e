"""Adapters of the LoRA house in peft's own format, out of our models and into them.

peft says what a layer's tensors are called in a file; layers that it does not have are written as ones that it has
(vision/adapters/peft_special.py).
"""

import json
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from . import ADAPTERS, HEADS, AdapterError, adapt, adapter_of, book, in_words, own_state, switch, unadapted
from .lora import Lora
from .lora_house import NAME, House, library, tree
from .lora_kin import Vera
from .peft_raw import Peft, meant
from .peft_special import differ, fill, is_special, layers_of, packed, unpack

PREFIX = "base_model.model."
PASSING = {  # of peft's settings: what says nothing of what a layer computes
    "target_modules", "feedforward_modules", "modules_to_save", "base_model_name_or_path", "revision", "task_type",
    "inference_mode", "peft_version", "auto_mapping", "init_lora_weights", "init_weights", "init_ia3_weights",
    "save_projection", "total_step", "tinit", "tfinal", "boft_n_butterfly_factor", "d_initial",
}  # fmt: skip


# -------------------------------------------------------------------------------------------------------- out of models


def to_peft(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(adapter_config.json, adapter_model.safetensors) of the adapter that is on, its head's tensors among them: what
    `peft.PeftModel.from_pretrained` puts onto the same bare model. Raises AdapterError where peft has no such layer."""
    adapter = adapter_of(model)
    if not isinstance(adapter, House):
        what = "none" if adapter is None else in_words(adapter)
        raise AdapterError(f"peft has no format for the adapter that is on ({what})")
    layers = layers_of(model)
    special = {path: layer for path, layer in layers.items() if is_special(layer)}
    plain = {path: layer for path, layer in layers.items() if path not in special}
    config = adapter.whole() if isinstance(adapter, Peft) else adapter.config(layers)
    state: dict[str, Tensor] = dict(library().get_peft_model_state_dict(rooted(plain, config), adapter_name=NAME))
    for path, layer in special.items():
        state |= {f"{PREFIX}{path}.{name}": t for name, t in packed(path, layer, adapter).items()}
    settings = config.to_dict()
    if special and isinstance(adapter, Lora):
        ranks = {path: state[f"{PREFIX}{path}.lora_A.weight"].shape[0] for path in special}
        scale = adapter.alpha / (adapter.r**0.5 if adapter.rslora else adapter.r)
        settings["rank_pattern"] = ranks
        settings["alpha_pattern"] = {p: scale * (r**0.5 if adapter.rslora else r) for p, r in ranks.items()}
    if isinstance(adapter, Lora):
        settings["init_lora_weights"] = True  # another one would change the weights of whoever loads it
    heads = heads_of(model)
    own = own_state(model)
    state |= {PREFIX + name: t for name, t in own.items() if name.startswith(tuple(f"{h}." for h in heads))}
    if "feedforward_modules" in settings:
        settings["feedforward_modules"] = sorted(fed(config, set(layers)))
    settings |= {
        "target_modules": sorted(layers), "modules_to_save": heads or None, "inference_mode": True,
        "base_model_name_or_path": getattr(model, "name", None),
    }  # fmt: skip
    return as_json(settings), {name: t.detach().clone().contiguous() for name, t in state.items()}


def heads_of(model: nn.Module) -> list[str]:
    """The paths of the heads that have parameters; of norms the path of each, as peft saves no dict of modules."""
    there = [(h, m) for h in HEADS if isinstance(m := getattr(model, h, None), nn.Module)]
    each = [(f"{h}.{n}", c) for h, m in there if isinstance(m, nn.ModuleDict) for n, c in m.items()]
    whole = [(h, m) for h, m in there if not isinstance(m, nn.ModuleDict)]
    return [path for path, m in (*whole, *each) if [*m.parameters()]]


def rooted(layers: Mapping[str, nn.Module], config: Any) -> nn.Module:
    """What peft's functions take for a wrapped model that has these layers."""
    root = tree({f"{PREFIX}{path}": layer for path, layer in layers.items()})
    root.peft_config = {NAME: config}  # type: ignore[assignment]
    return root


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Sets as sorted lists, words of peft's enumerations as strings."""
    made: dict[str, Any] = json.loads(
        json.dumps(settings, default=lambda v: sorted(v) if isinstance(v, set) else v.value)
    )
    return made


# --------------------------------------------------------------------------------------------------------- into models


def from_peft(model: nn.Module, config: Mapping[str, Any], state: Mapping[str, Tensor], name: str = "default", *,
              adapter: House | None = None) -> None:  # fmt: skip
    """Puts an adapter in peft's format into the model under `name`, and turns it on. `adapter`: its settings, where
    more is known of them than `config` says. Raises AdapterError, and leaves the model as it was, where it does not
    fit."""
    there = book(model)
    before = None if there is None else there.on
    chosen = settings_of(model, config) if adapter is None else adapter
    remove = adapt(model, chosen, name)
    try:
        take_up(model, config, dict(state))
    except AdapterError:
        remove()
        switch(model, before)
        raise


def settings_of(model: nn.Module, config: Mapping[str, Any]) -> House:
    """One of ours that has these settings of peft's, if it stands around the same layers; else they as they are."""
    with unadapted(model):
        raw = Peft(json.dumps(usable(config), sort_keys=True))
        whole = raw.whole()
        layers = set(meant(model, whole))
        wanted = without_passing(whole)
        for kind in kinds():
            found = {ours: config.get(theirs) for ours, theirs in kind.called.items()}
            values = {ours: value for ours, value in found.items() if value is not None}
            for targets in ((), ("all",), ("mlps",), tuple(sorted(last(layers)))):
                try:
                    candidate = kind(**values, targets=targets)
                    chosen = candidate.chosen(model)
                except ValueError:
                    continue
                made = candidate.config(t.name for t in chosen)
                same = made.peft_type == whole.peft_type and {t.name for t in chosen} == layers
                if same and without_passing(made) == wanted and fed(made, layers) == fed(whole, layers):
                    return candidate
        return raw


def usable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is not a setting of the method, and trainable."""
    out = {"peft_version", "auto_mapping", "modules_to_save", "base_model_name_or_path", "revision", "task_type"}
    return {**{k: v for k, v in config.items() if k not in out and v is not None}, "inference_mode": False}


def without_passing(config: Any) -> dict[str, Any]:
    return {k: v for k, v in as_json(config.to_dict()).items() if k not in PASSING and v not in (None, {}, [])}


def fed(config: Any, layers: set[str]) -> set[str]:
    """The layers whose input IA3 scales."""
    from peft.utils.other import match_target_against_key

    words = getattr(config, "feedforward_modules", None) or ()
    if isinstance(words, str):
        return {p for p in layers if match_target_against_key(words, p)}
    return {p for p in layers if any(f".{p}".endswith(f".{w}") for w in words)}


def kinds() -> list[type[House]]:
    """Our settings that peft has."""
    house = [(m, k) for m, k in ADAPTERS.values() if m in ("lora", "lora_kin")]
    return [getattr(import_module(f".{module}", __package__), kind) for module, kind in house]


def last(layers: set[str]) -> set[str]:
    return {p.rpartition(".")[2] for p in layers}


def take_up(model: nn.Module, config: Mapping[str, Any], state: dict[str, Tensor]) -> None:
    """Fills the adapter that is on, and its heads, with a file's tensors; all of them must find a place."""
    adapter, layers = adapter_of(model), layers_of(model)
    assert isinstance(adapter, House)
    heads = {n: state.pop(n) for n in list(state) if n.removeprefix(PREFIX).split(".")[0] in HEADS}
    if isinstance(adapter, Vera | Peft):
        compare_random(layers, state)
    special = {path: layer for path, layer in layers.items() if is_special(layer)}
    for path, layer in special.items():
        names = [n for n in state if n.startswith(f"{PREFIX}{path}.")]
        unpack(path, layer, {n.removeprefix(f"{PREFIX}{path}."): state.pop(n) for n in names})
    plain = {path: layer for path, layer in layers.items() if path not in special}
    if plain or state:
        settings = adapter.whole() if isinstance(adapter, Peft) else adapter.config(plain)
        root = rooted(plain, settings)
        expected = set(library().get_peft_model_state_dict(root, adapter_name=NAME))
        differ(expected, set(state))
        try:
            library().set_peft_model_state_dict(root, state, adapter_name=NAME)
        except RuntimeError as error:  # of shapes
            raise AdapterError(f"the adapter's file does not fit: {str(error).splitlines()[-1].strip()}") from error
    fill_heads(model, {n.removeprefix(PREFIX): t for n, t in heads.items()})


def compare_random(layers: Mapping[str, Any], state: dict[str, Tensor]) -> None:
    """VeRA's shared matrices, where a file holds them, are those that its key draws."""
    for name in ("vera_A", "vera_B"):
        given = state.pop(f"base_model.{name}", None)
        own = next((getattr(m, name)[NAME] for m in layers.values() if hasattr(m, name)), None)
        if given is not None and own is not None and not (given.shape == own.shape and torch.equal(given.to(own), own)):
            raise AdapterError(
                f"the adapter's file has another {name} than its key draws here, and none could be saved"
            )


def fill_heads(model: nn.Module, heads: Mapping[str, Tensor]) -> None:
    """The heads of the adapter that is on; a file without any leaves them as the model's own were."""
    null = int(getattr(model, "has_null", False))
    # the axis of the classes, and how many places of it are no class
    axes = {"head.weight": (0, 0), "labels.table.weight": (0, null), "labels.linear.weight": (1, 0)}
    for name in axes.keys() & heads.keys() if hasattr(model, "reset_classifier") else ():
        axis, others = axes[name]
        if (classes := heads[name].shape[axis] - others) != model.num_classes:
            model.reset_classifier(classes)  # type: ignore[operator]
    own = {n: t for n, t in own_state(model).items() if n.split(".")[0] in HEADS}
    if heads:
        differ(set(own), set(heads))
    for name, value in heads.items():
        fill(name, own[name], value)
