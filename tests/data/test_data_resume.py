"""A run that is killed anywhere and resumed ends with the weights of the run that was not, bit for bit."""

import logging
import os

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from PIL import Image
from torch.nn import Conv2d, Flatten, Linear, ReLU, Sequential
from torch.nn.functional import cross_entropy

from patchloom.data.modules import FolderData, Jostle, Recrop, ShapesData

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
CFG = {"input_size": (3, 32, 32), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "crop_pct": 1.0}
EPOCHS, STEPS = 3, 4


class Net(L.LightningModule):
    preprocessing = CFG

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = Sequential(Conv2d(3, 6, 5, 4), ReLU(), Flatten(), Linear(6 * 7 * 7, 10))
        self.batches = []

    def training_step(self, batch, index):
        images, targets = batch
        self.batches.append((self.current_epoch, index, targets.tolist(), images.double().sum().item()))
        return cross_entropy(self.net(images), targets)

    def validation_step(self, batch, index):
        self.log("loss", cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Kill(Callback):
    """An exception in the middle of step n: after the batch was handed out, before anything was learned from it."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *unused):
        if trainer.global_step == self.step:
            raise InterruptedError("killed")


def shapes(workers, tmp_path):
    return ShapesData(8 * STEPS, 8, 8, batch_size=8, workers=workers, augment=Jostle(padding=2, erase=0.5))


def folder(workers, tmp_path):
    if not (tmp_path / "train").exists():
        for s in ("train", "val"):
            for c in "ab":
                (tmp_path / s / c).mkdir(parents=True)
                for i in range(17):
                    Image.effect_noise((40, 36), 60 + i).convert("RGB").save(tmp_path / s / c / f"{i}.png")
    how = Recrop(scale=(0.3, 1.0), auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.5)
    return FolderData(str(tmp_path), batch_size=8, workers=workers, augment=how)


def fit(data, tmp_path, callbacks=(), checkpoint=None, **trainer):
    module = Net()
    run = L.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=1, callbacks=list(callbacks), default_root_dir=tmp_path,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks), **trainer,
    )  # fmt: skip
    run.fit(module, datamodule=data, ckpt_path=checkpoint)
    return module


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("make", [shapes, folder])
@pytest.mark.parametrize(("workers", "then"), [(0, 0), (2, 2), (0, 2)])
@pytest.mark.slow
def test_killed_and_resumed_equals_not_killed(tmp_path, make, workers, then):
    whole = fit(make(workers, tmp_path), tmp_path)
    assert len(whole.batches) == EPOCHS * STEPS
    assert len({b[3] for b in whole.batches}) == EPOCHS * STEPS  # every batch is another
    last = ModelCheckpoint(tmp_path / "c", save_top_k=0, save_last=True, every_n_train_steps=2)
    with pytest.raises(InterruptedError):
        fit(make(workers, tmp_path), tmp_path, [last, Kill(7)])
    resumed = fit(make(then, tmp_path), tmp_path, checkpoint=tmp_path / "c" / "last.ckpt")
    assert resumed.batches == whole.batches[6:]
    assert same(resumed, whole)


@pytest.mark.parametrize("when", ["steps", "epoch", "validation"])
@pytest.mark.parametrize("trainer", [{}, {"limit_train_batches": 3}, {"val_check_interval": 2}], ids=str)
def test_resume_from_every_checkpoint(tmp_path, when, trainer):
    """Saved after any step (also the last of an epoch), at the end of epochs, and after validation."""
    how = {"steps": {"every_n_train_steps": 1}, "epoch": {"save_on_train_epoch_end": True}, "validation": {}}[when]
    keep = ModelCheckpoint(tmp_path / "c", filename="{step}", save_top_k=-1, **how)
    whole = fit(shapes(0, tmp_path), tmp_path, [keep], **trainer)
    files = sorted(os.listdir(tmp_path / "c"))
    assert len(files) >= EPOCHS
    for file in files:
        resumed = fit(shapes(0, tmp_path), tmp_path, checkpoint=tmp_path / "c" / file, **trainer)
        done = int(file.removeprefix("step=").split(".")[0].split("-")[0])
        assert resumed.batches == whole.batches[done:], file
        assert same(resumed, whole), file


def test_the_checkpoint_holds_the_loaders_place_as_plain_values(tmp_path):
    last = ModelCheckpoint(tmp_path / "c", save_top_k=0, save_last=True, every_n_train_steps=3)
    with pytest.raises(InterruptedError):
        fit(shapes(2, tmp_path), tmp_path, [last, Kill(5)])
    held = torch.load(tmp_path / "c" / "last.ckpt", weights_only=True)
    (state,) = held["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert (state["epoch"], state["batches"]) == (0, 3)
    assert held["ShapesData"]["classes"][0] == "circle"


def test_overfitting_repeats_the_same_batches(tmp_path):
    module = fit(shapes(0, tmp_path), tmp_path, overfit_batches=2)
    assert [b[:2] for b in module.batches] == [(e, i) for e in range(EPOCHS) for i in range(2)]
