"""val/frechet and val/asked while a denoiser learns: how near its pictures come to the real ones, as a classifier sees
them."""

from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from PIL import Image
from torch import Tensor


class FrechetWatch(L.Callback):
    """Every `every_n_steps` steps, and at the end, `count` pictures of even classes (or of the first captions of the
    validation data) are made by the average of the weights, always of one seed, and judged by `judge`: the run or
    checkpoint of a classifier of ours, or a model's name.

    Logged: val/frechet, the Fréchet distance on its features to as many validation pictures (it is biased upwards by
    few pictures, and comparable only at one `count`); val/asked, the share of pictures in which the classifier sees the
    class that was asked for, where it knows the classes by name.
    """

    def __init__(
        self,
        judge: str,
        every_n_steps: int = 1000,
        count: int = 200,
        sampler: str | None = None,
        steps: int | None = 20,
        guidance: float = 1.0,
        seed: int = 0,
        batch: int = 64,
    ):
        if every_n_steps < 1 or count < 2 or batch < 1:
            raise ValueError(f"every_n_steps={every_n_steps}, count={count}, batch={batch}: from 1, 2 and 1 on")
        self.judge, self.every, self.count, self.batch = judge, every_n_steps, count, batch
        self.sampler, self.steps, self.guidance, self.seed = sampler, steps, guidance, seed
        self.last = -1  # the step that was judged last
        self.tools: Any = None  # extractor, its classes, the real pictures' moments

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        if "latents" in module.preprocessing:
            raise ValueError("FrechetWatch: the run learns latents, and nobody has the pictures; leave it out")
        if not trainer.is_global_zero:
            return
        from ..evaluation.fid_extract import of_judge
        from ..evaluation.fid_numbers import Moments
        from ..saved.judge import load

        with torch.random.fork_rng(devices=[]):  # rebuilding a network draws, and the run shall not notice
            judge = load(self.judge, device=str(module.device))
        extractor = of_judge(judge)
        real = [extractor(torch.stack([extractor.transform(p) for p in part]))[0] for part in self.real(trainer)]
        self.tools = extractor, judge.classes, Moments.of(torch.cat(real))

    def real(self, trainer: Any) -> list[list[Image.Image]]:
        """Validation pictures at the size that the network makes, in groups of `batch`."""
        from ...data.transforms import evaluation_transform

        data = trainer.datamodule
        source = data.splits.val
        if source is None or len(source) < 2:
            raise ValueError("FrechetWatch: the data has no validation pictures to compare with; leave it out")
        crop = evaluation_transform(data.preprocessing, normalise=False)
        found = [as_picture(crop(source.load(i, 0)[0])) for i in range(min(self.count, len(source)))]
        return [found[i : i + self.batch] for i in range(0, len(found), self.batch)]

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step % self.every == 0 and step != self.last and not trainer.fit_loop._should_accumulate():
            self.look(trainer, module)

    def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        ends = trainer.current_epoch + 1 == trainer.max_epochs or trainer.global_step == trainer.max_steps
        if trainer.should_stop or ends:
            self.look(trainer, module)

    def look(self, trainer: Any, module: Any) -> None:
        if trainer.global_step == self.last:
            return
        self.last = trainer.global_step
        with module.apart():
            found = self.numbers(trainer, module) if trainer.is_global_zero else {}
        for name, value in found.items():
            module.log(f"val/{name}", value, rank_zero_only=True)
            rank_zero_info(f"step {self.last}: val/{name} {value:.4f}")

    def numbers(self, trainer: Any, module: Any) -> dict[str, float]:
        from ..evaluation.fid_numbers import Moments, frechet_distance
        from ..saved.maker import ImageMaker, MakeSettings, pixels_of

        extractor, known, real = self.tools
        settings = MakeSettings(sampler=self.sampler, steps=self.steps, guidance=self.guidance, seed=self.seed)
        maker = ImageMaker(
            module.denoiser, module.process, module.classes, pixels_of(module.preprocessing), text=module.text
        )
        asked, features, logits = self.conditions(trainer, module), [], []
        with torch.random.fork_rng(devices=[]):
            for images in maker.images(asked, settings, batch=self.batch):
                f, y = extractor(torch.stack([extractor.transform(as_picture(x)) for x in images]))
                features.append(f)
                logits.append(y)
        found = {"frechet": frechet_distance(Moments.of(torch.cat(features)), real)}
        if module.model.num_classes is not None and set(module.classes) <= set(known):
            wanted = torch.tensor([known.index(module.classes[c]) for c in asked])
            found["asked"] = (torch.cat(logits).argmax(1) == wanted).double().mean().item()
        return found

    def conditions(self, trainer: Any, module: Any) -> Any:
        if module.model.text is not None:
            source = trainer.datamodule.splits.val
            return [source.load(i % len(source), 0)[1] for i in range(self.count)]
        if module.model.num_classes is None:
            return self.count
        return [i % module.model.num_classes for i in range(self.count)]


def as_picture(x: Tensor) -> Image.Image:
    """(C, H, W) uint8 -> RGB."""
    array = x.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array)
