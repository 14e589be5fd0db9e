"""A loader whose place in the data is three numbers, so that a killed run goes on with the very batch that it would
have had.

The order of an epoch is a function of (seed, epoch), and a data set gets keys (epoch, index), from which it draws
whatever is random. So the state is {epoch, batches handed out}: it does not depend on the number of worker processes,
nor on what they had fetched ahead.
"""

from __future__ import annotations

import gc
import logging
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Sampler
from torchdata.stateful_dataloader import StatefulDataLoader

from .keyed import key
from .read import UnreadableImage

Key = tuple[int, int]  # epoch, index
Arrange = Callable[[int | None], Tensor]
log = logging.getLogger("patchloom.data")


class Batch(NamedTuple):
    """What crosses from worker processes: images (or a tuple of views) and targets (None where all were unreadable),
    file -> reason, and what fell out of the pictures: reason -> number of objects."""

    images: Tensor | tuple[Tensor, ...] | None
    targets: Any
    skipped: dict[str, str]
    dropped: Mapping[str, int] = {}

    def out(self) -> tuple[Any, Any]:
        """What the training loop gets."""
        return self.images, self.targets


class KeyedDataset(Protocol):
    """Keys of one batch -> Batch, or an object with `file` and `reason` that ends the run."""

    def __len__(self) -> int: ...
    def __getitems__(self, keys: list[Key]) -> Any: ...


class Order(Sampler[list[Key]]):
    """Batches of keys (epoch, index) for one of `world` processes; process r takes every world-th of the epoch's order.

    even=True (training): the order is cut to whole batches for all processes where there is at least one, else filled
    up from its beginning to a multiple of `world`; all processes take equally many steps. even=False (evaluation):
    every picture exactly once over all processes, which may differ by one in their number: nothing is counted twice.
    `arrange`: the order of an epoch from a seed (None: not shuffled), where it is not just any.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        even: bool,
        world: int = 1,
        rank: int = 0,
        arrange: Arrange | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: at least 1")
        self.length, self.batch_size, self.shuffle, self.seed, self.even = length, batch_size, shuffle, seed, even
        self.world, self.rank, self.arrange = world, rank, arrange
        self.epoch, self.start = 0, 0  # of the next pass
        self.asked: int | None = None

    def set_epoch(self, epoch: int) -> None:
        """The next pass that begins is of this epoch (Lightning calls this)."""
        self.asked = epoch

    def indices(self, epoch: int) -> list[int]:
        """This process's pictures of an epoch, in order."""
        seed = key(self.seed, epoch) if self.shuffle else None
        order = in_any_order(self.length, seed) if self.arrange is None else self.arrange(seed)
        if self.even:
            whole = self.length // (self.world * self.batch_size) * self.world * self.batch_size
            fill = -self.length % self.world
            order = order[:whole] if whole else order.repeat(2 + fill // max(self.length, 1))[: self.length + fill]
        return order[self.rank :: self.world].tolist()

    def __len__(self) -> int:
        group = self.world * self.batch_size
        if self.even:
            return self.length // group or int(self.length > 0)
        mine = len(range(self.rank, self.length, self.world))
        return -(-mine // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, indices = self.epoch, self.indices(self.epoch)
        for at in range(self.start * self.batch_size, len(indices), self.batch_size):
            yield [(epoch, index) for index in indices[at : at + self.batch_size]]


def in_any_order(length: int, seed: int | None) -> Tensor:
    if seed is None:
        return torch.arange(length)
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed))


def as_is(batch: Any) -> Any:
    """The data set already made the batch."""
    return batch


def leave_inherited_alone(worker: int) -> None:
    """First act of a worker process: what it inherited is the parent's to collect. Were the worker to collect, say, the
    loader of an earlier run that failed, it would wait at its own end for processes that are not its children.

    The inherited answer to SIGTERM is put back over torch's, which lets a worker die of a signal to the whole process
    group while its parent still wants to finish the step and save.
    """
    gc.freeze()
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


class Loader:
    """One epoch a pass, yielding (images, targets); torchdata's StatefulDataLoader fetches, in `workers` processes.

    Not a subclass of DataLoader: Lightning would take such a one apart and put another sampler into it. Instead it has
    what Lightning asks of any loader: a length, a `sampler` with set_epoch, state_dict and load_state_dict. A pass
    begins with its first batch, not with iter(), because Lightning names the epoch in between. `skipped`: unreadable
    files -> reason, over all passes and worker processes. `dropped`: objects that varying took out of the pictures, by
    reason, since this process began.
    """

    def __init__(
        self,
        dataset: KeyedDataset,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        workers: int = 0,
        even: bool = False,
        world: int = 1,
        rank: int = 0,
        collate: Callable[[Any], Any] = as_is,
        arrange: Arrange | None = None,
    ) -> None:
        if workers < 0:
            raise ValueError(f"workers = {workers}: 0 (in this process) or more")
        self.pictures, self.workers = dataset, workers
        self.batch_sampler = self.sampler = Order(
            len(dataset), batch_size, shuffle=shuffle, seed=seed, even=even, world=world, rank=rank, arrange=arrange
        )
        self.skipped: dict[str, str] = {}
        self.dropped: Counter[str] = Counter()
        self._epoch, self._batches = 0, 0  # epoch of the latest pass, batches of it handed out
        self._begun, self._resuming = False, False
        self._collate = collate
        self._engine: StatefulDataLoader | None = None

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        order, count = self.sampler, len(self.sampler)
        order.epoch, order.start = self._place()
        self._epoch, self._batches, self._begun = order.epoch, order.start, True
        seen: dict[str, str] = {}
        for batch in self._fetch():
            if not isinstance(batch, Batch):
                raise UnreadableImage(
                    batch.file, f"{batch.reason}; mend or remove it, or go on without such files: on_error: skip"
                )
            self._batches += 1
            seen.update(batch.skipped)
            self.skipped.update(batch.skipped)
            self.dropped.update(batch.dropped)
            if (
                self._batches == count and seen
            ):  # now, since whoever knows the length never asks for a batch beyond the last
                log.warning("%s", report(seen, f"in epoch {self._epoch}"))
            if batch.images is not None:
                yield batch.out()

    def _place(self) -> tuple[int, int]:
        """Epoch and first batch of the pass that begins."""
        asked, self.sampler.asked = self.sampler.asked, None
        resuming, self._resuming = self._resuming, False
        if resuming and self._batches < len(self) and asked in (None, self._epoch):
            return self._epoch, self._batches
        if asked is not None and not (resuming and asked == self._epoch):
            return asked, 0
        return self._epoch + (self._begun or resuming), 0

    def _fetch(self) -> Iterator[Any]:
        if self._engine is None:
            with (
                warnings.catch_warnings()
            ):  # more workers than processors is the user's choice; the other is torchdata's own affair
                warnings.filterwarnings("ignore", message="This DataLoader will create|'set_vital' is deprecated")
                self._engine = StatefulDataLoader(
                    self.pictures,
                    batch_sampler=self.sampler,
                    num_workers=self.workers,
                    collate_fn=self._collate,
                    worker_init_fn=leave_inherited_alone,
                    persistent_workers=self.workers > 0,
                    pin_memory=torch.cuda.is_available(),
                    generator=torch.Generator().manual_seed(0),  # its draws must not come out of the model's generator
                )
        return iter(self._engine)

    def close(self) -> None:
        """End the worker processes now; another pass starts new ones.

        Left to the garbage collector they would each be waited for 5 seconds: it may close their queues first.
        """
        iterator = None if self._engine is None else self._engine._iterator
        if iterator is not None and self.workers:
            iterator._shutdown_workers()  # what Lightning, too, calls for want of a public name
        self._engine = None

    def state_dict(self) -> dict[str, Any]:
        """The place after the batches handed out so far; plain values."""
        order = self.sampler
        return {
            "epoch": self._epoch,
            "batches": self._batches,
            "seed": order.seed,
            "length": order.length,
            "group": order.world * order.batch_size,
            "skipped": dict(self.skipped),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; within an epoch data, seed and pictures a step must be those of then."""
        order = self.sampler
        now = {"seed": order.seed, "length": order.length, "group": order.world * order.batch_size}
        says = {"seed": "seed", "length": "number of training pictures", "group": "batch size x processes"}
        ended = state["batches"] >= max(state["length"] // state["group"], 1)
        for name, value in now.items():
            if state["batches"] > 0 and not ended and state[name] != value:
                raise ValueError(
                    f"cannot resume within epoch {state['epoch']}: the {says[name]} was {state[name]} and is {value} "
                    f"now; resume with {state[name]}, or from a checkpoint of an epoch's end"
                )
        self._epoch, self._batches = state["epoch"], len(self) if ended else state["batches"]
        self._resuming = True
        self.skipped = dict(state["skipped"])


def report(skipped: dict[str, str], when: str, most: int = 3) -> str:
    """One line on unreadable files."""
    some = "; ".join(f"{file} ({reason})" for file, reason in list(skipped.items())[:most])
    more = f"; and {len(skipped) - most} more" if len(skipped) > most else ""
    return f"skipped {len(skipped)} unreadable image{'s' * (len(skipped) > 1)} {when}: {some}{more}"
