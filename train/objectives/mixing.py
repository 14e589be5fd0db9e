"""Mixup and CutMix by timm, drawn from (seed, epoch, batch, rank): a resumed run mixes as the one that was not
stopped."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Mixing:
    """mixup, cutmix: the alphas of their Beta distributions, 0 = off; `probability` that a batch is mixed, `switch`
    that it is by CutMix where both are on; `mode`: one draw a batch, a pair or an image; from epoch `off_epoch`
    (counted from 0) on nothing is mixed.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    probability: float = 1.0
    switch: float = 0.5
    mode: Literal["batch", "pair", "elem"] = "batch"
    off_epoch: int | None = None

    def build(self, classes: int, many: bool) -> "Mixer":
        return Mixer(self, classes, many)


class Mixer:
    """image (B, 3, H, W), target (B,) or (B, C) -> both mixed, target (B, C). The last image of an odd batch stays as
    it is."""

    def __init__(self, spec: Mixing, classes: int, many: bool):
        from timm.data.mixup import Mixup

        if max(spec.mixup, spec.cutmix) <= 0:
            raise ValueError(f"mixing with mixup={spec.mixup} and cutmix={spec.cutmix}: one of them must be above 0")
        options: dict[str, Any] = {"multi_label": True} if many else {}
        self.spec, self.classes, self.many = spec, classes, many
        self.mix = Mixup(
            spec.mixup,
            spec.cutmix,
            prob=spec.probability,
            switch_prob=spec.switch,
            mode=spec.mode,
            label_smoothing=0.0,
            num_classes=classes,
            **options,
        )

    def __call__(self, image: Tensor, target: Tensor, draw: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        even = len(image) // 2 * 2
        if even == 0:
            return image, self.dense(target)
        state = np.random.get_state()
        np.random.seed([n % 2**32 for n in draw])
        mixed, soft = self.mix(
            image[:even].clone(), target[:even]
        )  # a copy: timm mixes in place, the loader may keep its tensors
        np.random.set_state(state)
        if even < len(image):
            mixed, soft = torch.cat([mixed, image[even:]]), torch.cat([soft, self.dense(target[even:])])
        return mixed, soft

    def dense(self, target: Tensor) -> Tensor:
        return target.float() if target.ndim == 2 else F.one_hot(target, self.classes).float()
