"""Softmax attention beside a prefix of any length, which two states per head stand for: NTK-attention,
https://arxiv.org/abs/2406.14036.

    y_i = (sum_j exp(s_ij) v_j + phi(q_i) Z) / (sum_j exp(s_ij) + phi(q_i) |k|),   s = scale q k' + bias

with phi(x) = 1 + elu(x / d^(1/4)), positive. For prefix keys K and values V, k = sum phi(K) and Z = sum phi(K) V'.

Shapes: q (B h N d), k (B h M d), v (B h M e), the states k (1 or B h d 1) and Z (1 or B h d e), bias broadcastable to
(B h N M); the result is (B h N e). `causal` as in attend.py, from the end; every query sees the prefix. |k| has slope
1 at 0 here (torch's abs has 0), so that states which begin at 0, and change nothing, can learn.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .attend import attend, with_causal

PAD = 8  # channels come in multiples of so many, which fused kernels take


def reference(q: Tensor, k: Tensor, v: Tensor, sum_k: Tensor, sum_kv: Tensor, bias: Tensor | None = None, *,
              causal: bool = False) -> Tensor:  # fmt: skip
    """Defines the operation: every step in float32 (float64 for float64)."""
    wide = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type if q.device.type != "meta" else "cpu", enabled=False):
        far, weight = by_states(q.to(wide), sum_k, sum_kv)  # B h N d, B h N 1
        score = q.to(wide) @ k.to(wide).mT * q.shape[-1] ** -0.5  # B h N M
        bias = with_causal(bias, q.shape[-2], k.shape[-2], q.device) if causal else bias
        if bias is not None:
            score = score.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else score + bias
        top: Tensor = F.pad(score, (1, 0)).amax(-1, keepdim=True).detach()  # both sums over exp(top); 0: the prefix
        near = (score - top).exp()
        fade = (-top).exp()
        total = near.sum(-1, keepdim=True) + weight * fade
        y: Tensor = (near @ v.to(wide) + far * fade) / total.clamp(min=torch.finfo(wide).tiny)
    return y.to(out_type(v))


def fused(q: Tensor, k: Tensor, v: Tensor, sum_k: Tensor, sum_kv: Tensor, bias: Tensor | None = None, *,
          causal: bool = False) -> Tensor:  # fmt: skip
    """The same by one call of `attend`: a key more, whose scores are 0, and two columns more of the values show which
    shares 1 - r of a softmax the keys and r that one have; then exp(lse) = (1 - r) / r, and

        y = ((1 - r) softmax(s) v + r phi(q) Z) / ((1 - r) + r phi(q) |k|).
    """
    (n, d), (m, e) = q.shape[-2:], v.shape[-2:]
    if causal and m < n:  # queries that see no key see the prefix all the same
        causal, bias = False, with_causal(bias, n, m, q.device)
    more = -(e + 2) % PAD + 2
    same = more if d == e else 0  # kernels that want q, k and v of one width get it
    keys = F.pad(k, (0, same, 1, 0))  # the new one first, where a causal mask hides it from nobody
    ones = torch.zeros(m + 1, more, dtype=v.dtype, device=v.device)
    ones[1:, 0] = ones[0, 1] = 1
    values = torch.cat([F.pad(v, (0, 0, 1, 0)), ones.expand(*v.shape[:-2], -1, -1)], -1)
    if bias is not None:
        bias = F.pad(bias, (1, 0), value=bias.dtype == torch.bool)
    y = attend(F.pad(q, (0, same)), keys, values, bias, causal=causal, scale=d**-0.5)
    wide = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type if q.device.type != "meta" else "cpu", enabled=False):
        far, weight = by_states(q.to(wide), sum_k, sum_kv)
        y = y.to(wide)
        near, r = y[..., e : e + 1], y[..., e + 1 : e + 2]
        y = (y[..., :e] + r * far) / (near + r * weight).clamp(min=torch.finfo(wide).tiny)
    return y.to(out_type(v))


def by_states(q: Tensor, sum_k: Tensor, sum_kv: Tensor) -> tuple[Tensor, Tensor]:
    """What the prefix adds to the sum of values (B h N d), and to that of weights (B h N 1)."""
    seen = phi(q)
    sum_k = sum_k.to(q.dtype)
    return seen @ sum_kv.to(q.dtype), seen @ torch.where(sum_k < 0, -sum_k, sum_k)


def phi(x: Tensor) -> Tensor:
    """1 + elu(x / d^(1/4)), (… d)."""
    return 1 + F.elu(x * x.shape[-1] ** -0.25)


def out_type(v: Tensor) -> torch.dtype:
    device = v.device.type
    mixed = device != "meta" and torch.is_autocast_enabled(device) and v.dtype != torch.float64
    return torch.get_autocast_dtype(device) if mixed else v.dtype


BACKENDS = {"reference": reference, "fused": fused}


def ntk_attention(q: Tensor, k: Tensor, v: Tensor, sum_k: Tensor, sum_kv: Tensor, bias: Tensor | None = None, *,
                  causal: bool = False, backend: str = "fused") -> Tensor:  # fmt: skip
    if backend not in BACKENDS:
        raise ValueError(f"NTK-attention back end {backend!r} is not known; there are {', '.join(BACKENDS)}")
    return BACKENDS[backend](q, k, v, sum_k, sum_kv, bias, causal=causal)
