"""DiMR: a denoiser of several resolutions with time-dependent norms, https://arxiv.org/abs/2406.09416.

Shapes: B samples, C channels of the image or latent, d channels of a branch, h w its grid, N tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...kernels.sizes import missing
from ..block import Seams
from ..layers import Linear, SwiGLU
from ..mixers.attention import SelfAttention
from ..mixers.convolution import DepthwiseConv, convolve
from ..network import Rules
from ..position import resize, same
from ..published import Weights
from ..residual import Add
from ..tokens import Tokens
from .conditioning import LabelEmbedding
from .denoiser import Denoiser, Variant
from .time_norm import TimeLayerNorm, TimeRMSNorm


class TimedBlock(Seams):
    """[norm1 ->] mixer -> residual -> norm2 -> GeGLU -> residual, its norms by the time, which is the condition (B 1).
    Attention stands behind a norm, a convolution does not."""

    seams = (*Seams.seams, "around_ffn")
    needs_grid = True  # its features are maps, for skips and for finer branches

    def __init__(self, dim: int, mixer: nn.Module, norm: bool):
        super().__init__()
        self.dim = dim
        self.norm1, self.norm2 = TimeRMSNorm(dim) if norm else None, TimeRMSNorm(dim)
        self.mixer, self.ffn, self.add = mixer, SwiGLU(dim, 2 * dim, True, "gelu"), Add()

    def run(self, t: Tokens) -> Tokens:
        assert t.condition is not None
        tau = t.condition[:, 0]
        y, probe = self.mix(t, t.x if self.norm1 is None else self.norm1(t.x, tau))
        t = replace(t, x=self.add(t.x, y))
        if self.after_mixer is not None:
            t = self.after_mixer(t, probe)
        return self.feed(t, t.x, self.norm2(t.x, tau), self.add, self.ffn)


@dataclass(frozen=True)
class Branch:
    """`blocks` (an odd number: as many on the way in as on the way out, and one between them) of `dim` channels, on
    cells of `ratio` x `ratio` pixels. `heads`: attention, with a class token; None: depthwise kernel x kernel
    convolutions."""

    dim: int
    blocks: int
    ratio: int
    heads: int | None = None
    kernel: int = 7

    def __post_init__(self) -> None:
        if self.blocks % 2 == 0 or min(self.dim, self.blocks, self.ratio) < 1:
            raise ValueError(f"{self}: dim and ratio of at least 1 and an odd number of blocks are wanted")

    def block(self) -> nn.Module:
        if self.heads is None:
            return TimedBlock(self.dim, DepthwiseConv(self.dim, self.kernel), norm=False)
        return TimedBlock(self.dim, SelfAttention(self.dim, self.heads, bias=False), norm=True)


class Upsample(nn.Module):
    """Features of a coarser branch (B h w L) -> (B h*r w*r d): norm, a linear layer to r x r vectors of d, norm."""

    projections = ("linear",)

    def __init__(self, wide: int, dim: int, ratio: int):
        super().__init__()
        self.ratio = ratio
        self.norm1, self.linear, self.norm2 = TimeLayerNorm(wide), Linear(wide, dim * ratio**2), TimeLayerNorm(dim)

    def forward(self, below: Tensor, tau: Tensor) -> Tensor:
        m = self.linear(self.norm1(below, tau)).unflatten(-1, (self.ratio, self.ratio, -1))  # B h w r r d
        return self.norm2(m.transpose(2, 3).flatten(3, 4).flatten(1, 2), tau)  # type: ignore[no-any-return]


class BranchNet(nn.Module):
    """One resolution: (B C H W), tau (B), the class's token (B d) or None, and the features of the next coarser branch
    -> its own features (B h w d (blocks + 1)) and the map (B h w d) that `head` makes its prediction of."""

    projections = ("embed",)

    def __init__(self, spec: Branch, channels: int, grid: tuple[int, int], below: tuple[int, int] | None):
        """`grid` is that of the table of places, `below` the coarser branch's channels of features and ratio."""
        super().__init__()
        self.spec, self.grid = spec, grid
        self.embed = nn.Conv2d(channels, spec.dim, spec.ratio, spec.ratio)
        self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, grid[0] * grid[1], spec.dim), std=0.02))
        self.up = None if below is None else Upsample(below[0], spec.dim, below[1] // spec.ratio)
        self.blocks = nn.ModuleList(spec.block() for _ in range(spec.blocks))
        self.skips = nn.ModuleList(Linear(2 * spec.dim, spec.dim) for _ in range(spec.blocks // 2))
        self.norm = TimeLayerNorm(spec.dim)
        self.head = nn.Conv2d(spec.dim, channels, 3, padding=1)
        self.grad_checkpointing = False

    def forward(self, x: Tensor, tau: Tensor, token: Tensor | None, below: Tensor | None) -> tuple[Tensor, Tensor]:
        m = convolve(self.embed, x.permute(0, 2, 3, 1))  # B h w d
        grid = (m.shape[1], m.shape[2])
        m = m + self.places(grid).unflatten(1, grid)  # type: ignore[no-untyped-call]
        if self.up is not None:
            m = m + self.up(below, tau)
        t = Tokens(m.flatten(1, 2), grid, condition=tau[:, None])
        if token is not None:
            t = replace(t, x=torch.cat([token[:, None], t.x], 1), special=(0,))
        features, half = [t.map()], len(self.skips)
        stack: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            if i > half:
                t = replace(t, x=self.skips[i - half - 1](torch.cat([t.x, stack.pop()], -1)))
            t = self.step(block, t)
            if i < half:
                stack.append(t.x)
            features.append(t.map())
        return torch.cat(features, -1), features[-1]

    def step(self, block: nn.Module, t: Tokens) -> Tokens:
        keep = self.grad_checkpointing and torch.is_grad_enabled()
        return cast(Tokens, checkpoint(block, t, use_reentrant=False) if keep else block(t))

    def places(self, grid: tuple[int, int]) -> Tensor:
        """(1 h*w d): the first rows and columns of the table, as published; one of a larger grid is resized."""
        if same(grid, self.grid):
            return self.table
        h, w = whole = max(grid[0], self.grid[0]), max(grid[1], self.grid[1])
        return resize(self.table, self.grid, whole).view(1, h, w, -1)[:, : grid[0], : grid[1]].flatten(1, 2)

    def resample(self, name: str, value: Tensor) -> Tensor | None:
        """A published table of another square grid, resized; None for anything else."""
        side = round(value.shape[1] ** 0.5) if value.ndim == 3 else 0
        if name != "table" or side**2 != value.shape[1] or value.shape[-1] != self.spec.dim:
            return None
        return resize(value, (side, side), self.grid)

    def predict(self, m: Tensor, tau: Tensor) -> Tensor:
        return convolve(self.head, self.norm(m, tau)).permute(0, 3, 1, 2)


class DiMR(Denoiser):
    """Branches from coarse to fine, each predicting the noise at its own resolution; the features of one are the input
    of the next, upsampled. The coarsest is a transformer with the class as a token, the others are convolutional. The
    time acts through the norms alone.

    t is n / 1000 * 8 - 4 for step n of 1 .. 1000; `predictions` are those of all branches, coarse to fine.
    `num_classes` None or 0: no labels.
    """

    family = "dimr"

    def __init__(self, branches: Sequence[Branch], in_channels: int = 4, size: Sequence[int] = (32, 32), *,
                 num_classes: int | None = 1000, dropout: float = 0.1):  # fmt: skip
        high, wide = (int(n) for n in size)
        super().__init__(in_channels, in_channels, (high, wide), num_classes=num_classes or None, time="log_snr",
                         dropout=dropout)  # fmt: skip
        self.specs = tuple(branches)
        if not branches or any(b.ratio % a.ratio or b.ratio <= a.ratio for b, a in pairwise(branches)):
            raise ValueError(f"branches of ratios {[b.ratio for b in branches]}: from coarse to fine, each a multiple")
        if any((b.heads is None) == (i == 0) for i, b in enumerate(branches)):
            raise ValueError("the first branch has heads, and the others have none: the class is a token of the first")
        self.labels = LabelEmbedding(num_classes, branches[0].dim, self.has_null) if num_classes else None
        below: tuple[int, int] | None = None
        self.branches = nn.ModuleList()
        for b in branches:
            self.branches.append(BranchNet(b, in_channels, (-(-high // b.ratio), -(-wide // b.ratio)), below))
            below = b.dim * (b.blocks + 1), b.ratio
        initialise(self)

    def arguments(self) -> dict[str, Any]:
        return {"branches": self.specs, "in_channels": self.in_channels, "size": self.size,
                "num_classes": self.num_classes, "dropout": self.made_with_dropout}  # fmt: skip

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None) -> list[Tensor]:
        h, w = x.shape[-2:]
        x = F.pad(x, (0, missing(w, self.specs[0].ratio), 0, missing(h, self.specs[0].ratio)))
        tau, below = t / 4, None
        token = None if self.labels is None else self.labels(y)
        found = []
        for net in self.branches:
            assert isinstance(net, BranchNet)
            below, last = net(x, tau, token, below)
            r, token = net.spec.ratio, None
            found.append(net.predict(last, tau)[..., : -(-h // r), : -(-w // r)])
        return found

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for net in self.branches:
            assert isinstance(net, BranchNet)
            net.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """What makes norms depend on the time, and what is embedded."""
        timed = {n for n, _ in self.named_parameters() if n.rpartition(".")[2].startswith("nodecay_")}
        return super().no_weight_decay() | timed


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Linear layers and embeddings truncated normal with deviation 0.02; convolutions are as torch makes them."""
    for m in model.modules():
        if isinstance(m, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(m.weight, std=0.02)


def pair(dims: tuple[int, int], blocks: tuple[int, int]) -> dict[str, Any]:
    """Attention on cells of 2 x 2, convolutions on single ones."""
    return {"branches": (Branch(dims[0], blocks[0], 2, heads=16), Branch(dims[1], blocks[1], 1))}


VARIANTS = {
    "dimr_xl_2r": Variant("dimr", DiMR, pair((960, 480), (39, 21))),
    "dimr_g_2r": Variant("dimr", DiMR, pair((1152, 576), (57, 29))),
    "dimr_tiny_3r": Variant("dimr", DiMR, {
        "branches": (Branch(64, 5, 4, heads=4), Branch(48, 5, 2), Branch(32, 3, 1)),
    }, listed=False),
}  # fmt: skip

STAGE, BRANCH = r"stages\.(\d+)\.", r"branches.\1."
BLOCK, OURS = STAGE + r"blocks\.(\d+)\.", BRANCH + r"blocks.\2."
TIMED, ENDS = r"(param0|param1|nodecay_weight|nodecay_bias)", r"(weight|bias)"


def as_table(value: Tensor, net: nn.Module) -> Tensor:
    """(h*w d) -> (1 h*w d)."""
    return value[None] if value.ndim == 2 else value


RULES = {
    "published": Rules((
        (STAGE + r"input_layer\.1\." + ENDS, BRANCH + r"embed.\2"),
        (STAGE + r"input_layer\.3\.position_embeddings\.weight", BRANCH + "table"),
        (r"stages\.0\.class_embeds\.weight", "labels.table.weight"),
        (STAGE + rf"upsample\.0\.{ENDS}\.{TIMED}", BRANCH + r"up.norm1.\2.\3"),
        (STAGE + rf"upsample\.2\.{ENDS}\.{TIMED}", BRANCH + r"up.norm2.\2.\3"),
        (STAGE + r"upsample\.1\.kernel\." + ENDS, BRANCH + r"up.linear.\2"),
        (BLOCK + r"block([12])\.norm\.scale\." + TIMED, OURS + r"norm\3.scale.\4"),
        (BLOCK + r"block1\.query_key_value\.weight", OURS + "mixer.qkv.weight"),
        (BLOCK + r"block1\.dense\." + ENDS, OURS + r"mixer.proj.\3"),
        (BLOCK + r"block1\.1\." + ENDS, OURS + r"mixer.conv.\3"),
        *((BLOCK + rf"block2\.{theirs}\." + ENDS, OURS + rf"ffn.{ours}.\3")
          for theirs, ours in (("w0", "fc1"), ("w1", "fc3"), ("w2", "fc2"))),
        (STAGE + r"skip_denses\.(\d+)\." + ENDS, BRANCH + r"skips.\2.\3"),
        (STAGE + rf"output_layer\.0\.{ENDS}\.{TIMED}", BRANCH + r"norm.\2.\3"),
        (STAGE + r"output_layer\.2\." + ENDS, BRANCH + r"head.\2"),
    ), convert=((r"branches\.\d+\.table", as_table),)),
}  # fmt: skip


def row(file: str, fid: float) -> Weights:
    return Weights("in1k", f"hf-hub:QHL067/DiMR/{file}", "apache-2.0", input_size=(4, 32, 32), mean=(0.5,) * 3,
                   std=(0.5,) * 3, crop_pct=1.0, metrics={"fid": fid}, form="denoiser")  # fmt: skip


WEIGHTS = {"dimr_xl_2r": (row("DiMR-XL_2R_800epochs.pth", 1.70),), "dimr_g_2r": (row("DiMR-G_2R_800epochs.pth", 1.63),)}
