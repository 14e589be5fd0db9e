"""samples_*.png in the run folder: what the denoiser makes of the same noise as it learns."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch

from ..grid import draw_grid


@dataclass(frozen=True)
class Samples:
    """A sheet every `every_n_steps` (0: only at the end) with `columns` images of each of the first `rows` classes, or
    of as many captions (`captions`, else the first of the training data), always of one seed.

    sampler, steps, guidance   as of `patchloom generate`; null: those of the process, at 50 steps
    """

    every_n_steps: int = 1000
    rows: int = 10
    columns: int = 8
    sampler: str | None = None
    steps: int | None = 50
    guidance: float = 1.0
    seed: int = 0
    captions: list[str] | None = None

    def __post_init__(self) -> None:
        if self.every_n_steps < 0 or self.rows < 1 or self.columns < 1:
            raise ValueError(
                f"samples of {self.rows} x {self.columns} images every {self.every_n_steps} steps: at least 1 x 1, and "
                "0 steps or more"
            )


class SampleSheets(L.Callback):
    def __init__(self, spec: Samples):
        self.spec, self.autoencoder = spec, None
        self.captions: list[str] = list(spec.captions or ())
        self.drawn: int | None = None  # the last step that has a sheet
        self.folder: str | None = None

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.folder = trainer.log_dir  # all processes ask: the first tells the others
        if module.autoencoder is not None and self.autoencoder is None and trainer.is_global_zero:
            from ...vision.generation.autoencoder import Autoencoder, LatentSpace

            self.autoencoder = Autoencoder(module.autoencoder).to(module.device)
            there = LatentSpace.of(module.preprocessing["latents"])
            there.check(self.autoencoder.space, "the data", f"those of model.autoencoder {module.autoencoder}")
        self.maker(module).check(self.conditions(module, []), self.settings())  # wrong settings are told now

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not self.captions and isinstance(batch[1], (list, tuple)):
            self.captions = list(batch[1][: self.spec.rows])
        step, every = trainer.global_step, self.spec.every_n_steps
        if every and step % every == 0 and not trainer.fit_loop._should_accumulate():
            self.draw(trainer, module)

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        if self.drawn != trainer.global_step:
            self.draw(trainer, module)

    # ------------------------------------------------------------------------------------------------------ drawing

    def settings(self) -> Any:
        from ..saved.maker import MakeSettings

        spec = self.spec
        return MakeSettings(sampler=spec.sampler, steps=spec.steps, guidance=spec.guidance, seed=spec.seed)

    def maker(self, module: Any) -> Any:
        from ..saved.maker import ImageMaker, pixels_of

        latents = "latents" in module.preprocessing
        size = pixels_of(module.preprocessing)
        if latents and self.autoencoder is None:
            size = tuple(module.preprocessing["input_size"][1:])
        return ImageMaker(
            module.denoiser, module.process, module.classes, size, latents, self.autoencoder, module.text, preview=True
        )

    def conditions(self, module: Any, captions: list[str]) -> Any:
        """Rows of `columns` equal conditions, or a number."""
        spec, model = self.spec, module.model
        if model.text is not None:
            return [c for c in captions or ["a picture"] for _ in range(spec.columns)]
        if model.num_classes is None:
            return spec.rows * spec.columns
        return [c for c in range(min(spec.rows, model.num_classes)) for _ in range(spec.columns)]

    def draw(self, trainer: L.Trainer, module: Any) -> None:
        if self.folder is None or trainer.fast_dev_run:
            return
        if module.model.text is not None and (module.text is None or not self.captions):
            return  # embeddings without words: nobody says what to draw
        self.drawn = trainer.global_step
        with module.apart():
            if trainer.is_global_zero:
                self.sheet(module, Path(self.folder) / f"samples_{trainer.global_step:07}.png")

    def sheet(self, module: Any, path: Path) -> None:
        conditions = self.conditions(module, self.captions)
        with torch.random.fork_rng(devices=[]):  # whatever draws from torch's own generator, the run does not see it
            images = torch.cat(list(self.maker(module).images(conditions, self.settings(), batch=64)))
        titles = [] if isinstance(conditions, int) else self.captions or module.classes
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_grid(images, self.spec.columns, path, [str(t) for t in titles][: len(images) // self.spec.columns])
