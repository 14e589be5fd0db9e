"""The delta rule (DeltaNet, https://arxiv.org/abs/2102.11174; chunks: https://arxiv.org/abs/2406.06484), also gated
(https://arxiv.org/abs/2412.06464): the state is a memory in which a key's old value is replaced, not added to.

    S' = a_t S_{t-1}      S_t = S' + k_t b_t (v_t - S'' k_t)'      o_t = s S_t' q_t

Keys are used as they are: divide them by their norm first. State and decays are kept in float32 (float64 where q is).
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .chunks import cut, decays, in_float32, in_segments, in_steps, join, without_autocast
from .gated_linear_attention import Backend, shaped, tail

CHUNK = 64


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, gate: Tensor | None = None, *, scale: float | None = None,
    state: Tensor | None = None, return_state: bool = False, backend: Backend = "chunked", chunk: int = CHUNK,
) -> Any:  # fmt: skip
    """q, k (B L h K), v (B L h V), beta (B L h); gate, the logarithm of the decay (B L h), or None for none; state
    (B h K V). scale: K^-0.5 where None. -> o (B L h V), and the last state with `return_state`."""
    shaped(q, k, v, gate, state)
    if beta.shape != q.shape[:3] or (gate is not None and gate.ndim != 3):
        raise ValueError(
            f"beta and gate of the delta rule are (B L h), here {tuple(q.shape[:3])}; beta is {tuple(beta.shape)}"
        )
    kept = in_float32(q)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    with without_autocast(q):
        q, k, v_, beta = (t.to(kept) for t in (q, k, v, beta))
        g = torch.zeros_like(beta) if gate is None else gate.to(kept)
        first = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3]) if state is None else state.to(kept)
        if backend == "reference":
            o, last = reference(q * scale, k, v_, beta, g, first)
        elif backend == "chunked" and torch.compiler.is_exporting():  # token by token: ONNX has no triangular solve
            o, last = in_steps(one, 1, first, q * scale, k, v_, beta, g)
        elif backend == "chunked":
            o, last = in_segments(partial(chunks, chunk), chunk, first, q * scale, k, v_, beta, g)
        else:
            raise ValueError(f"backend {backend!r}: it is chunked or reference")
        o = o.to(v.dtype)
    return (o, last) if return_state else o


def step(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, gate: Tensor | None, state: Tensor, *,
         scale: float | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One token: q, k (B h K), v (B h V), beta, gate (B h), state (B h K V) -> o (B h V) and the next state."""
    o, last = delta_rule(
        q[:, None], k[:, None], v[:, None], beta[:, None], None if gate is None else gate[:, None], scale=scale,
        state=state, return_state=True, backend="reference",
    )  # fmt: skip
    return o[:, 0], last


def reference(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence, token by token; defines the operation."""
    o = []
    for q_t, k_t, v_t, b_t, g_t in zip(*(t.unbind(1) for t in (q, k, v, beta, g)), strict=True):
        state = g_t.exp()[..., None, None] * state
        error = b_t[..., None] * (v_t - (k_t[..., None, :] @ state)[..., 0, :])
        state = state + k_t[..., None] * error[..., None, :]
        o.append((q_t[..., None, :] @ state)[..., 0, :])
    return torch.stack(o, 1), state


def one(state: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """`reference` with the state first."""
    return reference(q, k, v, beta, g, state)


def chunks(size: int, state: Tensor, *sequences: Tensor) -> tuple[Tensor, Tensor]:
    """A segment in the WY form. With D the decays between two steps of a chunk and
    T = (I + strictly lower (diag(b) k k' * D))^-1 diag(b): what each step writes is T v - T (k, decayed since the chunk
    began) S, for all steps of the chunk at once."""
    length = sequences[0].shape[1]
    q, k, v, beta, g = (cut(t, size) for t in sequences)  # B h n c …
    pairs = decays(g)
    since, until = g.cumsum(-1).exp()[..., None], tail(g).exp()[..., None]
    lower = ((k * beta[..., None]) @ k.mT * pairs).tril(-1)
    written = torch.cat([v, k * since], -1) * beta[..., None]
    written = torch.linalg.solve_triangular(lower, written, upper=False, unitriangular=True)
    values, keys = written.split([v.shape[-1], k.shape[-1]], -1)
    scores = (q @ k.mT) * pairs
    os = []
    for i in range(q.shape[2]):
        new = values[:, :, i] - keys[:, :, i] @ state
        os.append(scores[:, :, i] @ new + (q[:, :, i] * since[:, :, i]) @ state)
        state = since[:, :, i, -1:] * state + (k[:, :, i] * until[:, :, i]).mT @ new
    return join(torch.stack(os, 2), length), state
