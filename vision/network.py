"""A published network as data: the stages and parts that it is made of, and how its tensors are called."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import Tensor, nn

from .backbone import Backbone, Stage, grids
from .heads.classification import Head
from .model import Classifier
from .norm import Norm
from .pyramid import Pyramid
from .spec import sized
from .stem import Down, Merge2x2, Patchify, Stem

Initialise = Callable[[Classifier | Pyramid], None]
Convert = Callable[[Tensor, nn.Module], Tensor]


@dataclass(frozen=True)
class Dense:
    """The authors' detection form where it differs from the classifier: norms per stage, other stages or stem."""

    norm: Norm
    stages: tuple[Stage, ...] | None = None  # None: as the classifier's
    stem: Stem | None = None
    down: Down | None = None


@dataclass(frozen=True)
class Rules:
    """How a checkpoint's names become ours. Every name matches one of `rename` (theirs -> ours, the whole name; of
    several that fit, the first whose result the model has) or, where there is none, of `drop`; `pyramid` are those that
    a backbone without head leaves out as well.

    Several tensors of theirs may fill one of ours: `mixer.qkv.weight[2/3]` is the third of its three equal parts.
    `flatten`: weights of 1x1 convolutions, theirs, that are linear layers here.
    `convert`: (our names, function): what such a tensor of theirs becomes, given our module that holds it (rows in
    another order, say); before parts are put together.
    `number`: a name of theirs -> the same counted by stage and block, before `rename`; for files that count blocks
    through all stages.
    `split`: tensors of theirs that are several of ours, `name[0]`, `name[1]`, … along their second dimension.
    `stacked`: (theirs, n): tensors that are n of ours, `name[0]` …, equal parts of their first dimension.
    `copies`: names of theirs under which another's tensor stands once more (shared weights): equal, or absent.
    `ones`: scales of ours that are 1 where a file has none of them.
    `check`: buffers that can be computed: dropped, but first compared with what it gives, where it gives something.
    `moved`: beginnings of our names -> where an adapter has put what is called so.
    """

    rename: tuple[tuple[str, str], ...]
    drop: tuple[str, ...] = ()
    pyramid: tuple[str, ...] = ()
    flatten: tuple[str, ...] = ()
    convert: tuple[tuple[str, Convert], ...] = ()
    ones: tuple[str, ...] = ()
    dense: tuple[tuple[str, str], ...] = ()  # norms per stage, only in the detection form
    check: Callable[[str, Tensor, Any], Tensor | None] | None = field(default=None, compare=False)
    number: Callable[[str, Any], str] | None = field(default=None, compare=False)
    split: tuple[str, ...] = ()
    stacked: tuple[tuple[str, int], ...] = ()
    copies: tuple[tuple[str, str], ...] = ()  # theirs -> theirs
    moved: tuple[tuple[str, str], ...] = ()  # ours -> ours

    def __add__(self, other: "Rules") -> "Rules":
        """Both, as for a family and a plugin in one file; `check` and `number` are those of the first that has one."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return Rules(**{name: a + b if isinstance(a, tuple) else a or b for name, (a, b) in pairs.items()})


@dataclass(frozen=True)
class Network:
    """`size` is the published input, `classes` the published number, `drop_path` the rate that it was trained with;
    `unread` is how many numbers the authors' parameters hold that nothing reads (they count as published, and are
    dropped)."""

    family: str
    stages: tuple[Stage, ...]
    stem: Stem = Patchify()
    down: Down = Merge2x2()
    head: Head = Head()
    dense: Dense | None = None
    size: tuple[int, int] = (224, 224)
    classes: int = 1000
    drop_path: float = 0.0
    initialise: Initialise | None = field(default=None, compare=False)
    unread: int = 0
    listed: bool = True  # False: a cut that nobody published, which resolves but does not stand in list_models()

    def backbone(self, in_chans: int, drop_path: float, dense: bool = False) -> Backbone:
        stages, stem, down = self.stages, self.stem, self.down
        if dense and self.dense is not None:
            stages, stem, down = self.dense.stages or stages, self.dense.stem or stem, self.dense.down or down
        return Backbone(stages, stem, down, in_chans=in_chans, drop_path=drop_path)

    def with_classes(self, classes: int) -> "Network":
        return replace(self, classes=classes)

    def sized(self, size: tuple[int, int]) -> "Network":
        """The same made for images of `size`: its tables of positions are that large."""
        if size == self.size:
            return self
        stem, stages = made_for(size, self.stages, self.stem, self.down)
        dense = self.dense
        if dense is not None and (dense.stages or dense.stem):
            other = made_for(size, dense.stages or self.stages, dense.stem or self.stem, dense.down or self.down)
            dense = replace(dense, stem=other[0] if dense.stem else None, stages=other[1] if dense.stages else None)
        return replace(self, size=size, stem=stem, stages=stages, dense=dense)


def made_for(
    size: tuple[int, int], stages: tuple[Stage, ...], stem: Stem, down: Down
) -> tuple[Stem, tuple[Stage, ...]]:
    found = grids(stages, stem, down, size)
    return sized(stem, found[0]), tuple(sized(s, g) for s, g in zip(stages, found, strict=True))
