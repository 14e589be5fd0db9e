"""Keys and values of what was read already, layer by layer, in memory that is taken once."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..kernels.attend import attend
from ..kernels.decode import decode
from .stream import Stream


class LayerCache:
    """Keys and values (B g M d) of one layer. `seen` (B 1 M) says which of them are no padding; None: all.

    Memory for `room` more tokens is taken with the first ones, so that a step writes one column and copies nothing;
    beyond that it doubles. It keeps no graph.
    """

    def __init__(self, room: int = 64):
        self.room, self.length = room, 0
        self.k: Tensor | None = None
        self.v: Tensor | None = None
        self.seen: Tensor | None = None

    def append(self, k: Tensor, v: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """(keys, values, seen) with these (B g N d) behind those there."""
        if torch.is_grad_enabled() and k.requires_grad:
            raise ValueError("a cache keeps no graph: run it within torch.no_grad(), or train without a cache")
        n = k.shape[2]
        end = self.length + n
        if self.k is None or self.v is None or end > self.k.shape[2]:
            self.grow(k, v, end)
        assert self.k is not None
        assert self.v is not None
        self.k[:, :, self.length : end], self.v[:, :, self.length : end] = k, v
        if real is not None and self.seen is None:
            self.seen = torch.ones(len(k), 1, self.k.shape[2], dtype=torch.bool, device=k.device)
        if self.seen is not None and real is not None:
            self.seen[:, :, self.length : end] = real[:, None]
        self.length = end
        seen = None if self.seen is None else self.seen[:, :, :end]
        return self.k[:, :, :end], self.v[:, :, :end], seen

    def grow(self, k: Tensor, v: Tensor, end: int) -> None:
        size = end + self.room if self.k is None else max(end, 2 * self.k.shape[2])
        old, held = (self.k, self.v), self.length
        self.k, self.v = (x.new_empty(*x.shape[:2], size, x.shape[3]) for x in (k, v))
        if old[0] is not None and old[1] is not None:
            self.k[:, :, :held], self.v[:, :, :held] = old[0][:, :, :held], old[1][:, :, :held]
        if self.seen is not None:
            more = self.seen.new_ones(*self.seen.shape[:2], size - self.seen.shape[2])
            self.seen = torch.cat([self.seen, more], 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, stream: Stream, scale: float | None) -> Tensor:
        """What the queries of `stream` (B h N d) read from all that was there and from k and v, which join it."""
        first = self.length == 0
        keys, values, seen = self.append(k, v, stream.real)
        return read(q, keys, values, seen, stream, scale, first)


class Cache:
    """One `LayerCache` for each layer of a decoder. `make` makes a layer's own, where a policy keeps less than all."""

    def __init__(self, depth: int, room: int = 64, make: Callable[[int, int], LayerCache] | None = None):
        self.layers = [LayerCache(room) if make is None else make(i, room) for i in range(depth)]
        self.read = 0  # tokens that were read, whether they are still held or not

    def memory(self) -> int:
        """Bytes of the keys and values that are held."""
        held = [(c.k, c.length) for c in self.layers if c.k is not None]
        return sum(2 * k[:, :, :n].numel() * k.element_size() for k, n in held)

    def lengths(self) -> list[int]:
        return [c.length for c in self.layers]


def read(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, stream: Stream, scale: float | None, first: bool,
         dropout: float = 0.0) -> Tensor:  # fmt: skip
    """softmax(scale q k') v for the tokens of `stream`, the last N of the M that k and v hold (`first`: all of them);
    `seen` (B 1 M) is False for padding."""
    n, m = q.shape[2], k.shape[2]
    if n == 1 and m > 1 and not dropout:
        return decode(q, k, v, None if seen is None else seen[:, :, None], scale=scale)
    k, v = spread(k, q.shape[1]), spread(v, q.shape[1])
    if first:
        return attend(q, k, v, stream.bias, causal=stream.bias is None, scale=scale, dropout=dropout)
    bias = None if seen is None else seen[:, :, None]  # B 1 1 M
    return attend(q, k, v, bias, causal=True, scale=scale, dropout=dropout)


def spread(x: Tensor, heads: int) -> Tensor:
    """Keys or values (B g M d), once for each of the `heads` query heads that they serve."""
    b, g, m, d = x.shape
    return x if g == heads else x[:, :, None].expand(b, g, heads // g, m, d).reshape(b, heads, m, d)
