"""The angles of rotary position embeddings (https://arxiv.org/abs/2104.09864); kernels/rotary.py turns by them."""

from typing import Any

import numpy as np


def turns_of(count: int, dim: int, base: float = 10000.0, xp: Any = np) -> Any:
    """(N d/2 2) float32: cosine and sine of p * base^(-2j/d) for the places p = 0..N-1 and the pairs j of d channels;
    angles in float32, as models that were trained with it had them."""
    if dim % 2:
        raise ValueError(f"rotary positions turn pairs of channels: {dim} channels of a head do not pair up")
    frequency = 1.0 / np.float32(base) ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
    angle = xp.arange(count, dtype=xp.float32)[:, None] * xp.asarray(frequency)
    return xp.stack([xp.cos(angle), xp.sin(angle)], -1)
