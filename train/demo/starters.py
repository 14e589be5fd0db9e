"""Small models of drawn pictures, trained at a button: one at a time, by `patchloom fit` in a process of its own."""

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..running.runs import read_metrics
from .limits import Refused, choice, without_paths


@dataclass(frozen=True)
class Starter:
    recipe: str
    text: str
    minutes: int  # after which it stops, finished or not


STARTERS = (
    Starter("shapes/cct", "classification, about 3 minutes", 10),
    Starter("shapes/vit", "classification, for the token view, about 10 minutes", 20),
    Starter("shapes/mask_rcnn", "detection with masks, about 10 minutes", 20),
    Starter("shapes/semantic_fpn", "segmentation, about 10 minutes", 20),
    Starter("shapes/dit", "generation by class, 30 minutes", 30),
    Starter("shapes/dit_captions", "generation by caption, 30 minutes", 30),
    Starter("shapes/vlm", "chat, 30 minutes", 30),
)


class Trainer:
    """Runs one starter after the other. `options`: further words of the command line."""

    def __init__(self, runs: str | Path, options: Sequence[str] = ()):
        self.runs, self.options = Path(runs), tuple(options)
        self.process: subprocess.Popen[bytes] | None = None
        self.starter: Starter | None = None
        self.log: IO[bytes] | None = None
        self.begun, self.guard = 0.0, threading.Lock()

    def begin(self, recipe: object) -> str:
        """Raises Refused where one runs already, or the recipe is none of STARTERS."""
        name = choice(recipe, "what to train", [s.recipe for s in STARTERS])
        with self.guard:
            if self.running:
                assert self.starter is not None
                raise Refused(f"{self.starter.recipe} is being trained: one at a time")
            self.starter = next(s for s in STARTERS if s.recipe == name)
            self.begun = time.time()
            self.log = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the run writes
            self.process = subprocess.Popen(
                self.command(self.starter), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.log
            )
        return self.state()

    def command(self, starter: Starter) -> list[str]:
        limit = f"00:{starter.minutes // 60:02}:{starter.minutes % 60:02}:00"
        root = ["--trainer.default_root_dir", str(self.runs), "--trainer.max_time", limit]
        return [sys.executable, "-m", "patchloom", "fit", "-c", starter.recipe, *root, *self.options]

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def state(self) -> str:
        """What is going on, in a sentence."""
        if self.process is None or self.starter is None:
            return "Nothing is being trained."
        if self.running:
            seconds = round(time.time() - self.begun)
            return f"{self.starter.recipe} is being trained: {seconds // 60}:{seconds % 60:02} minutes{self.figures()}."
        if self.process.returncode:
            return f"Training {self.starter.recipe} ended early: {self.reason()}"
        return f"{self.starter.recipe} is trained{self.figures()}: choose it in its tab."

    def reason(self) -> str:
        """The last line that the run said, as the page may show it."""
        assert self.log is not None
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return (
            without_paths(lines[-1].removeprefix("patchloom: ").removeprefix("error: "))
            if lines
            else "nobody knows why"
        )

    def figures(self) -> str:
        """The latest numbers in the newest metrics.csv of the recipe, if it has begun to write one."""
        assert self.starter is not None
        files = [f for f in (self.runs / self.starter.recipe).glob("*/metrics.csv") if f.stat().st_mtime >= self.begun]
        rows = read_metrics(max(files, key=lambda f: f.stat().st_mtime)) if files else []
        if not rows:
            return ""
        latest = {k: v for row in rows for k, v in row.items() if k.startswith(("train/loss", "val/"))}
        shown = [f"{name} {value:.3g}" for name, value in latest.items()][:3]
        return f", step {rows[-1]['step']}" + "".join(f", {text}" for text in shown)

    def end(self) -> None:
        """Stops what runs, as Ctrl-C does: its last checkpoint stays."""
        if self.process is None or not self.running:
            return
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def all(self) -> None:
        """Trains every starter of which the runs folder has nothing yet, one after the other, telling stderr."""
        for starter in STARTERS:
            if any((self.runs / starter.recipe).glob("*/*.ckpt")):
                continue
            print(f"training {starter.recipe}: {starter.text}", file=sys.stderr)
            self.begin(starter.recipe)
            assert self.process is not None
            if self.process.wait():
                raise ChildProcessError(self.state())
