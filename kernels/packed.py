"""Attention within sequences of different lengths that lie one behind the other, without padding.

Shapes: q (T h d), k and v (S h d); T and S are the sums of the sequences' lengths; the result is (T h d).
"""

import inspect
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from .attend import attend, known, probe_against

Lengths = Sequence[int] | Tensor
Packed = Callable[..., Tensor]
_reasons: dict[tuple[str, torch.device, torch.dtype], str] = {}


def attend_packed(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, lengths_k: Lengths | None = None, *,
                  causal: bool = False, scale: float | None = None, backend: str = "auto") -> Tensor:  # fmt: skip
    """For each sequence what `attend` gives for it alone; a sequence may be empty, and one without keys gives 0.

    `lengths` are those of q's sequences, `lengths_k` those of k's and v's (the same unless given); cumulative ones are
    turned into them by `diff()`. A tensor of lengths on a GPU costs a synchronisation: pass a list where there is one.
    `auto` is torch's kernel for such sequences on a GPU, else xformers', else `grouped`, whose attention is then
    `attend`'s; `reference` and `sdpa` are `grouped` with that back end.
    """
    ours = whole(lengths, q, "q")
    theirs = whole(lengths if lengths_k is None else lengths_k, k, "k")
    if len(ours) != len(theirs) or len(k) != len(v):
        raise ValueError(f"q has {len(ours)} sequences, k has {len(theirs)}; k has {len(k)} tokens, v has {len(v)}")
    if known(backend) in ("reference", "sdpa"):
        return grouped(q, k, v, ours, theirs, causal=causal, scale=scale, backend=backend)
    if backend == "auto" and (q.is_cpu or q.is_meta):
        return grouped(q, k, v, ours, theirs, causal=causal, scale=scale)
    names = ["xformers"] if backend == "xformers" else ["torch", "xformers"]
    for name in names:
        if not (reason := usable(name, q.device, q.dtype)):
            return PACKED[name](q, k, v, ours, theirs, causal=causal, scale=scale)
    if backend == "xformers":
        raise ValueError(f"attention back end 'xformers' cannot be used for packed {q.dtype} on {q.device}: {reason}")
    return grouped(q, k, v, ours, theirs, causal=causal, scale=scale)


def whole(lengths: Lengths, x: Tensor, name: str) -> list[int]:
    """The lengths as integers, none negative, that sum to the tokens of x."""
    found = [int(n) for n in (lengths.tolist() if isinstance(lengths, Tensor) else lengths)]
    if min(found, default=0) < 0 or sum(found) != len(x):
        raise ValueError(f"lengths {found} of {name} sum to {sum(found)}; it holds {len(x)} tokens")
    return found


def grouped(q: Tensor, k: Tensor, v: Tensor, ours: list[int], theirs: list[int], *, causal: bool = False,
            scale: float | None = None, backend: str = "auto") -> Tensor:  # fmt: skip
    """One `attend` for all sequences of the same two lengths."""
    starts = zip(accumulate(ours, initial=0), accumulate(theirs, initial=0), strict=True)
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for (n, m), start in zip(zip(ours, theirs, strict=True), starts, strict=False):
        if n:
            groups.setdefault((n, m), []).append(start)
    if not groups:
        return v.new_zeros(0, *v.shape[1:]) + 0 * q.sum()
    rows, results = [], []
    for (n, m), found in groups.items():
        first = torch.tensor(found, device=q.device)  # G 2
        i = (first[:, :1] + torch.arange(n, device=q.device)).flatten()
        j = (first[:, 1:] + torch.arange(m, device=q.device)).flatten()
        g, d = len(found), v.shape[-1]
        parts = (x[at].view(g, -1, *x.shape[1:]).transpose(1, 2) if m else x for x, at in ((q, i), (k, j), (v, j)))
        y = attend(*parts, causal=causal, scale=scale, backend=backend) if m else v.new_zeros(g, v.shape[1], n, d)
        rows.append(i)
        results.append(y.transpose(1, 2).flatten(0, 1))
    return torch.cat(results)[torch.cat(rows).argsort()]


def from_torch(q: Tensor, k: Tensor, v: Tensor, ours: list[int], theirs: list[int], *, causal: bool = False,
               scale: float | None = None) -> Tensor:  # fmt: skip
    """torch.nn.attention.varlen (torch >= 2.10), half precision on a GPU; its causal rule counts from the end too."""
    from torch.nn.attention.varlen import varlen_attn

    offset = [torch.tensor([0, *accumulate(x)], dtype=torch.int32, device=q.device) for x in (ours, theirs)]
    takes = inspect.signature(varlen_attn).parameters
    if "window_size" in takes:
        extra = {"window_size": (-1, 0 if causal else -1), "scale": scale}
    else:  # torch 2.10: no scale of its own
        extra = {"is_causal": causal}
        q = q if scale is None else q * (scale * q.shape[-1] ** 0.5)
    longest = max(ours, default=0), max(theirs, default=0)
    return varlen_attn(q, k, v, *offset, *longest, **extra)  # type: ignore[call-arg, arg-type, return-value]


def from_xformers(q: Tensor, k: Tensor, v: Tensor, ours: list[int], theirs: list[int], *, causal: bool = False,
                  scale: float | None = None) -> Tensor:  # fmt: skip
    """xformers' block-diagonal mask; it knows no empty sequences, so batches with one are `grouped`."""
    from xformers.ops import memory_efficient_attention
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    if 0 in ours or 0 in theirs or not ours or (causal and any(m < n for n, m in zip(ours, theirs, strict=True))):
        return grouped(q, k, v, ours, theirs, causal=causal, scale=scale, backend="xformers")
    mask = BlockDiagonalMask.from_seqlens(ours, theirs)
    mask = mask.make_causal_from_bottomright() if causal else mask
    return memory_efficient_attention(q[None], k[None], v[None], attn_bias=mask, scale=scale)[0]  # type: ignore[no-any-return]


PACKED: dict[str, Packed] = {"torch": from_torch, "xformers": from_xformers}


def usable(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Why this packed kernel cannot be used there, or "": one small forward and backward against `grouped`, kept."""
    key = name, device, dtype
    if key not in _reasons:

        def trial(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return PACKED[name](q, k, v, [5, 11], [5, 11], causal=True)

        def truth(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return grouped(q, k, v, [5, 11], [5, 11], causal=True, backend="reference")

        _reasons[key] = probe_against(trial, truth, (16, 2, 32), device, dtype)
    return _reasons[key]
