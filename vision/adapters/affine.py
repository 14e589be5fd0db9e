"""Every layer of the trunk is scaled and shifted: SSF, https://arxiv.org/abs/2210.08823, and Diffscaler's Affiner,
https://arxiv.org/abs/2404.09976, which adds a small MLP beside it.

y = (1 + a) (W x) + b0 + b + s W_up relu(W_down x), with a and b one number for each output channel, zero to begin with.

Nobody published code of Diffscaler. This is a reading of the paper, and claims no more: the scale begins at one
(a = 0, though "initialised to one" could be said of a), W_up at zero; a convolution has a branch of 1x1 convolutions,
which reads the middle of each patch under its kernel; s is fixed; the rows of W_down begin in pairs w, -w, as a branch
that is asleep for every token would stay so. Its data sets are adapters of one model here.
"""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn

from ..layers import Linear
from . import HEADS, AdapterError, Put
from .partial import trunk_modules

LAYERS = (Linear, nn.Linear, nn.Conv2d)  # exactly these: what derives from them may read its weights in its own way


@dataclass(frozen=True)
class ScaleShift:
    """Scales and shifts behind every layer (SSF).

    SSF: a and b behind every linear layer and convolution; no branch, so that all of it goes into the weights. The
    paper has them behind norms too, whose own scales and shifts `norm` trains."""

    def place(self, model: nn.Module) -> list[Put]:
        return [put for put, _ in affiners(model, None, 0.0)]

    def merged(self, layer: nn.Module) -> nn.Module:
        assert isinstance(layer, Affiner)
        return layer.plain()


@dataclass(frozen=True)
class DiffScaler:
    """Scales, shifts and a small MLP around every layer (Diffscaler).

    Affiners around every linear layer and convolution, `r` wide in the branch, which counts `scale`; a layer with
    fewer than r channels on both its sides has no branch."""

    r: int = 8
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"r={self.r}: the branch of an Affiner is at least 1 wide; without one it is `ssf`")
        if not 0 < self.scale < inf:
            raise ValueError(f"scale={self.scale}: a number above 0")

    def place(self, model: nn.Module) -> list[Put]:
        found = affiners(model, self.r, self.scale)
        widest = max(width for _, width in found)
        if widest < self.r:
            raise AdapterError(f"r={self.r}: no layer of {type(model).__name__} is wider than {widest} channels")
        return [put for put, _ in found]


def affiners(model: nn.Module, r: int | None, scale: float) -> list[tuple[Put, int]]:
    """An Affiner around each layer, and how wide that layer is at most."""
    made: dict[int, Affiner] = {}
    found = []
    for path, owner in trunk_modules(model):
        for name, layer in owner.named_children():
            if type(layer) in LAYERS and not (path == "" and name in HEADS):
                width = max(channels(layer))
                made.setdefault(id(layer), Affiner(layer, None if r is None or r > width else r, scale))
                found.append((Put(path, name, made[id(layer)]), width))
    if not found:
        raise AdapterError(f"{type(model).__name__} has no linear layer and no convolution that could be scaled")
    return found


def channels(layer: nn.Module) -> tuple[int, int]:
    """(in, out)"""
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    assert isinstance(layer, nn.Linear)
    return layer.in_features, layer.out_features


class Affiner(nn.Module):
    """(1 + a) (W x) + b0 + b + s W_up relu(W_down x) around a linear layer (… C) or a convolution (B C H W)."""

    def __init__(self, layer: nn.Module, r: int | None, scale: float):
        super().__init__()
        (dim, out), self.s = channels(layer), scale
        self.layer = layer
        self.a, self.b = nn.Parameter(torch.zeros(out)), nn.Parameter(torch.zeros(out))
        self.down: nn.Module | None = None
        self.up: nn.Module | None = None
        if r is not None:
            two = isinstance(layer, nn.Conv2d)
            self.down = nn.Conv2d(dim, r, 1, bias=False) if two else nn.Linear(dim, r, bias=False)
            self.up = nn.Conv2d(r, out, 1, bias=False) if two else nn.Linear(r, out, bias=False)
            nn.init.zeros_(self.up.weight)
            with torch.no_grad():  # rows in pairs w, -w: one of them is awake, whatever comes in
                self.down.weight[1::2] = -self.down.weight[: r // 2 * 2 : 2]

    def forward(self, x: Tensor) -> Tensor:
        two = isinstance(self.layer, nn.Conv2d)
        y = self.layer(x)
        scale, shift = (self.across(t) for t in (1 + self.a, self.shift()))
        y = torch.addcmul(shift.to(y.dtype), y, scale.to(y.dtype))
        if self.down is None or self.up is None:
            return y
        seen = self.middles(x, y) if two else x
        return y + self.s * self.up(self.down(seen).relu())  # type: ignore[no-any-return]

    def shift(self) -> Tensor:
        """b - a b0, as the layer adds b0, which is not scaled, before it is scaled with the rest."""
        b0 = self.layer.bias
        return self.b if b0 is None else self.b - self.a * b0  # type: ignore[operator]

    def across(self, t: Tensor) -> Tensor:
        return t[:, None, None] if isinstance(self.layer, nn.Conv2d) else t

    def middles(self, x: Tensor, y: Tensor) -> Tensor:
        """(B C H W), (B C' H' W') -> (B C H' W'): what stands under the middle of the kernel for each pixel of y."""
        for axis in (2, 3):
            first, step = self.middle(axis - 2)
            if (first, step) != (0, 1) or x.shape[axis] != y.shape[axis]:
                places = torch.arange(y.shape[axis], device=x.device) * step + first
                x = x.index_select(axis, places.clamp(0, x.shape[axis] - 1))
        return x

    def middle(self, axis: int) -> tuple[int, int]:
        """(the first pixel under the middle of the kernel, how far it is to the next)."""
        conv = self.layer
        assert isinstance(conv, nn.Conv2d)
        half = conv.dilation[axis] * (conv.kernel_size[axis] - 1) // 2
        named = {"valid": 0, "same": half}  # what padding may be called
        before: int = named[conv.padding] if isinstance(conv.padding, str) else int(conv.padding[axis])
        return half - before, conv.stride[axis]

    @property
    def bias(self) -> Tensor:
        """What is added, for those that look at a layer's bias."""
        b0 = self.layer.bias
        return self.b if b0 is None else b0 + self.b  # type: ignore[operator]

    @property
    def stride(self) -> tuple[int, ...]:
        """The convolution's."""
        return self.layer.stride  # type: ignore[return-value]

    @torch.no_grad()
    def plain(self) -> nn.Module:
        """The layer that computes the same, where there is no branch."""
        old = self.layer
        assert self.down is None
        if isinstance(old, nn.Conv2d):
            new: nn.Module = nn.Conv2d(
                old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, old.dilation, old.groups,  # type: ignore[arg-type]
                padding_mode=old.padding_mode,
            )  # fmt: skip
        else:
            new = type(old)(*channels(old))
        weight: Tensor = old.weight  # type: ignore[assignment]
        scale = (1 + self.a).view(-1, *(1,) * (weight.ndim - 1))
        new.to(weight).load_state_dict({"weight": weight * scale, "bias": self.bias})
        return new.train(old.training).requires_grad_(False)
