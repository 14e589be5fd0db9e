"""Caches that hold only so many keys and values: the last ones, and those that were attended to most.

Of both papers only what their abstracts say is at hand; this is a sensible reading of them, not a copy:
H2O (https://arxiv.org/abs/2306.14048): a key's worth is the attention that it has received so far, summed over queries.
Keyformer (https://arxiv.org/abs/2403.09054): the same of scores with Gumbel noise on them and a temperature that rises,
so that keys which leave early are not judged by one sharp softmax.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..kernels.decode import decode, scores
from .cache import Cache, LayerCache, read
from .decoder import Layer
from .plugins import Placed
from .stream import Stream

BLOCK = 64  # queries of a prompt whose attention is summed at a time


@dataclass(frozen=True)
class HeavyHitters:
    """Each layer, row and head of keys holds at most `budget` tokens: the last `recent` of them, and of the older ones
    those with the most attention so far (H2O). A budget that all of prompt and answer fit into changes nothing."""

    into: ClassVar[str] = "decoder"
    budget: int = 512
    recent: int = 256

    def __post_init__(self) -> None:
        if not 0 < self.recent <= self.budget:
            raise ValueError(f"recent={self.recent}, budget={self.budget}: 0 < recent <= budget is wanted")

    def cache(self, decoder: Any, room: int) -> Cache:
        return Cache(decoder.depth, room, self.layer)

    def layer(self, index: int, room: int) -> LayerCache:
        return BoundedCache(self.budget, self.recent)

    def place(self, hosts: Sequence[Layer]) -> list[Placed]:
        """As a plugin, for every answer while it is attached."""
        return [Placed(host, "keeping", Keep(self, host.index)) for host in hosts]


@dataclass(frozen=True)
class Keyformer(HeavyHitters):
    """As HeavyHitters, but what is summed is softmax((score + Gumbel noise) / tau), tau rising from 1 to `tau` over the
    steps for which there is room; the noise is drawn by `seed`, in each layer anew."""

    tau: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau < 1:
            raise ValueError(f"tau={self.tau}: the temperature rises from 1, so 1 or more is wanted")

    def layer(self, index: int, room: int) -> LayerCache:
        return NoisyCache(self.budget, self.recent, self.tau, max(1, room), self.seed + index)


class Keep(nn.Module):
    """room -> what a layer keeps."""

    def __init__(self, policy: HeavyHitters, index: int):
        super().__init__()
        self.policy, self.index = policy, index

    def forward(self, room: int) -> LayerCache:
        return self.policy.layer(self.index, room)


class BoundedCache(LayerCache):
    """A layer's keys (B g M d), at most `budget` of them in each head. `place` (B g M) says which token each is of,
    `worth` (B g M) how much attention it received. Where it is full, a new token takes the slot of the least worthy
    older one: rotations are in the keys already, so their order is free."""

    def __init__(self, budget: int, recent: int):
        super().__init__(room=0)
        self.budget, self.recent, self.came = budget, recent, 0
        self.place: Tensor | None = None
        self.worth: Tensor | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, stream: Stream, scale: float | None) -> Tensor:
        if self.length == 0:
            return self.begin(q, k, v, stream, scale)
        if q.shape[2] != 1:
            raise ValueError(
                f"{q.shape[2]} tokens at once behind a bounded cache: a prompt comes first, then one at a time"
            )
        self.put(k, v)
        assert self.k is not None
        assert self.v is not None
        assert self.worth is not None
        bias = None if self.seen is None else self.seen.repeat_interleave(q.shape[1] // k.shape[1], 1)[:, :, None]
        self.worth += self.received(q, self.k, bias, scale)
        return decode(q, self.k, self.v, bias, scale=scale)  # bias: B h 1 M

    def begin(self, q: Tensor, k: Tensor, v: Tensor, stream: Stream, scale: float | None) -> Tensor:
        """The prompt is read as a whole; then only what fits is kept."""
        y = read(q, k, v, None, stream, scale, True)
        b, g, n, _ = k.shape
        worth = self.of_prompt(q, k, stream, scale)
        place = torch.arange(n, device=k.device).expand(b, g, n)
        seen = None if stream.real is None else stream.real[:, None].expand(b, g, n)
        self.came, self.length = n, min(n, self.budget)
        if n > self.budget:
            value = worth.masked_fill(place >= n - self.recent, torch.inf)
            value = value if seen is None else value.masked_fill(~seen, -1)
            kept = value.topk(self.budget, -1).indices.sort(-1).values  # B g budget
            k, v = (x.gather(2, kept[..., None].expand(-1, -1, -1, x.shape[-1])) for x in (k, v))
            worth, place = worth.gather(2, kept), place.gather(2, kept)
            seen = None if seen is None else seen.gather(2, kept)
        if seen is not None and bool(seen.all()):
            seen = None
        self.k, self.v, self.worth = k.contiguous(), v.contiguous(), worth.contiguous()
        self.place, self.seen = place.contiguous(), None if seen is None else seen.contiguous()
        return y

    def put(self, k: Tensor, v: Tensor) -> None:
        """One more token: behind the others while there is room, then in the slot of the least worthy."""
        assert self.k is not None
        assert self.v is not None
        assert self.worth is not None
        assert self.place is not None
        now = torch.full_like(self.place[..., :1], self.came)
        if self.length < self.budget:
            self.k, self.v = torch.cat([self.k, k], 2), torch.cat([self.v, v], 2)
            self.worth = torch.cat([self.worth, torch.zeros_like(self.worth[..., :1])], 2)
            self.place = torch.cat([self.place, now], 2)
            if self.seen is not None:
                self.seen = torch.cat([self.seen, torch.ones_like(self.seen[..., :1])], 2)
            self.length += 1
        else:
            value = self.worth.masked_fill(self.place > self.came - self.recent, torch.inf)
            value = value if self.seen is None else value.masked_fill(~self.seen, -1)
            slot = value.argmin(-1, keepdim=True)  # B g 1
            wide = slot[..., None].expand(-1, -1, -1, k.shape[-1])
            self.k.scatter_(2, wide, k)
            self.v.scatter_(2, wide, v)
            self.worth.scatter_(2, slot, 0.0)
            self.place.scatter_(2, slot, now)
            if self.seen is not None:
                self.seen.scatter_(2, slot, True)
        self.came += 1

    def of_prompt(self, q: Tensor, k: Tensor, stream: Stream, scale: float | None) -> Tensor:
        """(B g N): the attention that each token of a whole prompt receives from those behind it and itself."""
        b, g, n, _ = k.shape
        worth = torch.zeros(b, g, n, dtype=torch.float32, device=k.device)
        for i in range(0, n, BLOCK):
            end = min(n, i + BLOCK)
            bias = None if stream.bias is None else stream.bias[:, :, i:end, :end]
            score = scores(q[:, :, i:end], k[:, :, :end], bias, scale=scale)
            if bias is None:
                later = torch.ones(end - i, end - i, dtype=torch.bool, device=k.device).triu(1)
                score[..., i:].masked_fill_(later, -torch.inf)
            worth[..., :end] += self.summed(score, g)
        return worth

    def received(self, q: Tensor, k: Tensor, bias: Tensor | None, scale: float | None) -> Tensor:
        """(B g M): the attention that each key receives from these queries, summed over them and over the heads that
        share it."""
        return self.summed(scores(q, k, bias, scale=scale), k.shape[1])

    def summed(self, score: Tensor, heads: int) -> Tensor:
        """(B h N M) -> (B g M)"""
        worth = self.share(score).sum(2)
        return worth.view(len(worth), heads, -1, worth.shape[-1]).sum(2)

    def share(self, score: Tensor) -> Tensor:
        share = score.softmax(-1)
        empty = score[..., 0] == -torch.inf  # only a row that begins with a hidden token may see nothing
        return share.masked_fill_((score == -torch.inf).all(-1, keepdim=True), 0) if bool(empty.any()) else share


class NoisyCache(BoundedCache):
    """With Keyformer's score in place of attention."""

    def __init__(self, budget: int, recent: int, tau: float, steps: int, seed: int):
        super().__init__(budget, recent)
        self.tau, self.steps, self.seed, self.step = tau, steps, seed, 0
        self.generator: torch.Generator | None = None

    def share(self, score: Tensor) -> Tensor:
        if self.generator is None:
            self.generator = torch.Generator(score.device).manual_seed(self.seed)
        noise = torch.empty_like(score).exponential_(generator=self.generator).log().neg()  # Gumbel(0, 1)
        now = 1 + (self.tau - 1) * min(1.0, self.step / self.steps)
        return super().share((score + noise) / now)

    def received(self, q: Tensor, k: Tensor, bias: Tensor | None, scale: float | None) -> Tensor:
        worth = super().received(q, k, bias, scale)
        self.step += 1
        return worth
