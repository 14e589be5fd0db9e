"""Exact resumption: what Lightning 2.6 leaves out of a checkpoint, and the places where it would not go on as it went.

Lightning restores weights, optimisers, schedules, loops and a stateful loader. Not restored: random generators. Not
exact: a save before a due validation (it is skipped on resuming), a save after an epoch (the finished loader is not
renewed after the sampler learnt the epoch; with `max_steps` the epoch is entered again), and anything during a
validation. So a save says where it stands, and the counters are written as if the run had stopped exactly there:

    batch       after an optimiser step, with more batches to come and no validation due before them
    validation  before a validation: it is run (again) on resuming
    epoch       between two epochs, or after the last one
"""

from collections.abc import Mapping
from typing import Any, Literal

import lightning.pytorch as L
import torch.distributed as dist
from lightning.fabric.utilities.data import _set_sampler_epoch

from .generators import generators_state, set_generators_state

Place = Literal["batch", "validation", "epoch"]
NEW = {"ready": 0, "started": 0, "processed": 0, "completed": 0}
ENTERED = {"ready": 1, "started": 1, "processed": 0, "completed": 0}


def validation_due(trainer: L.Trainer) -> bool:
    """Whether Lightning validates right after the present batch."""
    loop = trainer.fit_loop
    return loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def place_now(trainer: L.Trainer) -> Place | None:
    """Where a save at the end of a batch stands; None where it has to wait: in the middle of accumulated gradients, or
    after the last batch of an epoch without validation."""
    if trainer.fit_loop._should_accumulate():
        return None
    if validation_due(trainer):
        return "validation"
    return None if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch else "batch"


def at(loops: dict[str, Any], place: Place) -> None:
    """Rewrites the state of `fit_loop` in a checkpoint so that Lightning resumes at `place`; `loops` was taken after a
    batch.
    """
    fit = loops["fit_loop"]
    batches = fit["epoch_loop.batch_progress"]
    if place == "validation":
        for count in (batches["total"], batches["current"]):
            count["completed"] = count["processed"]
        fit["epoch_loop.val_loop.batch_progress"].update(total=dict(ENTERED), current=dict(NEW), is_last_batch=False)
    elif place == "epoch":
        for count in (fit["epoch_progress"]["total"], fit["epoch_progress"]["current"]):
            count.update(dict.fromkeys(NEW, count["processed"]))
        batches.update(total=dict.fromkeys(NEW, batches["total"]["processed"]), current=dict(NEW), is_last_batch=False)
        fit["epoch_loop.val_loop.batch_progress"].update(total=dict(NEW), current=dict(NEW), is_last_batch=False)
        fit["state_dict"].pop("combined_loader", None)


class Resume(L.Callback):
    """Puts generators and place into every checkpoint of `fit`, and takes them up again before the first batch."""

    def __init__(self):
        self.place: Place | None = None
        self.before_validation: dict[str, Any] | None = None
        self.found: Mapping[str, Any] | None = None
        self.loaders: list[dict[str, Any]] = []

    def save(self, trainer: L.Trainer, path: str, place: Place) -> None:
        """Writes a checkpoint that resumes at `place`."""
        self.place = place
        try:
            trainer.save_checkpoint(path)
        finally:
            self.place = None

    def on_save_checkpoint(self, trainer, module, checkpoint: dict[str, Any]) -> None:
        if self.place is None:  # somebody else's callback saves: Lightning's own counters stand
            checkpoint["resume"] = {"place": None, "generators": gather(generators_state())}
            return
        state = self.before_validation if self.place == "validation" and self.before_validation else generators_state()
        checkpoint["resume"] = {"place": self.place, "generators": gather(state)}
        at(checkpoint["loops"], self.place)

    def on_load_checkpoint(self, trainer, module, checkpoint: Mapping[str, Any]) -> None:
        self.found = checkpoint.get("resume")
        self.loaders = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])

    def on_train_start(self, trainer, module) -> None:
        """Right before the first batch; loaders are there, nothing was drawn from them."""
        if self.found is None or trainer.state.fn != "fit":
            return
        fit = trainer.fit_loop
        if self.found["place"] in ("batch", "validation"):  # Lightning began the pass before the sampler knew its epoch
            for loader in fit._combined_loader.flattened:
                _set_sampler_epoch(loader, fit.epoch_progress.current.processed)
            fit._combined_loader._load_state_dicts(self.loaders)
            iter(fit._data_fetcher)
        elif (
            self.found["place"] == "epoch"
        ):  # begin the epoch as any other: counters from 0, a new pass over the loader
            for loop in (fit, fit.epoch_loop, fit.epoch_loop.val_loop):
                loop._restarting = loop._resuming_from_checkpoint = loop._loaded_from_state_dict = False
        states = self.found["generators"]
        if len(states) == trainer.world_size:
            set_generators_state(states[trainer.global_rank])
        self.found, self.loaders = None, []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.before_validation = generators_state()  # 50 us


def gather(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The states of all processes, by rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return [state]
    states: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(states, state)
    return states
