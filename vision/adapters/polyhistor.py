"""Polyhistor and Polyhistor-Lite, https://arxiv.org/abs/2210.03265: hypernetworks for several dense tasks on a
hierarchical backbone, small enough for its widths.

No code was published, and this is a reading of the idea, not of the authors' shapes: no numbers of theirs are claimed.
Behind each block x + up(gelu(down(x))), per task. Polyhistor: down = L R (b C) and up likewise, of rank r, where one
linear generator writes L (b r) and another R (r C) from the code of task and block: k r (b + C) numbers in place of the
k b C of a plain hypernetwork (`hyperformer`), for each width of the backbone. Polyhistor-Lite: such factors make one
pair of template kernels T for each task; block l owns scaling kernels S_l, shared by the tasks, and its projections are
the Kronecker products of S_l and T, of any width from one template. The up projection starts at zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Linear
from ..tokens import Tokens
from . import Put
from .beside import blocks_of
from .hyperformer import BEHIND, Hypernet, Told, Written
from .tasks import TASKS, check_settings, marks

TEMPLATE = "template"


@dataclass(frozen=True)
class Polyhistor:
    """Bottlenecks that factored networks write for every task (Polyhistor).

    `reduction`: channels over the width of an adapter's middle. `rank`: of the projections, at most that width.
    `embedding`: numbers that tell a task or a block; `hidden`, `code`: widths of the network that reads them."""

    tasks: tuple[str, ...] = TASKS
    reduction: int = 8
    rank: int = 4
    embedding: int = 64
    hidden: int = 64
    code: int = 8

    def __post_init__(self) -> None:
        check_settings(self)

    def place(self, model: nn.Module) -> list[Put]:
        hosts = blocks_of(model, self)
        hyper = Hypernet(Told(len(self.tasks), self.embedding, self.hidden, self.code, (len(hosts),)))
        puts = [marks(model, self.tasks, hyper)]
        for i, h in enumerate(hosts):
            kind, width = f"{h.dim}", BEHIND.narrow(h, None, self.reduction)
            if kind not in hyper.generators:
                hyper.generators[kind] = Factored(self.code, h.dim, width, self.rank, neutral=True)
            puts.append(Put(h.name, "after_block", Decomposed(self.tasks, hyper, kind, (i,))))
        return puts


@dataclass(frozen=True)
class PolyhistorLite(Polyhistor):
    """Polyhistor with templates that each block scales (Polyhistor-Lite).

    As `Polyhistor`; `scale`: the scaling kernels of the narrowest blocks have so many rows and columns, or the
    largest divisor of it that their widths have, those of others more in proportion."""

    scale: int = 4

    def place(self, model: nn.Module) -> list[Put]:
        hosts = blocks_of(model, self)
        widths = [BEHIND.narrow(h, None, self.reduction) for h in hosts]
        dim, width = (n // gcd(n, self.scale) for n in (gcd(*(h.dim for h in hosts)), gcd(*widths)))
        told = Told(len(self.tasks), self.embedding, self.hidden, self.code)
        hyper = Hypernet(told, {TEMPLATE: Factored(self.code, dim, width, self.rank)})
        puts = [marks(model, self.tasks, hyper)]
        for h, b in zip(hosts, widths, strict=True):
            puts.append(Put(h.name, "after_block", Scaled(self.tasks, hyper, h.dim // dim, b // width)))
        return puts


class Factored(nn.Module):
    """A code (code) -> the projections down (b C) and up (C b) of an adapter, each the product of two matrices that are
    linear in the code, with r = min(rank, b) between them. To begin with entries of down have deviation C^-0.5 and
    those of up b^-0.5, as entries of the code have 1; `neutral`: up is zero."""

    def __init__(self, code: int, dim: int, width: int, rank: int, neutral: bool = False):
        super().__init__()
        self.dim, self.width, self.rank = dim, width, min(rank, width)
        r = self.rank
        self.down_left, self.down_right = Linear(code, width * r), Linear(code, r * dim)
        self.up_left, self.up_right = Linear(code, dim * r), Linear(code, r * width)
        for layer, n in ((self.down_left, r), (self.down_right, dim), (self.up_left, r), (self.up_right, width)):
            nn.init.normal_(layer.weight, std=(code * n) ** -0.5)
        if neutral:
            nn.init.zeros_(self.up_left.weight)

    def forward(self, code: Tensor) -> tuple[Tensor, Tensor]:
        r = self.rank
        down = self.down_left(code).view(self.width, r) @ self.down_right(code).view(r, self.dim)
        return down, self.up_left(code).view(self.dim, r) @ self.up_right(code).view(r, self.width)


class Decomposed(Written):
    """Tokens -> Tokens, x + up(gelu(down(x))), with projections that a hypernetwork writes."""

    def kernels(self, t: Tokens) -> tuple[Tensor, Tensor]:
        """down (b C), up (C b)"""
        return cast(tuple[Tensor, Tensor], self.written(t))

    def forward(self, t: Tokens) -> Tokens:  # type: ignore[override]
        down, up = self.kernels(t)
        return replace(t, x=t.x + F.linear(F.gelu(F.linear(t.x, down)), up))


class Scaled(Decomposed):
    """The same with the Kronecker products of scaling kernels of its own, (width dim) and (dim width), and the task's
    templates."""

    def __init__(self, tasks: Sequence[str], hyper: Hypernet, dim: int, width: int):
        super().__init__(tasks, hyper, TEMPLATE)
        self.down = nn.Parameter(torch.randn(width, dim) * dim**-0.5)
        self.up = nn.Parameter(torch.zeros(dim, width))

    def kernels(self, t: Tokens) -> tuple[Tensor, Tensor]:
        down, up = super().kernels(t)
        return torch.kron(self.down, down), torch.kron(self.up, up)
