"""Run folders, runs/<recipe>/<time>/, and the metrics.csv in them."""

import contextlib
import csv
import io
import os
import shutil
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ..tables import write_whole

FIRST = ("step", "epoch", "seconds")  # the first columns; the others come in the order in which they were first logged


def new_run(root: str | os.PathLike[str], recipe: str) -> Path:
    """A folder that doesn't exist yet, named for the recipe and the time; made when something is written into it."""
    stem = Path(root) / recipe / time.strftime("%Y-%m-%d_%H-%M-%S")
    folder, number = stem, 1
    while folder.exists():
        number += 1
        folder = stem.with_name(f"{stem.name}_{number}")
    return folder


def run_of(path: str | os.PathLike[str]) -> Path | None:
    """The run folder that a checkpoint, or a folder, is or lies in: the one with a config.yaml."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    return folder if (folder / "config.yaml").is_file() else None


def drop_if_empty(folder: Path) -> None:
    """Takes away the folder of a run that ended before it had made a checkpoint or a metric."""
    if folder.is_dir() and not any(folder.glob("*.ckpt")) and not (folder / "metrics.csv").is_file():
        shutil.rmtree(folder)


class MetricsFile(Logger):
    """metrics.csv in the run folder: a row a logged step, empty cells where a metric has no value there.

    A resumed run goes on in the same file: before its first row those from step `resumed_at` on, which the killed one
    had written beyond its last checkpoint, are removed. The row of the present step is rewritten as long as more is
    logged at it.
    """

    def __init__(self, folder: str | os.PathLike[str], resumed_at: int | None = None):
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self.columns, self.row, self.at = (
            list(FIRST),
            dict[str, Any](),
            0,
        )  # `at`: where in the file the present row begins
        self.begun, self.before, self.resumed_at = time.monotonic(), 0.0, resumed_at

    def _take_up(self, step: int) -> None:
        self.resumed_at = None
        if not self.path.is_file():
            return
        rows = [row for row in read_metrics(self.path) if row["step"] < step]
        self.before = max((row.get("seconds", 0.0) for row in rows), default=0.0)
        for row in rows:
            self.columns += [name for name in row if name not in self.columns]
        if rows:
            self.row = rows.pop()
            self._rewrite(rows)
        else:
            self.path.unlink()

    @property
    def name(self) -> str:
        return self.path.parent.parent.name

    @property
    def version(self) -> str:
        return self.path.parent.name

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self.resumed_at is not None:
            self._take_up(self.resumed_at)
        step = int(self.row.get("step", 0) if step is None else step)
        if self.row and self.row["step"] != step:
            self.write()
            self.row, self.at = {}, self.path.stat().st_size
        self.row = {"step": step, "seconds": round(self.before + time.monotonic() - self.begun, 2)} | self.row
        self.row.update({name: float(value) for name, value in metrics.items()})

    @rank_zero_only
    def write(self) -> None:
        """Puts the present row into the file; a new column rewrites all of it."""
        new = [name for name in self.row if name not in self.columns]
        self.columns += new
        if self.row and (new or not self.path.is_file()):
            self._rewrite(
                [row for row in read_metrics(self.path) if row["step"] != self.row["step"]]
                if self.path.is_file()
                else []
            )
        elif self.row:
            with self.path.open("r+", newline="") as file:
                file.seek(self.at)
                file.truncate()
                file.write(self._text([self.row]))

    def _rewrite(self, earlier: list[dict[str, Any]]) -> None:
        """All rows, the present one last."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = self._text(earlier, header=True)
        self.at = len(text.encode())
        write_whole(self.path, text + self._text([self.row]))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        with contextlib.suppress(*(() if status == "success" else (OSError,))):  # what ended the run is told, not this
            self.write()

    def _text(self, rows: list[dict[str, Any]], header: bool = False) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows({name: f"{value:.7g}" for name, value in row.items()} for row in rows)
        return text.getvalue()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a metrics.csv without their empty cells; a last line that a kill cut short is left out."""
    with open(path, newline="") as file:
        lines = file.read().split("\n")
    rows = [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(lines[:-1])]
    return [{**row, "step": int(row["step"])} for row in rows]
