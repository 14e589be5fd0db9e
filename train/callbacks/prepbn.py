"""The schedule of progressive norms (PRepBN, https://arxiv.org/abs/2405.11582), fitted to the length of a run."""

import math
from typing import Any

import lightning.pytorch as L

from ...vision.prepbn import ProgressiveNorm


class ProgressiveNorms(L.Callback):
    """At the first step of a run tells every `ProgressiveNorm` of the model (and of its average) how long it takes from
    a layer norm to a batch norm, in training forwards: `steps`, or `fraction` of those that the run has. SLAB's models
    took 60,000 of some 375,000.

    warm    forwards before that in which there is the layer norm alone
    start   share of the layer norm in the first forward thereafter
    Where a run is resumed, the counters go on as its checkpoint has them.
    """

    def __init__(self, fraction: float = 0.16, steps: int | None = None, warm: int = 0, start: float = 1.0):
        if steps is None and not 0 < fraction <= 1:
            raise ValueError(f"fraction={fraction}: a part of the run, above 0 and up to 1")
        self.fraction, self.steps, self.warm, self.start = fraction, steps, warm, start
        self.begun = False

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        norms = [m for m in module.modules() if isinstance(m, ProgressiveNorm)]
        if not norms:
            raise ValueError(
                "ProgressiveNorms: this model has no progressive norm; slab_* have, or give it `Progressive`"
            )
        for norm in norms:
            if self.begun:
                norm.start = self.start  # the one number that is no buffer
            else:
                norm.start_(self.length(trainer), self.warm, self.start)
        self.begun = True

    def length(self, trainer: L.Trainer) -> int:
        """Training forwards from the layer norm to the batch norm."""
        if self.steps is not None:
            return self.steps
        forwards = forwards_of(trainer)
        if math.isinf(forwards):
            raise ValueError(
                "ProgressiveNorms: this run has no end; set trainer.max_epochs or max_steps, or give steps"
            )
        return max(1, round(self.fraction * (forwards - self.warm)))

    def state_dict(self) -> dict[str, Any]:
        return {"begun": self.begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begun = state["begun"]


def forwards_of(trainer: L.Trainer) -> float:
    """Training batches in the whole run; infinite where nothing bounds it."""
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    steps = math.inf if trainer.max_steps == -1 else trainer.max_steps * trainer.accumulate_grad_batches
    return min(epochs * trainer.num_training_batches, steps)
