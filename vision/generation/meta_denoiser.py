"""Any list of stages as a denoiser.

Shapes: B samples, C channels, an H x W image or latent, D condition width, N tokens.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..backbone import Backbone, Stage
from ..block import BlockSpec, EachBlock
from ..stem import Down, Stem
from ..tokens import Tokens
from .adaln import Conditioned, FinalLayer
from .conditioning import CaptionEmbedding, LabelEmbedding, TimeEmbedding
from .denoiser import Denoiser, Time
from .position import LatentPatches
from .way_up import Same, WayUp


class MetaDenoiser(Denoiser):
    """Patches -> stages of conditioned blocks (`AdaLNZero` around any mixer) -> a conditioned norm and a linear layer.

    At one resolution the stages follow each other; where one of them has a `down` (`Merge2x2`, `Strided`), they are a
    pyramid, whose stages but the last come once more on a way up, with what they gave on the way down. The condition
    vector is the sum of the time's and the label's, or the caption's mean's; a caption's tokens are there for blocks
    with `cross_heads`. `condition` is its width, that of the first stage unless it is given. `stem`: what makes tokens,
    in place of `patch` x `patch` patches with sine-cosine places. All that joins a branch begins at zero.
    """

    def __init__(self, stages: Sequence[Stage], patch: int = 2, in_channels: int = 4, size: Sequence[int] = (32, 32), *,
                 num_classes: int | None = None, text: Sequence[int] | None = None, learn_variance: bool = False,
                 condition: int | None = None, stem: Stem | None = None, down: Down | None = None, time: Time = "step",
                 dropout: float = 0.1, drop_path: float = 0.0):  # fmt: skip
        if len(size) != 2 or (text is not None and len(text) != 2):
            raise ValueError(f"size {size} is (H, W), and text {text} is (tokens, width)")
        high, wide = int(size[0]), int(size[1])
        words = None if text is None else (int(text[0]), int(text[1]))
        super().__init__(in_channels, in_channels * (1 + learn_variance), (high, wide), num_classes=num_classes,
                         text=words, time=time, dropout=dropout)  # fmt: skip
        dim = condition or stages[0].dim if stages else 1
        self.condition, self.learn_variance = dim, learn_variance
        self.given = tuple(stages), stem, condition
        context = None if words is None else dim
        told = [replace(s, block=conditioned(s.block, dim, context)) for s in stages]
        if stages and not any(is_conditioned(s.block) for s in stages):
            raise ValueError("no stage of this denoiser looks at its condition: give them block=AdaLNZero()")
        first = stem or LatentPatches(patch, (-(-high // patch), -(-wide // patch)))
        self.time_embedding = TimeEmbedding(dim)
        self.labels = None if num_classes is None else LabelEmbedding(num_classes, dim, self.has_null)
        self.captions = None if words is None else CaptionEmbedding(words[1], dim)
        self.backbone = Backbone(told, first, Same() if down is None else down, in_chans=in_channels,
                                 drop_path=drop_path)  # fmt: skip
        if any(self.backbone.specials):
            raise ValueError(f"{first} puts special tokens beside the patches, which a denoiser has no use for")
        pyramid = len(set(self.backbone.strides)) > 1
        self.up = WayUp(told, self.backbone.strides) if pyramid else None
        self.final = FinalLayer(told[0 if pyramid else -1].dim, dim, first.stride, self.out_channels)
        self.initialise()

    def initialise(self) -> None:
        """Time layers normal with deviation 0.02, as DiT has them; the rest is as its parts begin."""
        for layer in (self.time_embedding.fc1, self.time_embedding.fc2):
            nn.init.normal_(layer.weight, std=0.02)

    def arguments(self) -> dict[str, Any]:
        stages, stem, condition = self.given
        return {"stages": stages, "patch": self.backbone.stem_spec.stride, "in_channels": self.in_channels,
                "size": self.size, "num_classes": self.num_classes, "text": self.text,
                "learn_variance": self.learn_variance, "condition": condition, "stem": stem,
                "down": self.backbone.down_spec, "time": self.time, "dropout": self.made_with_dropout,
                "drop_path": self.backbone.drop_path}  # fmt: skip

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None) -> list[Tensor]:
        c, context = self.conditions(t, y, x.dtype)
        first = replace(cast(Tokens, self.backbone.stem(x)), condition=c, context=context)
        if self.up is None:
            last = self.backbone.onward(first, ())[0].restored()
        else:
            ends = [(i, s.depth - 1) for i, s in enumerate(self.backbone.specs)]
            *skips, last = self.backbone.onward(first, ends)[1]
            last = self.up(last, skips, self.backbone).restored()
        assert last.grid is not None
        out = self.final(last.x, c, last.grid)
        return [out[:, :, : x.shape[2], : x.shape[3]]]

    def conditions(self, t: Tensor, y: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """(B D), and a caption's tokens (B L D)."""
        c: Tensor = self.time_embedding(t, dtype)
        if self.labels is not None:
            return c + self.labels(y), None
        if self.captions is None:
            return c, None
        pooled, tokens = self.captions(y)
        return c + pooled, tokens

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.backbone.grad_checkpointing = enable


def is_conditioned(block: BlockSpec) -> bool:
    return any(map(is_conditioned, block.blocks)) if isinstance(block, EachBlock) else isinstance(block, Conditioned)


def conditioned(block: BlockSpec, condition: int, context: int | None) -> BlockSpec:
    """The block told how wide conditions are, where it wants to know."""
    if isinstance(block, EachBlock):
        return EachBlock(tuple(conditioned(b, condition, context) for b in block.blocks))
    return block.conditioned(condition, context) if isinstance(block, Conditioned) else block
