"""What `Detect`, `Segment` and `PanopticSegment` have in common."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from PIL import Image
from torch import Tensor, nn

from .drawing import picture_of
from .ema import Ema
from .module import Trained
from .optim import Schedule

STANDARD = {"input_size": (3, 224, 224), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class Dense(Trained):
    """Trains a head on a pyramid, whose number of `classes` is the data's.

    Pictures are normalised as the backbone's weights want it (as ImageNet's where it names nothing); to what size the
    data module brings them in evaluation (`resize`) travels in the checkpoint, so that they are judged alike.
    """

    kind, example = "head on a pyramid", "patchloom.vision.heads.semantic.UPerNet"

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=0.05, fused=True),
        schedule: Schedule | LRSchedulerCallable | None = None,
        layer_decay: float | None = None,
        lr_scales: dict[str, float] | None = None,
        ema: Ema | None = None,
        adapter: Any = None,
    ):
        self.check_network(model)
        super().__init__(model, optimizer, schedule, layer_decay, lr_scales, ema, adapter)
        self.preprocessing = {**STANDARD, **self.preprocessing}

    def check_network(self, model: nn.Module) -> None:
        """Raises ValueError for a network that it cannot train."""
        if not isinstance(getattr(model, "classes", None), int):
            raise ValueError(
                f"{type(model).__name__} is no {self.kind}: give a backbone with a head, as {self.example}"
            )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.preprocessing = sized(self.preprocessing, getattr(self.trainer, "datamodule", None))

    def meet(self, named: list[str], stage: str) -> list[str]:
        own = self.model.classes
        if named and len(named) != own:
            few = ", ".join(named[:3]) + ", …" * (len(named) > 3)
            raise ValueError(
                f"the data has {len(named)} classes ({few}), the network tells {own} apart: give its head "
                f"classes: {len(named)}"
            )
        return named or self.classes or [str(i) for i in range(own)]

    def learnt(self, losses: Mapping[str, Tensor], count: int) -> Tensor:
        """Logs the parts of the loss, of `count` pictures, and gives their sum."""
        total = sum(losses.values())
        assert isinstance(total, Tensor)
        parts = {f"train/{name.removeprefix('loss_')}": value.detach() for name, value in losses.items()}
        self.log_dict(parts, batch_size=count)
        self.log("train/loss", total, prog_bar=True, batch_size=count)
        return total

    def run_again(self, batch: Any) -> Any:
        """The network on a batch, as in training: to find where a bad number arises."""
        return self.model(*batch)

    def pictured(self, batch: Any, outputs: Any) -> Iterator[tuple[Image.Image, Image.Image]]:
        """Of each picture of a batch that was judged: what is true, and what was found, drawn into it."""
        raise AssertionError(f"{type(self).__name__} does not say what it draws")

    def seen(self, image: Tensor) -> np.ndarray:
        """(3, H, W) as the network was given it -> (H, W, 3) uint8."""
        return picture_of(image, self.preprocessing["mean"], self.preprocessing["std"])


def sized(preprocessing: Mapping[str, Any], data: Any) -> dict[str, Any]:
    """With the sides that the data module brings pictures to in evaluation; None is as they are."""
    resize = getattr(data, "resize", None)
    if resize is None:
        return dict(preprocessing)
    return {**preprocessing, "shortest": resize.shortest, "longest": resize.longest}
