"""`Trained`: what every training module has: a network with its optimiser groups, schedule, adapter, average of weights
and metrics, and a checkpoint that rebuilds it."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..vision.adapters import adapter_of, host
from ..vision.adapters.files import put_on
from ..vision.adapters.trunk import digest
from .callbacks.adalora import ranks_that_fall
from .ema import Average, Ema
from .optim import Cosine, Schedule, build_optimizer
from .running.begin import begin_as_images_have_it, check_adapter, check_classes, check_learning
from .running.checkpoint import header, preprocessing_of
from .sharded import gather, shard


class Trained(L.LightningModule):
    """What is the same for all networks that are trained; a subclass adds losses, steps and, in `judges`, metrics.

    `model` is rebuilt by its checkpoint, so `zoo.describe` must know it. `schedule` is one of `train.optim` or any
    torch scheduler (stepped once an epoch); None is `Cosine()`. `lr_scales`: patterns of parameter names, and the
    factor on the learning rate of those that fit (the first that does). Where `ema` is on, its weights are judged
    (`judged`). `adapter`: what learns on the frozen model, or on the frozen backbone below a dense head, which learns
    too: a spelling (`lora:r=8`), class_path and init_args, or the folder of a saved one to go on from.

    A subclass may override `meet` (what the data's classes mean to it), `adopt` (what takes their number), `judge_step`
    (a batch of validation or test) and `own_state` (what its checkpoint says besides).
    """

    headline: tuple[str, ...] | None = None  # of the numbers of a validation; None: all

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerCallable,
        schedule: Schedule | LRSchedulerCallable | None = None,
        layer_decay: float | None = None,
        lr_scales: dict[str, float] | None = None,
        ema: Ema | None = None,
        adapter: Any = None,
    ):
        super().__init__()
        self.model = model
        self.adapter_card = None if adapter is None else put_on(host(model), adapter)  # of one that was saved before
        self.optimizer, self.schedule = optimizer, schedule
        self.layer_decay, self.lr_scales = layer_decay, lr_scales
        self.ema_spec, self.ema = ema, None
        self.classes: list[str] = []
        self.data_names_classes, self.untrained = False, ""  # the latter: why it cannot be judged without a checkpoint
        self.preprocessing: dict[str, Any] = preprocessing_of(model)
        self.recipe = ""  # its name, set by the command line, for the checkpoint
        self.trunk: str | None = None  # digest of the weights below an adapter, as they were before the run
        self.judges = nn.ModuleDict()  # "val" and "test": metrics with reset() and compute() -> {name: number}

    # ------------------------------------------------------------------------------------------------ before a run

    def setup(self, stage: str) -> None:
        """After the data's own setup, before a checkpoint is loaded: everything gets its final shape."""
        data = getattr(self.trainer, "datamodule", None)
        self.preprocessing = dict(getattr(data, "preprocessing", None) or self.preprocessing)
        named = list(getattr(data, "classes", None) or ())
        self.data_names_classes, self.untrained = bool(named), ""
        self.adopt(self.meet(named, stage))
        if stage == "fit":
            check_learning(self.model, self.trainer)
            self.trunk = None if adapter_of(self.model) is None else digest(host(self.model))

    def meet(self, named: list[str], stage: str) -> list[str]:
        """The names of the classes, from those of the data (none where it names none). Raises where they cannot be."""
        return named or self.classes

    def adopt(self, classes: list[str]) -> None:
        """Takes over these classes; the average of the weights, where it is on, gets its final shape."""
        if self.ema_spec is not None and self.ema is None:
            self.ema = Average(self.model, self.ema_spec)
        self.classes = classes

    def configure_model(self) -> None:
        """Under strategy fsdp2 each process keeps its part of the weights, and of their average."""
        if isinstance(self.trainer.strategy, FSDPStrategy):
            raise ValueError(
                "trainer.strategy=fsdp flattens weights of many layers into one: use fsdp2, which does not"
            )
        if self.device_mesh is None:
            return
        if self.ema is not None and adapter_of(self.model) is not None:
            raise ValueError(
                "trainer.strategy=fsdp2: an adapter and model.ema share the frozen weights, which cannot be put in "
                "parts twice; leave model.ema out, or train by ddp"
            )
        for each in (self.model, self.ema):
            if each is not None:
                shard(each, self.device_mesh["data_parallel"])

    def configure_callbacks(self) -> list[L.Callback]:
        """What the adapter's method does between steps."""
        return ranks_that_fall(self.model)

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.optimizer, self.model, self.layer_decay, self.lr_scales)
        schedule = Cosine() if self.schedule is None else self.schedule
        if isinstance(schedule, Schedule):
            self.trainer.fit_loop.setup_data()  # so that the length of an epoch is known
            steps, batches = float(self.trainer.estimated_stepping_batches), self.trainer.num_training_batches
            epoch_steps = batches if math.isinf(batches) else math.ceil(batches / self.trainer.accumulate_grad_batches)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule.build(optimizer, steps, epoch_steps), "interval": "step"},
            }
        scheduler = schedule(optimizer)
        plan: dict[str, Any] = {"scheduler": scheduler, "interval": "epoch"}
        if isinstance(scheduler, ReduceLROnPlateau):
            plan["monitor"] = scheduler.monitor
        return {"optimizer": optimizer, "lr_scheduler": plan}

    def on_fit_start(self) -> None:
        if self.trainer.ckpt_path is None:
            begin_as_images_have_it(self.model, self.trainer)
        if self.trainer.checkpoint_callbacks:
            self.on_save_checkpoint({})  # a model that cannot be described shall say so now, not at the first save

    # ------------------------------------------------------------------------------------------------------- steps

    @property
    def judged(self) -> Callable[..., Any]:
        """The network that is judged: the average of the weights where there is one, but while training itself."""
        return self.model if self.ema is None or self.training else self.ema

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:  # here, not at the end of the batch: a checkpoint saved there must hold it
            self.ema.update(self.model, self.trainer.global_step + 1)

    def validation_step(self, batch: Any, index: int) -> Any:
        return self.judge_step("val", batch)

    def test_step(self, batch: Any, index: int) -> Any:
        return self.judge_step("test", batch)

    def judge_step(self, kind: str, batch: Any) -> Any:
        """Brings `judges[kind]` up to date; what it returns goes to the pictures."""
        raise AssertionError(f"{type(self).__name__} does not say how it is judged")

    def batches_of_an_epoch(self) -> int:
        """0 where nobody knows."""
        batches = self.trainer.num_training_batches
        return 0 if math.isinf(batches) else int(batches)

    # ----------------------------------------------------------------------------------------------------- results

    def on_validation_start(self) -> None:
        self._check_trained()

    def on_test_start(self) -> None:
        self._check_trained()

    def _check_trained(self) -> None:
        if self.untrained:
            raise ValueError(f"{self.untrained}: give the checkpoint that was trained on this data (ckpt_path)")

    def on_validation_epoch_start(self) -> None:
        self._begin("val")
        self._together(False)

    def on_validation_epoch_end(self) -> None:
        self._together(True)
        self.report("val")

    def on_test_epoch_start(self) -> None:
        self._begin("test")
        self._together(False)

    def on_test_epoch_end(self) -> None:
        self._together(True)
        self.report("test")

    def _begin(self, kind: str) -> None:
        if kind in self.judges:
            self.judges[kind].reset()

    def report(self, kind: str) -> None:
        """Logs what `judges[kind]` found, as val/… or test/…, over all processes; `headline` beside the progress."""
        found = self.judges[kind].compute() if kind in self.judges else {}
        for name, value in found.items():
            shown = kind == "val" and (self.headline is None or name in self.headline)
            self.log(f"{kind}/{name}", value, prog_bar=shown, sync_dist=self.trainer.world_size > 1)

    def _together(self, on: bool) -> None:
        """Whether processes meet in every forward pass. In a validation one may have a batch more, and would wait: DDP
        sends buffers round, FSDP weights."""
        if isinstance(self.trainer.model, DistributedDataParallel):
            self.trainer.model.require_forward_param_sync = on
        if self.device_mesh is not None:
            gather(self.model if self.ema is None else self.ema, whole=not on)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """All processes enter; in the block each goes its own way with the network that is judged, or has nothing to
        do, as where the first one draws."""
        self._together(False)
        try:
            yield
        finally:
            self._together(True)

    # ------------------------------------------------------------------------------------------------- checkpoints

    def own_state(self) -> dict[str, Any]:
        """Plain values of a subclass for `patchloom` of the checkpoint; read again by `take_state`."""
        return {}

    def take_state(self, saved: Mapping[str, Any]) -> None:
        """Takes up what `own_state` gave; `saved` is all of `patchloom` in the checkpoint."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        head = header(self.model, self.classes, self.preprocessing, self.recipe)
        checkpoint["patchloom"] = {**head, **self.own_state(), "digest": self.trunk}

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        saved = checkpoint.get("patchloom")
        if saved is None:
            raise ValueError(
                "this checkpoint was not written by patchloom: give its weights to the model (checkpoint_path) instead"
            )
        check_adapter(saved["model"], self.model)
        if self.data_names_classes:
            check_classes(list(saved["classes"]), self.classes)
        else:
            self.adopt(list(saved["classes"]))
        self.take_state(saved)
        self.untrained = ""
        averaged = any(name.startswith("ema.") for name in checkpoint["state_dict"])
        if averaged != (self.ema is not None):
            has, sets = ("an average of the weights", "unset") if averaged else ("no average of the weights", "set")
            raise ValueError(
                f"the checkpoint holds {has} and model.ema is {sets}: go on with the settings that it was trained with"
            )
