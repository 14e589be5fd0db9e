"""What the adapters of the LoRA house share: peft makes their layers, around the layers that our modules declare.

peft works on a tree of its own that holds nothing but those layers, so the model itself is not touched.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from importlib import import_module
from math import inf
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import nn

from . import AdapterError, Put, in_words
from .lora_split import Rows, Split, apart, joined, rows_of
from .lora_targets import Target, choose, declared

NAME = "default"  # peft's own for an adapter; ours are told apart above it


def library() -> ModuleType:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise AdapterError(f"adapters of the LoRA house need peft ({error}): pip install 'patchloom[train]'") from error
    return peft


@dataclass(frozen=True)
class House:
    """Settings of one of peft's methods. `targets` are the layers that it stands around (`lora_targets.choose`): what
    the mixers declare if nothing is said, `mixers`, `mlps`, `all`, or names, with + between them."""

    targets: tuple[str, ...] = field(default=(), kw_only=True)

    kind: ClassVar[str]  # the class of peft's settings
    called: ClassVar[dict[str, str]]  # our fields -> peft's
    fixed: ClassVar[dict[str, Any]] = {}  # peft's settings that are always these
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear,)  # layers that the method knows
    preset: ClassVar[tuple[str, ...]] = ()  # the targets, where none are named

    @property
    def begins_in_weights(self) -> bool:
        """Whether it begins with something of the trunk's weights, which must not change any more then."""
        return False

    def __post_init__(self) -> None:
        """Settings that no model takes."""
        for name in ("alpha", "scale", "strength", "d"):
            if not 0 < (value := getattr(self, name, 1.0)) < inf:
                raise ValueError(f"{name}={value}: a number above 0")
        if not 0 <= (dropout := getattr(self, "dropout", 0.0)) < 1:
            raise ValueError(f"dropout={dropout}: from 0 to below 1")

    def settings(self) -> dict[str, Any]:
        """peft's, but for the targets."""
        return {**{theirs: getattr(self, ours) for ours, theirs in self.called.items()}, **self.fixed}

    def config(self, names: Iterable[str]) -> Any:
        """peft's settings for the layers of these names."""
        return quietly(getattr(library(), self.kind), **self.settings(), target_modules=sorted(names))

    def unfit(self, layer: nn.Module) -> str | None:
        """Why this layer cannot be adapted; None where it can."""
        return None

    def offered(self, model: nn.Module) -> list[Target]:
        return declared(model, self.kinds)

    def chosen(self, model: nn.Module) -> list[Target]:
        """The layers of the bare model that `targets` means."""
        return choose(model, self.targets or self.preset, self.offered(model), self.unfit, in_words(self))

    def place(self, model: nn.Module) -> list[Put]:
        targets = self.chosen(model)
        layers = self.around({t.name: t.layer for t in targets})
        puts = {t.path: layers[t.name] for t in targets if t.part is None}
        for path in dict.fromkeys(t.path for t in targets if t.part is not None):
            parts = {t.part: layers[t.name] for t in targets if t.path == path and t.part is not None}
            owner = next(t.owner for t in targets if t.path == path)
            fused = model.get_submodule(path)
            assert isinstance(fused, nn.Linear)
            puts[path] = Split(fused, rows_of(path, fused, owner), parts)
        return [Put(path.rpartition(".")[0], path.rpartition(".")[2], layer) for path, layer in puts.items()]

    def around(self, layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """The adapter's layers around these, by the same names."""
        return tuned(layers, self.config(layers), in_words(self))

    def merged(self, layer: nn.Module) -> nn.Module:
        if isinstance(layer, Split):
            adapted = {part: getattr(layer, part) for part in layer.rows}
            return joined(layer, {p: folded(m) for p, m in adapted.items() if not isinstance(m, Rows)})
        return folded(layer)  # type: ignore[no-any-return]


def quietly(make: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """make(…) without what peft says of choices that are made here: random matrices that no file holds, norms of our
    own. It compiles nothing: BOFT would look for a CUDA extension, and build it."""
    import_module("peft.tuners.boft.layer")._FBD_CUDA = False  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Specified to not save vera_A|Unsupported layer type")
        return make(*args, **options)


def tree(layers: Mapping[str, nn.Module], root: nn.Module | None = None) -> nn.Module:
    """A module that has these layers at their paths, and nothing else."""
    root = nn.Module() if root is None else root
    for path, layer in layers.items():
        *owners, name = path.split(".")
        at = root
        for owner in owners:
            if not hasattr(at, owner):
                at.add_module(owner, nn.Module())
            at = getattr(at, owner)
        at.add_module(name, layer)
    return root


def tuned(layers: Mapping[str, nn.Module], config: Any, who: str) -> dict[str, nn.Module]:
    """What peft puts around these layers for these settings; the layers learn or not as before."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    shell = tree(layers)
    where: Any = next(iter(layers.values())).weight.device
    shell.register_parameter("where", nn.Parameter(torch.empty(0, device=where), False))  # peft asks for one
    learning = [(p, p.requires_grad) for p in shell.parameters()]
    try:
        quietly(PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type], shell, config, adapter_name=NAME)
    except (ValueError, TypeError) as error:
        raise AdapterError(f"{who}: peft refuses it: {error}") from error
    finally:
        for p, was in learning:
            p.requires_grad_(was)
    return {name: shell.get_submodule(name) for name in layers}


def folded(layer: nn.Module) -> Any:
    """The plain layer that computes what this one of peft's computes."""
    copy: Any = deepcopy(layer)
    if isinstance(copy.base_layer, Rows):
        copy.base_layer = apart(copy.base_layer)
    copy.merge(safe_merge=True)
    plain: nn.Module = copy.get_base_layer()
    return plain.requires_grad_(False)


def sides(layer: nn.Module) -> tuple[int, int]:
    """(in, out) of the matrix that a linear layer or a convolution applies at each place."""
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1], layer.out_channels
    return layer.in_features, layer.out_features  # type: ignore[return-value]


def above_width(r: int, layer: nn.Module) -> str | None:
    """Why a rank does not fit this layer."""
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return f"convolves {layer.groups} groups of channels apart, so that no rank is low for it"
    into, out = sides(layer)
    if r <= min(into, out):
        return None
    return f"({into} -> {out}) is narrower than r={r}; take r of at most {min(into, out)}"


def even(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 2 or value % 2:
            raise ValueError(f"{name}={value}: an even number of at least 2")


def at_least(least: int, **numbers: float) -> None:
    for name, value in numbers.items():
        if not value >= least:
            raise ValueError(f"{name}={value}: it takes at least {least}")
