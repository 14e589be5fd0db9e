"""LoRA's kin by peft: other small changes of a weight that fold into it. Each begins as the trunk alone."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from .lora_house import NAME, House, above_width, at_least, even, library, sides
from .lora_targets import Target, norms

Kinds = tuple[type[nn.Module], ...]


@dataclass(frozen=True)
class Vera(House):
    """Two vectors a layer around random matrices that all share (VeRA).

    W x + b * B (d * A x) with random A, B that all layers share and learned d (0.1 to begin with), b (0):
    https://arxiv.org/abs/2310.11454. `seed` draws A and B, which no file holds."""

    r: int = 256
    seed: int = 0
    dropout: float = 0.0
    d: float = 0.1

    kind: ClassVar[str] = "VeraConfig"
    called: ClassVar[dict[str, str]] = {
        "r": "r", "seed": "projection_prng_key", "dropout": "vera_dropout", "d": "d_initial",
    }  # fmt: skip
    fixed: ClassVar[dict[str, Any]] = {"save_projection": False}

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, r=self.r)


@dataclass(frozen=True)
class Ia3(House):
    """A factor for each channel of a layer (IA³).

    l * (W x), and W (l * x) for the second layer of an MLP, with learned l, 1 to begin with:
    https://arxiv.org/abs/2205.05638."""

    kind: ClassVar[str] = "IA3Config"
    called: ClassVar[dict[str, str]] = {}
    kinds: ClassVar[Kinds] = (nn.Linear, nn.Conv2d)
    preset: ClassVar[tuple[str, ...]] = ("mixers", "mlps")

    def config(self, names: Iterable[str]) -> Any:
        every = sorted(names)
        second = [n for n in every if n.rpartition(".")[2] == "fc2"]
        return library().IA3Config(target_modules=every, feedforward_modules=second)


@dataclass(frozen=True)
class Oft(House):
    """Rotations of a layer's input in blocks (OFT).

    W (R x), R a block diagonal rotation, (1 - Q) / (1 + Q) of a skew Q: https://arxiv.org/abs/2306.07280.

    `block`: its blocks' size, which divides the layer's width. `exact`: no series of five terms in its place. `shared`:
    one block for all. `coft`: Q no longer than eps."""

    block: int = 32
    exact: bool = False
    shared: bool = False
    coft: bool = False
    eps: float = 6e-5
    dropout: float = 0.0

    kind: ClassVar[str] = "OFTConfig"
    called: ClassVar[dict[str, str]] = {
        "block": "oft_block_size", "shared": "block_share", "coft": "coft", "eps": "eps", "dropout": "module_dropout",
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(2, block=self.block)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "use_cayley_neumann": not self.exact}

    def around(self, layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        found: dict[str, Any] = super().around(layers)
        for layer in found.values():
            rotation = layer.oft_R[NAME]  # takes a map (B H W C) for a convolution's, to be cut into patches
            rotation._unfold, rotation._fold = as_it_is, as_it_is
        return found

    def unfit(self, layer: nn.Module) -> str | None:
        return undivided(sides(layer)[0], "block", self.block)


def as_it_is(x: Tensor, shape: Any = None) -> Tensor:
    return x


@dataclass(frozen=True)
class Boft(House):
    """Rotations of a layer's input in blocks, and scales of its output (BOFT).

    s * W (R x), R a rotation in blocks of `block` numbers, s learned scales of what comes out:
    https://arxiv.org/abs/2311.06243 with one factor. More of them, permuted as a butterfly is, take a CUDA extension
    that peft would compile; without it peft has one as well."""

    block: int = 4
    dropout: float = 0.0

    kind: ClassVar[str] = "BOFTConfig"
    called: ClassVar[dict[str, str]] = {"block": "boft_block_size", "dropout": "boft_dropout"}

    def __post_init__(self) -> None:
        super().__post_init__()
        even(block=self.block)

    def unfit(self, layer: nn.Module) -> str | None:
        return undivided(sides(layer)[0], "block", self.block)


@dataclass(frozen=True)
class LoHa(House):
    """The product of two low-rank matrices, entry by entry (LoHa).

    W x + s ((A1 B1) * (A2 B2)) x, s = alpha / r: https://arxiv.org/abs/2108.06098.
    """

    r: int = 8
    alpha: float = 8.0

    kind: ClassVar[str] = "LoHaConfig"
    called: ClassVar[dict[str, str]] = {"r": "r", "alpha": "alpha"}
    kinds: ClassVar[Kinds] = (nn.Linear, nn.Conv2d)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, r=self.r)

    def unfit(self, layer: nn.Module) -> str | None:
        return above_width(self.r, layer)


@dataclass(frozen=True)
class LoKr(House):
    """A Kronecker product beside a layer (LoKr).

    W x + s (C kron D) x, s = alpha / r, C the smaller: https://arxiv.org/abs/2309.14859. `factor`: of the sides of C
    (-1: near the root). D is of rank r where that is small; `both`: C as well."""

    r: int = 8
    alpha: float = 8.0
    factor: int = -1
    both: bool = False

    kind: ClassVar[str] = "LoKrConfig"
    called: ClassVar[dict[str, str]] = {
        "r": "r", "alpha": "alpha", "factor": "decompose_factor", "both": "decompose_both",
    }  # fmt: skip
    kinds: ClassVar[Kinds] = (nn.Linear, nn.Conv2d)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, r=self.r)

    def unfit(self, layer: nn.Module) -> str | None:
        return above_width(self.r, layer)


@dataclass(frozen=True)
class Hra(House):
    """Reflections of a layer's input (HRA).

    W (R x), R a product of r reflections, which cancel in pairs to begin with: https://arxiv.org/abs/2405.17484.
    `orthogonal`: they are made orthogonal to each other."""

    r: int = 8
    orthogonal: bool = False

    kind: ClassVar[str] = "HRAConfig"
    called: ClassVar[dict[str, str]] = {"r": "r", "orthogonal": "apply_GS"}
    kinds: ClassVar[Kinds] = (nn.Linear, nn.Conv2d)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r < 2 or self.r % 2:
            raise ValueError(f"r={self.r}: reflections begin as pairs that cancel, so it is even and at least 2")

    def unfit(self, layer: nn.Module) -> str | None:
        return above_width(self.r, layer)


@dataclass(frozen=True)
class LnTuning(House):
    """Norms learned anew, by peft.

    Norms of the blocks are learned anew: https://arxiv.org/abs/2312.11420.
    """

    kind: ClassVar[str] = "LNTuningConfig"
    called: ClassVar[dict[str, str]] = {}
    preset: ClassVar[tuple[str, ...]] = ("all",)

    def offered(self, model: nn.Module) -> list[Target]:
        return norms(model)


@dataclass(frozen=True)
class FourierFt(House):
    """A few frequencies of a change of the weight (FourierFT).

    W x + s Re(IFFT(F)) x, F zero but at `n` places that `seed` draws: https://arxiv.org/abs/2405.03003. Published
    with a random F, which is no neutral start; here it begins as zero."""

    n: int = 1000
    scale: float = 150.0
    seed: int = 777

    kind: ClassVar[str] = "FourierFTConfig"
    called: ClassVar[dict[str, str]] = {"n": "n_frequency", "scale": "scaling", "seed": "random_loc_seed"}
    fixed: ClassVar[dict[str, Any]] = {"init_weights": True}

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, n=self.n)

    def unfit(self, layer: nn.Module) -> str | None:
        into, out = sides(layer)
        return None if self.n <= into * out else f"has {into * out} weights, fewer than n={self.n}; take fewer"


@dataclass(frozen=True)
class DeLora(House):
    """LoRA of a bounded length (DeLoRA).

    W x + (l |W| / r) B D A x, where D makes each row of A times its column of B as long as 1, l learned:
    https://arxiv.org/abs/2503.18225. `strength`: l to begin with."""

    r: int = 8
    strength: float = 15.0
    dropout: float = 0.0

    kind: ClassVar[str] = "DeloraConfig"
    called: ClassVar[dict[str, str]] = {"r": "r", "strength": "delora_lambda", "dropout": "module_dropout"}
    begins_in_weights = True  # with the lengths of their columns

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, r=self.r)

    def unfit(self, layer: nn.Module) -> str | None:
        return above_width(self.r, layer)


@dataclass(frozen=True)
class Road(House):
    """Pairs of outputs turned and stretched (RoAd).

    Pairs of what comes out are turned and stretched, by an angle and a scale each: https://arxiv.org/abs/2409.00119.
    `form`: "road_1", one of both a pair; 2, one a number; 4, one for each of four weights of a pair. The two of a pair
    are half a `group` apart."""

    form: Literal["road_1", "road_2", "road_4"] = "road_1"
    group: int = 64

    kind: ClassVar[str] = "RoadConfig"
    called: ClassVar[dict[str, str]] = {"form": "variant", "group": "group_size"}

    def __post_init__(self) -> None:
        super().__post_init__()
        even(group=self.group)

    def unfit(self, layer: nn.Module) -> str | None:
        return undivided(sides(layer)[1], "group", self.group)


@dataclass(frozen=True)
class Miss(House):
    """Sums of input channels, learned back (MiSS).

    W x + D' S x, S the sums over every r-th channel, D (r, out) learned: https://arxiv.org/abs/2409.15371.
    """

    r: int = 64
    dropout: float = 0.0

    kind: ClassVar[str] = "MissConfig"
    called: ClassVar[dict[str, str]] = {"r": "r", "dropout": "miss_dropout"}

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, r=self.r)

    def unfit(self, layer: nn.Module) -> str | None:
        return above_width(self.r, layer)


def undivided(width: int, name: str, size: int) -> str | None:
    if width % size == 0:
        return None
    fits = [n for n in range(2, width + 1, 2) if width % n == 0]
    have = f"take one of {', '.join(map(str, fits[:12]))}" if fits else "and no even number does"
    return f"is {width} wide, which {name}={size} does not divide; {have}"
