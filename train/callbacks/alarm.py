"""Says when a gradient is far above the usual, and where it is largest; may leave the step out, or end the run."""

import logging
import math
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as L
import torch
from torch.optim import Optimizer

from .guard import gradient_norm

log = logging.getLogger("patchloom.train")


@dataclass(frozen=True)
class Alarm:
    """What happens where the norm of all gradients is more than `factor` times the usual (the geometric mean over about
    the last 1 / `share` steps, after `warmup` of them): a line (`warn`), a line and the step is left out (`skip`), or
    the run ends (`stop`)."""

    factor: float = 10.0
    action: Literal["warn", "skip", "stop"] = "warn"
    warmup: int = 100
    share: float = 0.02

    def __post_init__(self) -> None:
        if not self.factor > 1:
            raise ValueError(f"alarm.factor={self.factor}: a gradient so many times the usual, above 1")
        if self.action not in ("warn", "skip", "stop"):
            raise ValueError(f"alarm.action={self.action!r}: warn, skip or stop")
        if self.warmup < 1 or not 0 < self.share <= 1:
            raise ValueError(
                f"alarm.warmup={self.warmup}, share={self.share}: at least one step, and a share in (0, 1]"
            )


class GradientSpike(ValueError):
    """A gradient far above the usual ended the run."""


class GradientAlarm(L.Callback):
    """Keeps the usual norm, in the checkpoint too, logs train/gradient and counts alarms in train/alarms. The norm is
    that before clipping; one that is no finite number is the guard's affair."""

    def __init__(self, spec: Alarm):
        self.spec = spec
        self.seen, self.usual, self.alarms = 0, 0.0, 0  # `usual`: mean of the logarithm

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "usual": self.usual, "alarms": self.alarms}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen, self.usual, self.alarms = state["seen"], state["usual"], state["alarms"]

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Optimizer) -> None:
        norm = float(gradient_norm(optimizer))
        if not math.isfinite(norm) or norm == 0:
            return
        spec, usual = self.spec, math.exp(self.usual)
        far = self.seen >= spec.warmup and norm > spec.factor * usual
        if far:
            self.alarms += 1
            self._tell(trainer, module, optimizer, norm, usual)
        else:  # an outlier says nothing of what is usual
            self.seen += 1
            self.usual += max(spec.share, 1 / self.seen) * (math.log(norm) - self.usual)
        module.log_dict({"train/gradient": norm, "train/alarms": float(self.alarms)})

    def _tell(self, trainer: L.Trainer, module: Any, optimizer: Optimizer, norm: float, usual: float) -> None:
        name, share = largest(module)
        text = (
            f"step {trainer.global_step + 1}: gradient of norm {norm:.3g}, {norm / usual:.0f} times the usual "
            f"{usual:.3g}; {share:.0%} of it in {name}"
        )
        if self.spec.action == "stop":
            raise GradientSpike(
                f"{text}; lower the learning rate or set --trainer.gradient_clip_val 1, and go on from the last "
                "checkpoint"
            )
        if trainer.is_global_zero:
            log.warning("%s%s", text, "; the step is left out" if self.spec.action == "skip" else "")
        if self.spec.action == "skip":
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = None


def largest(module: torch.nn.Module) -> tuple[str, float]:
    """(the parameter with the largest gradient, its share of the squared norm)."""
    squares = {n: float(p.grad.float().square().sum()) for n, p in module.named_parameters() if p.grad is not None}
    name = max(squares, key=lambda n: squares[n])
    return name, squares[name] / max(sum(squares.values()), 1e-30)
