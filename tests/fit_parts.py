"""A recipe that trains in seconds, callbacks that break a run on purpose, and the command line as a process."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import nn

from patchloom.train.running import checkpoint
from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.mixers.pool import Pool
from patchloom.vision.model import Classifier

RECIPE = """# a run of three epochs, ten steps each
seed_everything: 7
model:
  class_path: patchloom.train.classify.Classify
  init_args:
    model: {class_path: fit_parts.small}
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.003}}
    mixing: {mixup: 0.4, cutmix: 0.5}
    ema: {decay: 0.9}
data:
  class_path: patchloom.data.modules.ShapesData
  init_args: {train_length: 80, val_length: 24, test_length: 32, batch_size: 8, workers: 0, augment: auto}
trainer: {max_epochs: 3, accelerator: cpu, log_every_n_steps: 1}
checkpoints: {every_n_steps: 4}
"""


def small(dropout: float = 0.2) -> Classifier:
    """Two stages of pooling, with dropout before the head."""
    return Classifier(Backbone([Stage(Pool(), 8, 1), Stage(Pool(), 16, 1)]), 10, drop_rate=dropout, img_size=32)


class Strike(L.Callback):
    """Sends `number` to its own process after optimiser step `step`: at once, in the validation that follows, or while
    the checkpoint of that step is being written."""

    def __init__(self, step: int, number: int = signal.SIGKILL, when: str = "batch", group: bool = False):
        self.step, self.number, self.when, self.group = step, number, when, group

    def strike(self) -> None:
        os.killpg(0, self.number) if self.group else os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if self.when == "save" and trainer.global_step == self.step - 1:
            torch.save = lambda content, file: (file.write(b"half a checkpoint"), file.flush(), self.strike())

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        if self.when == "batch" and trainer.global_step == self.step:
            self.strike()

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if self.when == "validation" and trainer.global_step >= self.step and batch_idx == 1:
            self.strike()


class Cut(L.Callback):
    """Ends the run with an error right before the optimiser's step."""

    def __init__(self, step: int):
        self.step = step

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        if trainer.global_step == self.step:
            raise ValueError("cut off")


class Sleep(L.Callback):
    """A step that does not end."""

    def __init__(self, step: int):
        self.step = step

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        if trainer.global_step == self.step:
            print("sleeping", file=sys.stderr, flush=True)
            until = time.monotonic() + 60
            while time.monotonic() < until:
                time.sleep(0.1)


class Poison(L.Callback):
    """Puts nan into a gradient, a parameter or the images at a step."""

    def __init__(self, step: int, what: str):
        self.step, self.what = step, what

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if trainer.global_step + 1 == self.step and self.what == "image":
            batch[0][0] = torch.nan
        if trainer.global_step + 1 == self.step and self.what == "layer":
            layer = next(m for m in module.model.backbone.modules() if isinstance(m, nn.Linear))
            layer.register_forward_hook(lambda layer, inputs, output: output / 0)

    def on_after_backward(self, trainer, module) -> None:
        if trainer.global_step + 1 == self.step and self.what == "gradient":
            next(module.model.parameters()).grad.view(-1)[0] = torch.inf


def recipe(folder: Path, name: str = "small", text: str = RECIPE, **replaced: str) -> Path:
    """Writes the recipe, with `key: value` pairs exchanged: recipe(f, workers="2")."""
    for key, value in replaced.items():
        text, count = re.subn(rf"\b{key}: [^,}}\n]+", f"{key}: {value}", text, count=1)
        assert count, key
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def patchloom(*words: Any, cwd: Path, limit: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
    """One command line in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1", "TERM": "dumb"}
    return subprocess.run(
        [sys.executable, "-m", "patchloom", *map(str, words)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=limit,
        **options,
    )


def run_folder(cwd: Path) -> Path:
    """The one run under runs/."""
    (folder,) = {path.parent for path in (cwd / "runs").rglob("config.yaml")}
    return folder


def error_line(done: subprocess.CompletedProcess[str], status: int = 1) -> str:
    """The one line that the command said; nothing else may be on stderr but the run folder's name and progress."""
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("patchloom: error: ")]
    assert len(lines) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == lines[0], done.stderr
    return lines[0]


def same(a: Any, b: Any, place: str = "") -> list[str]:
    """Where two checkpoints differ, bit for bit."""
    if isinstance(a, torch.Tensor):
        return [] if isinstance(b, torch.Tensor) and torch.equal(a, b) else [place]
    if isinstance(a, dict):
        return [
            p
            for key in {*a, *b}
            for p in (same(a[key], b[key], f"{place}/{key}") if key in a and key in b else [f"{place}/{key}"])
        ]
    if isinstance(a, (list, tuple)):
        return [p for i, (x, y) in enumerate(zip(a, b, strict=True)) for p in same(x, y, f"{place}[{i}]")]
    return [] if a == b else [place]


def differences(run: Path, other: Path) -> list[str]:
    """Of the last checkpoints of two runs: weights, averages, optimiser, schedule, generators, loops and scores."""
    a, b = (checkpoint.read(folder / "last.ckpt") for folder in (run, other))
    return same(a, b)
