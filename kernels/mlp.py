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

from .linear import eager, eager_float32, outer, product
from .star_relu import star_relu

SLICE = 4 * 1024 * 1024  # numbers of hidden activations at a time: 16 MB in float32

Star = tuple[Tensor, Tensor]  # StarReLU's scale and bias; None stands for the exact GELU


KINDS = {False: "none", True: "tanh"}  # of the GELU, as torch calls them

Layer = tuple[Tensor, Tensor | None]  # weight (out in) and bias (out)


def reference(x: Tensor, first: Layer, last: Layer, star: Star | None = None, gamma: Tensor | None = None,
              tanh: bool = False) -> Tensor:  # fmt: skip
    """x (… C), first (H C) (H), last (C' H) (C'), gamma (C') -> (… C'); defines the operation. `tanh`: the GELU is
    its approximation by tanh."""
    hidden = F.linear(x, *first)
    hidden = F.gelu(hidden, approximate=KINDS[tanh]) if star is None else star_relu(hidden, *star)
    y = F.linear(hidden, *last)
    return y if gamma is None else y * gamma


def mlp(x: Tensor, first: Layer, last: Layer, star: Star | None = None, gamma: Tensor | None = None,
        tanh: bool = False) -> Tensor:  # fmt: skip
    """`reference`, in slices on a CPU where nothing records operators: in float32, without a graph in bfloat16 too."""
    assert star is None or not tanh, "one activation: StarReLU, or a GELU by tanh"
    (w1, b1), (w2, b2), (s, b) = first, last, (None, None) if star is None else star
    tensors = (x, w1, b1, w2, b2, s, b, gamma)
    graph = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if not (eager_float32(x, w1, w2) or (not graph and eager(torch.bfloat16, x, w1, w2))) or not x.numel():
        return reference(x, first, last, star, gamma, tanh)
    if graph:
        return _Mlp.apply(tanh, *tensors)  # type: ignore[no-any-return]
    if gamma is not None:
        w2, b2 = scaled(w2, b2, gamma)
    rows = x.reshape(-1, x.shape[-1])
    parts = []
    for a in slices(rows.shape[0], w1.shape[0]):
        hidden = product(rows[a], w1, b1, gelu=star is None and not tanh)
        if tanh:
            hidden = torch.ops.aten.gelu_(hidden, approximate="tanh")
        parts.append(product(hidden if star is None else star_relu(hidden, *star), w2, b2))
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
    """With p = W1 x + b1, h = act(p), dh = dy W2: dW2 = dy' h, dp = act'(p) dh, dW1 = dp' x, dx = dp W1.

    W2 and b2 are those scaled by gamma; of the plain ones dW2 = gamma dW2', db2 = gamma db2', and
    dgamma = rowsum(dW2' W2) + db2' b2. Only what the wanted gradients need is kept: x for dW1, p for all up to it, h
    for dW2 and dgamma.
    """

    @staticmethod
    def forward(ctx: Any, tanh: bool, *tensors: Any) -> Tensor:
        x, w1, b1, w2, b2, s, b, gamma = tensors
        plain = w2, b2
        if gamma is not None:
            w2, b2 = scaled(w2, b2, gamma)
        rows = x.reshape(-1, x.shape[-1])
        need_x, need_w1, need_b1, need_w2, _, need_s, need_b, need_gamma = ctx.needs_input_grad[1:]
        ctx.kind = KINDS[tanh]
        need_p, need_h = need_x or need_w1 or need_b1 or need_s or need_b, need_w2 or need_gamma
        kept: list[Tensor | None] = []
        parts: list[Tensor] = []
        for a in slices(rows.shape[0], w1.shape[0]):
            p, h = activated(product(rows[a], w1, b1), s, b, ctx.kind)
            kept += [p if need_p else None, h if need_h else None]
            parts.append(product(h, w2, b2))
        ctx.save_for_backward(rows if need_w1 else None, w1, w2, s, gamma, *plain, *kept)
        return whole(parts, x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        rows, w1, w2, s, gamma, plain2, bias2, *kept = ctx.saved_tensors
        need_x, need_w1, need_b1, need_w2, need_b2, need_s, need_b, need_gamma = ctx.needs_input_grad[1:]
        shape, dy = dy.shape, dy.reshape(-1, dy.shape[-1])
        dw1: Tensor | None = None
        dw2: Tensor | None = None
        db1 = w1.new_zeros(w1.shape[0]) if need_b1 else None
        db2 = dy.sum(0) if need_b2 or (need_gamma and bias2 is not None) else None
        star = w1.new_zeros(2) if need_s or need_b else None
        parts: list[Tensor] = []
        for i, a in enumerate(slices(dy.shape[0], w1.shape[0])):
            p, h = kept[2 * i : 2 * i + 2]
            if h is not None:
                dw2 = added(dw2, outer(dy[a], h))
            if p is None:
                continue
            dp = through_activation(product(dy[a], w2.t()), p, s, star, ctx.kind)
            if need_w1:
                dw1 = added(dw1, outer(dp, rows[a]))
            if db1 is not None:
                db1.add_(dp.sum(0))
            if need_x:
                parts.append(product(dp, w1.t()))
        dx = whole(parts, dy).view(*shape[:-1], -1) if need_x else None
        dgamma = None
        if gamma is not None and dw2 is not None:
            dgamma = (dw2 * plain2).sum(1) if need_gamma else None
            if dgamma is not None and db2 is not None:
                dgamma += db2 * bias2
            dw2, db2 = dw2.mul_(gamma[:, None]), None if db2 is None else db2 * gamma
        ds, db = (None, None) if star is None else (star[:1], star[1:])
        return None, dx, dw1, db1, dw2 if need_w2 else None, db2 if need_b2 else None, ds, db, dgamma


def added(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total.add_(part)


def activated(p: Tensor, s: Tensor | None, b: Tensor | None, kind: str) -> tuple[Tensor, Tensor]:
    """What the backward pass needs of p (itself, or relu(p) in its place) and act(p); p may be overwritten."""
    if s is None or b is None:
        return p, F.gelu(p, approximate=kind)
    p = p.relu_()
    return p, torch.addcmul(b, p, p, value=s.item())


def through_activation(dh: Tensor, p: Tensor, s: Tensor | None, star: Tensor | None, kind: str) -> Tensor:
    """dp = act'(p) dh in the memory of dh; the gradients of StarReLU's two scalars are added to `star`."""
    if s is None:
        return torch.ops.aten.gelu_backward.grad_input(dh, p, approximate=kind, grad_input=dh)  # type: ignore[no-any-return]
    if star is not None:
        star[1] += dh.sum()
    dh.mul_(p)
    if star is not None:
        star[0] += torch.dot(dh.flatten(), p.flatten())
    return dh.mul_(2 * s.item())
