"""Parameter groups (weight decay, layer-wise rates) and learning-rate schedules, a step at a time."""

import logging
import math
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..vision.adapters import host

log = logging.getLogger("patchloom.train")
PREVIOUS = 99999  # timm's mark in a group matcher: belongs to the layer before


def layers(model: nn.Module) -> dict[str, int]:
    """Parameter name -> its layer, 0 the stem, the highest the head: what `model.group_matcher(coarse=False)` says,
    in timm's sense; of a dense head on a pyramid, what the pyramid says, and the head above it.

    The matcher maps group names, in order, to a regular expression, a list of (expression, suffix), or None. A name's
    key is (group, numbers captured …, suffix …); names that match nothing come last; a key ending in 99999 joins the
    layer before it.
    """
    below = host(model)
    if not hasattr(model, "group_matcher") and below is not model:
        start = next(name for name, m in model.named_modules() if m is below) + "."
        inner = layers(below)
        head = max(inner.values()) + 1
        return {n: inner.get(n.removeprefix(start), head) for n, _ in model.named_parameters()}
    if not hasattr(model, "group_matcher"):
        raise ValueError(
            f"layer_decay: {type(model).__name__} has no group_matcher() that says which layer a parameter is in"
        )
    rules: list[tuple[re.Pattern[str], int, tuple[Any, ...]]] = []
    for group, spec in enumerate(model.group_matcher(coarse=False).values()):
        for rule in [(spec, None)] if isinstance(spec, str) else spec or ():
            rules.append((re.compile(rule[0]), group, tuple(rule[1] or ())))
    keys: dict[tuple[float, ...], list[str]] = defaultdict(list)
    for name, _ in model.named_parameters():
        for pattern, group, suffix in rules:
            if found := pattern.match(name):
                keys[tuple(float(n) for n in (group, *found.groups(), *suffix) if n is not None)].append(name)
                break
        else:
            keys[(math.inf,)].append(name)
    layer, result = -1, {}
    for key in sorted(keys):
        layer += layer < 0 or key[-1] != PREVIOUS
        result.update(dict.fromkeys(keys[key], layer))
    return result


def parameter_groups(
    model: nn.Module, layer_decay: float | None = None, scales: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Groups for an optimiser: `weight_decay` 0 for parameters of one dimension and those of
    `model.no_weight_decay()` (names or patterns), the optimiser's own for the rest; `lr_scale` = layer_decay^(last
    layer - layer), times what `scales` says of the first pattern that fits the parameter's name. Frozen parameters are
    left out.
    """
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay={layer_decay}: give a number in (0, 1], such as 0.75, or null")
    spared = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    layer = layers(model) if layer_decay is not None else {}
    last = max(layer.values(), default=0)
    groups: dict[tuple[int, bool, float], dict[str, Any]] = {}
    idle = set(scales or ())
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        plain = p.ndim <= 1 or any(fnmatch(name, pattern) for pattern in spared)
        depth = layer.get(name, last)
        scale = layer_decay ** (last - depth) if layer_decay is not None else 1.0
        if (pattern := next((s for s in scales or () if fnmatch(name, s)), None)) is not None:
            scale *= scales[pattern]
            idle.discard(pattern)
        group = groups.setdefault(
            (depth, plain, scale), {"params": [], "lr_scale": scale, **({"weight_decay": 0.0} if plain else {})}
        )
        group["params"].append(p)
    if idle:
        raise ValueError(f"lr_scales: {sorted(idle)[0]!r} fits no name of a parameter that an earlier pattern leaves")
    if not groups:
        raise ValueError(f"{type(model).__name__} has no parameter that trains: all are frozen")
    return list(groups.values())


def build_optimizer(
    make: Callable[[list[dict[str, Any]]], Optimizer],
    model: nn.Module,
    layer_decay: float | None,
    scales: Mapping[str, float] | None = None,
) -> Optimizer:
    """make(groups), then each group's rate times its `lr_scale`."""
    optimizer = make(parameter_groups(model, layer_decay, scales))
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * group["lr_scale"]
    return optimizer


class Schedule(ABC):
    """A factor on every group's learning rate, renewed at each optimiser step; rates named below are those of a group
    of scale 1.

    Warm-up climbs linearly from `warmup_lr` to the optimiser's rate, over `warmup_epochs` or `warmup_steps`; then
    comes `after`. A run that is shorter than its warm-up, a first trial say, warms up for its half.
    """

    def __init__(self, warmup_epochs: float = 0.0, warmup_steps: int = 0, warmup_lr: float = 1e-6):
        if warmup_epochs and warmup_steps:
            raise ValueError(
                f"schedule: warmup_epochs={warmup_epochs} and warmup_steps={warmup_steps} exclude each other: give one"
            )
        self.warmup_epochs, self.warmup_steps, self.warmup_lr = warmup_epochs, warmup_steps, warmup_lr
        self.warmed = 0  # steps of warm-up that `build` found

    @abstractmethod
    def after(self, step: int, steps: float, epoch_steps: float, lr: float) -> float:
        """The rate at `step` of `steps` that follow the warm-up."""

    def build(self, optimizer: Optimizer, steps: float, epoch_steps: float) -> LambdaLR:
        """`steps`: optimiser steps in the whole run (math.inf where nothing bounds them), `epoch_steps` in an epoch."""
        if math.isinf(epoch_steps) and self.warmup_epochs:
            raise ValueError(
                f"schedule: warmup_epochs={self.warmup_epochs} of data without a length; give warmup_steps"
            )
        warmup = round(self.warmup_epochs * epoch_steps) if self.warmup_epochs else self.warmup_steps
        if warmup >= steps:
            log.warning("schedule: %d warm-up steps do not fit a run of %d: %d instead", warmup, steps, steps // 2)
            warmup = int(steps // 2)
        lr = float(optimizer.defaults["lr"])

        self.warmed = warmup

        def factor(step: int) -> float:
            if step < warmup:
                return (self.warmup_lr + (lr - self.warmup_lr) * step / warmup) / lr
            return self.after(step - warmup, steps - warmup, epoch_steps, lr) / lr

        return LambdaLR(optimizer, factor)


class Constant(Schedule):
    """The optimiser's rate, after the warm-up."""

    def after(self, step: int, steps: float, epoch_steps: float, lr: float) -> float:
        return lr


class Cosine(Schedule):
    """min_lr + (lr - min_lr) (1 + cos(pi t / T)) / 2, then min_lr for the last `cooldown_epochs`."""

    def __init__(
        self,
        min_lr: float = 1e-6,
        warmup_epochs: float = 0.0,
        warmup_steps: int = 0,
        warmup_lr: float = 1e-6,
        cooldown_epochs: float = 0.0,
    ):
        super().__init__(warmup_epochs, warmup_steps, warmup_lr)
        self.min_lr, self.cooldown_epochs = min_lr, cooldown_epochs

    def after(self, step: int, steps: float, epoch_steps: float, lr: float) -> float:
        needs_end(self, steps)
        descent = max(1.0, steps - (self.cooldown_epochs * epoch_steps if self.cooldown_epochs else 0))
        return self.min_lr + (lr - self.min_lr) * (1 + math.cos(math.pi * min(1.0, step / descent))) / 2


class Steps(Schedule):
    """The optimiser's rate, times `factor` from each of the shares `at` of the run on: 0.75 of 36 epochs is 27."""

    def __init__(
        self,
        at: tuple[float, ...] = (0.75, 11 / 12),
        factor: float = 0.1,
        warmup_epochs: float = 0.0,
        warmup_steps: int = 0,
        warmup_lr: float = 1e-6,
    ):
        super().__init__(warmup_epochs, warmup_steps, warmup_lr)
        if not at or not all(0 < share < 1 for share in at):
            raise ValueError(f"schedule Steps: at={tuple(at)}: shares of the run, between 0 and 1")
        self.at, self.factor = tuple(at), factor

    def after(self, step: int, steps: float, epoch_steps: float, lr: float) -> float:
        needs_end(self, steps)
        share = (step + self.warmed) / (steps + self.warmed)
        return lr * self.factor ** sum(share >= each for each in self.at)


class Poly(Schedule):
    """min_lr + (lr - min_lr) (1 - t / T)^power: 0.9 is usual in segmentation, 1 falls linearly."""

    def __init__(
        self,
        power: float = 0.9,
        min_lr: float = 0.0,
        warmup_epochs: float = 0.0,
        warmup_steps: int = 0,
        warmup_lr: float = 1e-6,
    ):
        super().__init__(warmup_epochs, warmup_steps, warmup_lr)
        if power <= 0:
            raise ValueError(f"schedule Poly: power={power}: give a number above 0")
        self.power, self.min_lr = power, min_lr

    def after(self, step: int, steps: float, epoch_steps: float, lr: float) -> float:
        needs_end(self, steps)
        return self.min_lr + (lr - self.min_lr) * max(0.0, 1 - step / max(1.0, steps)) ** self.power


def needs_end(schedule: Schedule, steps: float) -> None:
    if math.isinf(steps):
        raise ValueError(
            f"schedule {type(schedule).__name__} needs the end of the run: set trainer.max_epochs or "
            "trainer.max_steps, or use Constant"
        )
