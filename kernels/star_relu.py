"""s relu(x)² + b with scalars s and b (StarReLU, https://arxiv.org/abs/2210.13452), in as few passes over x as may be.

Written out it takes four passes forward and eight backward over the widest tensors of a network, which costs more than
the matrix products around it; with x relu(x) = relu(x)² it takes two and four.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear import eager, eager_float32


def reference(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """x (…), scale and bias (1) -> (…); defines the operation."""
    return scale * F.relu(x).square() + bias


def star_relu(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """`reference`; on a CPU, outside of anything that records operators, by the short form."""
    half = eager(torch.bfloat16, x, scale, bias) or eager(torch.bfloat16, x, cast=True)
    if not (half or eager_float32(x, scale, bias)):
        return reference(x, scale, bias)
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad or bias.requires_grad):
        return _StarReLU.apply(x, scale, bias)  # type: ignore[no-any-return]
    return _forward(x, F.relu(x), scale, bias)


def _forward(x: Tensor, positive: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return torch.addcmul(bias.to(x.dtype), x, positive, value=scale.item())


class _StarReLU(torch.autograd.Function):
    """dx = 2 s r dy, ds = sum r² dy, db = sum dy, with r = relu(x), all that is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive, scale)
        return _forward(x, positive, scale, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        positive, scale = ctx.saved_tensors
        t = positive * dy
        if t.dtype is torch.bfloat16:
            ds = (t * positive).sum(dtype=torch.float32)
        else:
            ds = torch.dot(t.flatten(), positive.flatten())
        db = dy.sum(dtype=torch.float32).to(scale.dtype)
        return t.mul_(2 * scale.item()), ds.to(scale.dtype).reshape(1), db.reshape(1)
