"""EViT's share of kept patches on its way from all to the final one (https://arxiv.org/abs/2202.07800)."""

import math

import lightning.pytorch as L

from ...vision.plugins.evit import EvitLayer


class KeepRate(L.Callback):
    """keep = final + (1 - final) (1 + cos(pi p)) / 2 in all EViT layers of the model and of its average, p from 0 after
    `start` epochs to 1 after `end`, by the step. The model is judged with the share that it trains with just then; when
    the run is over, with the final one. A run resumed has the share of its epoch."""

    def __init__(self, start: float = 10, end: float = 100):
        if not 0 <= start < end:
            raise ValueError(f"start={start}, end={end}: epochs between which the share falls, 0 <= start < end")
        self.start, self.end = start, end

    def at(self, epoch: float) -> float:
        """How much of the way is left after `epoch` epochs, a fraction: 1 to 0."""
        past = (epoch - self.start) / (self.end - self.start)
        return (1 + math.cos(math.pi * min(1.0, max(0.0, past)))) / 2

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not any(isinstance(m, EvitLayer) for m in module.modules()):
            raise ValueError("KeepRate: no EViT is attached to this model; give it one with tokens='evit:keep=0.7'")
        if math.isinf(trainer.num_training_batches):
            raise ValueError("KeepRate: a share that falls by the step takes training data that has a length")

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch, batch_idx: int) -> None:
        set_left(module, self.at(trainer.current_epoch + batch_idx / trainer.num_training_batches))

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        set_left(module, 0.0)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        set_left(module, 0.0)


def set_left(module: L.LightningModule, left: float) -> None:
    """Every EViT layer keeps its final share and the part `left` of what it gives up."""
    for layer in module.modules():
        if isinstance(layer, EvitLayer):
            layer.keep = layer.final + (1 - layer.final) * left
