"""HyperFormer and HyperFormer++, https://arxiv.org/abs/2106.04489: one small network writes all adapters, for each task
and place, so that tasks and layers learn from each other.

In the place p (behind the mixer, behind the MLP) of block l, for task i, z = y + [norm](up(gelu(down([norm] y)))), y
being what the mixer or the MLP says before its residual. All that an adapter is made of, its norms' scales and shifts
too, is linear in the code c = norm(W2 relu(W1 [task_i, block_l, place_p])). HyperFormer++ has one set of such
generators for both places, HyperFormer one for each, and no embedding of the place.

Ours: a set of generators for each width of a hierarchical backbone; that which comes last (the up projection, or the
norm behind it) starts at zero instead of deviation 0.01, so that the start is neutral.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Linear
from ..tokens import Tokens
from . import Put
from .beside import AroundFfn, Beside, OnBranch, blocks_of
from .tasks import TASKS, ForTask, check_settings, marks

FFN, MIXER = 0, 1  # places, as published
SEAMS = (("on_mixer", MIXER, OnBranch), ("around_ffn", FFN, AroundFfn), ("on_ffn", FFN, OnBranch))
BEHIND = Beside("both")


@dataclass(frozen=True)
class HyperFormer:
    """Bottlenecks that one network writes for every task and block (HyperFormer).

    `reduction`: channels over the width of an adapter's middle. `embedding`: numbers that tell a task, block or
    place; `hidden`, `code`: widths of the network that reads them. `plus`: HyperFormer++. `layer_norms`: adapters
    have norms before and behind them."""

    tasks: tuple[str, ...] = TASKS
    reduction: int = 8
    plus: bool = True
    layer_norms: bool = False
    embedding: int = 64
    hidden: int = 64
    code: int = 8  # a width's generators hold (code + 1) times what one adapter does: it pays from as many places on

    def __post_init__(self) -> None:
        check_settings(self)

    def place(self, model: nn.Module) -> list[Put]:
        hosts = blocks_of(model, self)
        many = (len(hosts), 2) if self.plus else (len(hosts),)
        hyper = Hypernet(Told(len(self.tasks), self.embedding, self.hidden, self.code, many))
        puts = [marks(model, self.tasks, hyper)]
        for i, h in enumerate(hosts):
            width = BEHIND.narrow(h, None, self.reduction)
            for seam, place, joined in SEAMS:
                if seam not in h.block.seams:
                    continue
                kind, at = (f"{h.dim}", (i, place)) if self.plus else (f"{h.dim}_{('ffn', 'mixer')[place]}", (i,))
                if kind not in hyper.generators:
                    hyper.generators[kind] = Generator(self.code, h.dim, width, self.layer_norms)
                puts.append(Put(h.name, seam, joined(h.dim, Written(self.tasks, hyper, kind, at), BEHIND)))
        return puts


class Told(nn.Module):
    """(task, places) -> the code (code): norm(W2 relu(W1 e)), e being the embeddings of the task and of each place in a
    row. `places`: how many there are of each kind, as blocks of the model."""

    def __init__(self, tasks: int, embedding: int, hidden: int, code: int, places: Sequence[int] = ()):
        super().__init__()
        self.tasks = nn.ParameterList([torch.randn(embedding) for _ in range(tasks)])
        self.places = nn.ModuleList([nn.Embedding(n, embedding) for n in places])
        self.enter, self.leave = Linear((1 + len(places)) * embedding, hidden), Linear(hidden, code)
        self.norm = nn.LayerNorm(code, eps=1e-6)
        for layer in (self.enter, self.leave):
            nn.init.normal_(layer.weight, std=0.01)

    def forward(self, task: int, at: Sequence[int]) -> Tensor:
        rows = [cast(nn.Embedding, table).weight[i] for table, i in zip(self.places, at, strict=True)]
        return self.norm(self.leave(F.relu(self.enter(torch.cat([self.tasks[task], *rows])))))  # type: ignore[no-any-return]


class Weights(NamedTuple):
    """Of one adapter, C channels and b of them in the middle; norms as scale and shift (C each), or None."""

    down: Tensor  # b C
    down_bias: Tensor  # b
    up: Tensor  # C b
    up_bias: Tensor  # C
    before: tuple[Tensor, Tensor] | None
    after: tuple[Tensor, Tensor] | None


class Generator(nn.Module):
    """A code (code) -> the weights of an adapter of `dim` channels and `width` in its middle."""

    def __init__(self, code: int, dim: int, width: int, norms: bool):
        super().__init__()
        self.dim, self.width = dim, width
        self.down, self.down_bias = Linear(code, width * dim), Linear(code, width)
        self.up, self.up_bias = Linear(code, dim * width), Linear(code, dim)
        names = ("before_scale", "before_shift", "after_scale", "after_shift")
        self.norms = nn.ModuleDict({name: Linear(code, dim) for name in names if norms})
        for layer in self.modules():
            if isinstance(layer, Linear):
                nn.init.normal_(layer.weight, std=0.01)
        last = (self.norms["after_scale"], self.norms["after_shift"]) if norms else (self.up, self.up_bias)
        for layer in last:
            nn.init.zeros_(cast(Linear, layer).weight)

    def forward(self, code: Tensor) -> Weights:
        norms = {name: generator(code) for name, generator in self.norms.items()}
        return Weights(
            self.down(code).view(self.width, self.dim), self.down_bias(code),
            self.up(code).view(self.dim, self.width), self.up_bias(code),
            (norms["before_scale"], norms["before_shift"]) if norms else None,
            (norms["after_scale"], norms["after_shift"]) if norms else None,
        )  # fmt: skip


class Hypernet(nn.Module):
    """(task, kind of adapter, where it is) -> what the generator of that kind makes of their code."""

    def __init__(self, told: Told, generators: Mapping[str, nn.Module] | None = None):
        super().__init__()
        self.told, self.generators = told, nn.ModuleDict(generators)

    def forward(self, task: int, kind: str, at: Sequence[int]) -> Any:
        return self.generators[kind](self.told(task, at))


class Written(ForTask):
    """up(act(down(x))) of Tokens, (B N C), with weights that a hypernetwork writes, which is registered elsewhere."""

    def __init__(self, tasks: Sequence[str], hyper: Hypernet, kind: str, at: Sequence[int] = ()):
        super().__init__(tasks)
        self.hyper, self.kind, self.at = (hyper,), kind, tuple(at)  # in a tuple: not one of this module's own

    def written(self, t: Tokens) -> Any:
        return self.hyper[0](self.index(t), self.kind, self.at)

    def forward(self, t: Tokens) -> Tensor:
        return through(t.x, self.written(t))

    def extra_repr(self) -> str:
        return f"kind={self.kind}, at={self.at}"


def through(x: Tensor, w: Weights) -> Tensor:
    """[norm](up(gelu(down([norm] x)))), gelu being the one by tanh; (B N C)."""
    z = x if w.before is None else normed(x, w.before)
    z = F.linear(F.gelu(F.linear(z, w.down, w.down_bias), approximate="tanh"), w.up, w.up_bias)
    return z if w.after is None else normed(z, w.after)


def normed(x: Tensor, by: tuple[Tensor, Tensor]) -> Tensor:
    """The layer norm of x with this scale and shift."""
    return F.layer_norm(x, x.shape[-1:], by[0].to(x.dtype), by[1].to(x.dtype))
