"""The schedule of a soft mask: by the step, only while a training step runs."""

import lightning.pytorch as L
import pytest
import torch
from classify_parts import Colours, tiny, trainer

from patchloom.train.callbacks.soft_mask import SoftMask
from patchloom.train.classify import Classify
from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.mixers.soft_mask import SoftMask as Mixer
from patchloom.vision.model import Classifier


class Look(L.Callback):
    """The rates that training and validation ran with."""

    def __init__(self) -> None:
        self.trained, self.judged = [], []

    def on_before_backward(self, trainer, module, loss) -> None:
        self.trained.append(module.model.backbone.stages[0].blocks[0].mixer.rate)

    def on_validation_batch_start(self, trainer, module, *rest) -> None:
        self.judged.append(module.model.backbone.stages[0].blocks[0].mixer.rate)


@pytest.mark.parametrize(
    ("kind", "want"), [("constant", [1, 1, 1, 1, 1, 1, 0, 0]), ("linear", [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0, 0])]
)
def test_the_rate_of_each_step(kind, want, tmp_path):
    torch.manual_seed(0)
    model, look = Classifier(Backbone([Stage(Mixer(2), 16, 2)]), 8), Look()
    t = trainer(tmp_path, max_epochs=2, callbacks=[SoftMask(1.5, kind), look])
    t.fit(Classify(model), Colours(length=32, batch_size=8))  # four steps an epoch
    assert look.trained == pytest.approx(want)
    assert set(look.judged) == {0.0}
    assert model.backbone.stages[0].blocks[0].mixer.rate == 0


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="soft mask with epochs=0"):
        SoftMask(0)
    with pytest.raises(ValueError, match="a rate from 0 to 1"):
        SoftMask(5, rate=2)
    with pytest.raises(ValueError, match="Classifier has no attention with a soft mask"):
        trainer(tmp_path, callbacks=[SoftMask(1)]).fit(Classify(tiny()), Colours(length=16))
