"""Plugins of a vision-language model: what makes its answers cheaper or more honest, put into declared seams."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from torch import nn

from ...vision.plugins import PLUGINS as IN_TOWERS
from ...vision.plugins import Plugin as TowerPlugin
from ...vision.plugins import SeamError
from ...vision.plugins import attach as attach_to
from ...vision.spelling import spelt
from ..decoder import Decoder, Layer
from ..tower import Tower

PLUGINS = {  # spelling -> module and dataclass
    "fastv": ("fastv", "FastV"),
    "visual_depth": ("visual_depth", "VisualDepth"),
    "dpvr": ("dpvr", "DualPath"),
    "damro": ("damro", "Damro"),
    "heavy_hitters": (".policies", "HeavyHitters"),
    "keyformer": (".policies", "Keyformer"),
}


class Placed(NamedTuple):
    """A layer of a plugin, and the seam of what it goes into: a layer of the decoder, or the whole pipeline."""

    host: Any
    seam: str
    layer: nn.Module


class Plugin(Protocol):
    """What may be attached: a frozen dataclass of settings. Token plugins of vision/plugins, which say nothing of
    where they go, go into the tower."""

    into: ClassVar[str]  # "decoder" or "pipeline"

    def place(self, hosts: Sequence[Layer]) -> list[Placed]:
        """What goes where in a decoder with these layers (in a pipeline, if that is where it goes: `hosts`). Raises
        SeamError where it cannot work, and ValueError for settings that fit no decoder of this depth."""


def decoder_of(model: nn.Module) -> Decoder:
    """The decoder in a pipeline, or the model if it is one."""
    return part_of(model, Decoder, "decoders")


Part = TypeVar("Part", bound=nn.Module)


def part_of(model: nn.Module, kind: type[Part], name: str) -> Part:
    """The one part of that kind."""
    found = [m for m in model.modules() if isinstance(m, kind)]
    if len(found) != 1:
        raise SeamError(f"{type(model).__name__} has {len(found)} {name}; one is wanted to put a plugin into")
    return found[0]


def attach(model: nn.Module, plugin: Plugin | TowerPlugin) -> Callable[[], None]:
    """Puts the plugin's layers into the decoder or the tower of `model`, or into both; returns the function that takes
    them out again. Every layer is built and every seam looked at before one is filled."""
    match getattr(plugin, "into", "tower"):
        case "decoder":
            model = decoder_of(model)
        case "tower":
            model = part_of(model, Tower, "towers")
    return attach_to(model, plugin)  # type: ignore[arg-type]  # its hosts are of another kind


@contextmanager
def attached(model: nn.Module, plugin: Plugin | TowerPlugin) -> Iterator[nn.Module]:
    """The model with the plugin in it, for as long as the block lasts."""
    detach = attach(model, plugin)
    try:
        yield model
    finally:
        detach()


KNOWN = PLUGINS | {name: (f"..vision.plugins.{module}", kind) for name, (module, kind) in IN_TOWERS.items()}


def plugin(text: str) -> Any:
    """`"fastv:k=2,r=0.5"` -> `FastV(k=2, r=0.5)`; `"tome:r=8"` -> `Merge(r=8)`, as vision/plugins spells its own."""
    return spelt(text, KNOWN, __name__, "plugin")
