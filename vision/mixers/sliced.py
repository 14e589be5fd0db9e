"""Self-attention inside consecutive pieces of the sequence, https://arxiv.org/abs/2111.05297."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.sizes import always, is_open, modulo
from ...kernels.sizes import table as of_sizes
from ..tokens import Probe, Tokens
from .attention import SelfAttention

STEPS = range(5, 32)  # 5 * 7 * 11 * ... * 31 is more than any number of tokens


class SlicedAttention(SelfAttention):
    """Self-attention in which token n meets only those of its slice: the sequence in order, cut into as many pieces
    of ceil(N / groups) tokens as it takes (the last one may be shorter).

    groups[i] is for the i-th turn of a block that runs several times in a row (`Tokens.turn`). From the second turn on
    the tokens are spread over the slices: shuffled anew at every call in training; in evaluation, where the original
    shuffles as well, in the fixed order of `spread`, so that an image always gets the same answer.
    """

    offers, seams, takes_special = ("keys",), (), False  # of special tokens each meets one slice

    def __init__(self, dim: int, heads: int, groups: tuple[int, ...]):
        super().__init__(dim, heads)
        if not groups or min(groups) < 1:
            raise ValueError(f"groups {groups}: a number of slices, 1 or more, for each turn is wanted")
        self.groups = groups

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        n = t.x.shape[1]
        groups = self.groups[min(t.turn, len(self.groups) - 1)]
        if groups == 1 or (not is_open(n) and n == 1):
            return super().forward(t, probe)
        length = (n + groups - 1) // groups
        order = self.order(n, t.x.device) if t.turn else None
        pieces = (n + length - 1) // length
        x, size, short = t.x, t.size, pieces * length - n
        if not always(short == 0) and size is None:
            size = x.new_ones(x.shape[0], n, 1)  # so that padding is of size 0, which no token attends to
        size = None if size is None else cut(size, order, pieces, short)
        y = super().forward(Tokens(cut(x, order, pieces, short), None, size=size), probe)
        back = None if order is None else order.argsort()
        if probe is not None:
            keys = joined(probe.pop("keys").transpose(1, 2).flatten(2), back, pieces, n)  # B N h*d
            del probe["queries"]  # they met keys of their own slice only
            probe["keys"] = keys.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]  # B h N d
        return joined(y, back, pieces, n)

    def order(self, n: int, device: torch.device) -> Tensor:
        """(N): the token that comes to each place."""
        return torch.randperm(n, device=device) if self.training else of_sizes(spread, n).to(device)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, groups={self.groups}"


def cut(y: Tensor, order: Tensor | None, pieces: int, short: int) -> Tensor:
    """B N C, in `order` and with `short` rows of zeros behind it -> B*pieces L C."""
    y = y if order is None else y[:, order]
    y = y if always(short == 0) else F.pad(y, (0, 0, 0, short))
    return y.reshape(y.shape[0] * pieces, -1, y.shape[2])


def joined(y: Tensor, back: Tensor | None, pieces: int, n: int) -> Tensor:
    """B*pieces L C -> B N C, `cut` undone."""
    y = y.reshape(y.shape[0] // pieces, -1, y.shape[2])[:, :n]
    return y if back is None else y[:, back]


def spread(n: int, xp: Any = np) -> Any:
    """(N): 5 i mod N; where 5 divides N, the next number without a common divisor takes its place."""
    if not is_open(n):
        step: Any = next(k for k in range(5, n + 6) if math.gcd(k, n) == 1)
    else:
        free = [xp.cat([xp.full((1,), n) % p != 0 for p in primes]).all() for primes in map(divisors, STEPS)]
        step = STEPS[-1]
        for k, apart in zip(STEPS[-2::-1], free[-2::-1], strict=True):
            step = xp.where(apart, k, step)
    return modulo(step * xp.arange(n), n, xp)


def divisors(k: int) -> list[int]:
    """The primes that divide k."""
    return [p for p in range(2, k + 1) if k % p == 0 and all(p % q for q in range(2, p))]


@dataclass(frozen=True)
class Sliced:
    """Attention inside groups[i] slices of the sequence at a block's i-th turn; 1: of all tokens to all."""

    heads: int
    groups: tuple[int, ...] = (8, 2)

    def build(self, dim: int, index: int) -> nn.Module:
        return SlicedAttention(dim, self.heads, self.groups)
