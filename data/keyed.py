"""Randomness that is a function of (seed, epoch, index): no generator whose state a killed run would lose.

z -> mix(z) is the finaliser of splitmix64 (Steele, Lea, Flood 2014); number j of a sample is mix(base + j * GOLDEN)
with base = mix(mix(mix(seed) + epoch) + index). So a sample is augmented alike in any batch, worker, process or
restart.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(z: np.ndarray) -> np.ndarray:
    """splitmix64 of uint64 values, elementwise, modulo 2**64."""
    z = z + GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def base(seed: int, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """One uint64 for each (epoch, index): the start of that sample's stream."""
    start = mix(np.full(1, seed & 0xFFFFFFFFFFFFFFFF, np.uint64))
    return mix(mix(start + epochs.astype(np.uint64)) + indices.astype(np.uint64))


def uniform(seed: int, epochs: np.ndarray, indices: np.ndarray, n: int) -> np.ndarray:
    """(B,) epochs and indices -> (B, n) float64 in [0, 1), each row a function of its own (seed, epoch, index)."""
    steps = np.arange(1, n + 1, dtype=np.uint64) * GOLDEN
    return (mix(base(seed, epochs, indices)[:, None] + steps) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def key(seed: int, epoch: int, index: int = 0) -> int:
    """One integer below 2**63 for (seed, epoch, index)."""
    return int(base(seed, np.array([epoch]), np.array([index]))[0] >> np.uint64(1))


def seed_libraries(value: int) -> None:
    """Seed `random`, numpy and torch's CPU generator (not the GPU's: that belongs to the model)."""
    random.seed(value)
    np.random.seed(value & 0xFFFFFFFF)
    torch.default_generator.manual_seed(value)


@contextmanager
def preserved() -> Iterator[None]:
    """The process-wide generators are afterwards as before: the model's dropout never sees the data's draws."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
