"""last.ckpt and best.ckpt of a run folder, and how Lightning writes and reads them."""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from ..running import checkpoint
from ..running.runs import MetricsFile
from .resume import Place, Resume, place_now

MONITORED = {  # the first that is logged is `auto`
    "val/top1": "max", "val/mask_map": "max", "val/map": "max", "val/miou": "max", "val/pq": "max", "val/exact": "max",
    "val/loss": "min",
}  # fmt: skip


class PlainFiles(CheckpointIO):
    """Whole or not at all, tensors and plain values only: see train/running/checkpoint.py."""

    def save_checkpoint(
        self, checkpoint_: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        if storage_options is not None:
            raise TypeError(f"storage_options={storage_options!r}: a checkpoint is a plain file here, it takes none")
        checkpoint.save(checkpoint_, path)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return checkpoint.read(path)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        Path(path).unlink(missing_ok=True)


class Checkpoints(Checkpoint):
    """last.ckpt every `every_n_steps` optimiser steps (0: never) and after every epoch; best.ckpt where `monitor` is
    best.

    `monitor: auto` is the first of val/top1, val/mask_map, val/map, val/miou, val/pq, val/exact and val/loss that the
    run logs; null keeps no best.ckpt. `mode` is min or max; null stands for min where the name ends in "loss", else
    max.
    """

    def __init__(self, every_n_steps: int = 500, monitor: str | None = "auto", mode: str | None = None):
        if every_n_steps < 0:
            raise ValueError(
                f"checkpoints.every_n_steps={every_n_steps}: give a number of steps, or 0 for none between epochs"
            )
        if mode not in (None, "min", "max"):
            raise ValueError(f"checkpoints.mode={mode!r}: min, max or null")
        self.every_n_steps, self.monitor, self.mode = every_n_steps, monitor, mode
        self.resume = Resume()  # a callback of its own; it writes what is saved here
        self.best: float | None = None
        self.metrics: dict[str, float] = {}  # of the validation that `best` comes from
        self.improved = False
        self.saved: tuple[int, Place] | None = None
        self.last_path: str | None = None
        self.best_model_path = ""  # Lightning's name: Trainer(ckpt_path="best") looks for it

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "metrics": self.metrics}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.metrics = state["best"], state["metrics"]

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.folder = Path(trainer.log_dir or trainer.default_root_dir)  # the same in all processes
            if trainer.is_global_zero:
                for part in self.folder.glob(".*.part"):  # what a killed run had not finished writing
                    part.unlink()
            if (best := self.folder / "best.ckpt").is_file():
                self.best_model_path = str(best)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        due = (self.every_n_steps and step % self.every_n_steps == 0) or step == trainer.max_steps
        if due and (self.saved is None or self.saved[0] != step) and (place := place_now(trainer)):
            self.save_last(trainer, place)

    def on_validation_start(self, trainer, module) -> None:
        write_rows(trainer)

    def on_validation_end(self, trainer, module) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.fast_dev_run or self.monitor is None:
            return
        name, mode = self._monitored(trainer.callback_metrics)
        value = float(trainer.callback_metrics[name])
        if self.best is None or (value > self.best if mode == "max" else value < self.best):
            self.best = value
            prefix = name.rpartition("/")[0]
            self.metrics = {
                key: float(logged)
                for key, logged in trainer.callback_metrics.items()
                if key.rpartition("/")[0] == prefix
            }
            if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
                self.improved = True  # best.ckpt will be the epoch's last.ckpt
            else:
                self.resume.save(trainer, str(self.folder / "best.ckpt"), "validation")
                self.best_model_path = str(self.folder / "best.ckpt")

    def _monitored(self, logged: dict[str, Tensor]) -> tuple[str, str]:
        name = self.monitor
        if name == "auto":
            name = next((known for known in MONITORED if known in logged), None)
        if name is None or name not in logged:
            raise ValueError(
                f"checkpoints.monitor={self.monitor}: the run logs {', '.join(sorted(logged)) or 'nothing'}; "
                "name one of these, or null to keep no best.ckpt"
            )
        return name, self.mode or ("min" if name.endswith("loss") else "max")

    def on_train_epoch_start(self, trainer, module) -> None:
        """The epoch before is over with all its callbacks: here nothing of it is left to do."""
        if trainer.fit_loop.epoch_progress.current.processed:
            self._after_epoch(trainer)

    def on_train_end(self, trainer, module) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._after_epoch(trainer)

    def _after_epoch(self, trainer: L.Trainer) -> None:
        if self.saved != (trainer.global_step, "epoch"):
            self.save_last(trainer, "epoch")
        if self.improved:
            self.improved = False
            if trainer.is_global_zero:
                link(self.folder / "last.ckpt", self.folder / "best.ckpt")
            self.best_model_path = str(self.folder / "best.ckpt")

    def save_last(self, trainer: L.Trainer, place: Place) -> None:
        if trainer.fast_dev_run:
            return
        path = str(self.folder / "last.ckpt")
        self.resume.save(trainer, path, place)
        self.last_path, self.saved = path, (trainer.global_step, place)
        write_rows(trainer)


def write_rows(trainer: L.Trainer) -> None:
    """metrics.csv up to here: a run that is resumed from here does not log it again."""
    for logger in trainer.loggers:
        if isinstance(logger, MetricsFile):
            logger.write()


def link(source: Path, target: Path) -> None:
    """`target` becomes a second name of the file (a copy where the disk knows no links); the old target stays until
    then.
    """
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    try:
        try:
            os.link(source, part)
        except OSError:
            shutil.copyfile(source, part)
        os.replace(part, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
