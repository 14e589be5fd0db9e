"""AdaLoRA in training: ranks fall where they matter least, the orthogonal term acts, a run resumed goes on exactly."""

import lightning.pytorch as L
import pytest
import torch
from classify_parts import Colours, trainer

from patchloom.data.modules import ShapesData
from patchloom.train.callbacks.adalora import AdaLoraRanks, orthogonality
from patchloom.train.callbacks.checkpoints import Checkpoints, PlainFiles
from patchloom.train.classify import Classify
from patchloom.vision.adapters import adapt
from patchloom.vision.adapters.lora import AdaLora
from patchloom.vision.adapters.probe import Probe
from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.mixers.attention import Global
from patchloom.vision.model import Classifier

SETTINGS = AdaLora(2, 6, begin=0.125, end=0.25, every=2)


def vit(adapter=SETTINGS, size: int = 8) -> Classifier:
    torch.manual_seed(1)
    model = Classifier(Backbone([Stage(Global(2), 16, 2)], patch=size // 2), 8, img_size=size)
    adapt(model, adapter)
    return model


def ranks(model: Classifier) -> list[int]:
    """How many E of each layer are not zero."""
    return [int(p.count_nonzero()) for n, p in model.named_parameters() if "lora_E" in n]


class Look(L.Callback):
    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.left, self.scheduled = stop, [], None

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self.left.append(sum(ranks(module.model)))  # after as many steps as there are before it

    def on_train_epoch_end(self, trainer, module) -> None:
        if trainer.current_epoch == trainer.max_epochs - 1:
            self.left.append(sum(ranks(module.model)))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        found = [c for c in trainer.callbacks if isinstance(c, AdaLoraRanks)]
        assert len(found) == 1
        self.scheduled = found[0]
        if trainer.global_step == self.stop:
            trainer.should_stop = True


def run(folder, module=None, stop=None, data=None, ckpt_path=None, **options):
    L.seed_everything(4, verbose=False)
    module = Classify(vit(), optimizer=lambda p: torch.optim.AdamW(p, 0.01)) if module is None else module
    look, saves = Look(stop), Checkpoints(every_n_steps=1, monitor=None)
    given = {"callbacks": [look, saves.resume, saves], "plugins": [PlainFiles()], "enable_checkpointing": True}
    t = trainer(folder, **{"max_epochs": 2, **given, **options})
    t.fit(
        module, Colours(length=64, batch_size=8) if data is None else data, ckpt_path=ckpt_path
    )  # eight steps an epoch
    return module, look


def test_ranks_fall_to_their_average(tmp_path):
    module, look = run(tmp_path)
    layers = len(ranks(module.model))
    assert look.left[:3] == [0, 6 * layers, 6 * layers]  # E begins as zero
    assert look.left[12:] == [2 * layers] * 5  # the last quarter of the steps stays there
    counted = [n for i, n in enumerate(look.left) if i % 2 == 0 and 2 < i <= 12]
    assert counted == sorted(counted, reverse=True)
    assert len(set(ranks(module.model))) > 1  # not everywhere alike
    assert look.scheduled.config.total_step == 16


def test_the_orthogonal_term_acts(tmp_path):
    away = [
        float(orthogonality(run(tmp_path, Classify(vit(AdaLora(2, 6, orthogonal=w))), max_steps=8)[0].model))
        for w in (0.0, 0.5)
    ]
    assert away[1] < away[0]


def test_accumulated_gradients_are_one_step(tmp_path):
    _, look = run(tmp_path, accumulate_grad_batches=2)
    assert look.scheduled.config.total_step == 8
    assert 0 < look.left[-1] < max(look.left)


@pytest.mark.parametrize("step", [3, 8, 13])
def test_a_resumed_run_is_the_same_bit_for_bit(step, tmp_path):
    def shapes(folder, **options):
        data = ShapesData(train_length=64, val_length=16, batch_size=8, workers=0)  # its loader goes on where it was
        return run(folder, Classify(vit(size=32)), data=data, **options)

    whole, _ = shapes(tmp_path / "whole")
    shapes(tmp_path / "cut", stop=step)
    rest, _ = shapes(tmp_path / "cut", ckpt_path=str(tmp_path / "cut" / "last.ckpt"))
    theirs = whole.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in rest.state_dict().items())


def test_it_takes_an_adalora(tmp_path):
    module = Classify(vit(Probe()))
    t = trainer(tmp_path, callbacks=[AdaLoraRanks()])
    with pytest.raises(
        ValueError, match="AdaLoraRanks: the model has no AdaLoRA; give it one with adapter='adalora:r=8'"
    ):
        t.fit(module, Colours(length=16))
