"""From an RGB picture to what a model takes, after the model's `default_cfg`; and the ways to vary pictures in
training.

A pipeline has two halves: `picture`, one picture -> a tensor, and `finish`, a batch of them -> what the model gets.
Evaluation resizes and crops picture by picture (which a cache can keep) and normalises by the batch; that equals timm's
`create_transform` bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .batch import jitter, jostle, wipe
from .keyed import uniform

Picture = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Preprocessing:
    """What a `default_cfg` says about pictures, made complete as timm completes it."""

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str

    @classmethod
    def of(cls, cfg: Mapping[str, Any]) -> Preprocessing:
        """From input_size, mean, std, interpolation, crop_pct, crop_mode. Grey models (1 channel) with colour
        statistics get their averages.
        """
        size = tuple(cfg.get("input_size", ()))
        if len(size) != 3:
            raise ValueError(
                f"preprocessing has input_size {cfg.get('input_size')!r}: (channels, height, width) is needed"
            )
        if size[0] not in (1, 3):
            raise ValueError(f"preprocessing has {size[0]} channels: pictures have 3, or 1 as grey")
        return cls(
            channels=size[0],
            height=int(size[1]),
            width=int(size[2]),
            mean=_per_channel(cfg.get("mean", (0.485, 0.456, 0.406)), size[0], "mean"),
            std=_per_channel(cfg.get("std", (0.229, 0.224, 0.225)), size[0], "std"),
            interpolation=cfg.get("interpolation") or "bilinear",
            crop_pct=cfg.get("crop_pct") or 0.875,
            crop_mode=cfg.get("crop_mode") or "center",
        )

    def timm(self) -> dict[str, Any]:
        """The arguments of timm's create_transform that training and evaluation share."""
        return {"input_size": (self.channels, self.height, self.width), "mean": self.mean, "std": self.std}

    def normalise(self, x: Tensor) -> Tensor:
        """(B, C, H, W), uint8 or float in 0..1 -> (x - mean) / std as float32, in timm's order of operations."""
        x = x.float().div_(255) if x.dtype == torch.uint8 else x
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return x.sub_(mean).div_(std)


def _per_channel(values: Any, channels: int, what: str) -> tuple[float, ...]:
    given = (float(values),) if isinstance(values, int | float) else tuple(float(v) for v in values)
    if len(given) == channels:
        return given
    if len(given) == 1:
        return given * channels
    if channels == 1 and len(given) == 3:
        return (sum(given) / 3,)
    raise ValueError(f"preprocessing has {what} {given} for {channels} channels: give {channels}")


class Grey:
    """RGB -> one channel (ITU-R 601 luma), as Pillow's convert("L") does."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.convert("L")


class Chain:
    """One after the other."""

    def __init__(self, *steps: Callable[[Any], Any]) -> None:
        self.steps = steps

    def __call__(self, x: Any) -> Any:
        for step in self.steps:
            x = step(x)
        return x


def evaluation_transform(cfg: Mapping[str, Any], *, normalise: bool = True) -> Picture:
    """timm's evaluation transform for a `default_cfg`: PIL -> (C, H, W) float32, or uint8 before normalising."""
    from timm.data import create_transform

    p = Preprocessing.of(cfg)
    made = create_transform(
        **p.timm(),
        is_training=False,
        interpolation=p.interpolation,
        crop_pct=p.crop_pct,
        crop_mode=p.crop_mode,
        normalize=normalise,
    )
    return Chain(Grey(), made) if p.channels == 1 else made


def training_transform(
    cfg: Mapping[str, Any],
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    hflip: float = 0.5,
    vflip: float = 0.0,
    color_jitter: float | tuple[float, ...] | None = 0.4,
    auto_augment: str | None = None,
    interpolation: str = "random",
    re_prob: float = 0.0,
    re_mode: Literal["const", "rand", "pixel"] = "pixel",
    re_count: int = 1,
) -> Picture:
    """timm's training transform for a `default_cfg`, with timm's names of arguments: PIL -> (C, H, W) float32."""
    from timm.data import create_transform

    p = Preprocessing.of(cfg)
    made = create_transform(
        **p.timm(), is_training=True, scale=scale, ratio=ratio, hflip=hflip, vflip=vflip, color_jitter=color_jitter,
        auto_augment=auto_augment, interpolation=interpolation, re_prob=re_prob, re_mode=re_mode, re_count=re_count,
    )  # fmt: skip
    for step in made.transforms:
        for op in _operations(step):
            if op.name.startswith("Posterize"):
                op.level_fn = _AtLeastOneBit(op.level_fn)
    if p.channels == 3:
        return made
    grey = [*made.transforms]  # colour operations need colour: grey is made just before the tensor
    at = next(i for i, step in enumerate(grey) if type(step).__name__ == "MaybeToTensor")
    return Chain(*grey[:at], Grey(), *grey[at:])


def _operations(step: Any) -> list[Any]:
    """The single operations of timm's RandAugment, AugMix (`ops`) and AutoAugment (`policy`)."""
    return [*getattr(step, "ops", []), *(op for policy in getattr(step, "policy", []) for op in policy)]


class _AtLeastOneBit:
    """timm 1.0 asks Pillow to posterise to 0 bits at the strongest level, which Pillow 13 refuses."""

    def __init__(self, level_fn: Callable[..., tuple[int, ...]]) -> None:
        self.level_fn = level_fn

    def __call__(self, *level: Any) -> tuple[int, ...]:
        return (max(self.level_fn(*level)[0], 1),)


@dataclass(frozen=True)
class Pipeline:
    """`picture` on each picture, `finish` on the batch of its results. `random`: `picture` draws from the process's
    generators.
    """

    picture: Picture
    # (B, C, H, W), seed, epochs (B,), indices (B,) -> images, or several views of them
    finish: Callable[[Tensor, int, np.ndarray, np.ndarray], Tensor | tuple[Tensor, ...]]
    shape: tuple[int, int, int]
    random: bool = False


class _Normalise:
    def __init__(self, p: Preprocessing) -> None:
        self.p = p

    def __call__(self, x: Tensor, seed: int, epochs: np.ndarray, indices: np.ndarray) -> Tensor:
        return self.p.normalise(x)


class _Pass:
    def __call__(self, x: Tensor, seed: int, epochs: np.ndarray, indices: np.ndarray) -> Tensor:
        return x


def evaluation_pipeline(cfg: Mapping[str, Any]) -> Pipeline:
    p = Preprocessing.of(cfg)
    return Pipeline(evaluation_transform(cfg, normalise=False), _Normalise(p), (p.channels, p.height, p.width))


class Augmentation(ABC):
    """How training pictures are varied. Every draw depends on (seed, epoch, index) alone."""

    @abstractmethod
    def pipeline(self, cfg: Mapping[str, Any]) -> Pipeline: ...


@dataclass(frozen=True)
class Recrop(Augmentation):
    """timm's training transform, picture by picture: a random part resized, flips, RandAugment or colour jitter,
    erasing.

    auto_augment is timm's notation ("rand-m9-mstd0.5-inc1", "augmix-m3-w3", "original"); with it timm leaves colour
    jitter out.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float | None = 0.4
    auto_augment: str | None = None
    interpolation: str = "random"
    re_prob: float = 0.0
    re_mode: Literal["const", "rand", "pixel"] = "pixel"
    re_count: int = 1

    def pipeline(self, cfg: Mapping[str, Any]) -> Pipeline:
        p = Preprocessing.of(cfg)
        picture = training_transform(cfg, **vars(self))
        return Pipeline(picture, _Pass(), (p.channels, p.height, p.width), random=True)


@dataclass(frozen=True)
class Jostle(Augmentation):
    """For small pictures, on the whole batch at once: pad and crop, flip, turn, zoom, shear, colour, erase.

    The picture first gets the evaluation's size. padding: shifts of up to that many pixels, black beyond the edge;
    rotate and shear: up to so many degrees; zoom: factors of size (from, to); brightness, contrast, saturation: factors
    of 1 - v to 1 + v; erase: probability of a square hole, of a side of erase_size (from, to) of the shorter one, in
    the mean colour.
    """

    padding: int = 4
    hflip: float = 0.5
    rotate: float = 0.0
    shear: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    erase: float = 0.0
    erase_size: tuple[float, float] = (0.25, 0.5)

    def __post_init__(self) -> None:
        for name in ("hflip", "erase", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)}: from 0 to 1")
        if self.padding < 0 or not 0 < self.zoom[0] <= self.zoom[1]:
            raise ValueError(
                f"padding = {self.padding}, zoom = {self.zoom}: padding from 0, zoom from small to large above 0"
            )
        if not 0 < self.erase_size[0] <= self.erase_size[1] <= 1:
            raise ValueError(f"erase_size = {self.erase_size}: from small to large, in 0..1")

    def pipeline(self, cfg: Mapping[str, Any]) -> Pipeline:
        p = Preprocessing.of(cfg)
        return Pipeline(evaluation_transform(cfg, normalise=False), _Jostled(self, p), (p.channels, p.height, p.width))


class _Jostled:
    DRAWS = 13

    def __init__(self, how: Jostle, p: Preprocessing) -> None:
        self.how, self.p = how, p

    def __call__(self, x: Tensor, seed: int, epochs: np.ndarray, indices: np.ndarray) -> Tensor:
        how, u = self.how, uniform(seed, epochs, indices, self.DRAWS)
        x = jostle(x, u[:, :6], padding=how.padding, hflip=how.hflip, rotate=how.rotate, shear=how.shear, zoom=how.zoom)
        x = jitter(x, u[:, 6:9], how.brightness, how.contrast, how.saturation)
        return wipe(self.p.normalise(x), u[:, 9:13], how.erase, how.erase_size)
