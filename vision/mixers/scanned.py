"""Any sequence mixer in any order: the tokens are rearranged, mixed, and put back."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ..block import Mixer
from ..orders import Order
from ..tokens import Probe, Tokens


class ScannedMixer(nn.Module):
    """The mean over an order's walks of what a mixer of its own, or the same one for all, makes of the tokens in that
    order. Special tokens keep their places in the sequence."""

    needs_grid, offers, projections = True, (), ()

    def __init__(self, mixers: list[nn.Module], order: Order):
        super().__init__()
        needy = next((type(m).__name__ for m in mixers if getattr(m, "needs_grid", False)), None)
        if needy:
            raise ValueError(f"{needy} mixes a map, not a sequence: it has no scan order; use it without Scanned")
        self.mixers, self.order = nn.ModuleList(mixers), order

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        if t.grid is None:
            raise ValueError("these tokens no longer fill a grid, and a scan order goes by their places on it")
        total: Tensor | None = None
        for i, path in enumerate(self.order.paths(*t.grid)):
            ahead, back = (torch.from_numpy(p).to(t.x.device) for p in among(path, t.special, t.x.shape[1]))
            mixer = self.mixers[i % len(self.mixers)]
            y = mixer(replace(t, x=t.x[:, ahead], grid=None))[:, back]
            total = y if total is None else total + y
        assert total is not None
        return total / self.order.count


def among(path: np.ndarray, special: tuple[int, ...], length: int) -> tuple[np.ndarray, np.ndarray]:
    """A walk over the patches as one over a sequence of `length` in which special tokens stand still, and its
    inverse."""
    ahead = np.arange(length)
    patches = np.setdiff1d(ahead, special)
    ahead[patches] = patches[path]
    return ahead, np.argsort(ahead)


@dataclass(frozen=True)
class Scanned:
    """`mixer` along the walks of `order`; `shared`: one set of weights for all walks."""

    mixer: Mixer
    order: Order = Order()
    shared: bool = False

    def build(self, dim: int, index: int) -> nn.Module:
        count = 1 if self.shared else self.order.count
        return ScannedMixer([self.mixer.build(dim, index) for _ in range(count)], self.order)
