"""The published Mask2Formers: what each is made of, its file, and how such a file is read."""

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..network import Rules
from ..published import Weights
from ..resnet import RULES as RESNET
from ..resnet import ResNetPyramid
from ..weights import Report
from ..zoo import create_model
from .mask2former import Mask2Former, load_mask2former

MEAN, STD = (123.675 / 255, 116.28 / 255, 103.53 / 255), (58.395 / 255, 57.12 / 255, 57.375 / 255)
CLASSES = {"coco_panoptic": 133, "coco_instance": 80, "ade20k_semantic": 150, "cityscapes_semantic": 19}
BACKBONES = {  # ours; in the authors' names
    "r50": ("", "R50_bs16"),
    "swin_tiny": ("swin_tiny", "swin_tiny_bs16"),
    "swin_small": ("swin_small", "swin_small_bs16"),
    "swin_base_384_22k": ("swin_base_384_22k", "swin_base_IN21k_384_bs16"),
    "swin_large_384_22k": ("swin_large_384_22k", "swin_large_IN21k_384_bs16"),
}
ROOT = "https://dl.fbaipublicfiles.com/maskformer/mask2former/"
FILES = {  # task and backbone: schedule, file, metric in percent
    ("coco_panoptic", "r50"): ("50ep", "94dc52", {"pq": 51.9, "ap": 41.7, "miou": 61.7}),
    ("coco_panoptic", "swin_tiny"): ("50ep", "9fd0ae", {"pq": 53.2, "ap": 43.3, "miou": 63.2}),
    ("coco_panoptic", "swin_small"): ("50ep", "a407fd", {"pq": 54.6, "ap": 44.7, "miou": 64.2}),
    ("coco_panoptic", "swin_base_384_22k"): ("50ep", "54b88a", {"pq": 56.4, "ap": 46.3, "miou": 67.1}),
    ("coco_panoptic", "swin_large_384_22k"): ("100ep", "f07440", {"pq": 57.8, "ap": 48.6, "miou": 67.4}),
    ("coco_instance", "r50"): ("50ep", "3c8ec9", {"ap": 43.7}),
    ("coco_instance", "swin_tiny"): ("50ep", "86143f", {"ap": 45.0}),
    ("coco_instance", "swin_small"): ("50ep", "1e7f22", {"ap": 46.3}),
    ("coco_instance", "swin_large_384_22k"): ("100ep", "e5f453", {"ap": 50.1}),
    ("ade20k_semantic", "swin_tiny"): ("160k", "5274a6", {"miou": 47.7}),
    ("cityscapes_semantic", "swin_tiny"): ("90k", "2d58d4", {}),
}


def weights_of(task: str, backbone: str) -> Weights:
    schedule, file, metrics = FILES[task, backbone]
    data, kind = task.split("_")
    url = f"{ROOT}{data}/{kind}/maskformer2_{BACKBONES[backbone][1]}_{schedule}/model_final_{file}.pkl"
    return Weights(task, url, "CC-BY-NC-4.0", CLASSES[task], mean=MEAN, std=STD, interpolation="bilinear",
                   metrics=metrics, wrapper="model", form="dense")  # fmt: skip


WEIGHTS = {f"{task}_{backbone}": weights_of(task, backbone) for task, backbone in FILES}


@dataclass(frozen=True)
class Published:
    """A network of the authors, with fresh weights until `load`."""

    model: Mask2Former
    backbone: Rules | None

    def load(self, state: Mapping[str, Tensor]) -> Report:
        return load_mask2former(self.model, state, self.backbone)


def mask2former(variant: str, drop_path: float = 0.3) -> Published:
    """`coco_panoptic_`, `coco_instance_`, `ade20k_semantic_` or `cityscapes_semantic_` with `r50`, `swin_tiny`,
    `swin_small`, `swin_base_384_22k` or `swin_large_384_22k`. Raises ValueError for another name."""
    task = next((t for t in CLASSES if variant.startswith(t + "_")), "")
    backbone = variant.removeprefix(task + "_")
    if not task or backbone not in BACKBONES:
        raise ValueError(f"no Mask2Former {variant!r}: a task ({', '.join(CLASSES)}), _, one of {', '.join(BACKBONES)}")
    if backbone == "r50":
        return Published(Mask2Former(ResNetPyramid(frozen_norm=True), CLASSES[task]), RESNET)
    maps = create_model(BACKBONES[backbone][0], features_only=True, dense=True, drop_path_rate=drop_path)
    queries = 200 if backbone.startswith("swin_large") and task.startswith("coco") else 100
    return Published(Mask2Former(maps, CLASSES[task], queries), None)


ARRAYS = {(m, n) for m in ("numpy.core.multiarray", "numpy._core.multiarray") for n in ("_reconstruct", "scalar")}
ALLOWED = ARRAYS | {("numpy", "ndarray"), ("numpy", "dtype"), ("collections", "OrderedDict"), ("_codecs", "encode")}


class ArraysOnly(pickle.Unpickler):
    """Reads plain values and numpy's arrays, and refuses whatever else a pickle may name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"this file names {module}.{name}; only arrays are read")
        return super().find_class(module, name)


def read_detectron2(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a detectron2 file (`model_final_….pkl`: arrays under "model"). Raises ValueError where the file is
    none, or holds anything but arrays."""
    try:
        held = ArraysOnly(io.BytesIO(Path(path).read_bytes())).load()
    except (pickle.UnpicklingError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
    found = held.get("model") if isinstance(held, dict) else None
    if not isinstance(found, dict) or not all(isinstance(v, np.ndarray) for v in found.values()):
        raise ValueError(f'{path} is no detectron2 file: arrays under the key "model" are wanted')
    return {name: torch.from_numpy(value.copy()) for name, value in found.items()}
