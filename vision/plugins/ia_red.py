"""IA-RED², https://arxiv.org/abs/2106.12620: before each group of blocks an interpreter drops the tokens that it holds
for redundant.

score_j = mean_h sigmoid(q_class . k_j / sqrt(d)), from the normalised tokens; a token stays where score_j > threshold.
Special tokens stay always, and what an earlier interpreter dropped does not come back.

How many tokens stay depends on the image. In a batch those that go are therefore masked: they become 0, and attention
neither sees nor serves them (`Tokens.policy`). An image alone is cut in evaluation: the tokens are really gone, which
is faster and gives the same. A traced graph (compile, export) masks always. How interpreters learn: train/interpreters.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.attend import attend
from ..layers import Linear
from ..network import Rules
from ..tokens import Tokens, moved, select
from . import Host, Placed, note, reducible


@dataclass(frozen=True)
class IaRed:
    """The last stage's blocks in `groups` (of equal length, where that is possible), with an interpreter of `heads`
    heads before each. It drops tokens whose score is not above `threshold`; 0 drops none."""

    groups: int = 3
    heads: int | None = None  # None: as many as the blocks have, if the channels divide into these
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ValueError(f"groups={self.groups!r}: at least 1 group of blocks")
        if self.heads is not None and self.heads < 1:
            raise ValueError(f"heads={self.heads!r}: at least 1, or None for as many as the blocks have")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold={self.threshold!r}: of a probability, from 0 (all stay) up to 1, not itself")

    def place(self, hosts: Sequence[Host]) -> list[Placed]:
        stage = [reducible(h) for h in hosts if h.stage == hosts[-1].stage]
        layers = []
        for host in stage:
            if "attending" not in getattr(host.mixer, "seams", ()):
                raise host.refuse("lets nobody mask its attention, as tokens that were dropped are")
            if not host.special:
                raise host.refuse("has no class token beside its tokens, which the interpreters ask about these")
            layers.append(Placed(host, "mixer.attending", PairMask(host.mixer.dropout)))
        for group, i in enumerate(self.starts(len(stage))):
            dim, heads = stage[i].dim, self.heads or gcd(stage[i].dim, stage[i].mixer.heads)
            if dim % heads:
                raise ValueError(f"heads={heads}: {dim} channels do not divide into as many")
            layers.append(Placed(stage[i], "before_block", Interpreter(dim, heads, group, self.threshold)))
        return layers

    def starts(self, depth: int) -> list[int]:
        """The first block of each group."""
        if self.groups > depth:
            raise ValueError(f"groups={self.groups}: the last stage has {depth} blocks; give so many groups at most")
        return [depth * g // self.groups for g in range(self.groups)]

    def published(self, hosts: Sequence[Host]) -> Rules:
        """The authors' tool has every block twice, and three thirds of a projection of which it uses two."""
        stage = [h for h in hosts if h.stage == hosts[-1].stage]
        agent, rename, copies = r"groups\.{}\.agent\.qk\.(weight|bias)", [], []
        for g, (start, end) in enumerate(pairwise([*self.starts(len(stage)), len(stage)])):
            ours = f"{stage[start].name}.before_block"
            rename += [(agent.format(g) + r"\[0\]", ours + r".q.\1"), (agent.format(g) + r"\[1\]", ours + r".k.\1")]
            for i in range(start, end):
                copies.append((rf"groups\.{g}\.block_list\.{i - start}\.(.+)", rf"blocks.{i}.\1"))
        every = agent.format(r"\d+")
        return Rules(tuple(rename), (every + r"\[2\]",), stacked=((every, 3),), copies=tuple(copies))


class Interpreter(nn.Module):
    """Tokens -> Tokens, fewer or with a `policy` (B N 1: 1 for those that stay).

    `sampling`: where a gradient is wanted in training, draw who stays, the score being the probability. `on`: where it
    is off nothing is dropped (a curriculum switches one after the other on; checkpoints keep it).
    """

    on: Tensor

    def __init__(self, dim: int, heads: int, group: int, threshold: float):
        super().__init__()
        self.heads, self.group, self.threshold, self.sampling = heads, group, threshold, False
        self.q, self.k = Linear(dim, dim), Linear(dim, dim)
        self.register_buffer("on", torch.tensor(True))

    def forward(self, t: Tokens) -> Tokens:
        if self.threshold == 0 and not self.sampling:
            return t
        sampling = self.sampling and self.training and torch.is_grad_enabled()
        before = torch.ones_like(t.x[..., 0]) if t.policy is None else t.policy[..., 0]  # B N
        with torch.set_grad_enabled(sampling):
            score = before * self.score(t.x.detach() * before[..., None], t.special[0])
        drawn = torch.bernoulli(score.detach()) if sampling else (score > self.threshold).to(before.dtype)
        free = torch.ones_like(before).index_fill(1, torch.tensor(t.special, device=before.device), 0)
        policy = torch.where(self.on, torch.where(free > 0, drawn, 1.0), before)
        if sampling:
            note("log_probability", (torch.where(drawn > 0, score, 1 - score).log() * free).sum(1))
        note(f"probability{self.group}", score)
        note(f"policy{self.group}", policy)
        if len(policy) == 1 and not (self.training or policy.is_meta or torch.compiler.is_compiling()):
            return cut(t, (policy * free)[0].nonzero().mT)
        return masked(t, policy)

    def score(self, x: Tensor, token: int) -> Tensor:
        """(B N), by the class token at `token` of x (B N C)."""
        x = F.layer_norm(x, x.shape[-1:])
        q, k = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.q(x[:, [token]]), self.k(x)))
        score: Tensor = (q @ k.mT * q.shape[-1] ** -0.5).sigmoid()  # B h 1 N
        return score.mean(1)[:, 0]

    def extra_repr(self) -> str:
        return f"heads={self.heads}, group={self.group}, threshold={self.threshold}"


def cut(t: Tokens, patches: Tensor) -> Tokens:
    """The special tokens and those at `patches` (1 K) alone."""
    special = torch.tensor([t.special], device=patches.device)
    return replace(select(t, torch.cat([special, patches], 1), tuple(range(len(t.special)))), policy=None)


def masked(t: Tokens, policy: Tensor) -> Tokens:
    """The tokens with those of policy (B N) 0 as zeros that nobody sees."""
    to = torch.arange(policy.shape[1], device=policy.device).where(policy > 0, -1)
    policy = policy[..., None].to(t.x.dtype)
    return replace(moved(t, to, t.x * policy, t.special, t.size), policy=policy)


class PairMask(nn.Module):
    """Attention between tokens of which both stay; 0 for those that do not."""

    def __init__(self, dropout: float):
        super().__init__()
        self.dropout = dropout

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, t: Tokens) -> Tensor:
        if t.policy is not None:
            stays = t.policy > 0
            pairs = (stays & stays.mT)[:, None]  # B 1 N N
            bias = pairs if bias is None else bias.where(pairs, -torch.inf)
        return attend(q, k, v, bias, dropout=self.dropout if self.training else 0.0)


def interpreters_of(model: nn.Module) -> list[Interpreter]:
    """Those of a model, in order."""
    found = [m for m in model.modules() if isinstance(m, Interpreter)]
    if not found:
        raise ValueError(f"{type(model).__name__} has no interpreters: attach IaRed (tokens='ia_red')")
    return found
