"""gamma (W2 act(W1 x + b1) + b2), the MLP of every transformer block, a slice of tokens at a time.

The hidden activations are the widest tensors of a network. Made whole they leave the cache before they are used, and
above 32 MB the C library gives their pages back to the system and takes them anew every time. In slices they stay: what
is computed is the same. A scale per channel behind the MLP (LayerScale) is folded into W2 and b2, which are small, so
that neither it nor its gradient takes a pass over the tokens.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear import eager_float32, product
from .star_relu import star_relu

SLICE = 2 * 1024 * 1024  # numbers of hidden activations at a time: 8 MB

Star = tuple[Tensor, Tensor]  # StarReLU's scale and bias; None stands for the exact GELU


Layer = tuple[Tensor, Tensor | None]  # weight (out in) and bias (out)


def reference(x: Tensor, first: Layer, last: Layer, star: Star | None = None, gamma: Tensor | None = None) -> Tensor:
    """x (… C), first (H C) (H), last (C' H) (C'), gamma (C') -> (… C'); defines the operation."""
    hidden = F.linear(x, *first)
    y = F.linear(F.gelu(hidden) if star is None else star_relu(hidden, *star), *last)
    return y if gamma is None else y * gamma


def mlp(x: Tensor, first: Layer, last: Layer, star: Star | None = None, gamma: Tensor | None = None) -> Tensor:
    """`reference`, in slices on a CPU in float32 where nothing records operators."""
    (w1, b1), (w2, b2), (s, b) = first, last, (None, None) if star is None else star
    if not eager_float32(x, w1, w2) or not x.numel():
        return reference(x, first, last, star, gamma)
    tensors = (x, w1, b1, w2, b2, s, b, gamma)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _Mlp.apply(*tensors)  # type: ignore[no-any-return]
    if gamma is not None:
        w2, b2 = scaled(w2, b2, gamma)
    rows = x.reshape(-1, x.shape[-1])
    parts = []
    for a in slices(rows.shape[0], w1.shape[0]):
        if star is None:
            hidden = product(rows[a], w1, b1, gelu=True)
        else:
            hidden = star_relu(product(rows[a], w1, b1), *star)
        parts.append(product(hidden, w2, b2))
    return whole(parts, x)


def scaled(weight: Tensor, bias: Tensor | None, gamma: Tensor) -> Layer:
    return weight * gamma[:, None], None if bias is None else bias * gamma


def slices(rows: int, hidden: int) -> Iterator[slice]:
    """Slices of equal size of about SLICE hidden activations."""
    count = -(-rows * hidden // SLICE)
    step = -(-rows // count)
    return (slice(i, min(i + step, rows)) for i in range(0, rows, step))


def whole(parts: list[Tensor], like: Tensor) -> Tensor:
    y = parts[0] if len(parts) == 1 else torch.cat(parts)
    return y.view(*like.shape[:-1], y.shape[-1])


class _Mlp(torch.autograd.Function):
    """With p = W1 x + b1, a = act(p): dW2 = dy' a, da = dy W2, dp = act'(p) da, dW1 = dp' x, dx = dp W1."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        x, w1, b1, w2, b2, s, b, gamma = tensors
        plain = w2, b2
        if gamma is not None:
            w2, b2 = scaled(w2, b2, gamma)
        rows = x.reshape(-1, x.shape[-1])
        kept, parts = [], []
        for a in slices(rows.shape[0], w1.shape[0]):
            p = product(rows[a], w1, b1)
            h = activated(p, s, b)
            kept += [p, h]
            parts.append(product(h, w2, b2))
        ctx.save_for_backward(rows, w1, w2, s, gamma, *plain, *kept)
        return whole(parts, x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        rows, w1, w2, s, gamma, plain2, bias2, *kept = ctx.saved_tensors
        need = ctx.needs_input_grad
        shape, dy = dy.shape, dy.reshape(-1, dy.shape[-1])
        dw1 = torch.empty_like(w1) if need[1] else None
        dw2 = torch.empty_like(w2) if need[3] or need[7] else None
        db1 = w1.new_zeros(w1.shape[0]) if need[2] else None
        ds, parts = 0.0, []
        for i, a in enumerate(slices(rows.shape[0], w1.shape[0])):
            p, h = kept[2 * i : 2 * i + 2]
            d, beta = dy[a], float(i > 0)
            if dw2 is not None:
                torch.addmm(dw2, d.t(), h, beta=beta, out=dw2)
            da = product(d, w2.t())
            if s is None:
                dp = torch.ops.aten.gelu_backward.grad_input(da, p, grad_input=da)
            else:
                positive = F.relu(p)
                dp = positive * da
                if need[5] or need[6]:
                    ds = ds + torch.stack((torch.dot(dp.flatten(), positive.flatten()), da.sum()))
                dp.mul_(2 * s.item())
            if dw1 is not None:
                torch.addmm(dw1, dp.t(), rows[a], beta=beta, out=dw1)
            if db1 is not None:
                db1.add_(dp.sum(0))
            if need[0]:
                parts.append(product(dp, w1.t()))
        dx = whole(parts, dy).view(*shape[:-1], -1) if need[0] else None
        db2 = dy.sum(0) if need[4] or (need[7] and bias2 is not None) else None
        scalar = (None, None) if isinstance(ds, float) else (ds[:1], ds[1:])
        if gamma is None:
            return dx, dw1, db1, dw2, db2, *scalar, None
        dgamma = (dw2 * plain2).sum(1) if dw2 is not None else None  # of W2 scaled: dgamma = rowsum(dW W2) + db b2
        if dgamma is not None and db2 is not None and bias2 is not None:
            dgamma += db2 * bias2
        dw2 = dw2 * gamma[:, None] if dw2 is not None and need[3] else None
        return dx, dw1, db1, dw2, db2 * gamma if db2 is not None and need[4] else None, *scalar, dgamma if need[7] else None


def activated(p: Tensor, s: Tensor | None, b: Tensor | None) -> Tensor:
    if s is None or b is None:
        return F.gelu(p)
    return torch.addcmul(b, p, F.relu(p), value=s.item())
