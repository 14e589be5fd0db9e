"""Hierarchical side-tuning (HST), https://arxiv.org/abs/2310.05393: a small network of four stages, with maps of 1/4 to
1/32 of the image, reads the blocks of a frozen backbone and answers in its stead.

Of the trunk learn the norms of its blocks and the meta tokens before them; with neither, no gradient enters it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..backbone import Backbone
from ..features import FeatureInfo, feature_rows, take
from ..heads.classification import Head
from ..layers import Linear
from ..model import Classifier
from ..network import Rules
from ..plugins import Host, hosts_of
from ..pyramid import Pyramid
from . import AdapterError, Put
from .partial import norms_below
from .side_network import Level, SideNetwork, stage_of

TRUNK = "backbone.trunk."  # where the backbone is while the side network stands in its place


@dataclass(frozen=True)
class Hst:
    """Hierarchical side-tuning: a small pyramid that reads a frozen trunk and answers in its stead.

    Stages of `dims` channels in `heads` heads. A stage ends with the trunk's block `at` (from 0; None: the ends of a
    trunk's own four stages, or every quarter of it: 2, 5, 8, 11 of 12) and has a block for each of the trunk's since
    the one before it, `depth` at most, evenly spread; where the trunk has too few, stages read the same one.

    `meta` tokens stand before each block of the trunk; they take a trunk of one resolution whose blocks need no map.
    0 is ours, for all others: the means over the quarters of the map then say what meta tokens gather. `fixed`: neither
    they nor the trunk's norms learn.
    """

    meta: int = 1
    fixed: bool = False
    at: tuple[int, ...] | None = None
    depth: int = 3
    dims: tuple[int, ...] = (32, 48, 64, 72)
    heads: tuple[int, ...] = (2, 4, 8, 12)

    def __post_init__(self) -> None:
        if self.meta < 0 or self.depth < 1:
            raise ValueError(f"meta={self.meta}, depth={self.depth}: no fewer than 0 meta tokens and 1 block a stage")
        if len(self.dims) != len(self.heads) or any(h < 1 or d % h for d, h in zip(self.dims, self.heads, strict=True)):
            raise ValueError(f"dims={self.dims}, heads={self.heads}: each width divides into as many heads, one each")
        at = self.at
        if at is not None and (len(at) != len(self.dims) or list(at) != sorted(at) or at[0] < 0):
            raise ValueError(f"at={at}: {len(self.dims)} blocks of the trunk, from 0, in order, one for each stage")

    def place(self, model: nn.Module) -> list[Put]:
        trunk = getattr(model, "backbone", None)
        if not isinstance(model, Classifier | Pyramid) or not isinstance(trunk, Backbone):
            raise AdapterError(f"{type(model).__name__}: hst takes a Classifier or a Pyramid of this suite")
        if type(trunk).walk is not Backbone.walk:
            kind = type(trunk).__name__
            raise AdapterError(f"backbone: {kind} does more between its blocks than a side network follows")
        levels = self.levels([s.depth for s in trunk.specs])
        read = [stage_of(trunk, place) for place in range(1 + levels[-1].reads[-1])]
        if self.meta:
            check_meta(trunk, [host for host in hosts_of(model) if (host.stage, host.index) in read])
        side = SideNetwork(trunk, levels, self.meta, self.fixed)
        puts = [Put("", "backbone", side)]
        if not self.fixed:
            puts += norms_below(model, *(f"backbone.stages.{i}.blocks.{j}" for i, j in read))
        return puts + (of_classifier(model, side) if isinstance(model, Classifier) else of_pyramid(model, side))

    def levels(self, depths: Sequence[int]) -> list[Level]:
        """What each stage is, for a trunk whose stages have so many blocks."""
        total, stages = sum(depths), len(self.dims)
        at = self.at
        if at is None and len(depths) == stages:
            at = tuple(sum(depths[: j + 1]) - 1 for j in range(stages))
        elif at is None:
            at = tuple(max(0, round(total * (j + 1) / stages) - 1) for j in range(stages))
        if at[-1] >= total:
            raise ValueError(f"at={at}: the trunk has {total} blocks, from 0")
        found, before = [], -1
        for dim, heads, end in zip(self.dims, self.heads, at, strict=True):
            n = end - before
            k = min(n, self.depth)
            reads = tuple(before + round(n * (i + 1) / k) for i in range(k)) or (end,)
            found.append(Level(dim, heads, reads))
            before = end
        return found

    def published(self, hosts: Sequence[Host]) -> Rules:
        """The authors' file holds a ViT in timm's names and the side network; it does not read the ViT's last norm."""
        rename: list[tuple[str, str]] = []
        depths, count = {host.stage: host.depth for host in hosts}, 0
        for j, level in enumerate(self.levels(list(depths.values()))):
            ours, n = f"backbone.levels.{j}.", j + 1
            if j > 0:
                rename += [(rf"m_patch_embed{n}\.proj\.(weight|bias)", ours + r"down.convolution.conv.\1"),
                           (rf"m_patch_embed{n}\.norm\.(weight|bias)", ours + r"down.convolution.norm.\1")]  # fmt: skip
            block, own = rf"m_block{n}\.(\d+)\.", ours + r"blocks.\1."
            rename += [
                (block + r"(norm[12])\.(weight|bias)", own + r"\2.\3"),
                (block + r"attn\.(q|k|v|proj)\.(weight|bias)", own + r"mixer.\2.\3"),
                (block + r"mlp\.(fc[12])\.(weight|bias)", own + r"ffn.\2.\3"),
                (rf"m_norm{n}\.(weight|bias)", ours + r"norm.\1"),
                (rf"T_Bridge_{n}\.(weight|bias)", ours + r"bridges.0.\1"),
            ]
            for k in range(len(level.reads)):
                count += 1
                rename.append((rf"m_proj_norm{count}\.(weight|bias)", ours + rf"blocks.{k}.meta_norm.\1"))
        rename += [
            (r"m_patch_embed1\.conv\.0\.weight", "backbone.shallow.enter.conv.weight"),
            (r"m_patch_embed1\.conv\.1\.(.*)", r"backbone.shallow.enter.norm.\1"),
            (r"m_patch_embed1\.conv\.3\.(weight|bias)", r"backbone.shallow.halve.conv.\1"),
            (r"m_patch_embed1\.norm\.(weight|bias)", r"backbone.shallow.halve.norm.\1"),
            (r"m_embeddings\.(\d+)", r"backbone.tokens.\1"),
            (r"fc_norm\.(.*)", r"late_norm.\1"),
        ]
        return Rules(tuple(rename), drop=(r"norm\.(weight|bias)",), moved=(("backbone.", TRUNK),))


def check_meta(trunk: Backbone, hosts: Sequence[Host]) -> None:
    """Raises AdapterError where meta tokens cannot run through the trunk's blocks."""
    instead = "meta=0 reads the means of the map's quarters in their stead"
    for host in hosts:
        for part in (host.mixer, host.block, getattr(host.block, "ffn", None)):
            if getattr(part, "needs_grid", False):
                raise AdapterError(
                    f"{host.name}: {type(part).__name__} takes a full grid, and no meta tokens beside it; {instead}"
                )
    if len(trunk.specs) > 1:
        step = type(getattr(trunk.stages[1], "down", None)).__name__
        raise AdapterError(f"backbone.stages.1.down: {step} takes a map, and no meta tokens beside it; {instead}")


class OverImages(nn.BatchNorm1d):
    """(B m) normalised over the images of a batch."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and len(input) < 2:
            raise ValueError("hst's head normalises over a batch while it learns: 2 images or more are wanted, not 1")
        return super().forward(input)


def of_classifier(model: Classifier, side: SideNetwork) -> list[Put]:
    """The head: mean over the last map, batch norm without weights, a linear layer."""
    dim, cfg = side.channels[-1], model.default_cfg
    first = TRUNK + str(cfg.get("first_conv", "")).removeprefix("backbone.")
    size = cfg["input_size"][1:]
    new: dict[str, Any] = {
        "spec": Head(None, late=True), "num_features": dim, "head_hidden_size": dim,
        "neck": nn.Identity(), "widen": nn.Identity(), "norm": nn.Identity(),
        "late_norm": OverImages(dim, eps=1e-6, affine=False), "attention_pool": None,
        "head": Linear(dim, model.num_classes) if model.num_classes else nn.Identity(),
        "head_dist": None, "head_patches": None, "global_pool": model.global_pool and "avg",
        "default_cfg": {**cfg, "classifier": "head", "first_conv": first, "pool_size": side.grids(size)[-1]},
    }  # fmt: skip
    return [Put("", name, what) for name, what in new.items()]


def of_pyramid(model: Pyramid, side: SideNetwork) -> list[Put]:
    """The maps of the same strides as before; where the side network has them not, as many as before, the coarsest."""
    rows, taps = feature_rows(side, "backbone."), side.taps  # type: ignore[arg-type]
    before = list(model.strides)
    chosen = tuple(i for i, stride in enumerate(side.strides) if stride in before)
    if len(chosen) < len(before):
        chosen = tuple(range(max(0, len(taps) - len(before)), len(taps)))
    info = FeatureInfo([rows[i] for i in chosen], chosen)
    new: dict[str, Any] = {
        "wanted": take(taps, chosen), "feature_info": info, "channels": info.channels(),
        "strides": info.reduction(), "norms": nn.ModuleDict(),
    }  # fmt: skip
    return [Put("", name, what) for name, what in new.items()]
