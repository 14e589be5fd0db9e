"""What a Lightning epoch of `Classify` costs over a bare loop: same model, optimiser, loss and batches, epochs
alternating in one process.

    python tests/benchmarks/lightning_overhead.py [--model cct_2_3x2_32] [--batch 128] [--steps 40] [--repeats 7]
    [--threads 2]

Prints one JSON object; `ratio` is the median over the repeats of Lightning's time over the bare loop's beside it,
`cpu_ratio` the same of processor time, which says more on a busy machine. The issue's bound is 1.05.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from copy import deepcopy

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from patchloom.train.classify import Classify
from patchloom.train.objectives.losses import CrossEntropy
from patchloom.train.optim import Constant, build_optimizer
from patchloom.vision.zoo import create_model


def adamw(groups):
    return torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.05, fused=True)


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


class Alternate(L.Callback):
    """Before each of Lightning's epochs, one of the bare loop on its own copy."""

    def __init__(self, model: torch.nn.Module, loader: DataLoader):
        self.model, self.loader, self.loss = deepcopy(model).train(), loader, CrossEntropy(0.1)
        self.optimizer = build_optimizer(adamw, self.model, None)
        self.bare, self.ours = [], []

    def on_train_epoch_start(self, trainer, module):
        start = now()
        for image, target in self.loader:
            self.optimizer.zero_grad()
            self.loss(self.model(image), target).backward()
            self.optimizer.step()
        self.start = now()
        self.bare.append([b - a for a, b in zip(start, self.start, strict=True)])

    def on_train_epoch_end(self, trainer, module):
        self.ours.append([b - a for a, b in zip(self.start, now(), strict=True)])


def measure(model: str, batch: int, steps: int, repeats: int, bar: bool = True) -> dict[str, float]:
    torch.manual_seed(0)
    network = create_model(model, num_classes=10)
    data = TensorDataset(
        torch.randn(batch * steps, *network.default_cfg["input_size"]), torch.randint(10, (batch * steps,))
    )
    loader = DataLoader(data, batch, shuffle=True)
    both, module = Alternate(network, loader), Classify(network, CrossEntropy(0.1), adamw, Constant())
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=repeats + 1,
            callbacks=[both],
            logger=CSVLogger(folder),
            enable_checkpointing=False,
            enable_progress_bar=bar,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(module, loader)
    wall, processor = (
        [a[i] / b[i] for a, b in zip(both.ours[1:], both.bare[1:], strict=True)] for i in (0, 1)
    )  # the first pair warms up
    return {
        "ratio": statistics.median(wall),
        "spread": max(wall) - min(wall),
        "cpu_ratio": statistics.median(processor),
        "bare_ms_per_step": 1e3 * statistics.median(b[0] for b in both.bare[1:]) / steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="cct_2_3x2_32")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(
        json.dumps(
            vars(args) | {"torch": torch.__version__} | measure(args.model, args.batch, args.steps, args.repeats)
        )
    )


if __name__ == "__main__":
    main()
