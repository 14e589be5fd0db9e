"""softmax(mask * scale q k' + bias) v: attention whose scores are multiplied by a mask before the softmax.

Shapes: q (… h N d), k and v (… h M d), mask (h or 1 N M), bias broadcastable to (… h N M); the result is (… h N d).
Multiplied scores fit no fused kernel: those add a bias. Scores and softmax are float32 (float64 for float64); on a GPU
half precision multiplies as such, as fused kernels do. Under autocast the result has autocast's type.
"""

import torch
from torch import Tensor

from .linear import eager_float32
from .windows import merge_windows, split_windows


def attend_masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None = None, *,
                  mix: tuple[Tensor, Tensor] | None = None, scale: float | None = None) -> Tensor:  # fmt: skip
    """`mix`: (before, after), each (h h): talking heads (https://arxiv.org/abs/2003.02436). Scores become
    sum_h before[h, g] score_h behind the mask, weights sum_h after[h, g] weight_h behind the softmax."""
    device = q.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            y = attend_masked(q, k, v, mask, bias, mix=mix, scale=scale)
        return y.to(torch.get_autocast_dtype(device)) if y.dtype == torch.float32 else y
    wide = torch.promote_types(q.dtype, torch.float32)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    factor = None if mask is None else mask.to(wide) * scale  # of the mask, which is small, not of the scores
    out = v.dtype
    if not q.is_cuda:
        q, k, v = q.to(wide), k.to(wide), v.to(wide)
    score = (q @ k.mT).to(wide)
    if mix is None and eager_float32(score) and not score.requires_grad and not needs_graph(mask, bias):
        score.mul_(scale if factor is None else factor)
        if bias is not None:
            score.add_(bias)
        return (torch.softmax(score, -1, out=score) @ v).to(out)
    score = score * (scale if factor is None else factor)
    if mix is not None:
        score = mixed(score, mix[0])
    if bias is not None:
        score = score + bias
    weight = score.softmax(-1)
    if mix is not None:
        weight = mixed(weight, mix[1])
    return (weight.to(v.dtype) @ v).to(out)


def mixed(x: Tensor, by: Tensor) -> Tensor:
    """sum_h by[h, g] x_h: x (B h N M) -> (B g N M)."""
    by = by.to(x.dtype).mT.expand(x.shape[0], -1, -1)
    return torch.bmm(by, x.flatten(2)).view(x.shape)


def needs_graph(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def attend_masked_windows(qkv: Tensor, mask: Tensor, bias: Tensor, heads: int, size: int) -> Tensor:
    """The same inside windows: qkv (B H W 3*h*d), sides that are multiples of `size`; mask (h or 1 s*s s*s), bias
    (1 or n h s*s s*s) for n windows an image -> (B H W h*d)."""
    grid = (qkv.shape[1] // size, qkv.shape[2] // size, size, heads, qkv.shape[3] // (3 * heads))
    parts = split_windows(qkv, grid)  # 3 B*n*h s*s d
    q, k, v = parts.view(3, qkv.shape[0], grid[0] * grid[1], heads, *parts.shape[2:]).unbind(0)  # B n h s*s d
    return merge_windows(attend_masked(q, k, v, mask, bias).flatten(0, 2), grid)
