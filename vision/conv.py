"""Convolutions on maps B H W C: with a batch norm and an activation behind them, or as a squeeze and excitation."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .block import ACTIVATIONS, Linear
from .mixers.convolution import convolve
from .norm import BatchNorm, scale_and_shift


class ConvNorm(nn.Module):
    """act(norm(conv(m))) on a map B H W C -> B H' W' C'; padding of kernel // 2 unless told otherwise."""

    def __init__(self, dim: int, out: int, kernel: int = 1, stride: int = 1, *, groups: int = 1, bias: bool = False,
                 padding: int | None = None, act: str | None = None, eps: float = 1e-5):  # fmt: skip
        super().__init__()
        padding = kernel // 2 if padding is None else padding
        self.conv = nn.Conv2d(dim, out, kernel, stride, padding, groups=groups, bias=bias)
        self.norm: nn.Module = nn.BatchNorm2d(out, eps=eps)
        self.act = nn.Identity() if act is None else ACTIVATIONS[act]()

    def forward(self, m: Tensor) -> Tensor:
        y = self.norm(self.conv(m.permute(0, 3, 1, 2)))
        return self.act(y.permute(0, 2, 3, 1))  # type: ignore[no-any-return]

    def fold_(self) -> None:
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = absorbed(self.conv, self.norm)
            self.norm = nn.Identity()


def absorbed(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """norm(conv(x)) as one convolution with a bias."""
    a, b = scale_and_shift(norm)
    padding = (int(conv.padding[0]), int(conv.padding[1]))
    made = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, padding, groups=conv.groups)  # type: ignore[arg-type]
    made.to(conv.weight)
    with torch.no_grad():
        made.weight.copy_(conv.weight * a[:, None, None, None].to(conv.weight.dtype))
        made.bias.copy_(b if conv.bias is None else conv.bias * a + b)  # type: ignore[union-attr]
    return made


class LinearNorm(nn.Module):
    """act(norm(linear(x))): a 1x1 convolution with its batch norm, on tokens or maps whose channels come last."""

    projections = ("linear",)

    def __init__(self, dim: int, out: int, *, bias: bool = False, act: str | None = None, eps: float = 1e-5):
        super().__init__()
        self.linear = Linear(dim, out, bias)
        self.norm: nn.Module = BatchNorm(out, eps=eps)
        self.act = nn.Identity() if act is None else ACTIVATIONS[act]()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.linear(x)))  # type: ignore[no-any-return]

    def fold_(self) -> None:
        if isinstance(self.norm, BatchNorm) and isinstance(self.linear, Linear):
            a, b = scale_and_shift(self.norm)
            old = self.linear
            self.linear = Linear(old.in_features, old.out_features).to(old.weight)
            with torch.no_grad():
                self.linear.weight.copy_(old.weight * a[:, None].to(old.weight.dtype))
                self.linear.bias.copy_(b if old.bias is None else old.bias * a + b)
            self.norm = nn.Identity()


class SqueezeExcite(nn.Module):
    """m * sigmoid(fc2(act(fc1(mean of the map)))), https://arxiv.org/abs/1709.01507; on a map B H W C."""

    projections = ("fc1", "fc2")

    def __init__(self, dim: int, hidden: int, act: Callable[[], nn.Module] = nn.SiLU):
        super().__init__()
        self.fc1, self.act, self.fc2 = Linear(dim, hidden), act(), Linear(hidden, dim)

    def forward(self, m: Tensor) -> Tensor:
        return m * self.fc2(self.act(self.fc1(m.mean((1, 2), keepdim=True)))).sigmoid()  # type: ignore[no-any-return]


__all__ = ["ConvNorm", "LinearNorm", "SqueezeExcite", "absorbed", "convolve"]
