"""The callback that fits progressive norms to a run: how long it takes, and that a resumed run goes on."""

import math

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from patchloom.train.callbacks.prepbn import ProgressiveNorms
from patchloom.vision.norm import Norm
from patchloom.vision.prepbn import Progressive, ProgressiveNorm


class Small(L.LightningModule):
    def __init__(self, norm: Norm):
        super().__init__()
        self.norm, self.head = norm.build(4), nn.Linear(4, 2)
        self.shares: list[float] = []

    def training_step(self, batch: list[torch.Tensor], index: int) -> STEP_OUTPUT:
        loss = self.head(self.norm(batch[0])).square().mean()
        self.shares.append(float(getattr(self.norm, "share", 1.0)))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(callback, folder, module=None, ckpt_path=None, **options):
    module = Small(Progressive()) if module is None else module
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        enable_checkpointing=False, callbacks=[callback], **options,
    )  # fmt: skip
    data = DataLoader(TensorDataset(torch.randn(20, 3, 4)), 2)  # 10 batches
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module, trainer


@pytest.mark.parametrize(
    ("callback", "options", "total", "warm"),
    [
        (ProgressiveNorms(0.5), {"max_epochs": 2}, 10, 0),
        (ProgressiveNorms(0.5, warm=4), {"max_epochs": 2}, 8, 4),
        (ProgressiveNorms(1.0), {"max_epochs": 2, "accumulate_grad_batches": 5}, 20, 0),
        (ProgressiveNorms(1.0), {"max_steps": 3, "accumulate_grad_batches": 2}, 6, 0),
        (ProgressiveNorms(steps=7, start=0.5), {"max_epochs": 1}, 7, 0),
    ],
)
def test_the_schedule_fits_the_run(callback, options, total, warm, tmp_path):
    module, _ = fit(callback, tmp_path, **options)
    shares = [callback.start * max(0, total - i) / total for i in range(len(module.shares) - warm)]
    assert module.shares[warm:] == pytest.approx(shares)
    assert int(module.norm.total_step) == total
    assert int(module.norm.iter) == max(0, total - len(shares))


def test_a_resumed_run_goes_on(tmp_path):
    whole, _ = fit(ProgressiveNorms(1.0, start=0.5), tmp_path, max_epochs=2)
    first = Small(Progressive())
    _, trainer = fit(Stop(), tmp_path, first, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    rest, _ = fit(ProgressiveNorms(1.0, start=0.5), tmp_path, ckpt_path=tmp_path / "half.ckpt", max_epochs=2)
    assert first.shares + rest.shares == pytest.approx(whole.shares)
    assert rest.norm.start == 0.5


class Stop(ProgressiveNorms):
    """The same, in a run that ends after its first epoch."""

    def __init__(self):
        super().__init__(1.0, start=0.5)

    @property
    def state_key(self):
        return "ProgressiveNorms"

    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = True


def test_it_refuses_what_it_cannot_do(tmp_path):
    for fraction in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="fraction"):
            ProgressiveNorms(fraction)
    with pytest.raises(ValueError, match="no progressive norm"):
        fit(ProgressiveNorms(), tmp_path, Small(Norm()), max_epochs=1)
    with pytest.raises(ValueError, match="no end"):
        fit(ProgressiveNorms(), tmp_path, max_epochs=-1)


def test_norms_of_the_average_follow():
    from patchloom.train.ema import Average, Ema

    norm = ProgressiveNorm(4, 1e-5, 10, 0, 1.0)
    average = Average(norm, Ema())
    norm.train()(torch.randn(2, 3, 4))
    average.update(norm, 1)
    assert int(average.module.iter) == 9
