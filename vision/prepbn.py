"""PRepBN, https://arxiv.org/abs/2405.11582: training begins with a layer norm and ends with a batch norm, which is
nothing but weights of the next layer once training is over (`fold_` of the blocks, through `scale_and_shift`).

Shapes: (B N C) or (B H W C), the channels last; statistics of a batch norm are over all that stands before them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .norm import BatchNorm, Norm


class RepBN(nn.Module):
    """bn(x) + alpha x with one learned alpha: a batch norm beside a residual."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.alpha, self.bn = nn.Parameter(torch.ones(1)), BatchNorm(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bn(x), x, self.alpha.to(x.dtype))

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """(a, b), each (C) in float32, with which the evaluating norm is a x + b."""
        a, b = self.bn.scale_and_shift()
        return a + self.alpha.float(), b


class ProgressiveNorm(nn.Module):
    """share norm1(x) + (1 - share) norm2(x) in training, norm2(x) in evaluation: norm1 is a layer norm, norm2 a RepBN.
    The paper's LinearNorm.

    A training forward takes share = start iter / total_step, then counts `iter` down by one, to 0 and no further. While
    `warm` is above 0 it counts that down instead and gives norm1(x) alone. From then on norm2 is computed in every
    training forward, so that its statistics are learnt. `start_` begins a schedule.
    """

    warm: Tensor
    iter: Tensor
    total_step: Tensor
    share: Tensor

    def __init__(self, dim: int, eps: float, total_step: int, warm: int, start: float):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=eps), RepBN(dim)
        for name in ("warm", "iter", "total_step"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.register_buffer("share", torch.ones(()), persistent=False)  # of the last training forward
        self.start_(total_step, warm, start)

    def start_(self, total_step: int, warm: int = 0, start: float = 1.0) -> None:
        """Counts from the beginning: `warm` forwards of norm1 alone, then `total_step` from `start` norm1 to none."""
        if total_step < 1 or warm < 0:
            raise ValueError(f"total_step={total_step}, warm={warm}: at least 1 step and no fewer than 0 warm ones")
        if not 0 <= start <= 1:
            raise ValueError(f"start={start}: the first share of the layer norm is between 0 and 1")
        self.start, self.warming = start, warm > 0
        for counter, value in ((self.warm, warm), (self.iter, total_step), (self.total_step, total_step)):
            counter.fill_(value)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.norm2(x)  # type: ignore[no-any-return]
        if not in_backward():  # activation checkpointing runs a forward again there: not another step
            self.count()
        if self.warming:
            return self.norm1(x)  # type: ignore[no-any-return]
        return self.share * self.norm1(x) + (1 - self.share) * self.norm2(x)  # type: ignore[no-any-return]

    def count(self) -> None:
        """One step: this forward's share, and the counters of the next."""
        self.warming = bool(self.warm > 0)
        if self.warming:
            self.warm -= 1
        else:
            self.share = self.start * self.iter / self.total_step.clamp(min=1)  # a new tensor: graphs may hold the old
            self.iter.sub_(1).clamp_(min=0)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """(a, b), each (C) in float32, with which the evaluating norm is a x + b."""
        return self.norm2.scale_and_shift()


def in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


@dataclass(frozen=True)
class RepBatch(Norm):
    """RepBN from the start."""

    def build(self, dim: int) -> nn.Module:
        return RepBN(dim, self.eps)


@dataclass(frozen=True)
class Progressive(Norm):
    """A layer norm (of `eps`) that becomes a RepBN in the course of `total_step` training forwards."""

    total_step: int = 60_000
    warm: int = 0  # forwards of the layer norm alone, before that
    start: float = 1.0  # the layer norm's share in the first forward

    def build(self, dim: int) -> nn.Module:
        return ProgressiveNorm(dim, self.eps, self.total_step, self.warm, self.start)
