"""Multi-resolution training: a loss over several sizes of the same pictures (https://arxiv.org/abs/2212.00776)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...vision.tokens import Tokens
from .losses import Counts, CrossEntropy, Loss

View = tuple[Tensor, Tensor]  # images of one size, and their targets


class MultiResolution(Loss):
    """Mean over the sizes of base(logits, target) + weight * distance to the size before, for batches of
    `data.views.Views`.

    The distance is smooth-L1 (beta 1), l2 (mean square) or cosine (1 - cos) between what this size gives and what the
    size before it gave, detached and whitened by a LayerNorm without parameters (eps 1e-6); the first size has none.
    `on`: the class feature behind the last norm, the logits, or the mean of the patches there. `window`: only so many
    neighbouring sizes a step, step after step the next ones, then from the beginning (None: all). `shared_mixing`: all
    sizes of a picture are mixed with the same other one, to the same share.
    """

    needs_model = True

    def __init__(
        self,
        base: nn.Module | None = None,
        weight: float = 1.0,
        distance: Literal["smooth_l1", "l2", "cosine"] = "smooth_l1",
        on: Literal["class", "logits", "patches"] = "class",
        window: int | None = None,
        shared_mixing: bool = True,
    ):
        super().__init__()
        if distance not in DISTANCES:
            raise ValueError(f"distance {distance!r} is not known; there are {', '.join(DISTANCES)}")
        if on not in ("class", "logits", "patches"):
            raise ValueError(f"on {on!r}: it is class, logits or patches")
        if window is not None and window < 1:
            raise ValueError(f"window {window}: at least 1 size a step")
        self.base = base if base is not None else CrossEntropy()
        self.labels = getattr(self.base, "labels", "one")
        if getattr(self.base, "needs_image", False):
            raise ValueError(
                f"{type(self.base).__name__} wants images: its place is not inside a loss of several sizes"
            )
        self.weight, self.distance, self.on = weight, distance, on
        self.window, self.shared_mixing = window, shared_mixing

    def setup(self, classes: int, counts: Callable[[], Counts], preprocessing: Mapping[str, Any]) -> None:
        if isinstance(self.base, Loss):
            self.base.setup(classes, counts, preprocessing)

    def forward(self, model: nn.Module, views: Sequence[View], step: int = 0) -> Tensor:
        """`model` has timm's methods; `step` counts the batches."""
        if len(views) < 2:
            raise ValueError(
                "a loss over several sizes got images of one: set data.augment to patchloom.data.views.Views"
            )
        total, before = torch.zeros((), device=views[0][0].device), None
        chosen = self.chosen(views, step)
        for image, target in chosen:
            features = model.forward_features(image)  # type: ignore[operator]
            logits = model.forward_head(features)  # type: ignore[operator]
            total = total + self.base(logits, target)
            seen = logits if self.on == "logits" else self.feature(model, features)
            if before is not None:
                target_feature = F.layer_norm(before, before.shape[-1:], eps=1e-6)
                total = total + self.weight * DISTANCES[self.distance](seen, target_feature)
            before = seen.detach()
        return total / len(chosen)

    def chosen(self, views: Sequence[View], step: int) -> Sequence[View]:
        """The views that count at this step."""
        if self.window is None or self.window >= len(views):
            return views
        start = step % (len(views) - self.window + 1)
        return views[start : start + self.window]

    def feature(self, model: nn.Module, features: Tensor) -> Tensor:
        """(B C)"""
        if self.on == "class":
            return model.forward_head(features, pre_logits=True)  # type: ignore[operator, no-any-return]
        if features.ndim == 4:
            return features.mean((2, 3))
        special = getattr(model, "special", range(getattr(model, "num_prefix_tokens", 0)))
        return Tokens(features, None, tuple(p % features.shape[1] for p in special)).patches().mean(1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(a, b, dim=-1).mean()


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "smooth_l1": F.smooth_l1_loss, "l2": F.mse_loss, "cosine": cosine,
}  # fmt: skip
