"""The eye of a language model: any backbone, read after any of its blocks or stages."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..vision.backbone import Backbone
from ..vision.features import take
from ..vision.model import Classifier
from ..vision.tokens import Tokens


@dataclass(frozen=True)
class Seen:
    """What a tower saw: tokens (B N C), and the grid (H, W) that they fill behind `special` others in front; None where
    they fill none, since a plugin made them fewer."""

    x: Tensor
    grid: tuple[int, int] | None
    special: int = 0


class Tower(nn.Module):
    """image (B 3 H W) -> Seen.

    level: after which block of a model of one resolution, or stage of a pyramid, counted from 0 or from the end (-2 is
        LLaVA's last but one); several are laid side by side in the channels. The last, alone, is behind the
        classifier's norm, where there is one.
    special: whether class and register tokens come too, in front.
    fewer: hand on fewer tokens where a plugin merged or dropped some; False: each patch gets the token that it is in.

    A head of a classifier is left out. Raises ValueError for a level that is not there, and for levels of different
    resolutions.
    """

    def __init__(self, model: Backbone | Classifier, level: int | Sequence[int] = -1, special: bool = False,
                 fewer: bool = False):  # fmt: skip
        super().__init__()
        backbone = model.backbone if isinstance(model, Classifier) else model
        if not isinstance(backbone, Backbone):
            raise ValueError(f"a tower is made of a Backbone or a Classifier; got {type(model).__name__}")
        levels = [level] if isinstance(level, int) else list(level)
        if not levels:
            raise ValueError("level=(): a tower is read after at least one block or stage")
        taps = backbone.taps
        self.taps = [take(taps, [i])[0] for i in levels]
        strides = {backbone.strides[stage] for stage, _ in self.taps}
        if len(strides) > 1:
            raise ValueError(f"levels {levels} have strides {sorted(strides)}: only maps of one size lie side by side")
        self.backbone = backbone
        last = isinstance(model, Classifier) and self.taps[-1] == taps[-1] and len(levels) == 1
        self.neck: nn.Module = model.neck if last and isinstance(model, Classifier) else nn.Identity()
        self.norm: nn.Module = model.norm if last and isinstance(model, Classifier) else nn.Identity()
        self.level: int | tuple[int, ...] = level if isinstance(level, int) else tuple(levels)
        self.__dict__["model"] = model  # for `arguments`, past nn.Module's registration: a head is no part of a tower
        self.special, self.fewer, self.in_chans = special, fewer, backbone.in_chans
        self.stride = strides.pop()
        self.dim = sum(backbone.channels[stage] for stage, _ in self.taps)
        self.plugins: tuple[Any, ...] = ()  # what is attached (vision/plugins)

    def arguments(self) -> dict[str, Any]:
        """What the constructor takes to make it anew, without weights."""
        return {"model": self.__dict__["model"], "level": self.level, "special": self.special, "fewer": self.fewer}

    def forward(self, image: Tensor) -> Seen:
        taken = self.backbone.walk(image, sorted(set(self.taps)), stop=True)[1]
        by_tap = dict(zip(sorted(set(self.taps)), taken, strict=True))
        seen = [self.shown(self.finished(by_tap[tap])) for tap in self.taps]
        x = seen[0].x if len(seen) == 1 else torch.cat([s.x for s in seen], -1)
        return Seen(x, seen[0].grid, seen[0].special)

    def finished(self, t: Tokens) -> Tokens:
        return self.neck(t).through(self.norm)  # type: ignore[no-any-return]

    def shown(self, t: Tokens) -> Seen:
        k = len(t.special) if self.special else 0
        front = t.x[:, list(t.special)] if k else None
        reduced = t.source is not None or t.spread is not None
        if reduced and self.fewer:
            patches, grid = t.patches(), None
        else:
            m = t.whole()
            patches, grid = m.flatten(1, 2), (m.shape[1], m.shape[2])
        return Seen(patches if front is None else torch.cat([front, patches], 1), grid, k)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the patches of an image of `size`."""
        return self.backbone.grids(size)[self.taps[0][0]]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.backbone.grad_checkpointing = enable
