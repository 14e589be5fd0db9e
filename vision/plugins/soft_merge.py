"""Soft token merging: before one block the patches become K tokens, each a learned weighted sum of all of them.

W = softmax over the patches of f(norm(x)), (N K), f an MLP without a bias behind it (the softmax would not see one);
z = W' x. This is the token learner of https://arxiv.org/abs/2106.11297 in its second form, put into any model. Added
here is the way back: patch n is made of the tokens in the shares W_nk / sum_j W_nj, and a token's size is the sum of
its shares, so that sizes add up to the number of patches. No published numbers stand behind it: theirs are of models
trained with the learner in place, and so is this to be; in a model that was not, the weights are as good as random.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Linear
from ..tokens import Tokens, patch_positions, rows
from . import Host, Placed
from .pruning import beside, blocks_at, check_behind, lead


@dataclass(frozen=True)
class SoftMerge:
    """Makes `tokens` of the patches before block `at` of the last stage (None: half of it); fewer patches than that, or
    as many, stay as they are. `hidden` is the width of the MLP that weighs them."""

    tokens: int = 16
    at: int | None = None
    hidden: int = 64

    def __post_init__(self) -> None:
        for name, value, least in (("tokens", self.tokens, 1), ("at", self.at or 0, 0), ("hidden", self.hidden, 1)):
            if value < least:
                raise ValueError(f"{name}={value}: {least} or more")

    def place(self, hosts: Sequence[Host]) -> list[Placed]:
        at = hosts[-1].depth // 2 if self.at is None else self.at
        (host,) = blocks_at(hosts, (at,))
        check_behind(hosts, [host])
        return [Placed(host, "before_block", SoftMergeLayer(host.dim, self.tokens, self.hidden))]


class SoftMergeLayer(nn.Module):
    """Tokens -> special tokens and `count` sums of the patches, with `size` and `spread`."""

    projections = ("fc1", "fc2")

    def __init__(self, dim: int, count: int, hidden: int):
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(dim), Linear(dim, hidden), Linear(hidden, count, bias=False)
        nn.init.normal_(self.fc1.weight, std=dim**-0.5)
        nn.init.normal_(self.fc2.weight, std=4 * hidden**-0.5)  # with smaller ones all tokens begin as the same mean
        self.count = count

    def forward(self, t: Tokens) -> Tokens:
        x, k = t.patches(), len(t.special)
        if x.shape[1] <= self.count:
            return t
        score = self.fc2(F.gelu(self.fc1(self.norm(x))))  # B n K
        each = torch.ones_like(x[..., :1]) if t.size is None else replace(t, x=t.size).patches()
        if t.size is not None:
            score = score + each.log()
        log = score.log_softmax(1)
        share = log.softmax(2)  # of each patch in the tokens
        first, special = lead(t, self.count), list(t.special)
        merged, size = log.exp().mT.to(x.dtype) @ x, share.mT.to(each.dtype) @ each
        if k:
            merged = beside(t.x[:, special], merged, first)
            size = beside(size.new_ones(len(size), k, 1) if t.size is None else t.size[:, special], size, first)
        back = beside(share.new_zeros(len(x), k, x.shape[1]), share.mT, first).mT  # B n K+k
        return replace(
            t, x=merged, grid=None, special=tuple(range(first, first + k)), size=size.clamp(min=1e-6), source=None,
            spread=composed(t, back), full=t.full or t.grid,
        )  # fmt: skip


def composed(t: Tokens, back: Tensor) -> Tensor:
    """B H*W M: patches as sums of new tokens, of which those of `t` but for the special ones are `back` (B n M)."""
    if t.source is None and t.spread is None:
        return back
    at = patch_positions(t)[0]
    if t.spread is not None:
        return t.spread[:, :, at].to(back.dtype) @ back
    assert t.source is not None
    every = back.new_zeros(len(back), t.x.shape[1], back.shape[2]).index_copy(1, at, back)
    return rows(every, t.source.clamp(min=0)).where(t.source[..., None] >= 0, 0)
