"""Rotary position embedding on pairs of adjacent channels, https://arxiv.org/abs/2104.09864.

Shapes: x (... d); turns broadcastable to (... d/2 2), the cosine and sine of each pair's angle. Pair j of x, channels
2j and 2j + 1, is a complex number that is multiplied by exp(i angle_j). Computed in float32 (float64 for float64).
"""

import torch
from torch import Tensor


def reference(x: Tensor, turns: Tensor) -> Tensor:
    """Defines the operation, in real numbers."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    a, b = x.to(wide).unflatten(-1, (-1, 2)).unbind(-1)  # type: ignore[no-untyped-call]
    cos, sin = turns.to(wide).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """The same by one complex product; in real numbers while a graph is traced, where those fuse and export."""
    if torch.compiler.is_compiling() or x.is_meta:
        return reference(x, turns)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    pairs = torch.view_as_complex(x.to(wide).unflatten(-1, (-1, 2)))  # type: ignore[no-untyped-call]
    turned = torch.view_as_real(pairs * torch.view_as_complex(turns.to(wide)))
    return turned.flatten(-2).to(x.dtype)
