"""Attention whose scores are multiplied by a mask of the tokens' places before the softmax: over all tokens, and inside
windows; https://arxiv.org/abs/2309.05375."""

from dataclasses import dataclass, replace

from torch import Tensor, nn

from ...kernels.masked import attend_masked, attend_masked_windows
from ..block import Mixer
from ..spec import Spec, sized
from ..tokens import Probe, Tokens
from .attention import SelfAttention
from .gaussian_mask import Gaussians, Mask, beside_special
from .window import WindowAttention


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B N 3*h*d) -> q, k and v (B h N d), in one copy."""
    parts = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).contiguous()  # type: ignore[no-untyped-call]
    q, k, v = parts.unbind(0)
    return q, k, v


def place_mask(mask: nn.Module, t: Tokens) -> Tensor:
    """(h or 1 N N): the mask for the grid of t, special tokens left as they are."""
    if t.grid is None:
        raise ValueError("these tokens no longer fill a grid, and a mask weighs their scores by their places in it")
    return beside_special(mask(t.grid), t.special)


class MaskedAttention(SelfAttention):
    """softmax(mask * q k' / sqrt(d)) v over all tokens of a grid; special tokens meet all others unmasked."""

    needs_grid, offers, seams, takes_special = True, ("keys",), (), True

    def __init__(self, dim: int, heads: int, mask: Mask, bias: bool = True, out_bias: bool = True,
                 width: int | None = None):  # fmt: skip
        super().__init__(dim, heads, bias, out_bias, width=width)
        self.mask = mask.build(heads)

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        q, k, v = split_heads(self.qkv(t.x), self.heads)
        if probe is not None:
            probe["keys"] = k  # B h N d
        y = attend_masked(q, k, v, place_mask(self.mask, t))
        return self.proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]  # B N C


class MaskedWindowAttention(WindowAttention):
    """WindowAttention with the scores inside a window multiplied by a mask before bias and shift mask are added."""

    rescales, takes_special, seams = False, False, ()

    def __init__(self, dim: int, heads: int, size: int, shift: int, mask: Mask):
        super().__init__(dim, heads, size, shift)
        self.mask = mask.build(heads)

    def attend(self, qkv: Tensor, bias: Tensor, size: int) -> Tensor:
        return attend_masked_windows(qkv, self.mask((size, size)), bias, self.heads, size)


class PlusInput(nn.Module):
    """mixer(x) + x: a mixer that keeps the normalised tokens it was given, beside the residual of its block."""

    projections = ()

    def __init__(self, mixer: nn.Module):
        super().__init__()
        self.mixer, self.needs_grid, self.offers = mixer, mixer.needs_grid, mixer.offers

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        return self.mixer(t, probe) + t.x  # type: ignore[no-any-return]


@dataclass(frozen=True)
class MaskedGlobal(Spec):
    """Attention of every token to every token behind a mask."""

    heads: int
    mask: Mask = Gaussians()
    bias: bool = True  # of the qkv projection
    out_bias: bool = True

    def sized(self, grid: tuple[int, int]) -> "MaskedGlobal":
        return replace(self, mask=self.mask.sized(grid))

    def build(self, dim: int, index: int) -> nn.Module:
        return MaskedAttention(dim, self.heads, self.mask, self.bias, self.out_bias)


@dataclass(frozen=True)
class MaskedWindow:
    """Attention behind a mask inside size x size windows; every second block shifts them by half a window."""

    heads: int
    size: int = 4
    mask: Mask = Gaussians()

    def build(self, dim: int, index: int) -> nn.Module:
        return MaskedWindowAttention(dim, self.heads, self.size, self.size // 2 * (index % 2), self.mask)


@dataclass(frozen=True)
class Kept(Spec):
    """A mixer whose normalised input is added to what it gives."""

    mixer: Mixer

    def sized(self, grid: tuple[int, int]) -> "Kept":
        return Kept(sized(self.mixer, grid))

    def build(self, dim: int, index: int) -> nn.Module:
        return PlusInput(self.mixer.build(dim, index))
