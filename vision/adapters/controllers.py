"""VL-Adapter's task controllers, https://arxiv.org/abs/2112.06825: adapters and LoRA for several tasks at once.

Behind each mixer and each MLP stands an adapter of any kind here for all tasks (`single`, which its authors found as
good as the rest), one for each (`multiple`), or one for each with the projection down in common (`half`); or, beside q
and v of each attention, for task i, W x + alpha/r B_i A_i x.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import inf
from typing import Literal, cast

import torch
from torch import Tensor, nn

from ..layers import Linear
from ..plugins import Host
from ..tokens import Tokens
from . import AdapterError, Put
from .beside import ACTS, Act, Beside, Where, blocks_of, check_narrow, check_word
from .bottleneck import Bottleneck, Plain
from .compacter import Compacter, LowRankAdapter
from .lora_split import FUSED, rows_of
from .tasks import TASKS, ForTask, check_settings, marks

Share = Literal["single", "multiple", "half"]
Kind = Literal["linear", "compacter", "low_rank"]


# ------------------------------------------------------------------------------------------------------------ adapters


@dataclass(frozen=True)
class VlAdapter(Beside):
    """Bottlenecks for several tasks that share parts (VL-Adapter).

    `share`: what tasks have in common. `kind` of the projections: `linear`, those of `compacter` (4 matrices of each
    layer's own, rank 1) or of `low_rank` 1. The blocks' norms learn too, as published."""

    where: Where = "both"
    norms: bool = True
    tasks: tuple[str, ...] = TASKS
    share: Share = "single"
    kind: Kind = "linear"
    reduction: float = 8
    act: Act = "gelu_tanh"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self)
        check_word("share", self.share, Share)
        check_word("kind", self.kind, Kind)
        check_word("act", self.act, Act)
        check_narrow(None, self.reduction)

    def place(self, model: nn.Module) -> list[Put]:
        return [marks(model, self.tasks), *super().place(model)]

    def body(self, host: Host) -> nn.Module:
        return OfTasks(self.tasks, [self.one(host) for _ in self.tasks], self.share, self.act)

    def one(self, host: Host) -> Bottleneck:
        """What is made for one task."""
        if self.kind == "compacter":
            return Compacter(reduction=self.reduction, rule="own").hypercomplex(host, None)
        plain = Plain(reduction=self.reduction) if self.kind == "linear" else LowRankAdapter(reduction=self.reduction)
        return cast(Bottleneck, plain.body(host))


class OfTasks(ForTask):
    """up_i(act(down_i(x))) of Tokens for task i, (B N C); there is one `down`, or one `up`, where it is for all."""

    def __init__(self, tasks: Sequence[str], bodies: Sequence[Bottleneck], share: Share, act: str):
        super().__init__(tasks)
        self.down = nn.ModuleList([b.down for b in (bodies if share == "multiple" else bodies[:1])])
        self.up = nn.ModuleList([b.up for b in (bodies[:1] if share == "single" else bodies)])
        self.act = ACTS[act]()

    def forward(self, t: Tokens) -> Tensor:
        i = self.index(t)
        down, up = self.down[i % len(self.down)], self.up[i % len(self.up)]
        return up(self.act(down(t.x)))  # type: ignore[no-any-return]


# ---------------------------------------------------------------------------------------------------------------- LoRA


@dataclass(frozen=True)
class VlLora:
    """LoRA of q and v for several tasks.

    Beside q and v of each mixer that has them in linear layers.
    """

    tasks: tuple[str, ...] = TASKS
    r: int = 4
    alpha: float = 32

    def __post_init__(self) -> None:
        check_settings(self)
        if not 0 < self.alpha < inf:
            raise ValueError(f"alpha={self.alpha}: a number above 0")

    def place(self, model: nn.Module) -> list[Put]:
        hosts = blocks_of(model, self)
        found = [(h, name, rows) for h in hosts for name, rows in queries_and_values(h)]
        if not found:
            why = "makes no q or v in a linear layer, nor does another mixer here"
            raise AdapterError(str(hosts[0].refuse(why)))
        told = {h.name: Recall(self.tasks) for h, _, _ in found}
        puts: list[Put] = []
        if len(self.tasks) > 1:
            puts = [marks(model, self.tasks), *(Put(name, "after_norm", layer) for name, layer in told.items())]
        for h, name, rows in found:
            layer = getattr(h.mixer, name)
            if self.r > (most := min(layer.in_features, *(n for n, learns in rows if learns))):
                raise AdapterError(f"{h.name}.mixer.{name}: r={self.r} is more than it has channels, {most}")
            puts.append(Put(f"{h.name}.mixer", name, TaskLora(layer, rows, self.r, self.alpha, told[h.name])))
        return puts

    def merged(self, layer: nn.Module) -> nn.Module:
        if not isinstance(layer, TaskLora) or len(self.tasks) > 1:
            raise AdapterError(f"adapters for {len(self.tasks)} tasks cannot be merged: each task has its own weights")
        return layer.merged()


def queries_and_values(host: Host) -> list[tuple[str, list[tuple[int, bool]]]]:
    """The linear layers of a mixer that make q or v, with the widths of the parts of their outputs and whether each is
    one of those two."""
    found = []
    for name in getattr(host.mixer, "projections", ()):
        layer = getattr(host.mixer, name)
        if not isinstance(layer, nn.Linear) or name not in ("q", "v", *FUSED):
            continue
        parts = {name: (0, layer.out_features)}
        if name in FUSED:
            parts = rows_of(f"{host.name}.mixer.{name}", layer, host.mixer)
        found.append((name, [(stop - start, part != "k") for part, (start, stop) in parts.items()]))
    return found


class Recall(ForTask):
    """Tokens -> the same, on their way into a mixer, whose linear layers learn here which task they are for. It is said
    anew when a checkpointed block runs again."""

    def __init__(self, tasks: Sequence[str]):
        super().__init__(tasks)
        self.now = 0

    def forward(self, t: Tokens) -> Tokens:
        self.now = self.index(t)
        return t


class TaskLora(nn.Module):
    """base(x) + alpha/r B_i A_i x for task i, on those parts of the output that learn; (… C) -> (… D).

    A (parts that learn * r, C) is Kaiming uniform, each part's B (D', r) zero to begin with.
    """

    def __init__(self, base: nn.Linear, parts: Sequence[tuple[int, bool]], r: int, alpha: float, told: Recall):
        super().__init__()
        self.base, self.parts, self.r, self.scale, self.told = base, tuple(parts), r, alpha / r, (told,)
        wide = [n for n, learns in parts if learns]
        self.down = nn.ModuleList([Linear(base.in_features, r * len(wide), bias=False) for _ in told.tasks])
        self.up = nn.ModuleList([nn.ModuleList([Linear(r, n, bias=False) for n in wide]) for _ in told.tasks])
        for down, ups in zip(self.down, self.up, strict=True):
            nn.init.kaiming_uniform_(cast(Linear, down).weight, a=5**0.5)
            for up in cast(nn.ModuleList, ups):
                nn.init.zeros_(cast(Linear, up).weight)

    def forward(self, x: Tensor) -> Tensor:
        i = self.told[0].now
        small = iter(self.down[i](x).split(self.r, -1))
        ups = iter(cast(nn.ModuleList, self.up[i]))
        y = self.base(x)
        said = [next(ups)(next(small)) if learns else y.new_zeros(*y.shape[:-1], n) for n, learns in self.parts]
        return y + self.scale * (said[0] if len(said) == 1 else torch.cat(said, -1))  # type: ignore[no-any-return]

    def merged(self) -> nn.Linear:
        """The plain layer that computes the same for the first task."""
        base, down = self.base, cast(Linear, self.down[0]).weight
        rows, ups = iter(torch.split(down, self.r)), iter(cast(nn.ModuleList, self.up[0]))
        said = [
            cast(Linear, next(ups)).weight @ next(rows) if learns else down.new_zeros(n, base.in_features)
            for n, learns in self.parts
        ]
        layer = deepcopy(base)
        with torch.no_grad():
            layer.weight += self.scale * torch.cat(said)
        return layer
