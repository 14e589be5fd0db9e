"""`Contrast`: pictures and captions drawn together in one space, CLIP's way (https://arxiv.org/abs/2103.00020)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from ..multimodal.two_towers import TwoTowers
from .ema import Ema
from .evaluation.recall import Matches
from .module import Trained
from .optim import Schedule

Captions = Sequence[str | Sequence[str]]


def info_nce(image: Tensor, text: Tensor, scale: Tensor, images: Tensor, texts: Tensor, first: int = 0) -> Tensor:
    """The mean of both directions' cross entropies, scalar: row i of `image` (b d) belongs to row first + i of `texts`
    (B d), among all of them, and row i of `text` (b d) to that of `images` (B d). Unit vectors; logits in float32."""
    target = first + torch.arange(len(image), device=image.device)
    with torch.autocast(image.device.type, enabled=False):
        scale = scale.float()
        seen = F.cross_entropy(scale * image.float() @ texts.float().mT, target)
        read = F.cross_entropy(scale * text.float() @ images.float().mT, target)
    return (seen + read) / 2


def each(captions: Captions) -> list[list[str]]:
    """All captions of each picture of a batch. Raises ValueError for what is none."""
    if isinstance(captions, Tensor) or not all(isinstance(c, (str, list, tuple)) and c for c in captions):
        raise ValueError(
            f"a batch has {type(captions).__name__} where captions are due: data of patchloom.data.pairs, such as "
            "CaptionFiles, gives them"
        )
    return [[c] if isinstance(c, str) else list(c) for c in captions]


class Contrast(Trained):
    """Trains `model` (TwoTowers) on batches (images (B, 3, H, W), captions): of each picture one, or several, of which
    the first learns.

    The other pictures of a step, of all processes, are what each caption is told from: vectors are gathered with their
    gradients, so several processes learn as one of as large a batch would. The temperature is learned, its inverse
    clamped to 100. Equal captions in a batch are equal vectors, so they share what they win and push nobody away.
    Logged: train/loss, train/scale; of validation and test, with all captions: recall (the mean of recall at 1, 5 and
    10, both ways), i2t_r1, i2t_r5, t2i_r1, t2i_r5 (train.retrieval), and the loss of its batches.
    """

    headline = ("recall", "i2t_r1", "t2i_r1")

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=5e-4, betas=(0.9, 0.98), weight_decay=0.2),
        schedule: Schedule | LRSchedulerCallable | None = None,
        lr_scales: dict[str, float] | None = None,
        ema: Ema | None = None,
    ):
        if not isinstance(model, TwoTowers):
            raise ValueError(f"model: {type(model).__name__} is none of patchloom.multimodal.two_towers.TwoTowers")
        super().__init__(model, optimizer, schedule, None, lr_scales, ema)
        self.without: list[list[str]] = []  # (kind, colour) pairs of drawn pictures that training never shows
        self.judges = nn.ModuleDict({kind: Matches() for kind in ("val", "test")})

    def setup(self, stage: str) -> None:
        super().setup(stage)
        held = getattr(getattr(self.trainer, "datamodule", None), "without", None)
        if stage == "fit" and held is not None:
            self.without = [list(pair) for pair in held]

    # ------------------------------------------------------------------------------------------------------- steps

    @property
    def pair(self) -> TwoTowers:
        """The network that is judged: the average where there is one."""
        return self.model if self.ema is None or self.training else self.ema.module

    def forward(self, images: Tensor, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        return self.pair(images, captions)

    def training_step(self, batch: tuple[Tensor, Captions], index: int) -> Tensor:
        images, captions = batch
        image, text = self.model(images, [said[0] for said in each(captions)])
        images_, texts = self.gathered(image), self.gathered(text)
        loss = info_nce(image, text, self.model.scale, images_, texts, self.global_rank * len(image))
        if len(texts) < 2:
            raise ValueError("a batch holds a single picture: nothing can be told from it; give data.batch_size")
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/scale", self.model.scale.detach())
        return loss

    def gathered(self, x: Tensor) -> Tensor:
        """(b d) of each process -> (B d) of all, in their order; gradients go back to where rows came from."""
        if self.trainer.world_size == 1:
            return x
        every: Any = self.all_gather(x, sync_grads=True)  # W b d
        return every.flatten(0, 1)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.model.clamp_()

    def judge_step(self, kind: str, batch: tuple[Tensor, Captions]) -> None:
        images, captions = batch
        said = each(captions)
        of = torch.tensor([i for i, own in enumerate(said) for _ in own], device=images.device)
        flat = [c for own in said for c in own]
        image, text = self(images, flat)
        first = torch.tensor([sum(map(len, said[:i])) for i in range(len(said))], device=images.device)
        loss = info_nce(image, text[first], self.pair.scale, image, text[first])
        self.judges[kind].update(image, text, of, flat, loss, self.global_rank, self.trainer.world_size)

    # ------------------------------------------------------------------------------------------------- checkpoints

    def own_state(self) -> dict[str, Any]:
        return {"without": self.without}

    def take_state(self, saved: Mapping[str, Any]) -> None:
        self.without = [list(pair) for pair in saved["without"]]
