"""A small pair of towers, and runs of it on drawn pictures and captions."""

from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from patchloom.data.pairs import PairedShapes
from patchloom.multimodal.text_tower import TextTower
from patchloom.multimodal.two_towers import TwoTowers
from patchloom.train.contrast import Contrast
from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.mixers.attention import Global
from patchloom.vision.model import Classifier
from patchloom.vision.position import Position
from patchloom.vision.stem import Patchify

PICTURES = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.25,) * 3, "crop_pct": 1.0}


def small_pair(dim: int = 16) -> TwoTowers:
    torch.manual_seed(0)
    stem = Patchify(8, position=Position((4, 4)))
    backbone = Backbone([Stage(Global(2), 32, 2)], stem)
    tower = Classifier(backbone, 0, img_size=32)
    return TwoTowers(tower, TextTower("words:vocabulary=512", 32, 1, 2, 16), dim)


def small_run(devices: int, folder: Path, **options: object) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Numbers and weights after two steps of eight pictures in all; five are judged, so that two processes have unlike
    shares."""
    module = Contrast(small_pair(), lambda p: torch.optim.SGD(p, lr=0.1))
    data = PairedShapes(16, 6, 4, fresh=False, batch_size=8 // devices, workers=0, preprocessing=PICTURES)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, data)
    numbers = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return numbers, {name: value.clone() for name, value in module.model.state_dict().items()}
