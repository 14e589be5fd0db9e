"""Small networks as checkpoints, and what onnxruntime makes of files."""

import json
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn
from vision_tiny import tiny

from patchloom.train.running import checkpoint
from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.mixers.attention import Global
from patchloom.vision.model import Classifier
from patchloom.vision.stem import Patchify
from patchloom.vision.zoo import VARIANTS


@torch.no_grad()
def disturbed(model: nn.Module) -> nn.Module:
    """So that nothing is hidden by a zero, or by the statistics of a fresh batch norm."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for p in (*model.parameters(), *(b for m in norms for b in (m.running_mean, m.running_var))):
        p.add_(torch.rand_like(p) * 0.05)
    return model.eval()


def attentive(depth: int = 1) -> Classifier:
    """Attention of all patches to all, of 8 x 8 pixels each."""
    torch.manual_seed(0)
    return disturbed(Classifier(Backbone([Stage(Global(2), 16, depth)], Patchify(8)), 3, img_size=32))


def of_family(name: str) -> Classifier:
    """The tiny form of a variant."""
    network = tiny(VARIANTS[name])
    torch.manual_seed(0)
    return disturbed(Classifier(network.backbone(3, 0.0), 5, network.head, img_size=network.size))


def saved(model: nn.Module, folder: Path, classes: tuple[str, ...] = ("ant", "bee", "cat"), **more: Any) -> Path:
    """A run's folder that holds its best checkpoint only."""
    prepared = checkpoint.preprocessing_of(model) or {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
    head = checkpoint.header(model, list(classes), prepared) | more
    state = {f"model.{name}": t for name, t in model.state_dict().items()}
    checkpoint.save({"patchloom": head, "state_dict": state}, folder / "best.ckpt")
    return folder


def answer(path: Path, *given: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(str(path))
    names = [i.name for i in session.get_inputs()]
    found = session.run(None, {n: x.numpy() for n, x in zip(names, given, strict=True)})
    return [torch.from_numpy(y) for y in found]


def card(path: Path) -> dict[str, Any]:
    return json.loads(path.with_suffix(".json").read_text())
