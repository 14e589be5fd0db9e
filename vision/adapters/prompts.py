"""Visual prompt tuning, https://arxiv.org/abs/2203.12119: learned tokens beside those of the patches.

Shapes: B images, N tokens, C channels, n prompts of p channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..backbone import Backbone, StageBlocks
from ..heads.classification import Head
from ..layers import Linear
from ..network import Rules
from ..plugins import Host, hosts_of
from ..tokens import Tokens, beside
from . import AdapterError, Put
from .bottleneck import AdaptFormer
from .vit_pytorch import RENAME


@dataclass(frozen=True)
class Vpt:
    """Visual prompt tuning: learned tokens beside the patches.

    `n` prompts behind the special tokens in front (`front`: before those, as in AdaptFormer's code). `deep`: each
    block has prompts of its own in place of those that come to it; else (shallow) the first ones go through all.
    `project`: prompts are so wide, and a linear layer, shared by all blocks of a width, makes them as wide as tokens.

    Stages whose last blocks take no special tokens get no prompts; behind a step that takes none, the next stage begins
    with its own. A head that averages tokens averages over the prompts too, as published for Swin. There the windows of
    an image meet that image's prompts alone (in a batch, the authors' code mixes images).
    """

    n: int = 5
    deep: bool = True
    project: int | None = None
    dropout: float = 0.0
    front: bool = False

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n={self.n}: at least 1 prompt")
        if self.project is not None and self.project < 1:
            raise ValueError(f"project={self.project}: at least 1 channel, or None for prompts as wide as the tokens")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: a probability from 0 up to 1, not itself")

    def place(self, model: nn.Module) -> list[Put]:
        path, backbone = tower(model)
        stages = blocks_with_prompts(model, len(backbone.stages))
        projections: dict[int, Linear] = {}
        puts, carried = list[Put](), False
        for i, found in enumerate(stages):
            new = [h for j, h in enumerate(found) if self.deep or (j == 0 and not carried)]
            puts += [Put(h.name, "before_block", self.layer(h, backbone.strides[0], projections)) for h in new]
            last = i + 1 == len(stages)
            carried = bool(found) and not last and carries(backbone.stages[i + 1], stages[i + 1])
            if found and last:
                puts.append(Put(path, "prompts", (self.at(backbone.special), self.n)))
            elif found and not carried:
                puts.append(Put(found[-1].name, "after_block", Away(len(found[-1].special))))
        if stages[-1] and isinstance(spec := getattr(model, "spec", None), Head) and spec.pool == "mean":
            puts.append(Put("", "neck", AllTokens(model.get_submodule("neck"))))
        return puts

    def layer(self, host: Host, patch: int, projections: dict[int, Linear]) -> "Prompts":
        """The prompts of a block; the first of a width brings the projection to it."""
        if self.project is None:
            return Prompts(self, host, patch)
        if (there := projections.get(host.dim)) is not None:
            return Prompts(self, host, patch, shared=there)
        projections[host.dim] = Linear(self.project, host.dim)
        nn.init.kaiming_normal_(projections[host.dim].weight, mode="fan_out")
        return Prompts(self, host, patch, project=projections[host.dim])

    def at(self, special: tuple[int, ...]) -> int:
        """Where prompts go among tokens with special ones at those places."""
        return 0 if self.front else next(i for i in range(len(special) + 1) if i not in special)

    def published(self, hosts: Sequence[Host]) -> Rules:
        """The names of VPT's code, its ViT's with them, or of AdaptFormer's where prompts stand in front."""
        found = [h for h in hosts if isinstance(h.block.before_block, Prompts)]
        seam = "{}.before_block.prompts"
        if self.front:
            rename = [(rf"embeddings\.{i}\[0\]", seam.format(h.name)) for i, h in enumerate(found)]
            return AdaptFormer().published(hosts) + Rules(tuple(rename), stacked=((r"embeddings\.\d+", 1),))
        prefix, first = r"(?:transformer\.)?", found[0]
        rename = [(prefix + r"prompt_embeddings\[0\]", seam.format(first.name))]
        rename.append((r"transformer\.prompt_proj\.(weight|bias)", rf"{first.name}.before_block.project.\1"))
        stacked = [(prefix + "prompt_embeddings", 1)]
        for stage in sorted({h.stage for h in found}):
            theirs = rf"{prefix}deep_prompt_embeddings" + (f"_{stage}" if len({h.stage for h in hosts}) > 1 else "")
            deep = [h for h in found if h.stage == stage and h is not first]
            stacked.append((theirs, len(deep)))
            rename += [(rf"{theirs}\[{j}\]", seam.format(h.name)) for j, h in enumerate(deep)]
        return Rules((*RENAME, *rename), stacked=tuple((name, count) for name, count in stacked if count))


class Prompts(nn.Module):
    """Tokens -> the same with prompts: put in where there are none, else, if they are `deep`, in place of those. They
    begin uniform within the Glorot bound sqrt(6 / (3 patch² + p))."""

    def __init__(self, plan: Vpt, host: Host, patch: int, project: Linear | None = None, shared: Linear | None = None):
        super().__init__()
        self.deep, self.at, self.others = plan.deep, plan.at, len(host.special)
        width = plan.project or host.dim
        bound = (6 / (3 * patch**2 + width)) ** 0.5
        self.prompts = nn.Parameter(torch.empty(plan.n, width).uniform_(-bound, bound))
        self.project, self.shared = project, (shared,)  # another block's layer, which is a submodule there alone
        self.drop = nn.Dropout(plan.dropout) if plan.dropout else nn.Identity()

    def forward(self, t: Tokens) -> Tokens:
        there = len(t.special) > self.others
        if there and not self.deep:
            return t  # from an earlier turn of the same block
        n, x = len(self.prompts), t.x
        p = self.drop(self.wide().to(x.dtype).expand(x.shape[0], -1, -1))
        if there:
            at = t.special[-n]
            return replace(t, x=torch.cat([x[:, :at], p, x[:, at + n :]], 1))
        assert t.source is None
        assert t.spread is None
        at = self.at(t.special)
        return replace(t, x=torch.cat([x[:, :at], p, x[:, at:]], 1), special=beside(t.special, at, n))

    def wide(self) -> Tensor:
        """(n C)"""
        layer = self.shared[0] if self.project is None else self.project
        return self.prompts if layer is None else layer(self.prompts)

    def extra_repr(self) -> str:
        return f"{len(self.prompts)} of {self.prompts.shape[1]} channels, deep={self.deep}"


class Away(nn.Module):
    """Tokens -> the same without prompts, of which `others` special tokens are none."""

    def __init__(self, others: int):
        super().__init__()
        self.others = others

    def forward(self, t: Tokens) -> Tokens:
        n = len(t.special) - self.others
        a = t.special[self.others]
        b = a + n

        def own(y: Tensor | None, dim: int = 1) -> Tensor | None:
            if y is None:
                return None
            return torch.cat([y.narrow(dim, 0, a), y.narrow(dim, b, y.shape[dim] - b)], dim)

        def moved(at: Tensor | None) -> Tensor | None:
            return None if at is None else torch.where(at >= b, at - n, at)

        x = torch.cat([t.x[:, :a], t.x[:, b:]], 1)
        special = tuple(p - n if p >= b else p for p in t.special[: self.others])
        return replace(t, x=x, special=special, size=own(t.size), policy=own(t.policy), place=moved(own(t.place)),
                       source=moved(t.source), spread=t.spread if t.window else own(t.spread, 2))  # fmt: skip


class AllTokens(nn.Module):
    """Tokens -> those of a neck, of which none is special any more, so that the mean is over all of them."""

    special = ()

    def __init__(self, neck: nn.Module):
        super().__init__()
        self.neck = neck

    def forward(self, t: Tokens) -> Tokens:
        t = self.neck(t)
        return replace(t, special=(), grid=None, source=None, spread=None)


def tower(model: nn.Module) -> tuple[str, Backbone]:
    """The backbone of a model, and its name there."""
    found = next(((n, m) for n, m in model.named_modules() if isinstance(m, Backbone)), None)
    if found is None:
        raise AdapterError(f"{type(model).__name__} has no backbone of stages, so prompts cannot be put into it")
    return found


def blocks_with_prompts(model: nn.Module, count: int) -> list[list[Host]]:
    """Of each stage its last blocks, as far as all of them take special tokens; raises AdapterError if there are none
    in the whole model."""
    stages: list[list[Host]] = [[] for _ in range(count)]
    refused = None
    for host in hosts_of(model):
        if (part := in_the_way(host)) is None:
            stages[host.stage].append(host)
            continue
        stages[host.stage] = []
        why = "takes no special tokens beside its patches, as prompts are"
        refused = AdapterError(f"{host.name}: {type(part).__name__} {why}")
    if not any(stages):
        raise refused or AdapterError(f"{type(model).__name__} has no blocks with seams, which prompts go before")
    return stages


def in_the_way(host: Host) -> nn.Module | None:
    """The part of a block that takes no special tokens, or makes nothing of them."""
    parts: tuple[nn.Module | None, ...] = (host.mixer, host.block, getattr(host.block, "ffn", None))
    needy = (p for p in parts if p is not None and not takes_special(p, not getattr(p, "needs_grid", False)))
    return next(needy, None)


def takes_special(part: nn.Module, otherwise: bool) -> bool:
    """Whether special tokens may stand beside the patches that `part` takes, as it declares."""
    return bool(getattr(part, "takes_special", otherwise))


def carries(stage: nn.Module, found: list[Host]) -> bool:
    """Whether prompts of the stage before go on into this one, whose blocks with prompts are `found`."""
    assert isinstance(stage, StageBlocks)
    return bool(found) and found[0].index == 0 and takes_special(stage.down, isinstance(stage.down, nn.Identity))
