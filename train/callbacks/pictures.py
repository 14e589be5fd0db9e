"""curves.png while a run goes on, predictions.png when it is judged."""

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from torch import Tensor, nn

from ..running.runs import MetricsFile
from .curves import draw_curves
from .pairs import Pairs, draw_pairs
from .sheet import Collection, draw_sheet


class Pictures(L.Callback):
    """curves.png at the end of `fit`, and after an epoch where a minute has passed and drawing costs under 1% of the
    time; predictions.png of `test` or `validate`, with `predictions` right and as many wrong images (0: none), or of
    detectors and segmenters the first `predictions` pictures, truth beside prediction.

    The answers are those that the module's own forward gives while it is judged: nothing is computed twice.
    """

    def __init__(self, curves: bool = True, predictions: int = 12):
        if predictions < 0:
            raise ValueError(f"pictures.predictions={predictions}: a number of images, 0 or more")
        self.curves, self.predictions = curves, predictions
        self.drawn, self.cost = time.monotonic(), 0.6
        self.collection: Collection | None = None
        self.pairs: Pairs | None = None
        self.logits: Tensor | None = None
        self.sheet: Path | None = None

    # ---- curves

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.curves and time.monotonic() - self.drawn > max(60, 100 * self.cost):
            self._draw_curves(trainer)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.curves:
            self._draw_curves(trainer)

    def _draw_curves(self, trainer: L.Trainer) -> None:
        logger = next((logger for logger in trainer.loggers if isinstance(logger, MetricsFile)), None)
        if logger is None or not trainer.is_global_zero:
            return
        begun = time.monotonic()
        logger.write()
        steps = trainer.num_training_batches / trainer.accumulate_grad_batches
        draw_curves(logger.path, logger.path.with_name("curves.png"), steps if 0 < steps < float("inf") else None)
        self.drawn, self.cost = time.monotonic(), time.monotonic() - begun

    # ---- predictions

    def _begin(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        wanted = self.predictions and trainer.is_global_zero and trainer.state.fn != "fit"
        if wanted and hasattr(module, "pictured"):
            self.pairs = Pairs(self.predictions)
        elif wanted and getattr(module, "classes", None) and getattr(module, "preprocessing", None):
            names = getattr(trainer.datamodule, "names", None) or module.classes
            self.collection = Collection(
                names if len(names) == len(module.classes) else module.classes, self.predictions
            )
            self.handle = module.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.logits = output if isinstance(output, Tensor) else None

    def _batch(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, *_: Any) -> None:
        if self.collection is not None and self.logits is not None:
            self.collection.add(batch[0], self.logits, batch[1])
            self.logits = None
        if self.pairs is not None and not self.pairs.full:
            self.pairs.add(module.pictured(batch, outputs))

    def _end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            return
        folder = trainer.log_dir or trainer.default_root_dir  # all processes ask: the first tells the others
        collection, self.collection = self.collection, None
        pairs, self.pairs = self.pairs, None
        what = "test" if trainer.state.fn == "test" else "validation"
        recipe = f"  ·  {module.recipe}" if getattr(module, "recipe", "") else ""
        if pairs is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            title = f"the first {len(pairs.pairs)} {what} pictures{recipe}"
            self.sheet = draw_pairs(pairs.pairs, Path(folder) / "predictions.png", title, module.classes)
        if collection is None:
            return
        self.handle.remove()
        Path(folder).mkdir(parents=True, exist_ok=True)
        share = collection.correct / max(collection.seen, 1)
        title = f"{share:.1%} of {collection.seen:,} {what} images right{recipe}"
        self.sheet = draw_sheet(collection, module.preprocessing, Path(folder) / "predictions.png", title)

    on_test_start = on_validation_start = _begin
    on_test_batch_end = on_validation_batch_end = _batch
    on_test_end = on_validation_end = _end
