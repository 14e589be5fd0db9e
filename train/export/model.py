"""What of a network goes into a file for other runtimes: a function of tensors, with names for what goes in and out,
and examples of it."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...vision.adapters import AdapterError, adapter_of, host, in_words, merge
from ...vision.fold import fold
from ...vision.generation.denoiser import Denoiser
from ...vision.heads.mask_tasks import SemanticSegmenter
from ...vision.heads.semantic import Segmenter
from ...vision.model import Classifier
from ...vision.pyramid import Pyramid

Size = tuple[int, int, int]  # images, height, width
SIDE = 224  # pixels, of a network that was made for no size


@dataclass(frozen=True)
class Portable:
    """A network in evaluation mode that takes tensors of some (B, C, H, W) and more; `size` is the (H, W) that it was
    made for, `stride` the pixels of one place of its coarsest map."""

    model: nn.Module
    task: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    channels: int
    size: tuple[int, int]
    stride: int

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def example(self, size: Size, seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs for so many images of that size, in the network's type."""
        generator, (batch, *sides) = torch.Generator().manual_seed(seed), size
        x = torch.randn(batch, self.channels, *sides, generator=generator).to(self.dtype)
        if not isinstance(self.model, Denoiser):
            return (x,)
        t = torch.rand(batch, generator=generator) * 8 - 4
        t = (t + 4) * 100 if self.model.time == "step" else t
        if self.model.text is not None:
            return x, t, torch.randn(batch, *self.model.text, generator=generator).to(self.dtype)
        if self.model.num_classes is None:
            return x, t
        return x, t, torch.randint(self.model.num_classes, (batch,), generator=generator)

    def smallest(self) -> Iterator[int]:
        """What the shorter side may be at least in a file for every size, the most generous first: some networks go
        other ways on maps of one place, or on ones that are smaller than a window."""
        side = min(self.size)
        wanted = (2 * self.stride + 2, side // 2 + 1, side - self.stride + 1)
        yield from sorted({n for n in wanted if 1 < n <= side} or {side})

    def made_with(self) -> Size:
        """The example that a file for every size is made with: sides that differ, and that it is not tried at."""
        return 2, self.size[0] + self.stride, self.size[1] + 2 * self.stride

    def others(self, least: int) -> list[Size]:
        """Three sizes to try it at: its own; the smallest; and one of odd sides."""
        (high, wide), s = self.size, self.stride
        return [(1, high, wide), (2, least, wide + s + s // 2 + 1), (3, high + 2 * s + 1, max(least, wide - s + 1) | 1)]


def portable(model: nn.Module, spec: str, *, folded: bool = False, dtype: torch.dtype = torch.float32) -> Portable:
    """`model` with its adapter merged into its weights where that can be (else it stays beside them, in the file too),
    and what is constant after training folded where asked to. Raises ValueError for what is no function of tensors."""
    task, inputs, outputs = signature(model, spec)
    if adapter_of(model) is not None:
        merge_if_possible(model)
    if folded:
        if not isinstance(host(model), (Classifier, Pyramid, Denoiser)):
            raise ValueError(f"--fold is for models of this suite; {spec} comes from timm as it is")
        model = fold(model)
    model = model.to(device="cpu", dtype=dtype).eval().requires_grad_(False)
    channels, size, stride = images_of(model)
    return Portable(model, task, inputs, outputs, channels, size, stride)


def merge_if_possible(model: nn.Module) -> None:
    adapter = adapter_of(model)
    assert adapter is not None
    try:
        merge(model)
    except AdapterError:
        print(
            f"{in_words(adapter)} is more than other weights: it is in the file as layers of its own", file=sys.stderr
        )


def signature(model: nn.Module, spec: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """(task, names of inputs, names of outputs)."""
    if isinstance(model, Denoiser):
        if model.text is not None:
            return "text-to-image", ("x", "t", "y"), ("prediction",)
        if model.num_classes is not None:
            return "class-to-image", ("x", "t", "y"), ("prediction",)
        return "unconditional-image-generation", ("x", "t"), ("prediction",)
    if isinstance(model, Pyramid):
        return "image-feature-extraction", ("image",), tuple(f"map{i}" for i in range(len(model.channels)))
    if isinstance(model, (Segmenter, SemanticSegmenter)):
        return "image-segmentation", ("image",), ("logits",)
    if isinstance(getattr(model, "classes", None), int):
        raise ValueError(
            f"{spec} is a detector: which boxes it keeps depends on the image, which no file of fixed operations does; "
            "--features exports its backbone"
        )
    if hasattr(model, "image_token") or hasattr(model, "of_texts"):
        raise ValueError(f"{spec} takes texts beside images: files are made of networks that take images alone")
    return "image-classification", ("image",), ("logits",)


def images_of(model: nn.Module) -> tuple[int, tuple[int, int], int]:
    """(channels, (H, W), stride) of what the network takes."""
    if isinstance(model, Denoiser):
        return model.in_channels, (model.size[0], model.size[1]), int(getattr(model, "patch", 2)) * 2
    below: Any = model if hasattr(model, "feature_info") else getattr(model, "pyramid", None) or model.backbone
    cfg = getattr(model, "default_cfg", None) or below.default_cfg
    stride = int(max(row["reduction"] for row in below.feature_info))
    anything = (getattr(below, "in_chans", 3), *(max(SIDE, 4 * stride),) * 2)  # a dense network takes any size
    channels, high, wide = cfg.get("input_size", anything)
    return channels, (high, wide), stride
