"""The share of patches that EViT keeps in training: by the step, and the final one when the run is over."""

import math

import lightning.pytorch as L
import pytest
import torch
from classify_parts import Colours, tiny, trainer

from patchloom.train.callbacks.keep_rate import KeepRate
from patchloom.train.classify import Classify
from patchloom.train.ema import Ema
from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.heads.classification import Head
from patchloom.vision.mixers.attention import Global
from patchloom.vision.model import Classifier
from patchloom.vision.plugins import attach
from patchloom.vision.plugins.evit import Evit, EvitLayer
from patchloom.vision.position import Position
from patchloom.vision.stem import Patchify


def vit() -> Classifier:
    stem = Patchify(2, None, position=Position((4, 4), special=1))
    model = Classifier(Backbone([Stage(Global(2), 16, 4)], stem), 8, Head(pool="token"), img_size=8)
    attach(model, Evit(0.5))
    return model


def shares(module: L.LightningModule) -> list[float]:
    return [m.keep for m in module.modules() if isinstance(m, EvitLayer)]


class Look(L.Callback):
    """The shares that training and validation ran with."""

    def __init__(self) -> None:
        self.trained, self.judged = [], []

    def on_before_backward(self, trainer, module, loss) -> None:
        self.trained.append(shares(module))

    def on_validation_batch_start(self, trainer, module, *rest) -> None:
        self.judged.append(shares(module))


def test_the_share_of_each_step(tmp_path):
    torch.manual_seed(0)
    module, look = Classify(vit(), ema=Ema()), Look()
    t = trainer(tmp_path, max_epochs=4, callbacks=[KeepRate(1, 3), look])
    t.fit(module, Colours(length=32, batch_size=8))  # four steps an epoch
    falling = [0.5 + 0.5 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]
    assert all(len(s) == 6 for s in look.trained)  # three layers of the model, three of its average
    assert all(len(set(s)) == 1 for s in (*look.trained, *look.judged))
    assert [s[0] for s in look.trained] == pytest.approx([1.0] * 4 + falling + [0.5] * 4)
    assert [s[0] for s in look.judged[3::4]] == pytest.approx([1.0, falling[3], falling[7], 0.5])
    assert set(shares(module)) == {0.5}


def test_a_run_that_stops_on_the_way_leaves_the_final_share(tmp_path):
    module = Classify(vit())
    trainer(tmp_path, callbacks=[KeepRate()]).fit(module, Colours(length=32, batch_size=8))
    assert set(shares(module)) == {0.5}


def test_the_published_way():
    rate = KeepRate()
    assert [rate.at(e) for e in (0, 9.99, 10, 55, 100, 300)] == pytest.approx([1, 1, 1, 0.5, 0, 0])


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="start=5, end=5"):
        KeepRate(5, 5)
    with pytest.raises(ValueError, match="no EViT is attached"):
        trainer(tmp_path, callbacks=[KeepRate()]).fit(Classify(tiny()), Colours(length=16))
