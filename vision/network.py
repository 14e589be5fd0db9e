"""A published network as data: the stages and parts that it is made of, and how its tensors are called."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor

from .backbone import Backbone, Stage
from .block import Norm
from .model import Classifier, Head, Pyramid
from .stem import Down, Merge2x2, Patchify, Stem

Initialise = Callable[[Classifier | Pyramid], None]


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
    several that fit, the first whose result the model has) or of `drop`; `pyramid` are those that a backbone without
    head leaves out as well.

    `flatten`: weights of 1x1 convolutions, theirs, that are linear layers here.
    `ones`: scales of ours that are 1 where a file has none of them.
    `check`: buffers that can be computed: dropped, but first compared with what it gives, where it gives something.
    """

    rename: tuple[tuple[str, str], ...]
    drop: tuple[str, ...] = ()
    pyramid: tuple[str, ...] = ()
    flatten: tuple[str, ...] = ()
    ones: tuple[str, ...] = ()
    dense: tuple[tuple[str, str], ...] = ()  # norms per stage, only in the detection form
    check: Callable[[str, Tensor, "Classifier | Pyramid"], Tensor | None] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Network:
    """`size` is the published input, `classes` the published number, `drop_path` the rate that it was trained with."""

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
    listed: bool = True  # False: a cut that nobody published, which resolves but does not stand in list_models()

    def backbone(self, in_chans: int, drop_path: float, dense: bool = False) -> Backbone:
        stages, stem, down = self.stages, self.stem, self.down
        if dense and self.dense is not None:
            stages, stem, down = self.dense.stages or stages, self.dense.stem or stem, self.dense.down or down
        return Backbone(stages, stem, down, in_chans=in_chans, drop_path=drop_path)

    def with_classes(self, classes: int) -> "Network":
        return replace(self, classes=classes)
