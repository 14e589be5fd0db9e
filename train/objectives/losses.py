"""Losses of classification: logits (B, C) and a target of class numbers (B,), of probabilities (B, C) after mixing,
or of several labels an image (B, C). Any `torch.nn` loss of (logits, target) serves as well; those here know the
data's class counts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Balanced = Literal["balanced"]


@dataclass(frozen=True)
class Counts:
    """What the training data holds: `images` in all, and how many of them bear each class (C,)."""

    images: int
    classes: Tensor


class Loss(nn.Module):
    """What `Classify` asks of a loss beyond (logits, target)."""

    labels: Literal["one", "many"] = "one"  # how many an image has: decides metrics and predictions
    needs_image = False  # forward(output, target, image)
    needs_patches = False  # output is (logits, those of the patches) where the model has a head for them
    needs_model = False  # forward(model, [(image, target) of each view], step); `shared_mixing` says how they are mixed

    def setup(self, classes: int, counts: Callable[[], Counts], preprocessing: Mapping[str, Any]) -> None:
        """Before fitting; `preprocessing` (mean, std, …) is that of the images which `forward` will get."""


class CrossEntropy(Loss):
    """-sum_c w_c t_c log p_c with t smoothed: (1 - s) t + s / C.

    `weights`: one a class, or "balanced": images / (C * images of the class). As in torch the mean over a batch is
    weighted, so that a soft target that is one-hot costs what its class number costs.
    """

    def __init__(self, smoothing: float = 0.0, weights: list[float] | Balanced | None = None):
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing={smoothing}: give a number in [0, 1)")
        self.smoothing, self.balanced = smoothing, weights == "balanced"
        self.register_buffer("weights", torch.tensor(weights) if isinstance(weights, list) else None, persistent=False)

    def setup(self, classes: int, counts: Callable[[], Counts], preprocessing: Mapping[str, Any]) -> None:
        if self.balanced:
            n = counts()
            self.weights = torch.where(n.classes > 0, n.images / (classes * n.classes), 0.0).to(torch.float32)
        _check_length("weights", self.weights, classes)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        loss = F.cross_entropy(logits, target, self.weights, label_smoothing=self.smoothing)
        if self.weights is None or not target.is_floating_point():
            return loss
        return (
            loss * len(target) / (target * self.weights).sum()
        )  # torch divides by B here, by the sum of weights above


class Binary(Loss):
    """Sum over classes of a sigmoid cross-entropy, over C. `labels`: "many" takes targets (B, C) of 0 and 1; "one"
    class numbers, made one-hot.

    Smoothing: "one": 1 - s + s / C and s / C (timm's); "many": towards 1/2. `threshold` makes mixed targets hard
    again: t > threshold. `weights`: of the positive term of a class; "balanced" for "many": absent / present.
    """

    def __init__(
        self,
        labels: Literal["one", "many"] = "many",
        smoothing: float = 0.0,
        threshold: float | None = None,
        weights: list[float] | Balanced | None = None,
    ):
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing={smoothing}: give a number in [0, 1)")
        if weights == "balanced" and labels == "one":
            raise ValueError(
                'weights="balanced" of Binary goes with labels="many"; for one label an image use CrossEntropy'
            )
        self.labels, self.smoothing, self.threshold, self.balanced = labels, smoothing, threshold, weights == "balanced"
        self.register_buffer("weights", torch.tensor(weights) if isinstance(weights, list) else None, persistent=False)

    def setup(self, classes: int, counts: Callable[[], Counts], preprocessing: Mapping[str, Any]) -> None:
        if self.balanced:
            n = counts()
            self.weights = torch.where(n.classes > 0, (n.images - n.classes) / n.classes, 1.0).to(torch.float32)
        _check_length("weights", self.weights, classes)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        if target.ndim == 1:
            target = F.one_hot(target, logits.shape[1])
        target = target.to(logits.dtype)
        if self.threshold is not None:
            target = (target > self.threshold).to(logits.dtype)
        target = target * (1 - self.smoothing) + self.smoothing * (
            0.5 if self.labels == "many" else 1 / logits.shape[1]
        )
        return F.binary_cross_entropy_with_logits(logits, target, pos_weight=self.weights)


class Taught(Loss):
    """A loss with a teacher, which is no part of the checkpoint: it is frozen and named in the recipe."""

    def __init__(self, teacher: nn.Module, base: nn.Module):
        super().__init__()
        self.base, self.labels = base, getattr(base, "labels", "one")
        self._teacher = (
            teacher.eval().requires_grad_(False),
        )  # in a tuple: neither trained, saved nor sent round by DDP
        self.register_buffer("gain", None, persistent=False)
        self.register_buffer("offset", None, persistent=False)

    @property
    def teacher(self) -> nn.Module:
        return self._teacher[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Taught":
        self.teacher._apply(fn)  # goes where the loss goes
        return super()._apply(fn, recurse)

    def setup(self, classes: int, counts: Callable[[], Counts], preprocessing: Mapping[str, Any]) -> None:
        if isinstance(self.base, Loss):
            self.base.setup(classes, counts, preprocessing)
        theirs = getattr(self.teacher, "num_classes", classes)
        if theirs != classes:
            raise ValueError(
                f"the teacher tells {theirs} classes apart, the data has {classes}: give a teacher trained on this data"
            )
        cfg = getattr(self.teacher, "default_cfg", None) or preprocessing
        mean, std, own_mean, own_std = (
            torch.tensor(c[k], dtype=torch.float32).view(-1, 1, 1)
            for c in (cfg, preprocessing)
            for k in ("mean", "std")
        )
        self.gain, self.offset = own_std / std, (own_mean - mean) / std  # ours -> pixel values -> the teacher's

    def shown(self, image: Tensor) -> Tensor:
        """The image as the teacher wants it."""
        return image if self.gain is None else image * self.gain + self.offset


class Distil(Taught):
    """(1 - weight) * base(class logits, target) + weight * distance(distilled logits, teacher's), DeiT's form (arXiv
    2012.12877).

    "hard": cross-entropy with the class that the teacher chooses; "soft": T^2 KL(teacher || student) at temperature
    T, averaged over batch *and* classes as DeiT's code does. A model that gives (class logits, distilled logits) in
    training (DeiT's distilled head) is judged by each; one that gives only logits by both.
    """

    needs_image = True

    def __init__(
        self,
        teacher: nn.Module,
        kind: Literal["hard", "soft"] = "hard",
        weight: float = 0.5,
        temperature: float = 3.0,
        base: nn.Module | None = None,
    ):
        super().__init__(teacher, base if base is not None else CrossEntropy(smoothing=0.1))
        self.kind, self.weight, self.temperature = kind, weight, temperature

    def forward(self, output: Tensor | tuple[Tensor, Tensor], target: Tensor, image: Tensor) -> Tensor:
        logits, distilled = output if isinstance(output, tuple) else (output, output)
        with torch.no_grad():
            judged = self.teacher(self.shown(image))
        if self.kind == "hard":
            distance = F.cross_entropy(distilled, judged.argmax(1))
        else:
            t = self.temperature
            distance = F.kl_div(
                (distilled / t).log_softmax(1), (judged / t).log_softmax(1), reduction="sum", log_target=True
            )
            distance = distance * t * t / distilled.numel()
        return (1 - self.weight) * self.base(logits, target) + self.weight * distance


def _check_length(name: str, values: Tensor | None, classes: int) -> None:
    if values is not None and len(values) != classes:
        raise ValueError(
            f"{name} of the loss has {len(values)} entries, the data has {classes} classes: give one a class"
        )
