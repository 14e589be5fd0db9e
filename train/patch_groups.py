"""Which patches share a token behind each block, watched while a model runs, and drawn."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..vision.plugins import hosts_of, noting
from ..vision.tokens import Tokens, patch_positions
from .callbacks.sheet import shown

LINE = np.array([1.0, 1.0, 1.0])  # between groups
DARK = 0.25  # how bright dropped patches are
SIDE = 224  # pixels of the shorter side of a panel, at least


@dataclass(frozen=True)
class Layer:
    """What stands behind a block: for each patch of the grid H W the token that it is in, -1 where it was dropped."""

    block: str
    tokens: int
    groups: np.ndarray  # H W

    def summary(self) -> dict[str, Any]:
        """`groups` of several patches, `merged` patches in them."""
        kept = self.groups[self.groups >= 0]
        sizes = np.unique(kept, return_counts=True)[1]
        several = sizes[sizes > 1]
        return {
            "block": self.block, "tokens": self.tokens, "patches": self.groups.size, "groups": len(several),
            "merged": int(several.sum()), "dropped": self.groups.size - kept.size,
        }  # fmt: skip


@torch.inference_mode()
def watch(model: nn.Module, image: Tensor) -> list[Layer]:
    """A layer for each block, and each of its turns, that leaves patches on a known grid; of one image (1 3 H W)."""
    layers: list[Layer] = []
    with noting() as notes:
        hooks = []
        for host in hosts_of(model):
            name = host.name.removeprefix("backbone.").replace("stages.", "stage ").replace(".blocks.", ", block ")
            hooks.append(host.block.register_forward_pre_hook(lambda *_: notes.clear()))
            hooks.append(host.block.register_forward_hook(partial(keep, layers=layers, name=name, notes=notes)))
        try:
            model(image)
        finally:
            for hook in hooks:
                hook.remove()
    return layers


def keep(
    block: nn.Module, inputs: Any, t: Tokens, *, layers: list[Layer], name: str, notes: Sequence[tuple[str, Tensor]]
) -> None:
    grid, shared = t.full or t.grid, dict(notes).get("groups")
    if grid is not None:
        groups = groups_of(t, shared)
        tokens = t.x.shape[1] if shared is None else len(np.unique(groups)) + len(t.special)
        layers.append(Layer(name, tokens, groups.reshape(grid)))


def groups_of(t: Tokens, shared: Tensor | None) -> np.ndarray:
    """The token of each patch (H*W), -1 where there is none. `shared`: of those that the block's MLP saw."""
    if shared is not None:
        return shared[0].cpu().numpy()
    if t.source is not None:
        at = t.source[0]
    elif t.spread is not None:
        most, at = t.spread[0].abs().max(-1)
        at = at.where(most > 0, -1)
    else:
        at = patch_positions(t)[0]
    if t.policy is not None:
        at = at.where(t.policy[0, :, 0].gather(0, at.clamp(min=0)) > 0, -1)
    return at.cpu().numpy()


# ---- drawing


def paint(pixels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The picture (H W 3) with its merged patches in their mean colours, outlined, and its dropped ones dark."""
    high, wide = pixels.shape[:2]
    rows, columns = (np.arange(n) * g // n for n, g in zip((high, wide), groups.shape, strict=True))
    tokens, number, patches = np.unique(groups, return_inverse=True, return_counts=True)
    number = number.reshape(groups.shape)[rows][:, columns]  # of each pixel's token
    area = np.bincount(number.ravel())
    mean = np.stack([np.bincount(number.ravel(), pixels[..., c].ravel()) / area for c in range(3)], -1)
    merged, dropped = ((patches > 1) & (tokens >= 0))[number], (tokens < 0)[number]
    out = np.where(merged[..., None], mean[number], pixels)
    out[dropped] *= DARK
    edge = np.zeros((high, wide), bool)
    edge[1:] |= (number[1:] != number[:-1]) & (merged[1:] | merged[:-1])
    edge[:, 1:] |= (number[:, 1:] != number[:, :-1]) & (merged[:, 1:] | merged[:, :-1])
    out[edge] = LINE
    return out


def picture(image: Tensor, preprocessing: Mapping[str, Any], layers: Sequence[Layer], title: str) -> bytes:
    """The image (3 H W) as the model saw it, and a panel for each layer."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pixels = shown(image, preprocessing).numpy()
    times = max(1, -(-SIDE // min(pixels.shape[:2])))
    pixels = pixels.repeat(times, 0).repeat(times, 1)
    panels = [("the image", pixels)]
    panels += [(f"{layer.block}: {layer.tokens} tokens", paint(pixels, layer.groups)) for layer in layers]
    columns = min(len(panels), 5)
    lines, shape = -(-len(panels) // columns), pixels.shape[0] / pixels.shape[1]
    figure = Figure(figsize=(columns * 2.3, lines * (2.3 * shape + 0.25) + 0.35), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(lines, columns)).ravel()
    for axis, (name, panel) in zip(axes, panels, strict=False):
        axis.imshow(panel, interpolation="nearest")
        axis.set_title(name, fontsize=8)
    for axis in axes:
        axis.axis("off")
    figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    out = io.BytesIO()
    figure.savefig(out, format="png", facecolor="white")
    return out.getvalue()
