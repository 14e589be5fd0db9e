"""`Diffuse`: a denoiser with its process, conditions, masking, average of weights and sheets of samples."""

from collections.abc import Mapping
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from ..data.keyed import key
from ..vision.generation.autoencoder import LatentSpace
from ..vision.generation.denoiser import Denoiser
from ..vision.generation.gaussian import Gaussian
from ..vision.generation.process import Losses, Process, training_call
from ..vision.parts import plain, unplain
from .callbacks.alarm import Alarm, GradientAlarm
from .callbacks.samples import Samples, SampleSheets
from .ema import Ema
from .evaluation.means import Means
from .module import Trained
from .optim import Constant, Schedule

AVERAGE, SAMPLES, ALARM = Ema(0.9999, warmup=False), Samples(), Alarm()
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # of data that says nothing
PIXELS = {"interpolation": "bicubic", "crop_pct": 1.0}


class Diffuse(Trained):
    """Trains `model`, a denoiser, on batches (x (B, C, H, W), y): pixels in [-1, 1] or latents (data.latents), and
    labels (B,), captions (a list of strings, which `text` encodes) or embeddings of captions (B, L, d).

    `process` says what is added and what is predicted, and gives the loss (that of the run that `model` comes
    from, else DiT's, `Gaussian`). Conditions are left out by the network itself (`dropout`), for guidance.
    `mask_ratio`: that share of the patches is dropped, for networks made for it.
    The published settings are the defaults: AdamW at a constant 1e-4 without decay, an average of 0.9999 that begins as
    a copy. `samples`: pictures drawn while it learns, samples_*.png in the run folder. `alarm`: what is said of a
    gradient far above the usual. `autoencoder` decodes the sheets of a run in latents; without it they show the first
    three channels. Logged: train/loss, val/loss and test/loss, the same with error and, where the variance is learned,
    bound; validation has the same noise every time, so its numbers are comparable.
    """

    text: nn.Module | None

    def __init__(
        self,
        model: nn.Module,
        process: Process | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=0.0),
        schedule: Schedule | LRSchedulerCallable | None = None,
        lr_scales: dict[str, float] | None = None,
        ema: Ema | None = AVERAGE,
        mask_ratio: float = 0.0,
        text: nn.Module | None = None,
        samples: Samples | None = SAMPLES,
        alarm: Alarm = ALARM,
        autoencoder: str | None = None,
        labels: Literal["auto", "keep", "fresh"] = "auto",
        adapter: Any = None,
    ):
        if not isinstance(model, Denoiser):
            raise ValueError(f"model: {type(model).__name__} is no denoiser: dit_s_4_256, say, or MetaDenoiser is one")
        if not 0 <= mask_ratio < 1:
            raise ValueError(f"mask_ratio={mask_ratio}: a share of the patches below 1")
        super().__init__(model, optimizer, schedule or Constant(), None, lr_scales, ema, adapter)
        learned_under = getattr(model, "learned_under", None)
        self.process, self.mask_ratio = process or unplain(learned_under) or Gaussian(), mask_ratio
        self.process.check(model)
        if adapter is not None and unplain(learned_under) not in (None, self.process):
            raise ValueError(
                f"model learned under process {brief(learned_under)}, and an adapter cannot make another of it; "
                f"model.process is {brief(plain(self.process))}: leave it out"
            )
        self.text, self.autoencoder = text, autoencoder
        self.samples, self.alarm, self.labels = samples, alarm, labels
        size, n = model.size, model.in_channels
        self.preprocessing = {"input_size": (n, *size), "mean": (0.5,) * n, "std": (0.5,) * n, **PIXELS}
        self.own_labels = adapter is None or self.adapter_card is not None
        self.judges = nn.ModuleDict({kind: Means() for kind in ("val", "test")})
        self.check_text()

    def check_text(self) -> None:
        wants = self.model.text
        if self.text is None or wants == tuple(self.text.text):
            return
        gives = " x ".join(map(str, self.text.text))
        what = "takes labels" if wants is None else f"takes captions of {wants[0]} x {wants[1]}"
        raise ValueError(f"text encodes captions as {gives}, and {self.model.called} {what}: make them the same")

    # ------------------------------------------------------------------------------------------------ before a run

    def setup(self, stage: str) -> None:
        super().setup(stage)
        here, size = self.preprocessing, self.preprocessing["input_size"]
        if size[0] != self.model.in_channels:
            what = "latents" if "latents" in here else "pictures"
            raise ValueError(
                f"the data gives {what} of {size[0]} channels, {self.model.called} takes {self.model.in_channels}: "
                f"make it with in_chans={size[0]}"
            )
        if "latents" in here:
            return
        if self.autoencoder is not None:
            raise ValueError(
                f"model.autoencoder={self.autoencoder} decodes latents, the data gives pixels: leave it out"
            )
        mean, std = (here.get(name, default) for name, default in IMAGENET.items())
        if {*torch.tensor(mean).flatten().tolist(), *torch.tensor(std).flatten().tolist()} != {0.5}:
            raise ValueError(
                f"data.preprocessing has mean {mean} and std {std}: diffusion takes pixels in [-1, 1], mean and std "
                "0.5; leave it out, and the network's own is taken"
            )

    def adopt(self, classes: list[str]) -> None:
        """The labels are those of the data: fresh ones, each as no class was, where their number differs or, with a
        new adapter, the classes are others."""
        count = len(classes)
        if self.model.num_classes is not None and classes:
            before = getattr(self.model, "class_names", None)
            others = self.labels == "auto" and not self.own_labels and before is not None and before != classes
            if count != self.model.num_classes or self.labels == "fresh" or others:
                if self.labels == "keep":
                    raise ValueError(
                        f"model.labels=keep, but the data has {count} classes and the network {self.model.num_classes}"
                    )
                if not self.classes:  # else it has them already
                    self.model.reset_classifier(count)
                    self.model.to(self.device)
                    self.ema = None
        super().adopt(classes)

    def configure_callbacks(self) -> list[L.Callback]:
        sheets = [] if self.samples is None else [SampleSheets(self.samples)]
        return [*super().configure_callbacks(), GradientAlarm(self.alarm), *sheets]

    def on_train_start(self) -> None:
        """Processes that began with one seed draw noise of their own; a resumed run has its generators back already."""
        if self.trainer.world_size > 1 and self.trainer.ckpt_path is None:
            torch.manual_seed(key(torch.initial_seed(), 0, self.global_rank))

    # ------------------------------------------------------------------------------------------------------- steps

    @property
    def denoiser(self) -> Denoiser:
        """The network that is judged and drawn with: the average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def condition(self, y: Any) -> Tensor | None:
        """What the network is told of the batch: labels, or captions in the encoder's words."""
        if self.model.num_classes is None and self.model.text is None:
            return None
        if isinstance(y, Tensor):
            return y
        if not (isinstance(y, (list, tuple)) and all(isinstance(each, str) for each in y)):
            raise ValueError(f"a batch has conditions of type {type(y).__name__}: labels, captions or their embeddings")
        if self.text is None:
            what = "nobody encodes them" if self.model.text else "the network takes labels"
            raise ValueError(
                f"the data gives captions, and {what}: give model.text (patchloom.multimodal.text.TextEncoder) and a "
                "network with text"
            )
        return self.text.to(self.device).encode(list(y))[0]

    def losses(self, batch: Any, generator: torch.Generator | None = None) -> Losses:
        x, y = batch
        network = self.model if self.training else self.denoiser
        call = training_call(network, self.mask_ratio if self.training else 0.0)
        return self.process.loss(call, x, self.condition(y), generator=generator)

    def training_step(self, batch: Any, index: int) -> Tensor:
        found = self.losses(batch)
        loss = found.loss.mean()
        self.log("train/loss", loss, prog_bar=True)
        if found.bound is not None:
            self.log("train/bound", found.bound.mean())
        return loss

    def judge_step(self, kind: str, batch: Any) -> None:
        """The draws of a batch depend on its place and process only: two validations differ by the weights."""
        count = self.judges[kind].batches
        generator = torch.Generator().manual_seed(key(0, count, self.global_rank))
        found = self.losses(batch, generator)
        rows = {"loss": found.loss, "error": found.error, "bound": found.bound}
        self.judges[kind].update({name: value for name, value in rows.items() if value is not None})

    def run_again(self, batch: Any) -> Tensor:
        """The forward pass once more, for those who look where a bad number arose."""
        return self.losses(batch).loss

    # ------------------------------------------------------------------------------------------------- checkpoints

    def own_state(self) -> dict[str, Any]:
        text = None if self.text is None else {**self.text.arguments(), "digest": self.text.digest}
        return {"process": plain(self.process), "text": text}

    def take_state(self, saved: Mapping[str, Any]) -> None:
        here, there = self.preprocessing.get("latents"), saved["preprocessing"].get("latents")
        if (here is None) != (there is None):
            words = ["pixels" if each is None else "latents" for each in (there, here)]
            raise ValueError(
                f"the checkpoint was trained on {words[0]}, the data gives {words[1]}: give the data of then"
            )
        if here is not None:
            LatentSpace.of(there).check(LatentSpace.of(here), "what the checkpoint was trained on", "the data")
        if unplain(saved["process"]) != self.process:
            raise ValueError(
                f"the checkpoint was trained with process {brief(saved['process'])}, model.process is "
                f"{brief(plain(self.process))}: go on with the settings that it was trained with"
            )
        text = None if self.text is None else self.text.digest
        if text != (then := (saved["text"] or {}).get("digest")):
            raise ValueError(f"the checkpoint read captions by encoder {then}, model.text is {text}: use the same")


def brief(words: Mapping[str, Any]) -> str:
    """`Gaussian(steps=1000, …)`."""
    arguments = ", ".join(f"{name}={value}" for name, value in words["init_args"].items())
    return f"{words['class_path'].rpartition('.')[2]}({arguments})"
