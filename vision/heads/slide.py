"""Dense prediction of an image window by window."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


def starts(length: int, size: int, stride: int) -> list[int]:
    """Where windows of `size` begin that cover `length`, `stride` apart; the last one ends where the image does."""
    last = max(0, length - size)
    return [*range(0, last, stride), last]


@dataclass(frozen=True)
class Slide:
    """Windows of `size` pixels, a window every `stride` pixels; a number, or one for each of height and width.

    Logits are averaged where windows overlap. An image that is smaller than a window is one window.
    """

    size: int | tuple[int, int]
    stride: int | tuple[int, int]

    def __post_init__(self) -> None:
        for size, stride in zip(*self.pairs(), strict=True):
            if not 1 <= stride <= size:
                raise ValueError(f"{self}: a stride of 1 to the window's size is wanted, or pixels would be left out")

    def pairs(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Size and stride, each (height, width)."""
        size, stride = ((n, n) if isinstance(n, int) else (n[0], n[1]) for n in (self.size, self.stride))
        return size, stride

    def windows(self, height: int, width: int) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of each window of an image."""
        (h, w), (down, right) = self.pairs()
        for y in starts(height, h, down):
            for x in starts(width, w, right):
                yield slice(y, min(y + h, height)), slice(x, min(x + w, width))

    def __call__(self, model: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        """image (B 3 H W) -> what `model` gives for its windows, (B K h w) each, as one (B K H W)."""
        height, width = image.shape[-2:]
        total: Tensor | None = None
        count = torch.zeros(height, width, device=image.device)
        for rows, columns in self.windows(height, width):
            logits = model(image[..., rows, columns])
            if total is None:
                total = torch.zeros(*logits.shape[:2], height, width, dtype=torch.float32, device=logits.device)
            total[..., rows, columns] += logits
            count[rows, columns] += 1
        assert total is not None
        return (total / count).to(logits.dtype)
