"""What every denoiser keeps to: what goes in, what comes out, and what it does with conditions of nothing.

Shapes: B samples, C channels of the image or latent, H W its size, L tokens of a caption of width d, D condition width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..adapters import settle
from ..features import undecayed
from .conditioning import Labels

Time = Literal["step", "c_noise", "log_snr"]


class Denoiser(nn.Module):
    """forward(x, t, y): x (B C H W), t (B) float, and the condition y -> (B out_channels H W).

    y is labels (B) int64 below `num_classes`, or with `num_classes` for none; or captions (B L d), where `text` is
    (L, d); or None where a network has neither. `null(y)` is the condition of nothing for as many samples.

    `time` says what t is: "step", the number of a step of the process the network was trained for (0 .. 999);
    "c_noise", ln(sigma) / 4 (EDM); "log_snr", DiMR's n / 1000 * 8 - 4.
    `out_channels` is twice `in_channels` where the variance is learned: the first half is the prediction, the second
    the interpolation values v. `size` is the (H, W) that it was made for; any other works too, and what a patch size
    does not divide is padded with zeros and cut off again.
    In training mode each sample's condition is left out with probability `dropout`, so that guidance has something to
    go by: nobody else is to do that. `dropout=0` at construction makes a network without a null condition.

    A network says what it is in `predict`; the checks stand here. `predictions` are all that it is trained on, which is
    more than one for DiMR (coarse to fine, each at its own size) and LEGO (brick by brick); the last is `forward`'s.
    `masked(x, t, y, ratio)` computes with a share of the patches dropped, for networks that were made for it.
    """

    forwards = ("predictions", "masked")  # called in training in place of `forward` (see train/sharded.py)
    family: str | None = None  # whose rules its published files keep to (generation.FAMILIES)
    labels: Labels | None  # (B) -> (B D); each adapter has one of its own (adapters.HEADS)

    def __init__(self, in_channels: int, out_channels: int, size: tuple[int, int], *, num_classes: int | None = None,
                 text: tuple[int, int] | None = None, time: Time = "step", dropout: float = 0.1):  # fmt: skip
        super().__init__()
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes {num_classes}: it takes at least 1, or None for a network without labels")
        if num_classes is not None and text is not None:
            raise ValueError(f"num_classes {num_classes} and text {text} exclude each other: one kind of condition")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout {dropout}: a probability below 1 is wanted")
        if min(in_channels, out_channels, *size) < 1:
            raise ValueError(f"in_channels {in_channels}, out_channels {out_channels}, size {size}: at least 1 each")
        self.in_channels, self.out_channels, self.size = in_channels, out_channels, size
        self.num_classes, self.text, self.time, self.dropout = num_classes, text, time, dropout
        self.made_with_dropout = dropout
        self.has_null = dropout > 0 and (num_classes is not None or text is not None)
        self.labels = None
        self.name: str | None = None  # of a published variant, set by the zoo
        self.plugins: tuple[Any, ...] = ()  # what is attached (vision/plugins)
        self.adapters: Any = None  # what tunes it (vision/adapters)

    def arguments(self) -> dict[str, Any]:
        """What it was made of, by the names of the constructor."""
        raise AssertionError(f"{type(self).__name__} does not say what it was made of")

    # ------------------------------------------------------------------------------------------------------- computing

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.check(x, t, y)
        return self.predict(x, t, self.thinned(y))[-1]

    def predictions(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> list[Tensor]:
        """All that the network is trained on."""
        self.check(x, t, y)
        return self.predict(x, t, self.thinned(y))

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None) -> list[Tensor]:
        """What the network computes; its arguments have been looked at."""
        raise AssertionError(f"{type(self).__name__} does not say what it computes")

    def masked(self, x: Tensor, t: Tensor, y: Tensor | None, ratio: float) -> tuple[Tensor, Tensor]:
        """(out (B out_channels H W), kept (B h*w) bool): with a share `ratio` of the patches dropped at random; what
        stands in their place is not to be learned from."""
        raise ValueError(f"{self.called} was not made to be trained on some of its patches; microdit_* were")

    # ------------------------------------------------------------------------------------------------------ conditions

    @property
    def called(self) -> str:
        return self.name or type(self).__name__

    def null(self, y: Tensor | None) -> Tensor:
        """The condition of nothing for as many samples as y has: labels `num_classes`, captions of zeros. Raises
        ValueError where there is none."""
        if y is None or not self.has_null:
            raise ValueError(
                f"guidance needs a null class, and {self.called} was trained without one: leave guidance out"
            )
        return torch.zeros_like(y) if self.text is not None else torch.full_like(y, self.num_classes or 0)

    def thinned(self, y: Tensor | None) -> Tensor | None:
        """y, of which each sample is that of nothing with probability `dropout` in training mode."""
        if y is None or not (self.training and self.has_null and self.dropout > 0):
            return y
        gone = torch.rand(len(y), device=y.device) < self.dropout
        return torch.where(gone.view(-1, *(1,) * (y.ndim - 1)), self.null(y), y)

    def check(self, x: Tensor, t: Tensor, y: Tensor | None) -> None:
        """Raises ValueError, with what does not fit and what would do."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x of shape (B, {self.in_channels}, H, W) is wanted; got {tuple(x.shape)}")
        if t.shape != x.shape[:1]:
            raise ValueError(f"t of shape ({x.shape[0]},) is wanted, one time a sample; got {tuple(t.shape)}")
        if self.num_classes is None and self.text is None:
            if y is not None:
                raise ValueError(f"{self.called} is unconditional, and got a condition of shape {tuple(y.shape)}")
            return
        want = x.shape[:1] if self.text is None else (x.shape[0], *self.text)
        kind = "labels" if self.text is None else "captions"
        if y is None or tuple(y.shape) != tuple(want):
            got = "none" if y is None else f"shape {tuple(y.shape)}"
            raise ValueError(f"{self.called} takes {kind} of shape {tuple(want)}; got {got}")
        if self.text is None:
            self.check_classes(y)

    def check_classes(self, y: Tensor) -> None:
        """Raises ValueError for a label that is no class. Labels on another device than the CPU are not looked at,
        which would wait for it: whoever makes them looks before."""
        if y.is_floating_point() or y.dtype == torch.bool:
            raise ValueError(f"labels are integers (int64); got {y.dtype}")
        if y.device.type != "cpu" or torch.compiler.is_compiling():
            return
        assert self.num_classes is not None
        last = self.num_classes - (not self.has_null)
        if bad := y[(y < 0) | (y > last)].tolist():
            null = f", and {self.num_classes} for none" if self.has_null else ""
            raise ValueError(f"class {bad[0]} is out of range: {self.called} has 0 .. {self.num_classes - 1}{null}")

    def reset_classifier(self, num_classes: int) -> None:
        """Labels for another data set of `num_classes` classes, each of which begins as that of no class (where there
        is one, which stays), as Diffscaler has it."""
        if self.labels is None:
            raise ValueError(f"{self.called} has no labels, so num_classes={num_classes} means nothing to it")
        if num_classes < 1:
            raise ValueError(f"num_classes {num_classes}: labels are of at least 1 class")
        self.labels, self.num_classes = self.labels.resized(num_classes), num_classes

    # -------------------------------------------------------------------------------------------------------- training

    def train(self, mode: bool = True) -> "Denoiser":
        """As `nn.Module.train`; what an adapter froze stays in evaluation mode."""
        super().train(mode)
        settle(self)
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only what enters each block, and compute it again in the backward pass."""
        raise ValueError(f"{self.called} has no checkpointing of activations")

    def no_weight_decay(self) -> set[str]:
        return undecayed(self)


@dataclass(frozen=True)
class Variant:
    """A published network by name: make(**arguments), and of which family it is."""

    family: str
    make: Callable[..., Denoiser]
    arguments: Mapping[str, Any]
    listed: bool = True

    def build(self, **changes: Any) -> Denoiser:
        """`changes`: arguments that replace those of the variant. Raises TypeError for one that there is not."""
        return self.make(**{**self.arguments, **changes})
