"""`App`: everything that the callbacks share, and how an error becomes a sentence."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..cli import UsageError, describe
from .limits import Limits, without_paths
from .samples import written
from .shelf import Shelf
from .starters import Trainer
from .uploads import Upload, open_upload

FULL = (MemoryError, torch.OutOfMemoryError)
TOLD = (ValueError, OSError, ModuleNotFoundError, UsageError, *FULL)  # raised on purpose; what else comes is a bug


@dataclass
class App:
    """`folder`: where uploads, samples and results lie, and nothing else; it goes with `close`. `trains`: visitors may
    train the small models."""

    shelf: Shelf
    limits: Limits = field(default_factory=Limits)
    trains: bool = True
    options: Sequence[str] = ()  # for what is trained
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="patchloom-demo-")).resolve())

    def __post_init__(self) -> None:
        self.trainer = Trainer(self.shelf.runs, self.options)
        self.samples = written(self.folder / "samples")

    def open(self, payload: Any) -> Upload:
        return open_upload(payload, self.folder, self.limits)

    def close(self) -> None:
        self.trainer.end()
        shutil.rmtree(self.folder, ignore_errors=True)


def in_words(error: Exception) -> str:
    """What a visitor is told of one of `TOLD`: its text without paths."""
    if isinstance(error, FULL):
        return "this machine's memory does not suffice for it: take a smaller picture or model"
    return without_paths(describe(error) or str(error))
