"""`Classify`: a classifier with its loss, optimiser groups, schedule, mixing, average of weights and metrics."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

from .ema import Ema
from .evaluation.confusion import draw_confusion
from .evaluation.metrics import CONFUSION_LIMIT, metrics
from .module import Trained
from .objectives.losses import Counts, CrossEntropy, Loss
from .objectives.mixing import Mixing
from .objectives.patches import PatchMixing
from .optim import Schedule
from .running.begin import check_classes


class Classify(Trained):
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
        super().__init__(model, optimizer, schedule, layer_decay, lr_scales, ema, adapter)
        self.loss = loss if loss is not None else CrossEntropy()
        self.mixing, self.mixer, self.mixing_seed = mixing, None, 0
        self.channels_last = channels_last
        self.head_of = [] if self.adapter_card is None else self.adapter_card.classes  # of a head trained before
        self.classes = list(self.head_of)

    # ------------------------------------------------------------------------------------------------ before a run

    @property
    def labels(self) -> str:
        return getattr(self.loss, "labels", "one")

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and isinstance(self.loss, Loss):
            self.loss.setup(len(self.classes), self._counts, self.preprocessing)
            for part in self.model.modules() if self.loss.needs_image else ():
                if getattr(part, "head_dist", None) is not None:  # DeiT's distilled head, ours and timm's
                    part.set_distilled_training(True)
            for part in self.model.modules() if self.loss.needs_patches else ():
                if getattr(part, "head_patches", None) is not None:
                    part.set_patch_training(True)

    def meet(self, named: list[str], stage: str) -> list[str]:
        own = self.model.num_classes
        if stage != "fit" and len(named) not in (0, own):
            self.untrained = f"the model tells {own} classes apart, the data has {len(named)}"
        if stage != "fit" and named and self.head_of not in ([], named):
            check_classes(self.head_of, named)
        return named or self.classes or [str(i) for i in range(own)]

    def adopt(self, classes: list[str]) -> None:
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
        if self.mixing is not None and (self.mixer is None or known != count):
            self.mixer, self.mixing_seed = self.mixing.build(count, self.labels == "many"), torch.initial_seed()
        if known != count or not self.judges:
            self.judges = nn.ModuleDict(
                {kind: metrics(count, self.labels, confusion=kind == "test") for kind in ("val", "test")}
            )
            self.judges.to(self.device)
        super().adopt(classes)

    def _counts(self) -> Counts:
        data = self.trainer.datamodule
        if not hasattr(data, "class_counts"):
            raise ValueError(
                f"balanced weights: {type(data).__name__} has no class_counts(); give the weights as a list"
            )
        images, classes = data.class_counts()
        return Counts(images, torch.as_tensor(classes))

    # ------------------------------------------------------------------------------------------------------- steps

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, C) of the network that is judged: the average where there is one."""
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return self.judged(image)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        if getattr(self.loss, "needs_model", False):  # it takes several views of a batch, each mixed alike
            images, target = batch
            seen = images if isinstance(images, (tuple, list)) else (images,)
            apart = not self.loss.shared_mixing
            views = [self._prepared(image, target, index, *([i] if apart else ())) for i, image in enumerate(seen)]
            loss = self.loss(self.model, views, self.current_epoch * self.batches_of_an_epoch() + index)
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
                "model.loss to patchloom.train.objectives.resolutions.MultiResolution"
            )
        if self.mixer is not None and not self._mixing_is_over():
            image, target = self.mixer(image, target, (self.mixing_seed, self.current_epoch, *draw, self.global_rank))
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return image, target

    def _mixing_is_over(self) -> bool:
        off = self.mixing.off_epoch if self.mixing is not None else None
        return off is not None and self.current_epoch >= off

    def judge_step(self, kind: str, batch: tuple[Tensor, Tensor]) -> None:
        image, target = batch
        self.judges[kind].update(self(image), target)

    def predict_step(self, batch: Any, index: int) -> Tensor:
        """Probabilities (B, C)."""
        logits = self(batch[0] if isinstance(batch, (tuple, list)) else batch).float()
        return logits.sigmoid() if self.labels == "many" else logits.softmax(1)

    # ----------------------------------------------------------------------------------------------------- results

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        counts = self.judges["test"].confusion
        if counts is None:
            if self.labels == "one":
                rank_zero_info(f"no confusion matrix: {len(self.classes)} classes, drawn up to {CONFUSION_LIMIT}")
            return
        matrix = counts.compute()
        folder = self.trainer.log_dir
        if self.trainer.is_global_zero and folder is not None:
            rank_zero_info(f"confusion matrix: {draw_confusion(matrix, self.classes, Path(folder) / 'confusion.png')}")

    # ------------------------------------------------------------------------------------------------- checkpoints

    def own_state(self) -> dict[str, Any]:
        return {"mixing_seed": self.mixing_seed}

    def take_state(self, saved: Mapping[str, Any]) -> None:
        self.mixing_seed = saved["mixing_seed"]
