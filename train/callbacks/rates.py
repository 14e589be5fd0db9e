"""The learning rate, logged beside the metrics of a step."""

import lightning.pytorch as L


class Rates(L.Callback):
    """`lr`: the highest rate of all parameter groups (with layer-wise decay the head's)."""

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch, batch_idx) -> None:
        if (
            trainer.fit_loop.epoch_loop._batches_that_stepped + 1
        ) % trainer.log_every_n_steps == 0:  # others are not written
            rate = max(group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups)
            self.log("lr", float(rate), on_step=True, on_epoch=False, batch_size=1)
