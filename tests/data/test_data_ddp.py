"""Two processes (gloo) over one data set: every picture of evaluation once, and the steps of one process."""

import logging
import subprocess
import sys

import lightning.pytorch as L
import pytest
import torch

from patchloom.data.modules import ShapesData

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Count(L.LightningModule):
    preprocessing = {"input_size": (3, 32, 32), "crop_pct": 1.0}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, index):
        return self.weight * batch[0].mean()

    def test_step(self, batch, index):
        self.seen.append(batch[0].double().sum((1, 2, 3)))

    def on_test_epoch_end(self):
        mine = torch.cat([*self.seen, torch.full((99 - sum(map(len, self.seen)),), torch.nan, dtype=torch.float64)])
        everyone = self.all_gather(mine).flatten()
        everyone = everyone[~everyone.isnan()].sort().values
        self.log("pictures", float(len(everyone)))
        self.log("sum", everyone.sum().item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def compare(folder: str) -> None:
    got, weights = [], []
    for devices, batch_size in ((2, 4), (1, 8)):
        trainer = L.Trainer(
            accelerator="cpu", devices=devices, max_epochs=2, logger=False,
            strategy="ddp_fork" if devices == 2 else "auto", default_root_dir=folder,
            enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
        )  # fmt: skip
        module, data = Count(), ShapesData(40, 8, 27, batch_size=batch_size, workers=0)
        trainer.fit(module, data)
        weights.append(module.weight.item())
        got += trainer.test(module, data, verbose=False)
    assert got[0] == pytest.approx(got[1])
    assert got[0]["pictures"] == 27
    assert weights[0] == pytest.approx(weights[1], rel=1e-5)


@pytest.mark.slow
def test_two_processes_see_what_one_sees(tmp_path):
    """In a process of its own: torch forks no process that has run a backward pass with threads."""
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    compare(sys.argv[1])
