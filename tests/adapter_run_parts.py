"""Networks and adapters of a few numbers, and runs that train them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from classify_parts import Colours, trainer
from torch import Tensor, nn

from patchloom.train.callbacks.checkpoints import Checkpoints, PlainFiles
from patchloom.train.classify import Classify
from patchloom.vision.adapters import Put
from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.block import PreNorm
from patchloom.vision.mixers.pool import Pool
from patchloom.vision.model import Classifier
from patchloom.vision.norm import Norm


class Shift(nn.Module):
    """x + b of what a layer says; `heard` is how much of it."""

    def __init__(self, base: nn.Module, dim: int, heard: float):
        super().__init__()
        self.base, self.shift, self.heard = base, nn.Parameter(torch.zeros(dim)), heard

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.heard * self.shift


@dataclass(frozen=True)
class Shifts:
    """A shift behind each second layer of an MLP, and biases of convolutions in place of the trunk's."""

    heard: float = 1.0

    def place(self, model: nn.Module) -> list[Put]:
        named = list(model.named_modules())
        mlps = [(n, m) for n, m in named if hasattr(m, "fc2")]
        shifts = [Put(n, "fc2", Shift(m.fc2, m.fc2.out_features, self.heard)) for n, m in mlps]
        if self.heard == 0:
            return shifts
        convs = [(n, m) for n, m in named if isinstance(m, nn.Conv2d) and m.bias is not None]
        return [*shifts, *(Put(n, "bias", nn.Parameter(m.bias.detach().clone())) for n, m in convs)]


@dataclass(frozen=True)
class Nothing:
    def place(self, model: nn.Module) -> list[Put]:
        return []


def network(seed: int = 0, norm: str = "layer", classes: int = 5) -> Classifier:
    """Two stages of pooling with dropout inside the MLPs, before the head, and of whole blocks."""
    torch.manual_seed(seed)
    block = PreNorm(norm=Norm(norm), drop=0.2)
    stages = [Stage(Pool(), 16, 1, block=block), Stage(Pool(), 32, 2, block=block)]
    return Classifier(Backbone(stages, drop_path=0.2), classes, drop_rate=0.1, img_size=8)


def sgd(groups: list[dict]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def fit(folder: Path, module: Classify, epochs: int = 1, **options: object):
    t = trainer(folder, max_epochs=epochs, **options)
    t.fit(module, Colours())
    return t


def saving_fit(folder: Path, module: Classify) -> None:
    saving = Checkpoints()
    fit(folder, module, callbacks=[saving.resume, saving], plugins=[PlainFiles()], enable_checkpointing=True)
