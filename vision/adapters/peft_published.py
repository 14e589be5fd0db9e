"""Adapters of the LoRA house under the names that `get_peft_model` gives a published model."""

from collections.abc import Mapping

from torch import Tensor, nn

from . import HEADS, AdapterError, adapt, own_state, unadapted
from .lora_house import NAME, House
from .peft_names import PREFIX
from .peft_special import differ, fill, layers_of


def load_wrapped(model: nn.Module, state: Mapping[str, Tensor], adapter: House, name: str = "default") -> None:
    """Loads what `get_peft_model` made of a published model and its authors' names, strictly: the trunk by its family's
    rules, the adapter, put in here, around the layers that those say. `modules_to_save` become the adapter's heads."""
    from ..weights import load_published

    short = {n.removeprefix(PREFIX): t for n, t in state.items()}
    around = {n.partition(".base_layer.")[0] for n in short if ".base_layer." in n}
    trunk: dict[str, Tensor] = {}
    own: dict[str, Tensor] = {}
    for n, t in short.items():
        mine = ".modules_to_save." in n or (".base_layer." not in n and n.startswith(tuple(f"{p}." for p in around)))
        (own if mine else trunk)[n.replace(".base_layer.", ".").replace(".original_module.", ".")] = t
    with unadapted(model):
        matched = load_published(model, trunk).matched
    theirs = {ours.rpartition(".")[0]: n.rpartition(".")[0] for n, ours in matched.items()}
    adapt(model, adapter, name)
    for n, value in own_state(model).items():
        path = next((p for p in layers_of(model) if n.startswith(f"{p}.")), n.rpartition(".")[0])
        suffix = n.removeprefix(f"{path}.")
        head = f"{theirs[path]}.modules_to_save.{NAME}.{suffix}"
        if (given := own.pop(f"{theirs[path]}.{suffix}", own.pop(head, None))) is not None:
            fill(n, value, given)
        elif path.split(".")[0] not in HEADS and not is_drawn(n):
            raise AdapterError(f"the file lacks {theirs[path]}.{suffix}, which fills {n}")
    differ(set(), set(own))


def is_drawn(name: str) -> bool:
    """Whether a tensor of an adapter is not learned but follows from its settings and the trunk."""
    return any(f".{part}.{NAME}" in name for part in ("vera_A", "vera_B", "ranknum", "delora_w_norm", "boft_P"))
