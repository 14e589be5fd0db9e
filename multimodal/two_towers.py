"""A picture and a text in one space: a tower and a text encoder, CLIP's way (https://arxiv.org/abs/2103.00020)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..vision.backbone import Backbone
from ..vision.model import Classifier
from .text import TextEncoder
from .text_tower import TextTower
from .tower import Tower

MOST = 100.0  # the scale is clamped there, as CLIP's is


class TwoTowers(nn.Module):
    """(images (B 3 H W), captions (M)) -> (unit vectors of the images (B d), of the captions (M d)).

    tower   a Tower, or a backbone or classifier that is read at its end; patches are averaged
    text    TextTower, which learns, or TextEncoder, a frozen one; tokens are averaged
    dim     d of the common space, into which both are projected without a bias
    temperature   of the softmax when learning begins; its inverse, `scale`, is learned as a logarithm

    Raises ValueError for other towers and encoders.
    """

    def __init__(self, tower: nn.Module, text: nn.Module, dim: int = 128, temperature: float = 0.07):
        super().__init__()
        if isinstance(tower, (Backbone, Classifier)):
            tower = Tower(tower)
        if not isinstance(tower, Tower):
            raise ValueError(f"tower: {type(tower).__name__} is no Tower, Backbone or Classifier")
        if not isinstance(text, (TextTower, TextEncoder)):
            raise ValueError(f"text: {type(text).__name__} is no TextTower or TextEncoder")
        if not temperature >= 1 / MOST:
            raise ValueError(f"temperature={temperature}: at least {1 / MOST}, where CLIP clamps it")
        self.tower, self.text, self.dim, self.temperature = tower, text, dim, temperature
        self.see = nn.Linear(tower.dim, dim, bias=False)
        self.read = nn.Linear(text.width, dim, bias=False)
        nn.init.normal_(self.see.weight, std=tower.dim**-0.5)
        nn.init.normal_(self.read.weight, std=text.width**-0.5)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"tower": self.tower, "text": self.text, "dim": self.dim, "temperature": self.temperature}

    @property
    def default_cfg(self) -> dict[str, Any]:
        """How pictures are prepared: as for the tower's model."""
        return dict(getattr(self.tower.__dict__["model"], "default_cfg", {}))

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied by."""
        return self.log_scale.exp()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keeps the scale within 1 to 100; after a step of the optimiser."""
        self.log_scale.clamp_(0.0, math.log(MOST))

    def of_images(self, images: Tensor) -> Tensor:
        """(B 3 H W) -> unit vectors (B d), float32."""
        return F.normalize(self.see(self.tower(images).x.mean(1)).float(), dim=-1)

    def of_texts(self, captions: Sequence[str]) -> Tensor:
        """(M) -> unit vectors (M d), float32."""
        states, mask = self.text(captions)
        there = mask[..., None].to(states.dtype)
        return F.normalize(self.read((states * there).sum(1) / there.sum(1)).float(), dim=-1)

    def forward(self, images: Tensor, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        return self.of_images(images), self.of_texts(captions)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.tower.set_grad_checkpointing(enable)


class ZeroShot(nn.Module):
    """images (B 3 H W) -> logits (B C) of classes that were only named: the scaled cosines with their texts' vectors.

    `classes`: names; `prompts`: what is said of each, `{}` where the name goes; a class is the normalised mean of all
    that is said of it.
    """

    vectors: Tensor

    def __init__(self, pair: TwoTowers, classes: Sequence[str], prompts: Sequence[str] = ("{}",)):
        super().__init__()
        if len(set(classes)) < len(classes) or len(classes) < 2:
            raise ValueError(f"classes {list(classes)[:5]}: at least two, and each once, can be told apart")
        if not prompts:
            raise ValueError("prompts=(): something must be said of each class; '{}' is its name alone")
        for prompt in prompts:
            if prompt.count("{}") != 1:
                raise ValueError(f"prompt {prompt!r}: it holds {{}} once, where a class's name goes")
        self.pair, self.num_classes = pair, len(classes)
        with torch.no_grad():
            said = [pair.of_texts([prompt.replace("{}", name) for name in classes]) for prompt in prompts]
        self.register_buffer("vectors", F.normalize(torch.stack(said).mean(0), dim=-1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.pair.scale * self.pair.of_images(images) @ self.vectors.mT
