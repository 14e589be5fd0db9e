"""`Scenes`: a source of scenes, varied, batch by batch, keyed by (epoch, index); and how batches cross processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from .findings import OnError
from .keyed import key
from .loader import Batch, Key
from .pictures import Failure, Readable
from .read import UnreadableImage
from .scene import IGNORE, Scene, SceneSource, as_tensors, tensors
from .transforms import Preprocessing
from .vary import Varied

SALT = 0x5CE7E  # sets these draws apart from those of the order


class SceneBatch(Batch):
    """Pictures of many sizes as one tensor, their masks as another, and small arrays that cross without any: a process
    may only keep so many shared tensors open.

    images    (pixels,) float32 one after the other, or stacked (B, 3, H, W)
    targets   ({"masks": (pixels,) bool, "semantic": (pixels,) uint8} as there are, a dict of arrays for each picture
              with its `size`), or, stacked, the maps (B, H, W) uint8 instead of the former
    """

    def out(self) -> tuple[Any, Any]:
        """(list of (3, H, W), list of dicts), or stacked ((B, 3, H, W), (B, H, W) int64)."""
        packed, rows = self.targets
        if isinstance(packed, Tensor):
            return self.images, packed.long()
        assert isinstance(self.images, Tensor)
        sizes = [row["size"] for row in rows]
        targets = [as_tensors({name: value for name, value in row.items() if name != "size"}) for row in rows]
        for name, flat in packed.items():
            masks = name == "masks"
            shapes = [(len(row["labels"]), *size) if masks else size for row, size in zip(rows, sizes, strict=True)]
            for target, x in zip(targets, cut(flat, shapes), strict=True):
                target[name] = x if masks else x.long()
        return cut(self.images, [(3, *size) for size in sizes]), targets


def cut(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """What `flat` holds one after the other, in these shapes."""
    return [x.view(s) for x, s in zip(flat.split([prod(s) for s in shapes]), shapes, strict=True)]


class Scenes(Readable):
    """Keys -> SceneBatch of (images, targets), images normalised after `preprocessing`.

    stacked   for semantic segmentation: the target is the class of each pixel, and images of a batch are padded at the
              right and below to the largest (by the mean colour, in the map by IGNORE). Else batches are lists, and
              targets have what torchvision's detectors want: boxes (n, 4) x0 y0 x1 y1, labels (n,) from 1, iscrowd,
              area, image_id, original_size (H, W before varying), and masks (n, H, W) bool, keypoints (n, K, 3),
              semantic (H, W) int64 where the source has them. All are in pixels of the image that is handed out.
    crowds    keep regions of many, which evaluation ignores; else they are dropped, and counted ("crowd")
    """

    def __init__(
        self,
        source: SceneSource,
        vary: Varied,
        preprocessing: Preprocessing,
        *,
        stacked: bool = False,
        crowds: bool = True,
        seed: int = 0,
        on_error: OnError = "stop",
        refill: bool = False,
    ) -> None:
        super().__init__(source, on_error, refill)
        self.vary, self.preprocessing, self.stacked, self.crowds = vary, preprocessing, stacked, crowds
        self.seed = seed

    def _picture(self, epoch: int, index: int) -> tuple[Scene, tuple[int, int], dict[str, int]]:
        scene = self.source.load(index, epoch)
        original, crowds = scene.size, 0
        if not self.crowds and scene.objects is not None:
            crowds = int(scene.objects.crowd.sum())
        if crowds:
            scene = replace(scene, objects=scene.objects.pick(~scene.objects.crowd))
        scene, dropped = self.vary(scene, key(self.seed ^ SALT, epoch, index))
        return scene, original, dropped | ({"crowd": crowds} if crowds else {})

    def __getitem__(self, item: Key | int) -> tuple[Any, Any]:
        """One picture and its target, for looking at; a plain index means epoch 0."""
        batch = self.__getitems__([item if isinstance(item, tuple) else (0, item)])
        if isinstance(batch, Failure):
            raise batch.error()
        if batch.images is None:
            raise UnreadableImage(*next(iter(batch.skipped.items())))
        images, targets = batch.out()
        return images[0], targets[0]

    def __getitems__(self, keys: list[Key]) -> Batch | Failure:
        if get_worker_info() is not None:
            cv2.setNumThreads(0)  # a worker process has one processor to itself at best
        found = self._gather(keys)
        if isinstance(found, Failure):
            return found
        rows, _, skipped = found
        if not rows:
            return Batch(None, None, skipped)
        scenes = [scene for scene, _, _ in rows]
        dropped: Counter[str] = Counter()
        for _, _, fallen in rows:
            dropped.update(fallen)
        if self.stacked:
            images, semantic = self._stack(scenes)
            return SceneBatch(images, (semantic, []), skipped, dict(dropped))
        targets = [tensors(scene, original) | {"size": scene.size} for scene, original, _ in rows]
        return SceneBatch(self._flat(scenes), (flat_maps(scenes), targets), skipped, dict(dropped))

    def _write(self, place: Tensor, image: np.ndarray) -> None:
        """(H, W, 3) uint8, normalised, into (3, H, W) float32."""
        if not image.flags.writeable or min(image.strides) < 0:
            image = image.copy()  # torch takes no others
        place.copy_(torch.from_numpy(image).permute(2, 0, 1)).div_(255)
        self.preprocessing.normalise(place[None])

    def _flat(self, scenes: list[Scene]) -> Tensor:
        shapes = [(3, *scene.size) for scene in scenes]
        images = torch.empty(sum(prod(shape) for shape in shapes))
        for place, scene in zip(cut(images, shapes), scenes, strict=True):
            self._write(place, scene.image)
        return images

    def _stack(self, scenes: list[Scene]) -> tuple[Tensor, Tensor]:
        height, width = (max(scene.size[i] for scene in scenes) for i in (0, 1))
        images = torch.zeros(len(scenes), 3, height, width)
        semantic = torch.full((len(scenes), height, width), IGNORE, dtype=torch.uint8)
        for i, scene in enumerate(scenes):
            h, w = scene.size
            self._write(images[i, :, :h, :w], scene.image)
            if scene.semantic is not None:
                semantic[i, :h, :w] = torch.from_numpy(np.ascontiguousarray(scene.semantic))
        return images, semantic


def flat_maps(scenes: list[Scene]) -> dict[str, Tensor]:
    """Masks and semantic maps of a batch, one after the other."""
    made = {}
    masks = [scene.objects.masks for scene in scenes if scene.objects is not None and scene.objects.masks is not None]
    if masks:
        made["masks"] = torch.from_numpy(np.concatenate([mask.ravel() for mask in masks]).view(bool))
    maps = [scene.semantic for scene in scenes if scene.semantic is not None]
    if maps:
        made["semantic"] = torch.from_numpy(np.concatenate([m.ravel() for m in maps]))
    return made
