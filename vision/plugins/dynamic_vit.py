"""DynamicViT, https://arxiv.org/abs/2106.02034 and https://arxiv.org/abs/2207.01580: small predictors, trained with the
model, score the patches before some blocks and keep a share of them.

A predictor sees x (B N C) of the patches: h = gelu(linear(norm(x))); half of h stays each token's own, the other half
becomes its mean over the tokens that count; linear C -> C/2, gelu, -> C/4, gelu, -> 2, log softmax: log probabilities
to keep and to drop. In training it decides by a hard Gumbel softmax, times the decision before it; all tokens stay, and
`Tokens.policy` says which count. `train.sparsify` has the losses.

Plain backbones (ViT, DeiT): in evaluation the int(patches * ratio) best stay, in the order of their scores; in training
attention counts by the policy (kernels/policy.py). Hierarchical ones (ConvNeXt, Swin, …), in their third stage: every
mixer sees the full map; what is kept goes through the block's MLP, the rest through a norm and one linear layer.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.attend import attend
from ...kernels.policy import attend_policy
from ..layers import Linear
from ..network import Rules
from ..residual import Add, AddScaled
from ..tokens import Tokens, patch_positions, rows, select
from . import Host, Placed, note, reducible
from .pruning import check_at

STAGE = 2  # of a hierarchical backbone


@dataclass(frozen=True)
class DynamicViT:
    """Keeps, of the patches that there were, keep, keep² and keep³ in a plain backbone, keep, keep - 0.2 and keep - 0.4
    in the third stage of a hierarchical one, or the shares of a tuple; 1 keeps all.

    `at`: before which blocks of the stage, from 0. None: at a quarter, half and three quarters of a plain backbone
    (3, 6, 9 of 12), at 1, 2, 3 times depth // 9 (at least 1) of a third stage.
    """

    keep: float | tuple[float, ...] = 0.7
    at: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        shares = self.keep if isinstance(self.keep, tuple) else (self.keep,)
        if not shares or any(not 0 < k <= 1 for k in shares) or list(shares) != sorted(shares, reverse=True):
            raise ValueError(f"keep={self.keep!r}: a share above 0 and up to 1, or a tuple of such that do not rise")
        check_at(self.at)
        if self.at is not None and isinstance(self.keep, tuple) and len(self.at) != len(shares):
            raise ValueError(f"keep={self.keep!r} and at={self.at!r}: as many shares as blocks, or a single one")

    def place(self, hosts: Sequence[Host]) -> list[Placed]:
        chosen = self.chosen(hosts)
        later = stage(hosts)[chosen[0][0].index :]
        deciding = [Placed(h, "before_block", Decide(h.dim, share, later[0].stage == 0)) for h, share in chosen]
        if later[0].stage == 0:
            return deciding + [Placed(h, "mixer.attending", UnderPolicy(h.mixer.dropout)) for h in later]
        shares = [next(s for at, s in reversed(chosen) if at.index <= h.index) for h in later]
        fast = [Placed(h, "around_ffn", FastPath(h, s)) for h, s in zip(later, shares, strict=True)]
        return [*deciding, *fast, Placed(later[-1], "after_block", AllCount())]

    def chosen(self, hosts: Sequence[Host]) -> list[tuple[Host, float]]:
        """The blocks before which it is decided, and the shares kept there."""
        found, plain = stage(hosts), hosts[-1].stage == 0
        depth = len(found)
        step = max(1, depth // 4 if plain else depth // 9)
        at = self.at or tuple(b for b in (step, 2 * step, 3 * step) if b < depth)
        if not at:
            raise found[0].refuse("is alone in its stage, and patches are chosen from the second block on")
        if at[-1] >= depth:
            raise ValueError(f"at={self.at!r}: the stage from {found[0].name} on has {depth} blocks, from 0")
        return [(found[b], share) for b, share in zip(at, self.shares(len(at), plain), strict=True)]

    def shares(self, count: int, plain: bool) -> tuple[float, ...]:
        if isinstance(self.keep, tuple):
            if len(self.keep) != count:
                raise ValueError(f"keep={self.keep!r}: this model is pruned before {count} blocks; give as many shares")
            return self.keep
        if plain or self.keep == 1:
            return tuple(self.keep ** (i + 1) for i in range(count))
        if self.keep - 0.2 * (count - 1) <= 0:
            raise ValueError(f"keep={self.keep}: it falls by 0.2 at each of {count} blocks, to nothing; give a tuple")
        return tuple(round(self.keep - 0.2 * i, 6) for i in range(count))  # 0.7 - 0.2 is less than 0.5

    def published(self, hosts: Sequence[Host]) -> Rules:
        rename = []
        for i, (h, _) in enumerate(self.chosen(hosts)):
            theirs, ours = rf"(?:layers\.2\.)?score_predictor\.{i}\.", f"{h.name}.before_block.predictor."
            rename += [(theirs + r"in_conv\.(\d)\.(weight|bias)", ours + r"enter.\1.\2"),
                       (theirs + r"out_conv\.(\d)\.(weight|bias)", ours + r"judge.\1.\2")]  # fmt: skip
        for h in hosts:
            if h.stage == STAGE:
                theirs, ours = rf"(?:layers\.2\.blocks|stages\.2)\.{h.index}\.", f"{h.name}.around_ffn."
                rename += [(theirs + r"(?:fastmlp\.fc1|fast_path)\.([01])\.(weight|bias)", ours + r"path.\1.\2"),
                           (theirs + "fast_path_gamma", ours + "add.gamma")]  # fmt: skip
        return Rules(tuple(rename), flatten=(r"score_predictor\..*",))


def stage(hosts: Sequence[Host]) -> list[Host]:
    """The blocks of a plain backbone, or of the third stage of a hierarchical one whose MLPs take single tokens."""
    if hosts[-1].stage == 0:
        return [masking(reducible(h)) for h in hosts]
    found = [h for h in hosts if h.stage == STAGE]
    if not found:
        raise hosts[-1].refuse("stands in the last of 2 stages: DynamicViT works in the only one or the third")
    for h in found:
        if "around_ffn" not in h.block.seams:
            raise h.refuse("has no MLP behind it that takes each token by itself, beside which a faster path could be")
    return found


def masking(host: Host) -> Host:
    if "attending" not in getattr(host.mixer, "seams", ()):
        raise host.refuse("has no seam 'attending', where tokens that do not count are masked in training")
    return host


class Predictor(nn.Module):
    """x (B N C), which of them count (B N 1; None: all) -> log probabilities to keep and to drop (B N 2)."""

    def __init__(self, dim: int):
        super().__init__()
        self.enter = nn.Sequential(nn.LayerNorm(dim), Linear(dim, dim), nn.GELU())
        self.judge = nn.Sequential(
            Linear(dim, dim // 2), nn.GELU(), Linear(dim // 2, dim // 4), nn.GELU(), Linear(dim // 4, 2)
        )

    def forward(self, x: Tensor, counts: Tensor | None) -> Tensor:
        own, others = self.enter(x).tensor_split(2, -1)  # B N C/2
        if counts is None:
            mean = others.mean(1, keepdim=True)
        else:
            mean = (others * counts).sum(1, keepdim=True) / counts.sum(1, keepdim=True).clamp(min=1)
        return self.judge(torch.cat([own, mean.expand_as(others)], -1)).log_softmax(-1)  # type: ignore[no-any-return]


class Decide(nn.Module):
    """Tokens -> Tokens: in training with the new policy; in evaluation with the best patches alone where tokens may go
    (no grid is needed), else with a policy too. Notes "score" (B N), the log probability to keep each present patch,
    and in training "decision" (B N), 1 for those that are kept."""

    def __init__(self, dim: int, share: float, drops: bool):
        super().__init__()
        self.predictor, self.share, self.drops = Predictor(dim), share, drops

    def forward(self, t: Tokens) -> Tokens:
        patches = t.patches()
        n, k = patches.shape[1], kept(self.share, t)
        if t.turn or (k == n and not self.training):  # decided once, if the block runs several times
            return t
        # evaluation, as published, chooses and averages among all positions of a map, whatever was decided before
        before = replace(t, x=t.policy).patches() if self.training and t.policy is not None else None
        score = self.predictor(patches, before)
        note("score", score[..., 0])
        if self.training:
            decision = F.gumbel_softmax(score, hard=True)[..., :1]
            decision = decision if before is None else decision * before
            note("decision", decision[..., 0])
            return replace(t, policy=with_special(decision, t))
        best = score[..., 0].topk(k).indices
        if not self.drops:
            return replace(t, policy=with_special(torch.zeros_like(score[..., :1]).scatter(1, best[..., None], 1), t))
        special = torch.tensor(t.special, dtype=best.dtype, device=best.device).expand(len(best), -1)
        return select(t, torch.cat([special, patch_positions(t).gather(1, best)], 1), tuple(range(len(t.special))))

    def extra_repr(self) -> str:
        return f"share={self.share:g}"


def kept(share: float, t: Tokens) -> int:
    """How many patches stay: int(share * all that there were), at least one, at most those that are present."""
    present = t.x.shape[1] - len(t.special)
    return min(present, max(1, int((present if t.source is None else t.source.shape[1]) * share)))


def with_special(policy: Tensor, t: Tokens) -> Tensor:
    """(B N 1) of the patches -> of all tokens, of which the special ones count."""
    if not t.special:
        return policy
    whole = policy.new_ones(len(policy), t.x.shape[1], 1)
    return whole.scatter(1, patch_positions(t)[..., None], policy)


class UnderPolicy(nn.Module):
    """Attention among the tokens that count."""

    def __init__(self, dropout: float):
        super().__init__()
        self.dropout = dropout

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, t: Tokens) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        if t.policy is None:
            return attend(q, k, v, bias, dropout=dropout)
        return attend_policy(q, k, v, t.policy, bias, dropout=dropout)


class FastPath(nn.Module):
    """(Tokens, y, normed, then) -> the stream behind the MLP for tokens that count, for others add(x, linear(norm(y))).

    `add` joins as the block's own does; a LayerScale of its own begins at 1e-6, as in ConvNeXt.
    """

    def __init__(self, host: Host, share: float):
        super().__init__()
        block, dim = host.block, host.dim
        norm = getattr(block, "norm2", None) or getattr(block, "norm", None)
        self.path = nn.Sequential(nn.LayerNorm(dim, eps=getattr(norm, "eps", 1e-5)), Linear(dim, dim))
        self.add = cast(Add, deepcopy(getattr(block, "add2", None) or block.add))
        if isinstance(self.add, AddScaled):
            nn.init.constant_(self.add.gamma, 1e-6)
        self.share = share

    def forward(self, t: Tokens, y: Tensor, normed: Tensor, then: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        if t.policy is None:
            return then(t.x, normed)
        if self.training:
            return t.policy * then(t.x, normed) + (1 - t.policy) * self.fast(t.x, y)
        order = t.policy[..., 0].argsort(dim=1, descending=True)  # B N
        k = kept(self.share, t) + len(t.special)
        a, b = order[:, :k], order[:, k:]
        x = torch.cat([then(rows(t.x, a), rows(normed, a)), self.fast(rows(t.x, b), rows(y, b))], 1)
        return rows(x, order.argsort(dim=1))

    def fast(self, x: Tensor, y: Tensor) -> Tensor:
        return self.add(x, self.path(y))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"share={self.share:g}"


class AllCount(nn.Module):
    """The stage ends: a policy is for its grid only."""

    def forward(self, t: Tokens) -> Tokens:
        return replace(t, policy=None)
