"""Attention of a few new queries over a long cache of keys, and its parts merged by their log-sum-exp.

Shapes: q (B h N d); k and v (B g M d), each of whose heads serves h / g query heads in a row (grouped queries); bias
broadcastable to (B h N M), boolean (True = may attend) or added to the scaled scores; the result is (B h N d). The keys
are all of the past, so that nothing is causal here. A row that may see nothing, or M = 0, gives 0.

For one query there is little to do and much to read: with few heads and a long cache, one loop over the keys of a head
keeps one core busy. Split-KV ("flash decoding", https://crfm.stanford.edu/2023/10/12/flashdecoding.html) cuts the keys
into parts that are attended to side by side; softmax over parts is exact when each hands on the logarithm of its sum:

    y = sum_s exp(l_s - l) y_s,  l = log sum_s exp(l_s)
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from .attend import attend

PART = 256  # keys at least in a part: below, merging costs more than it gains


def exactly(x: Tensor) -> AbstractContextManager[None]:
    """Without autocast."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


def scores(q: Tensor, k: Tensor, bias: Tensor | None = None, *, scale: float | None = None) -> Tensor:
    """scale q k' + bias, (B h N M) in float32 (float64 for float64)."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    (b, h, n, d), (g, m) = q.shape, k.shape[1:3]
    with exactly(q):
        folded = q.to(wide).reshape(b, g, h // g * n, d)  # heads that share keys are rows of one product
        s = (folded @ k.to(wide).mT * (d**-0.5 if scale is None else scale)).view(b, h, n, m)
        if bias is None:
            return s
        return s.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else s + bias


def weights(q: Tensor, k: Tensor, bias: Tensor | None = None, *, scale: float | None = None) -> Tensor:
    """softmax(scale q k' + bias), (B h N M), what a plugin or a cache goes by; 0 in a row that may see nothing."""
    s = scores(q, k, bias, scale=scale)
    empty = (s == -torch.inf).all(-1, keepdim=True)
    return s.masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0)


def partial(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *,
            scale: float | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What these keys alone give (B h N d), and the log-sum-exp of their scores (B h N), -inf where none may be seen;
    both in float32 (float64 for float64)."""
    s = scores(q, k, bias, scale=scale)
    (b, h, n, m), (g, d) = s.shape, (v.shape[1], v.shape[-1])
    if m == 0:
        return s.new_zeros(b, h, n, d), s.new_full((b, h, n), -torch.inf)
    lse = s.logsumexp(-1)
    w = (s - lse.masked_fill(lse == -torch.inf, 0)[..., None]).exp()  # 0 in an empty row: its scores are -inf
    with exactly(q):
        return (w.reshape(b, g, h // g * n, m) @ v.to(w.dtype)).view(b, h, n, d), lse


def merge(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The parts of one softmax, each (y (B h N d), lse (B h N)), as one; in any order and number."""
    y, lse = torch.stack([p[0] for p in parts]), torch.stack([p[1] for p in parts])  # S B h N d, S B h N
    total = lse.logsumexp(0)
    share = (lse - total.masked_fill(total == -torch.inf, 0)).exp()
    return (share[..., None] * y).sum(0), total


def reference(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, scale: float | None = None) -> Tensor:
    """Defines the operation: one softmax over all keys, in float32 (float64 for float64)."""
    return partial(q, k, v, bias, scale=scale)[0].to(v.dtype)


def split(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, scale: float | None = None,
          parts: int | None = None) -> Tensor:  # fmt: skip
    """The same in `parts` parts of the keys (None: as many as pay), side by side in one batch of products."""
    m, g = k.shape[2], k.shape[1]
    parts = max(1, m // PART) if parts is None else parts
    if parts < 1:
        raise ValueError(f"parts {parts}: the keys are cut into 1 part or more")
    size = m // parts if m >= parts else m
    if size * parts > m or size == 0 or parts == 1:
        return reference(q, k, v, bias, scale=scale)
    (b, h, n, d), whole = q.shape, size * parts
    heads = h // g

    def folded(x: Tensor) -> Tensor:  # B g M d -> B g*S m d
        return x[:, :, :whole].unflatten(2, (parts, size)).flatten(1, 2)  # type: ignore[no-any-return, no-untyped-call]

    wide = q.view(b, g, 1, heads, n, d).expand(-1, -1, parts, -1, -1, -1).reshape(b, g * parts * heads, n, d)
    inner = None
    if bias is not None:
        full = bias.expand(b, h, n, m)
        inner = full[..., :whole].reshape(b, g, heads, n, parts, size).permute(0, 1, 4, 2, 3, 5)
        inner = inner.reshape(b, g * parts * heads, n, size)
    y, lse = partial(wide, folded(k), folded(v), inner, scale=scale)
    y, lse = y.view(b, g, parts, heads, n, d), lse.view(b, g, parts, heads, n)
    pieces = [(y[:, :, i].flatten(1, 2), lse[:, :, i].flatten(1, 2)) for i in range(parts)]
    if whole < m:
        rest = None if bias is None else bias.expand(b, h, n, m)[..., whole:]
        pieces.append(partial(q, k[:, :, whole:], v[:, :, whole:], rest, scale=scale))
    return merge(pieces)[0].to(v.dtype)


def fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, scale: float | None = None) -> Tensor:
    """The same by `attend`, with the heads that share keys as queries of one head: no copy of a key is made."""
    (b, h, n, d), g = q.shape, k.shape[1]
    if g == h:
        return attend(q, k, v, bias, scale=scale)
    if bias is not None and (bias.ndim < 4 or bias.shape[1] != 1 or bias.shape[2] != 1):
        bias = bias.expand(b, h, n, k.shape[2]).reshape(b, g, h // g * n, k.shape[2])
    return attend(q.reshape(b, g, h // g * n, d), k, v, bias, scale=scale).view(b, h, n, d)


BACKENDS = {"reference": reference, "split": split, "fused": fused}


def decode(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, scale: float | None = None,
           backend: str = "auto") -> Tensor:  # fmt: skip
    """softmax(scale q k' + bias) v over a cache. `auto`: parts side by side where there are fewer heads with keys of
    their own than cores or multiprocessors to fill, and keys enough; else `fused`."""
    if backend == "auto":
        backend = "split" if splits(q, k) else "fused"
    if backend not in BACKENDS:
        raise ValueError(f"decode back end {backend!r} is not known; there are auto, {', '.join(BACKENDS)}")
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads do not share {k.shape[1]} heads of keys evenly")
    return BACKENDS[backend](q, k, v, bias, scale=scale)


def splits(q: Tensor, k: Tensor) -> bool:
    """Whether cutting the keys pays: heads alone leave workers idle, and each would have a part of PART keys."""
    if torch.compiler.is_compiling() or q.is_meta or (torch.is_grad_enabled() and q.requires_grad):
        return False
    workers = torch.cuda.get_device_properties(q.device).multi_processor_count if q.is_cuda else torch.get_num_threads()
    return k.shape[0] * k.shape[1] < workers and k.shape[2] >= 2 * PART
