"""The selective scan in plain torch, on any device: a segment of tokens at a time, in a few large operations."""

from typing import Any

import torch
from torch import Tensor

SEGMENT, WIDE = 1 << 20, 1 << 16  # states in a segment, and in a step of it that is worth its overhead


def scan(u: Tensor, d: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
    """u, d (B L D), A (D N), B, C (B L G N), h (B D N) or None -> y (B L D), the last state (B D N). For the gradient
    only the state before each segment is kept, and what lies between is computed again."""
    return _Scan.apply(u, d, A, B, C, h)  # type: ignore[no-any-return]


def segments(batch: int, length: int, numbers: int) -> list[tuple[int, int]]:
    """[start, end) of segments of about SEGMENT states in all, `numbers` a token and image."""
    tokens = max(1, min(128, SEGMENT // max(1, batch * numbers)))
    count = -(-length // tokens)
    tokens = -(-length // count)
    return [(i, min(i + tokens, length)) for i in range(0, length, tokens)]


def recurrence(a: Tensor, x: Tensor, h: Tensor) -> Tensor:
    """h_t = a_t h_{t-1} + x_t along dimension 1 of a, x (B T D N) from h (B D N): all h_t, in the memory of x; a is
    overwritten. Where there is little to do in a step, equal pieces of the sequence are walked side by side from zero,
    and what each should have begun with is added afterwards, decayed."""
    b, t, dim, n = a.shape
    pieces = lanes(t, b * dim * n)
    a, x = a.view(b, pieces, -1, dim, n), x.view(b, pieces, -1, dim, n)
    if pieces == 1:
        x[:, 0, 0].addcmul_(a[:, 0, 0], h)
    for j in range(1, x.shape[2]):
        x[:, :, j].addcmul_(a[:, :, j], x[:, :, j - 1])
        if pieces > 1:
            a[:, :, j].mul_(a[:, :, j - 1])  # the decay since the piece began
    if pieces > 1:
        before = [h]
        for i in range(pieces - 1):
            before.append(torch.addcmul(x[:, i, -1], a[:, i, -1], before[-1]))
        x.addcmul_(a, torch.stack(before, 1)[:, :, None])
    return x.view(b, t, dim, n)


def lanes(length: int, width: int) -> int:
    """Into how many equal pieces a segment is cut: the fewer steps the better where a step is `width` numbers short."""
    wanted = min(16, max(1, WIDE // max(1, width)))
    return max(p for p in range(1, wanted + 1) if length % p == 0)


def expanded(A: Tensor, d: Tensor, du: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """The decays exp(d A) and inputs (d u) B of every state, each (B T D N)."""
    return (d[..., None] * A).exp_(), outer(du, B)


def over_states(h: Tensor, C: Tensor) -> Tensor:
    """sum_n h C: h (B T D N), C (B T G N) -> (B T D)."""
    b, t, g, n = C.shape
    return (h.view(b, t, g, -1, n) @ C[..., None]).view(b, t, -1)


def over_channels(x: Tensor, h: Tensor, groups: int) -> Tensor:
    """sum over a group's channels of x h: x (B T D), h (B T D N) -> (B T G N)."""
    b, t, _, n = h.shape
    return (x.view(b, t, groups, 1, -1) @ h.view(b, t, groups, -1, n))[:, :, :, 0]


class _Scan(torch.autograd.Function):
    """With g_t = C_t dy_t + a_{t+1} g_{t+1}: dC_t = sum dy_t h_t, dB_t = sum g_t d_t u_t, d(d_t u_t) = g_t . B_t, and
    of the exponent e_t = d_t A: de_t = g_t a_t h_{t-1}."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, d: Tensor, A: Tensor, B: Tensor, C: Tensor,
                h: Tensor | None) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.given = h is not None
        (b, length, dim), n = u.shape, A.shape[1]
        h = u.new_zeros(b, dim, n) if h is None else h
        kept, ys = [h], []
        for i, j in segments(b, length, dim * n):
            part = slice(i, j)
            states = recurrence(*expanded(A, d[:, part], d[:, part] * u[:, part], B[:, part]), h)
            ys.append(over_states(states, C[:, part]))
            h = states[:, -1].clone()
            kept.append(h)
        ctx.save_for_backward(u, d, A, B, C, *kept[:-1])
        return torch.cat(ys, 1), h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        u, d, A, B, C, *kept = ctx.saved_tensors
        (b, length, dim), n, groups = u.shape, A.shape[1], B.shape[2]
        carry = dlast
        grads: list[tuple[Tensor, ...]] = []
        dA = torch.zeros_like(A)
        for (i, j), before in reversed(list(zip(segments(b, length, dim * n), kept, strict=True))):
            part = slice(i, j)
            dt, ut, Bt, Ct, dyt = (t[:, part] for t in (d, u, B, C, dy))
            du = dt * ut
            a, x = expanded(A, dt, du, Bt)
            states = recurrence(a.clone(), x, before)
            g = outer(dyt, Ct)
            g[:, -1] += carry
            g = recurrence(shifted(a), g.flip(1), torch.zeros_like(carry)).flip(1)
            dC, dB = over_channels(dyt, states, groups), over_channels(du, g, groups)
            through = over_states(g, Bt)
            a.mul_(g)  # now the gradient of the state before, then of the exponent
            carry = a[:, 0].clone()
            a[:, 1:].mul_(states[:, :-1])
            a[:, 0].mul_(before)
            dA += torch.einsum("btdn,btd->dn", a, dt)
            dd = torch.einsum("btdn,dn->btd", a, A)
            grads.append((through * dt, dd + through * ut, dB, dC))
        du_all, dd_all, dB_all, dC_all = (torch.cat(parts[::-1], 1) for parts in zip(*grads, strict=True))
        return du_all, dd_all, dA, dB_all, dC_all, carry if ctx.given else None


def outer(x: Tensor, B: Tensor) -> Tensor:
    """x (B T D), B (B T G N) -> (B T D N)."""
    b, t, g, n = B.shape
    return (x.view(b, t, g, -1, 1) * B[:, :, :, None]).view(b, t, -1, n)


def shifted(a: Tensor) -> Tensor:
    """The decays that a walk from the last token to the first meets: none before the last, then a_T, a_{T-1} .. a_2."""
    return torch.cat([torch.zeros_like(a[:, :1]), a[:, 1:].flip(1)], 1)
