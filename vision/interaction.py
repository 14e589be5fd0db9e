"""How a plain transformer and a pyramid of convolutions exchange features in ViT-CoMer
(https://arxiv.org/abs/2403.07392).

Shapes: B images, C channels, a pyramid of three maps (H W) at strides 8, 16 and 32, whose cells stand one behind the
other as N tokens.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.pool import means
from .depthwise import filtered
from .layers import Linear, unhooked
from .mixers.deformable import DeformableAttention, Shapes
from .norm import BatchNorm, Norm, scale_and_shift
from .residual import Add

NORM = Norm(eps=1e-6)


def maps(x: Tensor, shapes: Shapes) -> list[Tensor]:
    """(B N C) -> the maps of `shapes`, (B H W C) each."""
    parts: tuple[Tensor, ...] = torch.split(x, [h * w for h, w in shapes], 1)
    return [part.view(part.shape[0], h, w, -1) for part, (h, w) in zip(parts, shapes, strict=True)]


def tokens(pyramid: Sequence[Tensor]) -> Tensor:
    """The inverse of `maps`."""
    return torch.cat([m.flatten(1, 2) for m in pyramid], 1)


def enlarged(m: Tensor, factor: int, size: tuple[int, int]) -> Tensor:
    """m (B H W C) bilinearly enlarged, and cut to `size`: a map whose stride does not divide the image reaches beyond
    it."""
    if factor == 1:
        return m
    y = F.interpolate(m.permute(0, 3, 1, 2), scale_factor=factor, mode="bilinear", align_corners=False)
    return y.permute(0, 2, 3, 1)[:, : size[0], : size[1]]


def halved(m: Tensor) -> Tensor:
    """m (B H W C) at half its size, odd sides rounded up: bilinear without aligned corners is the mean of the (up to)
    four cells."""
    y = means(m.permute(0, 3, 1, 2), 2)
    return y.permute(0, 2, 3, 1)


class PyramidMlp(nn.Module):
    """fc2(gelu(conv(fc1(x)))) on the cells of a pyramid, with one depthwise 3x3 convolution for all its maps."""

    projections = ("fc1", "fc2")

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = Linear(dim, hidden), Linear(hidden, dim)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: Tensor, shapes: Shapes) -> Tensor:
        return self.fc2(tokens([filtered(self.conv, m, "gelu") for m in maps(self.fc1(x), shapes)]))  # type: ignore[no-any-return]


class ReceptiveFields(nn.Module):
    """fc2(gelu(gelu(norm(conv(fc1(x)))))), the convolution depthwise, 3x3 for one half of the channels and 5x5 for the
    other, with weights and a batch norm of its own for each map (the paper's MRFP; both GELUs are its code's)."""

    projections = ("fc1", "fc2")

    def __init__(self, dim: int, hidden: int, levels: int = 3):
        super().__init__()
        half = hidden // 2
        self.fc1, self.fc2 = Linear(dim, 2 * half), Linear(2 * half, dim)
        self.convs = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(half, half, k, padding=k // 2, groups=half) for k in (3, 5)) for _ in range(levels)
        )
        self.norms = nn.ModuleList(BatchNorm(2 * half) for _ in range(levels))

    def forward(self, x: Tensor, shapes: Shapes) -> Tensor:
        seen = []
        for m, pair, norm in zip(maps(self.fc1(x), shapes), self.convs, self.norms, strict=True):
            assert isinstance(pair, nn.ModuleList)
            parts = [filtered(conv, half) for conv, half in zip(pair, m.chunk(2, -1), strict=True)]
            seen.append(F.gelu(norm(torch.cat(parts, -1))))
        return self.fc2(F.gelu(tokens(seen)))  # type: ignore[no-any-return]

    def fold_(self) -> None:
        """Norms go into the convolutions before them."""
        for i, pair in enumerate(self.convs):
            if not isinstance(norm := self.norms[i], BatchNorm) or not isinstance(pair, nn.ModuleList):
                continue
            if not all(type(c) is nn.Conv2d and unhooked(c) for c in pair):
                continue
            parts = zip(pair, *(v.chunk(2) for v in scale_and_shift(norm)), strict=True)
            with torch.no_grad():
                for conv, a, b in parts:
                    assert isinstance(conv, nn.Conv2d)
                    assert conv.bias is not None
                    conv.weight.mul_(a[:, None, None, None])
                    conv.bias.mul_(a).add_(b)
            self.norms[i] = nn.Identity()


class ToTokens(nn.Module):
    """What a pyramid tells the transformer: gamma times the sum of its maps, attended and brought to stride 16, where
    gamma begins at 0: (B N C) -> (B H*W C)."""

    def __init__(self, dim: int, heads: int, ratio: float, gamma: float, drop: float):
        super().__init__()
        self.query_norm, self.value_norm, self.ffn_norm = (NORM.build(dim) for _ in range(3))
        self.attention = DeformableAttention(dim, heads, ratio=ratio)
        self.ffn, self.add = PyramidMlp(dim, dim // 4), Add(drop)
        self.gamma = nn.Parameter(torch.full((dim,), gamma))

    def forward(self, p: Tensor, shapes: Shapes, at: Tensor) -> Tensor:
        a = self.attention(self.query_norm(p), self.value_norm(p), shapes, at)  # in place of p, without a residual
        a = self.add(a, self.ffn(self.ffn_norm(a), shapes))
        fine, middle, coarse = maps(a, shapes)
        return self.gamma * (halved(fine) + middle + enlarged(coarse, 2, shapes[1])).flatten(1, 2)


class WithinPyramid(nn.Module):
    """q + attention, then an MLP with a residual, where q is the NORMALISED pyramid: as published, the norms before
    this step and those inside it follow one another. (B N C) -> (B N C)."""

    def __init__(self, dim: int, heads: int, ratio: float, drop: float):
        super().__init__()
        self.before_query, self.before_value, self.query_norm, self.value_norm, self.ffn_norm = (
            NORM.build(dim) for _ in range(5)
        )
        self.attention = DeformableAttention(dim, heads, ratio=ratio)
        self.ffn, self.add = PyramidMlp(dim, dim // 4), Add(drop)

    def forward(self, p: Tensor, shapes: Shapes, at: Tensor) -> Tensor:
        q, v = self.before_query(p), self.value_norm(self.before_value(p))
        q = q + self.attention(self.query_norm(q), v, shapes, at)
        return self.add(q, self.ffn(self.ffn_norm(q), shapes))  # type: ignore[no-any-return]


class Afterwards(WithinPyramid):
    """The same behind an MLP with a residual, for the steps that follow the last interaction."""

    def __init__(self, dim: int, heads: int, ratio: float, drop: float):
        super().__init__(dim, heads, ratio, drop)
        self.first_norm, self.first = NORM.build(dim), PyramidMlp(dim, dim // 4)

    def forward(self, p: Tensor, shapes: Shapes, at: Tensor) -> Tensor:
        return super().forward(self.add(p, self.first(self.first_norm(p), shapes)), shapes, at)


class Interaction(nn.Module):
    """One exchange: `fields` widens what the pyramid sees, `to_tokens` gives of it to the transformer before its
    blocks, `within` mixes the pyramid with what they made."""

    def __init__(self, dim: int, hidden: int, heads: int, ratio: float, gamma: float, drop: float):
        super().__init__()
        self.fields = ReceptiveFields(dim, hidden)
        self.to_tokens = ToTokens(dim, heads, ratio, gamma, drop)
        self.within = WithinPyramid(dim, heads, ratio, drop)


__all__ = ["Afterwards", "Interaction", "enlarged", "halved", "maps", "tokens"]
