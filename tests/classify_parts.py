"""A classifier and a data module small enough to train in a test, and the quiet trainer for them."""

from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.mixers.pool import Pool
from patchloom.vision.model import Classifier

CLASSES = ["red", "green", "blue", "yellow", "cyan", "magenta", "white", "black"]


def tiny(num_classes: int = 8, dim: int = 16) -> Classifier:
    """Two stages of pooling at strides 4 and 8."""
    return Classifier(Backbone([Stage(Pool(), dim, 1), Stage(Pool(), 2 * dim, 1)]), num_classes)


class Noisy(nn.Module):
    """A classifier with dropout and a buffer that moves: what a resumed or distributed run must carry."""

    default_cfg: ClassVar[dict[str, Any]] = {
        "input_size": (3, 8, 8),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
    }

    def __init__(self, num_classes: int = 8, dropout: float = 0.3):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.GELU())
        self.drop, self.num_classes, self.head = nn.Dropout(dropout), num_classes, nn.Linear(16, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.drop(self.stem(image).mean((2, 3))))

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes, self.head = num_classes, nn.Linear(16, num_classes)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"stem\.0", "blocks": [(r"stem\.(\d)", None), (r"head", (99999,))]}

    def no_weight_decay(self) -> set[str]:
        return {"stem.0.*"}


class Colours(L.LightningDataModule):
    """Images (3, 8, 8) of one colour under noise; the last batch of `length` images is not full."""

    preprocessing: dict[str, Any] | None = None

    def __init__(self, length: int = 136, batch_size: int = 16, classes: list[str] | None = None, many: bool = False):
        super().__init__()
        self.classes = CLASSES if classes is None else classes
        self.batch_size = batch_size
        g = torch.Generator().manual_seed(0)
        n = len(self.classes)
        hues = torch.rand(n, 3, generator=g) * 2 - 1
        target = torch.arange(length) % n
        image = hues[target][:, :, None, None] + 0.5 * torch.randn(length, 3, 8, 8, generator=g)
        if many:
            target = (torch.rand(length, n, generator=g) < 0.3).long()
        self.set = TensorDataset(image, target)

    def class_counts(self) -> tuple[int, Tensor]:
        target = self.set.tensors[1]
        return len(target), target.sum(0) if target.ndim == 2 else torch.bincount(target, minlength=len(self.classes))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.set, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.set, self.batch_size)

    test_dataloader = val_dataloader

    def predict_dataloader(self) -> DataLoader:
        return self.val_dataloader()


def trainer(folder: Path, **options: Any) -> L.Trainer:
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
        "max_epochs": 1,
        "default_root_dir": folder,
    }
    return L.Trainer(**{**quiet, **options})


def shapes_run(devices: int, folder: Path) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Two epochs on drawn shapes in `devices` processes, an effective batch of 16 in any case -> metrics, weights.

    33 images for validation and 41 for test do not divide into two processes; the model has a buffer.
    """
    from patchloom.data.modules import ShapesData
    from patchloom.train.classify import Classify
    from patchloom.train.ema import Ema
    from patchloom.train.optim import Cosine
    from patchloom.vision.mixers.window import Window

    L.seed_everything(3, verbose=False)
    model = Classifier(Backbone([Stage(Window(2, 2), 16, 2), Stage(Window(4, 2), 32, 1)], patch=8), 10, img_size=32)
    model.register_buffer("seen", torch.zeros(1))
    module = Classify(
        model,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        schedule=Cosine(warmup_epochs=0.5),
        ema=Ema(0.9),
    )
    data = ShapesData(train_length=64, val_length=33, test_length=41, batch_size=16 // devices, workers=0)
    t = trainer(folder, devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=2)
    t.fit(module, data)
    result = {k: float(v) for k, v in t.callback_metrics.items()}
    return result | t.test(module, data, verbose=False)[0], module.state_dict()
