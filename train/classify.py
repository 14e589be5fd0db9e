"""`Classify`: a classifier with its loss, optimiser groups, schedule, mixing, average of weights and metrics."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..vision.adapters import adapter_of
from ..vision.adapters.files import put_on
from ..vision.adapters.trunk import digest
from .begin import begin_as_images_have_it, check_adapter, check_classes, check_learning
from .callbacks.adalora import ranks_that_fall
from .checkpoint import header, preprocessing_of
from .confusion import draw_confusion
from .ema import Average, Ema
from .losses import Counts, CrossEntropy, Loss
from .metrics import CONFUSION_LIMIT, metrics
from .mixing import Mixing
from .optim import Cosine, Schedule, build_optimizer
from .patches import PatchMixing


class Classify(L.LightningModule):
    """Trains and judges `model` (timm's contract) on batches (image (B, 3, H, W), target (B,) or (B, C)).

    The head gets as many classes as the data has; names and preprocessing of the data travel in the checkpoint.
    `schedule` is one of `train.optim` or any torch scheduler (stepped once an epoch); None is `Cosine()`. `lr_scales`:
    patterns of parameter names, and the factor on the learning rate of those that fit (the first that does). Logged, as
    fractions of 1: train/loss; val/ and test/ loss, top1 and, from six classes on, top5 (map and f1 where images have
    many labels). Where `ema` is on, its weights are judged. `adapter`: what learns on the frozen model, as a spelling
    (`lora:r=8`), class_path and init_args, or the folder of a saved one to go on from.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.05, fused=True),
        schedule: Schedule | LRSchedulerCallable | None = None,
        layer_decay: float | None = None,
        lr_scales: dict[str, float] | None = None,
        mixing: Mixing | PatchMixing | None = None,
        ema: Ema | None = None,
        channels_last: bool = False,
        adapter: Any = None,
    ):
        super().__init__()
        self.model = model
        started = None if adapter is None else put_on(model, adapter)
        self.head_of = [] if started is None else started.classes  # the classes of a head that was trained before
        self.loss = loss if loss is not None else CrossEntropy()
        self.optimizer, self.schedule = optimizer, schedule
        self.layer_decay, self.lr_scales = layer_decay, lr_scales
        self.mixing, self.mixer, self.mixing_seed = mixing, None, 0
        self.ema_spec, self.ema = ema, None
        self.channels_last = channels_last
        self.classes: list[str] = list(self.head_of)
        self.data_names_classes, self.untrained = False, ""  # the latter: why it cannot be judged without a checkpoint
        self.preprocessing: dict[str, Any] = preprocessing_of(model)
        self.recipe = ""  # its name, set by the command line, for the checkpoint
        self.trunk: str | None = None  # digest of the weights below an adapter, as they were before the run
        self.judges = nn.ModuleDict()

    # ------------------------------------------------------------------------------------------------ before a run

    @property
    def labels(self) -> str:
        return getattr(self.loss, "labels", "one")

    def setup(self, stage: str) -> None:
        """After the data's own setup, before a checkpoint is loaded: head, average and metrics get their final
        shape."""
        data = getattr(self.trainer, "datamodule", None)
        self.preprocessing = dict(getattr(data, "preprocessing", None) or self.preprocessing)
        named = list(getattr(data, "classes", None) or ())
        self.data_names_classes, self.untrained = bool(named), ""
        own = self.model.num_classes
        if stage != "fit" and len(named) not in (0, own):
            self.untrained = f"the model tells {own} classes apart, the data has {len(named)}"
        if stage != "fit" and named and self.head_of not in ([], named):
            check_classes(self.head_of, named)
        self._adopt(named or self.classes or [str(i) for i in range(self.model.num_classes)])
        if stage == "fit":
            check_learning(self.model, self.trainer)
            self.trunk = None if adapter_of(self.model) is None else digest(self.model)
        if stage == "fit" and isinstance(self.loss, Loss):
            self.loss.setup(len(self.classes), self._counts, self.preprocessing)
            for part in self.model.modules() if self.loss.needs_image else ():
                if getattr(part, "head_dist", None) is not None:  # DeiT's distilled head, ours and timm's
                    part.set_distilled_training(True)
            for part in self.model.modules() if self.loss.needs_patches else ():
                if getattr(part, "head_patches", None) is not None:
                    part.set_patch_training(True)

    def _adopt(self, classes: list[str]) -> None:
        """Gives head, average, mixing and metrics the number of these classes; what has it already is left alone."""
        count, known = len(classes), len(self.classes)
        if count < 2 and self.labels == "one":
            raise ValueError(f"the data has {count} class ({', '.join(classes)}): a classifier needs at least two")
        if self.model.num_classes != count or self.head_of not in ([], classes):  # a head for others starts anew
            self.head_of = []
            self.model.reset_classifier(count)
            self.model.to(self.device)
            self.ema = None
        if self.channels_last:
            self.model.to(memory_format=torch.channels_last)
        if self.ema_spec is not None and self.ema is None:
            self.ema = Average(self.model, self.ema_spec)
        if self.mixing is not None and (self.mixer is None or known != count):
            self.mixer, self.mixing_seed = self.mixing.build(count, self.labels == "many"), torch.initial_seed()
        if known != count or not self.judges:
            self.judges = nn.ModuleDict(
                {kind: metrics(count, self.labels, confusion=kind == "test") for kind in ("val", "test")}
            )
            self.judges.to(self.device)
        self.classes = classes

    def _counts(self) -> Counts:
        data = self.trainer.datamodule
        if not hasattr(data, "class_counts"):
            raise ValueError(
                f"balanced weights: {type(data).__name__} has no class_counts(); give the weights as a list"
            )
        images, classes = data.class_counts()
        return Counts(images, torch.as_tensor(classes))

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

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, C) of the network that is judged: the average where there is one."""
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return self.model(image) if self.ema is None or self.training else self.ema(image)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        if getattr(self.loss, "needs_model", False):  # it takes several views of a batch, each mixed alike
            images, target = batch
            seen = images if isinstance(images, (tuple, list)) else (images,)
            apart = not self.loss.shared_mixing
            views = [self._prepared(image, target, index, *([i] if apart else ())) for i, image in enumerate(seen)]
            loss = self.loss(self.model, views, self.current_epoch * self._epoch_length() + index)
        else:
            image, target = self._prepared(*batch, index)
            output = self.model(image)
            wants = getattr(self.loss, "needs_image", False)
            loss = self.loss(output, target, image) if wants else self.loss(output, target)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _prepared(self, image: Tensor, target: Tensor, *draw: int) -> tuple[Tensor, Tensor]:
        """Both mixed, by a draw of this place in the run, where mixing is on."""
        if isinstance(image, (tuple, list)):
            raise ValueError(
                f"the batch has {len(image)} views of each image and {type(self.loss).__name__} takes one: set "
                "model.loss to patchloom.train.resolutions.MultiResolution"
            )
        if self.mixer is not None and not self._mixing_is_over():
            image, target = self.mixer(image, target, (self.mixing_seed, self.current_epoch, *draw, self.global_rank))
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return image, target

    def _epoch_length(self) -> int:
        """Batches of an epoch, 0 where nobody knows."""
        batches = self.trainer.num_training_batches
        return 0 if math.isinf(batches) else int(batches)

    def _mixing_is_over(self) -> bool:
        off = self.mixing.off_epoch if self.mixing is not None else None
        return off is not None and self.current_epoch >= off

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:  # here, not at the end of the batch: a checkpoint saved there must hold it
            self.ema.update(self.model, self.trainer.global_step + 1)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self._judge("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self._judge("test", batch)

    def _judge(self, kind: str, batch: tuple[Tensor, Tensor]) -> None:
        image, target = batch
        self.judges[kind].update(self(image), target)

    def predict_step(self, batch: Any, index: int) -> Tensor:
        """Probabilities (B, C)."""
        logits = self(batch[0] if isinstance(batch, (tuple, list)) else batch).float()
        return logits.sigmoid() if self.labels == "many" else logits.softmax(1)

    # ----------------------------------------------------------------------------------------------------- results

    def _check_trained(self) -> None:
        if self.untrained:
            raise ValueError(f"{self.untrained}: give the checkpoint that was trained on this data (ckpt_path)")

    def on_validation_start(self) -> None:
        self._check_trained()

    def on_test_start(self) -> None:
        self._check_trained()

    def on_validation_epoch_start(self) -> None:
        self.judges["val"].reset()
        self._share_buffers(False)

    def on_validation_epoch_end(self) -> None:
        self._share_buffers(True)
        self._report("val")

    def on_test_epoch_start(self) -> None:
        self.judges["test"].reset()

    def on_test_epoch_end(self) -> None:
        self._report("test")
        counts = self.judges["test"].confusion
        if counts is None:
            if self.labels == "one":
                rank_zero_info(f"no confusion matrix: {len(self.classes)} classes, drawn up to {CONFUSION_LIMIT}")
            return
        matrix = counts.compute()
        folder = self.trainer.log_dir
        if self.trainer.is_global_zero and folder is not None:
            rank_zero_info(f"confusion matrix: {draw_confusion(matrix, self.classes, Path(folder) / 'confusion.png')}")

    def _report(self, kind: str) -> None:
        found = self.judges[kind].compute()  # over all processes
        values = {f"{kind}/{name}": value for name, value in found.items()}
        self.log_dict(values, prog_bar=kind == "val", sync_dist=self.trainer.world_size > 1)

    def _share_buffers(self, on: bool) -> None:
        """DDP sends buffers round in every forward pass, also of a validation in which one process may have a batch
        more: it would wait."""
        if isinstance(self.trainer.model, DistributedDataParallel):
            self.trainer.model.require_forward_param_sync = on

    # ------------------------------------------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["patchloom"] = {
            **header(self.model, self.classes, self.preprocessing, self.recipe),
            "mixing_seed": self.mixing_seed,
            "digest": self.trunk,
        }

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        saved = checkpoint.get("patchloom")
        if saved is None:
            raise ValueError(
                "this checkpoint was not written by patchloom: give its weights to the model (checkpoint_path) instead"
            )
        check_adapter(saved["model"].get("adapter"), self.model)
        if self.data_names_classes:
            check_classes(list(saved["classes"]), self.classes)
        else:
            self._adopt(list(saved["classes"]))
        self.mixing_seed, self.untrained = saved["mixing_seed"], ""
        averaged = any(name.startswith("ema.") for name in checkpoint["state_dict"])
        if averaged != (self.ema is not None):
            has, sets = ("an average of the weights", "unset") if averaged else ("no average of the weights", "set")
            raise ValueError(
                f"the checkpoint holds {has} and model.ema is {sets}: go on with the settings that it was trained with"
            )
