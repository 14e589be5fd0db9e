"""Structural reparameterisation: parallel convolutions that are trained apart and become one
(https://arxiv.org/abs/2101.03697)."""

from collections.abc import Sequence
from functools import reduce
from math import gcd

import torch
from torch import Tensor, nn

from .affine import constants
from .conv import ConvNorm
from .layers import ACTIVATIONS, Linear
from .mixers.convolution import convolve
from .norm import Norm

Kernel = tuple[Tensor, Tensor]  # weight (O I/g k k), bias (O)


def regrouped(weight: Tensor, groups: int, to: int, size: int) -> Tensor:
    """The weight of a convolution in `groups` as one in `to` groups (a divisor of them) with a size x size kernel of
    the same centre, (O I/groups k k) -> (O I/to size size): zeros where an output sees no input."""
    out, each, k = weight.shape[:3]
    if groups % to or k > size or (size - k) % 2:
        raise ValueError(f"a {k}x{k} convolution in {groups} groups is no {size}x{size} one in {to}")
    rows = torch.arange(out, device=weight.device)[:, None]
    first = rows // (out // groups) % (groups // to) * each
    wide = weight.new_zeros(out, each * groups // to, size, size)
    edge = (size - k) // 2
    wide[rows, first + torch.arange(each, device=weight.device), edge : edge + k, edge : edge + k] = weight
    return wide


def identity_kernel(dim: int, groups: int, size: int, like: Tensor) -> Tensor:
    """The weight that gives its input back, (C C/groups size size)."""
    return regrouped(like.new_ones(dim, 1, 1, 1), dim, groups, size)


class Branches(nn.Module):
    """act(sum of the branches) on a map B H W C -> B H' W' C': convolutions (kernel, groups), each with a batch norm,
    and a batch norm alone if `identity`, which takes as many channels as it gives and a stride of 1.

    Kernels are odd, and padded by their halves; `scale` is what the norms' weights begin at. `fold` makes one
    convolution of the largest kernel of them all, in as many groups as divide every branch's; of 1x1 branches one
    linear layer.
    """

    def __init__(self, dim: int, out: int, convolutions: Sequence[tuple[int, int]], stride: int = 1, *,
                 identity: bool = False, act: str | None = None, scale: float = 1.0):  # fmt: skip
        super().__init__()
        if not convolutions:
            raise ValueError("Branches takes at least one convolution (kernel, groups); got none")
        if any(k % 2 == 0 for k, _ in convolutions):
            raise ValueError(f"convolutions {tuple(convolutions)}: kernels must be odd to share their centre")
        if identity and (dim != out or stride != 1):
            raise ValueError(f"identity=True takes dim == out and stride 1; got {dim}, {out} and {stride}")
        self.branches: nn.ModuleList | None = nn.ModuleList(
            ConvNorm(dim, out, k, stride, groups=g) for k, g in convolutions
        )
        self.identity: nn.Module | None = Norm("batch").build(dim) if identity else None
        for m in self.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                nn.init.constant_(m.weight, scale)
        self.layer: nn.Module = nn.Identity()  # what the branches have become
        self.act = nn.Identity() if act is None else ACTIVATIONS[act]()

    def forward(self, m: Tensor) -> Tensor:
        return self.act(self.summed(m))  # type: ignore[no-any-return]

    def summed(self, m: Tensor) -> Tensor:
        if self.branches is None:
            return convolve(self.layer, m) if isinstance(self.layer, nn.Conv2d) else self.layer(m)
        parts = [branch(m) for branch in self.branches]
        if self.identity is not None:
            parts.append(self.identity(m))
        return sum(parts[1:], start=parts[0])  # type: ignore[no-any-return]

    @torch.no_grad()
    def fold_(self) -> None:
        if self.branches is None or not all(type(branch.conv) is nn.Conv2d for branch in self.branches):
            return
        convs = [folded(branch) for branch in self.branches]
        size = max(c.kernel_size[0] for c in convs)
        first = convs[0]
        groups = 1 if size == 1 else reduce(gcd, (c.groups for c in convs))
        weight = sum(regrouped(c.weight.double(), c.groups, groups, size) for c in convs)
        bias = sum(c.bias.double() for c in convs if c.bias is not None)
        if self.identity is not None:
            found = constants(self.identity)
            assert found is not None
            a, b = (t.double() for t in found)
            weight = weight + identity_kernel(len(a), groups, size, a) * a[:, None, None, None]
            bias = bias + b
        assert isinstance(weight, Tensor)
        assert isinstance(bias, Tensor)
        self.layer = one_layer(first, weight, bias, groups)
        self.branches = self.identity = None


def folded(branch: nn.Module) -> nn.Conv2d:
    """The convolution that a branch is without its norm."""
    assert isinstance(branch, ConvNorm)
    branch.fold_()
    return branch.conv


def one_layer(like: nn.Conv2d, weight: Tensor, bias: Tensor, groups: int) -> nn.Module:
    """A convolution, or a linear layer where it is one, of these numbers."""
    size, stride = weight.shape[-1], like.stride[0]
    made: nn.Module
    if size == 1 and stride == 1:
        made, weight = Linear(like.in_channels, like.out_channels), weight.flatten(1)
    else:
        made = nn.Conv2d(like.in_channels, like.out_channels, size, stride, size // 2, groups=groups)
    made.to(like.weight)
    made.load_state_dict({"weight": weight.to(like.weight.dtype), "bias": bias.to(like.weight.dtype)})
    return made


__all__ = ["Branches", "identity_kernel", "regrouped"]
