"""ViT-CoMer's backbone, https://arxiv.org/abs/2403.07392: a plain transformer beside a pyramid of convolutions."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .affine import into_readers
from .backbone import Backbone, Stage
from .conv import ConvNorm
from .interaction import Afterwards, Interaction, enlarged, halved, maps, tokens
from .layers import Linear
from .mixers.deformable import cells
from .network import Network
from .norm import BatchNorm
from .position import Embedding
from .spec import Spec
from .stem import Down, Stem
from .tokens import Tokens

STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True)
class Branch(Spec):
    """The convolutional branch and its exchanges with the transformer, whose blocks they divide evenly.

    `fields`: hidden width of the receptive-field layers over dim; `heads`, `values`: of deformable attention, and the
    width of its values over dim. `each`: map k gets the tokens behind exchange k (so there are four), else all maps
    get the last ones.
    """

    fields: float
    heads: int = 6
    values: float = 1.0
    each: bool = True
    exchanges: int = 4
    extra: int = 4  # steps within the pyramid behind the last exchange
    width: int = 64  # of the first convolutions
    gamma: float = 0.0  # with what the transformer is told of the pyramid, to begin with

    def __post_init__(self) -> None:
        if self.each and self.exchanges != len(STRIDES):
            raise ValueError(f"exchanges={self.exchanges}: {len(STRIDES)} are wanted where each gives a map its tokens")


class Convolutions(nn.Module):
    """image (B 3 H W) -> four maps (B H/s W/s C) at strides 4, 8, 16 and 32 (the paper's spatial prior)."""

    def __init__(self, channels: int, dim: int, width: int):
        super().__init__()
        first = (ConvNorm(n, width, 3, stride, act="relu") for n, stride in ((channels, 2), (width, 1), (width, 1)))
        self.stem = nn.Sequential(*first)
        widths = (width, 2 * width, 4 * width, 4 * width)
        self.convs = nn.ModuleList(ConvNorm(a, b, 3, 2, act="relu") for a, b in pairwise(widths))
        self.out = nn.ModuleList(Linear(w, dim) for w in widths)

    def forward(self, image: Tensor) -> list[Tensor]:
        m = self.stem(image.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1))
        m = F.max_pool2d(m.permute(0, 3, 1, 2), 3, 2, 1).permute(0, 2, 3, 1)
        found = [m]
        for conv in self.convs:
            found.append(conv(found[-1]))
        return [out(m) for out, m in zip(self.out, found, strict=True)]


class TwoBranches(Backbone):
    """image (B 3 H W) -> four `Tokens` at strides 4, 8, 16, 32: one stage of a plain transformer at stride 16, and a
    pyramid of convolutions that exchanges features with it.

    Any size: where strides do not divide the image, maps reach beyond it with zeros, as far as the next whole cell.
    Tokens that a plugin reduced are had back at each exchange.
    """

    def __init__(self, stages: Sequence[Stage], branch: Branch, stem: Stem | None = None, down: Down | None = None, *,
                 patch: int = 16, in_chans: int = 3, drop_path: float = 0.0):  # fmt: skip
        super().__init__(stages, stem, down, patch=patch, in_chans=in_chans, drop_path=drop_path)
        if len(stages) != 1 or self.strides != [16]:
            raise ValueError(f"one stage at stride 16 is wanted beside the pyramid; got strides {self.strides}")
        dim = stages[0].dim
        self.branch_spec = branch
        self.channels, self.strides, self.specials = [dim] * 4, list(STRIDES), self.specials * 4
        self.convolutions = Convolutions(in_chans, dim, branch.width)
        self.levels = nn.Parameter(torch.randn(3, dim))
        hidden = int(dim * branch.fields)
        rest = (branch.heads, branch.values)
        self.exchanges = nn.ModuleList(
            Interaction(dim, hidden, *rest, branch.gamma, drop_path) for _ in range(branch.exchanges)
        )
        self.extra = nn.ModuleList(Afterwards(dim, *rest, drop_path) for _ in range(branch.extra))
        self.up = nn.ConvTranspose2d(dim, dim, 2, 2)
        self.norms = nn.ModuleList(BatchNorm(dim) for _ in STRIDES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module is not self.patches:
                he(module)

    @property
    def patches(self) -> nn.Module:
        """The transformer's own first convolution, which begins as a plain ViT's does."""
        return next(m for m in self.stem.modules() if isinstance(m, nn.Conv2d))

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "branch": self.branch_spec}

    @property
    def taps(self) -> list[tuple[int, int]]:
        """A place for each map."""
        return [(i, 0) for i in range(len(STRIDES))]

    def module_at(self, stage: int, block: int) -> str:
        return f"norms.{stage}"

    def grids(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        return [((size[0] + s - 1) // s, (size[1] + s - 1) // s) for s in STRIDES]

    def walk(
        self, image: Tensor, wanted: Collection[tuple[int, int]], stop: bool = False
    ) -> tuple[Tokens, list[Tokens]]:
        """The tokens of the coarsest map, and those of the wanted ones; both branches are computed in any case."""
        self.check(image)
        t: Tokens = self.stem(image)
        first, *rest = self.convolutions(image)
        shapes = [(m.shape[1], m.shape[2]) for m in rest]
        p = tokens([m + level for m, level in zip(rest, self.levels, strict=True)])
        at = cells(shapes, STRIDES[1:], image.device)
        blocks = list(self.stages[0].blocks)  # type: ignore[arg-type]
        seen: list[Tensor] = []
        for i, exchange in enumerate(self.exchanges):
            assert isinstance(exchange, Interaction)
            p = joined(exchange.fields(p, shapes), shapes, t)
            t = told(t, self.cheap(exchange.to_tokens, p, shapes, at))
            for block in blocks[len(blocks) * i // len(self.exchanges) : len(blocks) * (i + 1) // len(self.exchanges)]:
                t = self.step(block, t)
            t = t.restored()
            p = self.cheap(exchange.within, joined(p, shapes, t), shapes, at)
            seen.append(t.map())
        for step in self.extra:
            p = self.cheap(step, joined(p, shapes, t), shapes, at)
        found = self.finished(first, maps(p, shapes), seen if self.branch_spec.each else seen[-1:] * 4)
        whole = [Tokens(m.flatten(1, 2), (m.shape[1], m.shape[2])) for m in found]
        return whole[-1], [whole[i] for i, _ in self.taps if (i, 0) in wanted]

    def cheap(self, part: nn.Module, *given: Any) -> Tensor:
        """part(*given), which is computed again in the backward pass where memory is to be saved; what holds batch
        norms is not: their statistics would count a batch twice."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(part, *given, use_reentrant=False)  # type: ignore[no-any-return]
        return part(*given)  # type: ignore[no-any-return]

    def finished(self, first: Tensor, pyramid: list[Tensor], seen: list[Tensor]) -> list[Tensor]:
        """The four maps (B H W C), with the transformer's added and normalised."""
        h, w = first.shape[1:3]
        up = self.up(pyramid[0].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)[:, :h, :w]
        sizes = [(h, w), (pyramid[0].shape[1], pyramid[0].shape[2])]
        mine = [enlarged(seen[0], 4, sizes[0]), enlarged(seen[1], 2, sizes[1]), seen[2], halved(seen[3])]
        both = zip([first + up, *pyramid], mine, self.norms, strict=True)
        return [norm(m + v) for m, v, norm in both]

    def fold_(self) -> None:
        """What the sums of both branches are normalised by is fixed."""
        for i, norm in enumerate(self.norms):
            self.norms[i] = into_readers(norm, [])


def joined(p: Tensor, shapes: Sequence[tuple[int, int]], t: Tokens) -> Tensor:
    """The pyramid (B N C) with the transformer's patches added to its map of their stride."""
    before, after = shapes[0][0] * shapes[0][1], shapes[2][0] * shapes[2][1]
    return p + F.pad(t.patches(), (0, 0, before, after))


def told(t: Tokens, y: Tensor) -> Tokens:
    """Tokens with y (B H*W C) added to their patches."""
    if not t.special:
        return replace(t, x=t.x + y)
    k = len(t.special)
    if sorted(t.special) != list(range(k)):
        raise ValueError(f"special tokens at {t.special}: beside a pyramid they are wanted in front of the patches")
    return replace(t, x=t.x + F.pad(y, (0, 0, k, 0)))


def he(conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Normal weights of variance 2 / fan out, no bias."""
    fan = conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels // conv.groups
    nn.init.normal_(conv.weight, std=(2 / fan) ** 0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


@dataclass(frozen=True)
class TwoBranched(Network):
    """A network whose backbone is `TwoBranches`."""

    branch: Branch = Branch(1.0)

    def backbone(self, in_chans: int, drop_path: float, dense: bool = False) -> Backbone:
        make: Callable[..., Backbone] = TwoBranches
        return make(self.stages, self.branch, self.stem, self.down, in_chans=in_chans, drop_path=drop_path)


def begin_from(backbone: TwoBranches, plain: Backbone) -> None:
    """Copies a plain ViT's stem and blocks (pretrained, say) into the transformer; the table of positions without its
    rows for special tokens, resized if it was made for another grid. Raises ValueError where names or shapes differ."""
    mine, position = (getattr(b.stem, "position", None) for b in (backbone, plain))
    if not isinstance(mine, Embedding) or not isinstance(position, Embedding):
        raise ValueError("a plain ViT, with a table of positions, is wanted to begin from")
    own = {n: v for n, v in backbone.state_dict().items() if n.startswith(("stem.", "stages."))}
    theirs = {n: v for n, v in plain.state_dict().items() if not n.startswith("stem.position.tokens.")}
    table = theirs.pop("stem.position.table")
    table = table[:, len(position.spec.places) :] if position.spec.rows else table
    theirs["stem.position.table"] = mine.fitted(table, position.spec.grid, mine.spec.grid)
    ones = {n: torch.ones_like(v) for n, v in own.items() if n.endswith(".gamma") and n not in theirs}
    theirs |= ones  # a plain block has no layer scale
    for name in {**own, **theirs}:
        if name not in own or name not in theirs or own[name].shape != theirs[name].shape:
            what = "is not in both" if name not in own or name not in theirs else "has another shape"
            raise ValueError(f"{name} {what}: a plain ViT of {backbone.channels[0]} channels and as many blocks fits")
    with torch.no_grad():
        for name, value in theirs.items():
            own[name].copy_(value)
