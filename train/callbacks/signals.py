"""SIGTERM and Ctrl-C leave a checkpoint that resumes exactly; a second signal kills at once."""

import os
import signal
from types import FrameType
from typing import Any

import lightning.pytorch as L
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import SLURMEnvironment

from .checkpoints import Checkpoints
from .resume import place_now

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal ended the run; `saved` is the checkpoint that was left, if any."""

    def __init__(self, number: int, saved: str | None = None):
        super().__init__(signal.Signals(number).name)
        self.number, self.saved = number, saved


class Signals(L.Callback):
    """As a context it owns the handlers. While batches run a signal is only noted, and acted on when the step is
    whole.

    Worker processes that were forked meanwhile inherit the handlers, so a signal to the whole process group does not
    take them away before the step is done; like everyone they die of the second one. With several processes the first
    that got a signal stops them all, at the same step.
    """

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints
        self.caught: int | None = None
        self.training = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        self.pid = os.getpid()
        self.before = {number: signal.signal(number, self._arrived) for number in NUMBERS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        for each in NUMBERS:
            signal.signal(each, signal.SIG_DFL)
        self.caught = number
        if os.getpid() != self.pid:
            return  # a worker: its parent will end it
        if not self.training:
            raise Interrupted(number)
        os.write(2, f"\n{signal.Signals(number).name}: saving after this step; once more stops at once\n".encode())

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.training = True
        slurm = trainer._accelerator_connector.cluster_environment
        if not (isinstance(slurm, SLURMEnvironment) and slurm.auto_requeue):
            signal.signal(
                signal.SIGTERM, self._arrived
            )  # Lightning had put its own in front, which ends at the next epoch

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if self._agreed(trainer) and (place := place_now(trainer)):
            self._stop(trainer, place)

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0) -> None:
        if (
            self.caught and trainer.state.fn == "fit" and trainer.world_size == 1
        ):  # processes may have unequally many batches
            self._stop(trainer, "validation")

    def on_validation_end(self, trainer, module) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._agreed(trainer):
            self._stop(trainer, "validation")

    def on_train_epoch_start(self, trainer, module) -> None:
        if trainer.fit_loop.epoch_progress.current.processed and self._agreed(trainer):
            self._stop(trainer, "epoch")

    def on_train_end(self, trainer, module) -> None:
        self.training = False
        if self._agreed(trainer):
            self._stop(trainer, None)

    def on_exception(self, trainer, module, exception) -> None:
        self.training = False

    def _agreed(self, trainer: L.Trainer) -> bool:
        """Whether any process got a signal."""
        if trainer.world_size > 1:
            number = torch.tensor(self.caught or 0, device=trainer.strategy.root_device)
            dist.all_reduce(number, dist.ReduceOp.MAX)
            self.caught = int(number) or None
        return self.caught is not None

    def _stop(self, trainer: L.Trainer, place: Any) -> None:
        assert self.caught is not None
        if place is not None:
            self.checkpoints.save_last(trainer, place)
        raise Interrupted(self.caught, self.checkpoints.last_path)
