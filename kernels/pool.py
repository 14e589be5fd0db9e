"""The mean over a token's neighbourhood minus the token itself (PoolFormer, https://arxiv.org/abs/2111.11418).

torch's average pooling walks channels-last maps one number at a time. The sum over a neighbourhood is a depthwise
convolution with ones, for which oneDNN has vector code in that layout; and the transpose of a symmetric sum is itself.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear import eager_float32
from .sizes import is_open, missing


def reference(m: Tensor, size: int) -> Tensor:
    """m (B H W C) -> (B H W C): mean over the cells of the size x size neighbourhood that exist, minus m. Defines the
    operation."""
    mean = F.avg_pool2d(m.permute(0, 3, 1, 2), size, 1, size // 2, count_include_pad=False)
    return mean.permute(0, 2, 3, 1) - m


def means(x: Tensor, size: int) -> Tensor:
    """x (B C H W) -> the means over size x size places, at the edges over those that exist (B C ceil(H/size) ...)."""
    h, w = x.shape[-2:]
    if not is_open(h, w):
        return F.avg_pool2d(x, size, ceil_mode=True, count_include_pad=False)
    edge = (0, missing(w, size), 0, missing(h, size))
    return F.avg_pool2d(F.pad(x, edge), size) / F.avg_pool2d(F.pad(x.new_ones(1, 1, h, w), edge), size)


def pool_minus_identity(m: Tensor, size: int) -> Tensor:
    """`reference`; on a CPU in float32, outside of anything that records operators, by depthwise convolution."""
    if not eager_float32(m):
        return reference(m, size)
    if torch.is_grad_enabled() and m.requires_grad:
        return _Pool.apply(m, size)  # type: ignore[no-any-return]
    return neighbours(m, size).mul_(per_cell(m, size)).sub_(m)


def neighbours(m: Tensor, size: int) -> Tensor:
    """(B H W C): the sum over the neighbourhood."""
    c = m.shape[-1]
    ones = torch.ones(c, 1, size, size, dtype=m.dtype, device=m.device)
    y = F.conv2d(m.permute(0, 3, 1, 2), ones, padding=size // 2, groups=c)
    return y.permute(0, 2, 3, 1).contiguous()


def per_cell(m: Tensor, size: int) -> Tensor:
    """(H W 1): one over the number of neighbours that exist."""
    count = [
        torch.arange(n, device=m.device).add(size // 2 + 1).clamp_(max=n)
        - torch.arange(n, device=m.device).sub(size // 2).clamp_(min=0)
        for n in m.shape[1:3]
    ]
    return (count[0][:, None] * count[1]).to(m.dtype).reciprocal_()[..., None]


class _Pool(torch.autograd.Function):
    """With S the sum over neighbours and c their number: y = S m / c - m, dm = S (dy / c) - dy."""

    @staticmethod
    def forward(ctx: Any, m: Tensor, size: int) -> Tensor:
        ctx.size = size
        return neighbours(m, size).mul_(per_cell(m, size)).sub_(m)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (dy,) = grads
        return neighbours(dy * per_cell(dy, ctx.size), ctx.size) - dy, None
