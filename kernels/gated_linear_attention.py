"""Linear attention whose state decays: a number in (0, 1) for each head and step, or for each key channel of it too.

    S_t = diag(a_t) S_{t-1} + k_t v_t'        o_t = s S_t' q_t

GLA (https://arxiv.org/abs/2312.06635) with vector gates; with one a head it is the dual form of Mamba-2
(https://arxiv.org/abs/2405.21060), with constant ones retention, with none unnormalised linear attention. State and
decays are kept in float32 (float64 where q is).
"""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from .chunks import cut, decays, in_float32, in_segments, join, without_autocast

Backend = Literal["chunked", "reference"]
CHUNK, FINE = 64, 16  # steps in a chunk; with a gate for each channel, whose decays differ, in a shorter one


def gated_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None = None, *, scale: float | None = None,
    state: Tensor | None = None, return_state: bool = False, backend: Backend = "chunked", chunk: int | None = None,
) -> Any:  # fmt: skip
    """q, k (B L h K), v (B L h V); gate, the logarithm of the decay: (B L h), (B L h K) or None for none; state
    (B h K V): what came before. scale: K^-0.5 where None. -> o (B L h V), and the last state with `return_state`.

    Raises ValueError where shapes do not fit."""
    shaped(q, k, v, gate, state)
    kept = in_float32(q)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    with without_autocast(q):
        q, k, v_ = (t.to(kept) for t in (q, k, v))
        g = q.new_zeros(q.shape[:3]) if gate is None else gate.to(kept)
        first = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3]) if state is None else state.to(kept)
        if backend == "reference":
            o, last = reference(q * scale, k, v_, g, first)
        elif backend == "chunked":
            size = chunk or (CHUNK if g.ndim == 3 else FINE)
            form = scalar_chunks if g.ndim == 3 else vector_chunks
            o, last = in_segments(partial(form, size), size, first, q * scale, k, v_, g)
        else:
            raise ValueError(f"backend {backend!r}: it is chunked or reference")
        o = o.to(v.dtype)
    return (o, last) if return_state else o


def step(q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, state: Tensor, *,
         scale: float | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One token: q, k (B h K), v (B h V), gate (B h), (B h K) or None, state (B h K V) -> o (B h V) and the next
    state."""
    o, last = gated_linear_attention(
        q[:, None], k[:, None], v[:, None], None if gate is None else gate[:, None], scale=scale, state=state,
        return_state=True, backend="reference",
    )  # fmt: skip
    return o[:, 0], last


def shaped(q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, state: Tensor | None) -> None:
    if q.ndim != 4 or k.shape != q.shape or v.ndim != 4 or v.shape[:3] != q.shape[:3]:
        raise ValueError(
            f"q and k (B L h K) and v (B L h V) are wanted; got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if gate is not None and gate.shape not in (q.shape[:3], q.shape):
        raise ValueError(f"the gate is {tuple(gate.shape)}; beside q {tuple(q.shape)} it is (B L h) or (B L h K)")
    want = (q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    if state is not None and tuple(state.shape) != want:
        raise ValueError(f"the state is {tuple(state.shape)}; beside these q and v it must be {want}")


def reference(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence, token by token; defines the operation."""
    o = []
    for q_t, k_t, v_t, g_t in zip(q.unbind(1), k.unbind(1), v.unbind(1), g.unbind(1), strict=True):
        a = (g_t if g_t.ndim == 3 else g_t[..., None]).exp()  # B h K or B h 1
        state = a[..., None] * state + k_t[..., None] * v_t[..., None, :]
        o.append((q_t[..., None, :] @ state)[..., 0, :])
    return torch.stack(o, 1), state


def scalar_chunks(size: int, state: Tensor, *sequences: Tensor) -> tuple[Tensor, Tensor]:
    """A segment with one decay a head and step. Within a chunk: (q k' with its decays) v; from before it: q times the
    state, decayed since the chunk began."""
    length = sequences[0].shape[1]
    q, k, v, g = (cut(t, size) for t in sequences)  # B h n c …
    since = g.cumsum(-1)  # log decay from the chunk's beginning, own step included
    until = tail(g)
    inner = ((q @ k.mT) * decays(g)) @ v
    update = (k * until.exp()[..., None]).mT @ v  # B h n K V
    states, last = carried(update, since[..., -1].exp()[..., None, None], state)
    o = inner + (q * since.exp()[..., None]) @ states
    return join(o, length), last


def tail(g: Tensor) -> Tensor:
    """(… c): sum of g over the steps behind each one."""
    return g.flip(-1).cumsum(-1).flip(-1) - g


def vector_chunks(size: int, state: Tensor, *sequences: Tensor) -> tuple[Tensor, Tensor]:
    """A segment with a decay for each key channel: pairs of a chunk by differences of cumulative logarithms, none of
    which is positive."""
    length = sequences[0].shape[1]
    q, k, v, g = (cut(t, size) for t in sequences)  # B h n c …
    since = g.cumsum(-2)
    below = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()[..., None]
    pair = (since[..., :, None, :] - since[..., None, :, :]).masked_fill(~below, -torch.inf).exp()  # B h n c c K
    inner = torch.einsum("bhntk,bhntsk,bhnsk->bhnts", q, pair, k) @ v
    update = (k * (since[..., -1:, :] - since).exp()).mT @ v
    states, last = carried(update, since[..., -1, :].exp()[..., None], state)
    o = inner + (q * since.exp()) @ states
    return join(o, length), last


def carried(update: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """update (B h n K V), decay (B h n K or 1, 1) -> the state before each chunk (B h n K V), and the last."""
    states = []
    for u, a in zip(update.unbind(2), decay.unbind(2), strict=True):
        states.append(state)
        state = a * state + u
    return torch.stack(states, 2), state
