"""How far, how fast, how long still: a live line on a terminal, a line now and then in a log file; always on stderr."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Live
from rich.text import Text

from ..running.begin import is_list_of_images

STAGES = {
    "train": "training",
    "validate": "validating",
    "sanity_check": "validating",
    "test": "testing",
    "predict": "predicting",
}


def clock(seconds: float) -> str:
    """4000 -> 1:06:40, 75 -> 1:15"""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def images_in(batch: Any) -> int:
    """Length of the first tensor in a batch, or of the list there of images of many sizes, or of tuples of images."""
    if isinstance(batch, torch.Tensor):
        return len(batch)
    if isinstance(batch, (list, tuple)) and batch and are_tuples_of_images(batch[0]):
        return len(batch[0])
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, (list, tuple)) and batch and is_list_of_images(batch[0]):
        return len(batch[0])
    return images_in(batch[0]) if isinstance(batch, (list, tuple)) and batch else 0


def are_tuples_of_images(value: Any) -> bool:
    """Whether it is what a batch of dialogues begins with."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, tuple) and is_list_of_images(v) for v in value)


class Meter:
    """Images a second over the last batches, waiting for data included, and the time that the rest of the run takes at
    this pace.
    """

    def __init__(self, smoothing: float = 0.05):
        self.smoothing = smoothing
        self.restart()
        self.seconds_a_batch, self.images_a_batch, self.count = 0.0, 0.0, 0

    def restart(self) -> None:
        """What lies between (a validation, a checkpoint) is not this batch's time."""
        self.mark = time.perf_counter()

    def batch(self, images: int) -> None:
        now = time.perf_counter()
        self.count += 1
        share = max(self.smoothing, 1 / self.count)
        self.seconds_a_batch += share * (now - self.mark - self.seconds_a_batch)
        self.images_a_batch += share * (images - self.images_a_batch)
        self.mark = now

    @property
    def rate(self) -> float:
        return self.images_a_batch / self.seconds_a_batch if self.seconds_a_batch else 0.0


class Column(ProgressColumn):
    """A text that is made when the line is drawn, not at every batch."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get(self.name, "")))


class Progress(ProgressBar):
    """`every` seconds a line where stderr is no terminal (0: only at the end of epochs); on a terminal a bar, drawn 4
    times a second.
    """

    def __init__(self, every: float = 30.0):
        super().__init__()
        if every < 0:
            raise ValueError(f"progress.every={every}: seconds, 0 or more")
        self.every, self.live, self.task = every, None, None
        self.meters: dict[str, Meter] = {}
        self.drawn = 0.0
        self.on = True

    def disable(self) -> None:
        self.on = False

    def enable(self) -> None:
        self.on = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        self._say(" ".join(map(str, args)))

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, module, stage)
        if not trainer.is_global_zero:
            self.disable()

    # ---- stages

    def _open(self, stage: str, total: float) -> None:
        self.meters.setdefault(stage, Meter()).restart()
        self.stage, self.total, self.drawn = stage, total, time.perf_counter()
        if not self.on or not sys.stderr.isatty():
            return
        if self.live is None:
            self.live = Live(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                Column("count"),
                Column("text"),
                console=Console(stderr=True),
                refresh_per_second=4,
                transient=True,
            )
            self.live.start()
        if self.task is not None:
            self.live.remove_task(self.task)
        self.task = self.live.add_task(self._title(), total=None if total == float("inf") else total)

    def _close(self) -> None:
        if self.live is not None:
            self.live.stop()
        self.live = self.task = None

    def _title(self) -> str:
        epoch = f"epoch {self.trainer.current_epoch + 1}/{self._epochs()}" if self.trainer.state.fn == "fit" else ""
        return epoch if self.stage == "train" else f"{epoch} {STAGES[self.stage]}".strip()

    def _epochs(self) -> str:
        last = self.trainer.max_epochs
        return "…" if last in (None, -1) else str(last)

    def _batch(self, batch: Any, done: int) -> None:
        meter = self.meters[self.stage]
        meter.batch(images_in(batch) * self.trainer.world_size)
        now = time.perf_counter()
        if not self.on or now - self.drawn < (0.25 if self.live else self.every or float("inf")):
            return
        self.drawn = now
        count = f"{done}/{self.total:.0f}" if self.total != float("inf") else str(done)
        if self.live is not None:
            self.live.update(self.task, completed=done, count=count, text=self._text(done))
        else:
            self._say(f"{self._title()}  {count}  {self._text(done)}")

    def _text(self, done: int) -> str:
        """The loss, images/s and the time left: of the run while training, of the stage else."""
        meter = self.meters[self.stage]
        shown = self.get_metrics(self.trainer, self.trainer.lightning_module) if self.stage == "train" else {}
        values = [
            f"{name} {value:.3g}"
            for name, value in shown.items()
            if isinstance(value, (int, float)) and name != "v_num" and not name.startswith("val")
        ]
        left = self._seconds_left(done) if self.stage == "train" else (self.total - done) * meter.seconds_a_batch
        return "  ".join([*values, f"{meter.rate:,.0f} images/s", f"{clock(left)} left" if left < 1e9 else ""]).rstrip()

    def _seconds_left(self, done: int) -> float:
        """Training batches still to come, and the validations between them as long as the last one took."""
        trainer, pace = self.trainer, self.meters["train"].seconds_a_batch
        limits = []
        if trainer.max_epochs not in (None, -1):
            epochs = trainer.max_epochs - trainer.current_epoch
            limits.append((self.total * epochs - done) * pace + epochs * self.validation_seconds)
        if trainer.max_steps != -1:
            limits.append((trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches * pace)
        return min(limits, default=float("inf"))

    validation_seconds = 0.0

    def _say(self, text: str) -> None:
        if not self.on:
            return
        if self.live is not None:
            self.live.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    # ---- Lightning's hooks

    def on_train_start(self, trainer, module) -> None:
        self._open("train", self.total_train_batches)  # in mid-epoch no epoch starts

    def on_train_epoch_start(self, trainer, module) -> None:
        self._open("train", self.total_train_batches)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self._batch(batch, batch_idx + 1)

    def on_train_epoch_end(self, trainer, module) -> None:
        shown = "  ".join(f"{name} {float(value):.4g}" for name, value in sorted(trainer.callback_metrics.items()))
        meter = self.meters["train"]
        left = self._seconds_left(self.total_train_batches) - self.validation_seconds
        self._say(f"{self._title_of_epoch()}  {shown}  {meter.rate:,.0f} images/s  {clock(left)} left")

    def _title_of_epoch(self) -> str:
        return f"epoch {self.trainer.current_epoch + 1}/{self._epochs()}"

    def on_validation_start(self, trainer, module) -> None:
        if not trainer.sanity_checking:
            self.validating_since = time.perf_counter()
            self._open("validate", sum(trainer.num_val_batches))

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if not trainer.sanity_checking:
            self._batch(batch, batch_idx + 1)

    def on_validation_end(self, trainer, module) -> None:
        if not trainer.sanity_checking:
            self.validation_seconds = time.perf_counter() - self.validating_since
            if trainer.state.fn == "fit":
                self._open("train", self.total_train_batches)
            else:
                self._close()

    def on_test_start(self, trainer, module) -> None:
        self._open("test", sum(trainer.num_test_batches))

    def on_test_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self._batch(batch, batch_idx + 1)

    def on_test_end(self, trainer, module) -> None:
        self._close()

    def on_train_end(self, trainer, module) -> None:
        self._close()

    def on_exception(self, trainer, module, exception) -> None:
        self._close()

    def teardown(self, trainer, module, stage) -> None:
        self._close()
