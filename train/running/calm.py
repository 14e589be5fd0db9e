"""What Lightning and torch say, made fit for a command line: no tips on stderr, errors in one line."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGINT

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ..callbacks.signals import Interrupted
from ..cli import Terminated
from . import checkpoint
from .keys import tidy


class OutOfMemory(RuntimeError):
    """The accelerator's memory is full; the message says what would do."""


NOISE = (
    "does not have many workers",
    "is smaller than the logging interval",
    "treespec",
    "Checkpoint directory",
    "set_vital",
    "self.log",
    "No supported gpu backend",
    "GPU available but not used",
    "LeafSpec",
    "weights_only",
    "callbacks used to create the checkpoint",
    "in eval mode at the start of training",  # a trunk below an adapter is
)


@contextmanager
def calm() -> Iterator[None]:
    """Lightning's tips and well-known warnings stay out of the way; our own notes go to stderr."""
    for name in (
        "lightning.pytorch",
        "lightning.fabric",
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.seed",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)
    ours = logging.getLogger("patchloom")
    handler = logging.StreamHandler()
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            for text in NOISE:
                warnings.filterwarnings("ignore", message=f".*{text}")
            yield
    finally:
        ours.removeHandler(handler)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What Lightning raises for a wrong setting, and a full GPU, as errors that the command line shows in one line."""
    try:
        yield
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    except ValueError as error:
        if "Does not validate against any" not in str(error):
            raise
        raise ValueError(tidy(str(error))) from error
    except torch.OutOfMemoryError as error:
        free, total = (x / 2**30 for x in torch.cuda.mem_get_info())
        raise OutOfMemory(
            f"the GPU's memory is full ({total:.0f} GiB, {free:.1f} free): "
            "lower --data.batch_size, or try --trainer.precision bf16-mixed"
        ) from error
    except Interrupted as signal:
        raise (KeyboardInterrupt if signal.number == SIGINT else Terminated) from signal


@contextmanager
def fitting(module: L.LightningModule, path: Path | None) -> Iterator[None]:
    """A checkpoint whose tensors are not the module's is told in one line, by the first of them."""
    try:
        yield
    except RuntimeError as error:
        if path is not None and str(error).startswith("Error(s) in loading state_dict"):
            checkpoint.check_state(module.state_dict(), checkpoint.read(path)["state_dict"], path)
        raise
