"""Plugins reach a model through the seams that its modules declare, and nowhere else."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from ..backbone import StageBlocks, Staged
from ..block import Seams
from ..spelling import spelt

if TYPE_CHECKING:
    from ..network import Rules

PLUGINS = {  # spelling -> module and dataclass
    "tome": ("merge", "Merge"),
    "zero_tprune": ("zero_tprune", "ZeroTPrune"),
    "ia_red": ("ia_red", "IaRed"),
    "dynamicvit": ("dynamic_vit", "DynamicViT"),
    "clustering": ("clustering", "Clustering"),
    "scan_pruning": ("scan_pruning", "ScanPruning"),
    "evit": ("evit", "Evit"),
    "random": ("random_drop", "RandomDrop"),
    "patch_dropout": ("patch_dropout", "PatchDropout"),
    "soft_merge": ("soft_merge", "SoftMerge"),
    "window_merge": ("window_merge", "WindowMerge"),
}


class SeamError(ValueError):
    """A plugin cannot be put where it was asked to go."""


@dataclass(frozen=True)
class Host:
    """A block that plugins may be put into, and where it stands."""

    name: str  # in the model
    block: Seams
    stage: int
    index: int  # in its stage
    depth: int  # of its stage
    place: int  # among all blocks of the model
    dim: int = 0  # channels of its tokens
    special: tuple[int, ...] = ()  # positions of its stage's class token and the like, where the model states them

    @property
    def mixer(self) -> Any:
        return self.block.mixer

    @property
    def last(self) -> bool:
        """Whether its stage ends behind it."""
        return self.index == self.depth - 1

    def refuse(self, why: str, module: nn.Module | None = None) -> "SeamError":
        """The error that says why a plugin cannot be put here, or into `module` of it."""
        return SeamError(f"{self.name}: {type(self.mixer if module is None else module).__name__} {why}")


class Placed(NamedTuple):
    """A layer, and the seam of a block (`after_mixer`) or of a part of it (`mixer.attending`) that it goes into."""

    host: Host
    seam: str
    layer: nn.Module


class Plugin(Protocol):
    """What may be attached: a frozen dataclass of settings."""

    def place(self, hosts: Sequence[Host]) -> list[Placed]:
        """What goes where in a model with these blocks. Raises SeamError, with the block's name, where it cannot work
        (`Host.refuse`, `reducible`), and ValueError for settings that fit no model of this depth."""


@runtime_checkable
class Published(Protocol):
    """A plugin with layers whose weights somebody published, in one file with the backbone's."""

    def published(self, hosts: Sequence[Host]) -> "Rules":
        """How their names become ours, beside the rules of the backbone's family; `hosts` are the model's blocks."""


def plugins_of(model: nn.Module) -> list[Plugin]:
    """What is attached to the model, in order."""
    return [p for m in model.modules() for p in getattr(m, "plugins", ())]


def plugged(model: nn.Module) -> tuple[str, ...]:
    """What the names of parameters in the model's seams begin with."""
    named = ((n, m, getattr(m, "seams", ())) for n, m in model.named_modules())
    # what is no tuple of names is the list in which a language model's decoder keeps its own
    filled = [(n, s) for n, m, seams in named if isinstance(seams, tuple) for s in seams if getattr(m, s) is not None]
    return tuple(f"{name}.{seam}." for name, seam in filled)


def hosts_of(model: nn.Module) -> list[Host]:
    """The blocks of a model, in order; those of its own kind where it has a method `hosts` that gives them."""
    if callable(own := getattr(model, "hosts", None)):
        return list(own())
    where: dict[nn.Module, dict[str, Any]] = {
        m: {"stage": b.first + i, "index": j, "depth": len(stage.blocks), "dim": dim, "special": special}
        for b in model.modules()
        if isinstance(b, Staged)
        # ViT-CoMer gives more maps than it has stages
        for i, (stage, dim, special) in enumerate(zip(b.stages, b.channels, b.specials, strict=False))
        if isinstance(stage, StageBlocks)
        for j, block in enumerate(stage.blocks)
        for m in block.modules()  # a block that runs several times has its seams further in
        if isinstance(m, Seams)
    }
    blocks = [(n, m) for n, m in model.named_modules() if isinstance(m, Seams)]
    alone = {"stage": 0, "depth": len(blocks)}
    return [Host(n, m, place=i, **where.get(m, {**alone, "index": i, "dim": m.dim})) for i, (n, m) in enumerate(blocks)]


def attach(model: nn.Module, plugin: Plugin) -> Callable[[], None]:
    """Puts the plugin's layers into the seams where it wants them; returns the function that takes them out again.

    Every layer is built and every seam looked at before one is filled, so a refusal leaves the model as it was. The
    layers come in the model's mode (training or evaluation), type and device, and the model remembers what is attached
    (`plugins_of`).
    """
    own = getattr(plugin, "hosts", None)  # of a plugin that goes into something else than blocks
    hosts = own(model) if callable(own) else hosts_of(model)
    if not hosts:
        raise SeamError(f"{type(model).__name__} has no blocks with seams, so {plugin} cannot be put into it")
    found = []
    for host, seam, layer in plugin.place(hosts):
        path, _, name = seam.rpartition(".")
        module = attrgetter(path)(host.block) if path else host.block
        if name not in getattr(module, "seams", ()):
            raise host.refuse(f"has no seam {name!r}, which {plugin} fills", module)
        if (there := getattr(module, name)) is not None:
            raise SeamError(f"seam {seam!r} of {host.name} is taken by {type(there).__name__}; detach that first")
        found.append((module, name, layer))
    like = next(model.parameters())
    for module, name, layer in found:
        setattr(module, name, layer.train(module.training).to(like))

    model.plugins = (*getattr(model, "plugins", ()), plugin)  # type: ignore[assignment]
    there = True

    def detach() -> None:
        nonlocal there
        if not there:
            return  # a second call takes out nothing that came later
        there = False
        for module, name, layer in found:
            if getattr(module, name) is layer:
                delattr(module, name)  # out of the submodules, then back to the plain None it was
                setattr(module, name, None)
        rest = list(getattr(model, "plugins", ()))
        rest.remove(plugin)
        model.plugins = tuple(rest)  # type: ignore[assignment]

    return detach


def reducible(host: Host, *offers: str) -> Host:
    """The host, if its tokens may become fewer behind its mixer and the mixer shows `offers`; else raises SeamError."""
    mixer = host.mixer
    if mixer.needs_grid:
        raise host.refuse("needs a full grid, so its tokens cannot become fewer")
    if missing := [o for o in offers if o not in mixer.offers]:
        raise host.refuse(f"shows no {' and no '.join(missing)}, which this plugin goes by")
    block = host.block
    for part in (block, getattr(block, "ffn", None), block.on_mixer, block.around_ffn):
        if getattr(part, "needs_grid", False):
            raise host.refuse("needs a full grid, so its tokens cannot become fewer", part)
    return host


_notes: ContextVar[list[tuple[str, Tensor]] | None] = ContextVar("notes", default=None)


@contextmanager
def noting() -> Iterator[list[tuple[str, Tensor]]]:
    """Within it, what layers `note` while the model runs is kept in the list that it gives, with its graph: decisions
    for a loss, or pictures."""
    notes: list[tuple[str, Tensor]] = []
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def note(name: str, value: Tensor) -> None:
    """Shows `value` to whoever looks (`noting`)."""
    if (notes := _notes.get()) is not None:
        notes.append((name, value))


@contextmanager
def attached(model: nn.Module, plugin: Plugin) -> Iterator[nn.Module]:
    """The model with the plugin in it, for as long as the block lasts."""
    detach = attach(model, plugin)
    try:
        yield model
    finally:
        detach()


def plugin(text: str) -> Plugin:
    """`"tome:r=8"` -> `Merge(r=8)`: a name, and options `key=value` between commas behind a colon; the parts of a tuple
    have + between them: `"tome:r=8+4"` -> `Merge(r=(8, 4))`."""
    return spelt(text, PLUGINS, __name__, "plugin")  # type: ignore[no-any-return]
