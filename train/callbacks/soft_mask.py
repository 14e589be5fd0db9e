"""The soft mask of iLLaMA on its way to a causal one (https://arxiv.org/abs/2404.06773)."""

import math
from typing import Literal

import lightning.pytorch as L

from ...vision.mixers.soft_mask import set_soft_mask


class SoftMask(L.Callback):
    """For the first `epochs` epochs each training step weighs later tokens by `rate` (constant), or by a share of it
    that falls to 0 from step to step (linear); from then on, and whenever the model is judged or saved, by 0."""

    def __init__(self, epochs: float, kind: Literal["constant", "linear"] = "constant", rate: float = 1.0):
        if epochs <= 0 or not 0 <= rate <= 1 or kind not in ("constant", "linear"):
            raise ValueError(
                f"soft mask with epochs={epochs}, kind={kind!r}, rate={rate}: more than 0 epochs, constant or linear, "
                "and a rate from 0 to 1"
            )
        self.epochs, self.kind, self.rate = epochs, kind, rate

    def at(self, epoch: float) -> float:
        """The rate after `epoch` epochs, a fraction."""
        if epoch >= self.epochs:
            return 0.0
        return self.rate if self.kind == "constant" else self.rate * (1 - epoch / self.epochs)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.kind == "linear" and math.isinf(trainer.num_training_batches):
            raise ValueError("a soft mask that falls by the step takes training data that has a length")

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch, batch_idx: int) -> None:
        set_soft_mask(module.model, self.at(trainer.current_epoch + batch_idx / trainer.num_training_batches))

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs, batch, batch_idx) -> None:
        set_soft_mask(module.model, 0.0)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        set_soft_mask(module.model, 0.0)
