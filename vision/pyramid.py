"""A backbone for dense heads: maps instead of logits."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .adapters import settle
from .backbone import Backbone
from .features import FeatureInfo, feature_rows, layer_groups, nchw, spread, take, undecayed
from .fold import fold
from .norm import Norm


class Pyramid(nn.Module):
    """image (B 3 H W) -> the maps (B C H/s W/s) after the chosen stages, or blocks of a single-resolution model;
    `channels` and `strides` describe them. `norms`: one for each map (the authors' detection form), or none."""

    def __init__(self, backbone: Backbone, out_indices: Sequence[int] | int | None = None, norm: Norm | None = None):
        super().__init__()
        self.backbone = backbone
        rows = feature_rows(backbone, "backbone.")
        if out_indices is None:
            out_indices = spread(len(rows)) if len(set(backbone.strides)) == 1 else range(len(rows))
        self.wanted = take(backbone.taps, out_indices)
        chosen = [backbone.taps.index(w) for w in self.wanted]
        self.feature_info = FeatureInfo([rows[i] for i in chosen], chosen)
        self.channels, self.strides = self.feature_info.channels(), self.feature_info.reduction()
        self.norms = nn.ModuleDict({} if norm is None else {str(i): norm.build(rows[i]["num_chs"]) for i in chosen})
        self.in_chans, self.dense, self.norm_spec = backbone.in_chans, False, norm
        self.name: str | None = None  # name, family and arguments of a published variant are set by the zoo
        self.family: str | None = None
        self.arguments: dict[str, Any] = {}
        self.plugins: tuple[Any, ...] = ()  # what is attached (vision/plugins)
        self.adapters: Any = None  # what tunes it (vision/adapters)
        self.default_cfg: dict[str, Any] = {}

    def train(self, mode: bool = True) -> "Pyramid":
        """As `nn.Module.train`; what an adapter froze stays in evaluation mode."""
        super().train(mode)
        settle(self)
        return self

    def forward(self, image: Tensor) -> list[Tensor]:
        taken = self.backbone.walk(image, self.wanted, stop=True)[1]
        if self.norms:
            taken = [t.through(n) for t, n in zip(taken, self.norms.values(), strict=True)]
        return [nchw(t) for t in taken]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.backbone.grad_checkpointing = enable

    def fold(self) -> "Pyramid":
        """As `Classifier.fold`."""
        return fold(self)

    def no_weight_decay(self) -> set[str]:
        return undecayed(self)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """As `Classifier.group_matcher`; the norms of the maps count as the last block."""
        return layer_groups(coarse)
