"""A classifier is a backbone and a head, with the methods that timm's users know."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from . import adapters
from .adapters import adapt, settle
from .affine import into_readers
from .backbone import Backbone
from .features import FeatureInfo, feature_rows, layer_groups, nchw, take, undecayed
from .fold import fold
from .heads.classification import AttentionPool, Head, MlpHead, Widen
from .layers import Linear, is_plain
from .plugins import attach
from .plugins.words import from_words
from .tokens import Tokens, beside


class Classifier(nn.Module):
    """image (B 3 H W) -> logits (B classes).

    Where the head looks at patches too (`head_patches`, token labelling, https://arxiv.org/abs/2104.10858), the largest
    logit of each class over the patches counts `Head.patches` beside the logits (0: it serves training only).
    `num_classes=0` leaves the pooled features (B C), and with `global_pool=""` the unpooled ones. `default_cfg` says
    how images are prepared, in timm's words; `classes` are the names of the outputs, where they are known.
    """

    def __init__(self, backbone: Backbone, num_classes: int = 1000, head: Head | None = None, *, drop_rate: float = 0.0,
                 global_pool: str | None = None, img_size: int | tuple[int, int] = 224,
                 tokens: Any = None, adapter: Any = None):  # fmt: skip
        super().__init__()
        self.backbone, self.spec, self.drop_rate = backbone, Head() if head is None else head, drop_rate
        self.num_features = dim = backbone.channels[-1]
        self.neck = nn.Identity() if self.spec.neck is None else self.spec.neck.build(dim)
        self.widen = nn.Identity() if self.spec.widen is None else Widen(dim, self.spec.widen)
        norm = nn.Identity() if self.spec.norm is None else self.spec.norm.build(dim)
        self.norm: nn.Module = nn.Identity() if self.spec.late else norm
        self.late_norm: nn.Module = norm if self.spec.late else nn.Identity()
        self.global_pool = self.checked_pool(global_pool)
        self.attention_pool = AttentionPool(dim) if self.spec.pool == "attention" else None
        self.head_drop = nn.Dropout(drop_rate)
        self.head_hidden_size, self.in_chans = self.spec.widen or dim, backbone.in_chans
        self.head: nn.Module
        self.head_dist: nn.Module | None = None
        self.head_patches: nn.Module | None = None
        self.distilled_training = self.patch_training = False
        self.make_heads(num_classes)
        self.name: str | None = None  # name, family and arguments of a published variant are set by the zoo
        self.family: str | None = None
        self.arguments: dict[str, Any] = {}
        self.plugins: tuple[Any, ...] = ()  # what is attached (vision/plugins)
        self.adapters: Any = None  # what tunes it (vision/adapters)
        self.default_cfg: dict[str, Any] = default_cfg(self, img_size)
        if tokens is not None:
            attach(self, from_words(tokens))
        if adapter is not None:
            adapt(self, adapters.from_words(adapter))

    def train(self, mode: bool = True) -> "Classifier":
        """As `nn.Module.train`; what an adapter froze stays in evaluation mode."""
        super().train(mode)
        settle(self)
        return self

    # ------------------------------------------------------------------------------------------------------- forward

    def forward(self, image: Tensor) -> Any:
        return self.logits(self.features(image))

    def features(self, image: Tensor) -> Tokens:
        """The last tokens, behind the norm where that comes before the pooling."""
        return self.finished(self.backbone.last(image))

    def finished(self, t: Tokens) -> Tokens:
        """What the last stage gave, through neck and norm."""
        t = self.neck(t)
        return replace(t, x=self.norm(t.x))

    def forward_features(self, image: Tensor) -> Tensor:
        """(B C H W), or (B N C) where the model has special tokens or a plugin reduced them."""
        return self.shown(self.features(image))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Any:
        """What `forward_features` gave -> logits (B classes), or the pooled features (B C)."""
        if x.ndim == 4:
            t = Tokens(x.permute(0, 2, 3, 1).flatten(1, 2), (x.shape[2], x.shape[3]))
        else:
            t = Tokens(x, None, self.places(x.shape[1]))
        return self.logits(t, pre_logits)

    def logits(self, t: Tokens, pre_logits: bool = False) -> Any:
        if self.global_pool == "":
            return self.shown(t)
        if self.spec.pool == "distilled":
            pair = t.x[:, t.special[0]], t.x[:, t.special[1]]
        else:
            wide = replace(t, x=self.widen(t.x))
            x = self.late_norm(self.pooled(wide))
            t = wide if self.spec.wide_patches else t
            pair = x, x
        if pre_logits or self.num_classes == 0:
            return pair[0] if pair[0] is pair[1] else (pair[0] + pair[1]) / 2
        y = self.head(self.head_drop(pair[0]))
        if self.head_dist is not None:
            other = self.head_dist(self.head_drop(pair[1]))
            if self.distilled_training and self.training:
                return y, other
            y = (y + other) / 2
        return y if self.head_patches is None else self.with_patches(y, t)

    def with_patches(self, y: Tensor, t: Tokens) -> Any:
        """The logits y beside those of the patches (B N classes) while training with token labels; else their sum."""
        assert self.head_patches is not None
        weight = cast(float, self.spec.patches)
        training = self.patch_training and self.training
        if not training and weight == 0:
            return y
        each = self.head_patches(t.patches())
        return (y, each) if training else y + weight * each.amax(1)

    def pooled(self, t: Tokens) -> Tensor:
        """(B C)"""
        if self.spec.pool == "token":
            return t.x[:, t.special[0]]
        if self.attention_pool is not None:
            return cast(Tensor, self.attention_pool(t.x, t.policy))
        if t.size is None and t.policy is None:
            return t.patches().mean(1)
        counts = torch.ones_like(t.x[..., :1])
        for each in (t.size, t.policy):
            counts = counts if each is None else counts * each.to(t.x.dtype)
        size = replace(t, x=counts).patches()
        return (t.patches() * size).sum(1) / size.sum(1)

    def shown(self, t: Tokens) -> Tensor:
        return t.x if t.special or t.grid is None else nchw(t)

    # ---------------------------------------------------------------------------------------------------- features

    @property
    def special(self) -> tuple[int, ...]:
        """Where the special tokens stand in what `forward_features` gives."""
        own: tuple[int, ...] | None = getattr(self.neck, "special", None)  # an adapter's neck says so itself
        if own is None and self.spec.neck is not None:
            own = self.spec.neck.special
        return beside(self.backbone.special, *self.backbone.prompts) if own is None else own

    def places(self, length: int) -> tuple[int, ...]:
        """`special` in a sequence of `length` tokens."""
        stem, (at, n) = self.backbone.stem_spec, self.backbone.prompts
        if self.special == beside(stem.special, at, n):
            return beside(stem.places(length - n), at, n)
        return tuple(p % length for p in self.special)

    @property
    def feature_info(self) -> FeatureInfo:
        return FeatureInfo(feature_rows(self.backbone, "backbone."))

    def forward_intermediates(
        self, x: Tensor, indices: int | Sequence[int] | None = None, norm: bool = False, stop_early: bool = False,
        output_fmt: str = "NCHW", intermediates_only: bool = False, return_prefix_tokens: bool = False,
    ) -> Any:  # fmt: skip
        """(what `forward_features` gives, [the maps at `indices`]); an int n means the last n, None all. `norm` puts
        the final norm on each of them, `return_prefix_tokens` gives pairs of map and special tokens (B k C)."""
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt {output_fmt!r}: it is NCHW or NLC")
        if norm and (self.spec.late or len(self.backbone.specs) > 1):
            raise ValueError(
                f"norm=True: the final norm of {self.name or 'this model'} does not act on its feature maps"
            )
        taps = take(self.backbone.taps, indices)
        last, taken = self.backbone.walk(x, taps, stop_early and intermediates_only)
        if norm:
            taken = [t.through(self.norm) for t in taken]
        maps = [nchw(t) if output_fmt == "NCHW" else t.patches() for t in taken]
        out: list[Any] = maps
        if return_prefix_tokens:
            out = [(m, t.x[:, list(t.special)]) for m, t in zip(maps, taken, strict=True)]
        return out if intermediates_only else (self.shown(self.finished(last)), out)

    # ------------------------------------------------------------------------------------------ what timm's users know

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        if self.head_dist is not None:
            return self.head, self.head_dist
        return self.head.fc2 if isinstance(self.head, MlpHead) else self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head for `num_classes` (0: none). `global_pool` "" leaves features unpooled, None keeps what is."""
        if global_pool is not None:
            self.global_pool = self.checked_pool(global_pool)
        like = next(self.parameters())
        self.make_heads(num_classes)
        for head in (self.head, self.head_dist, self.head_patches):
            if head is not None:
                head.to(like.device, like.dtype).train(self.training)
        self.default_cfg = {**self.default_cfg, "num_classes": num_classes}

    def make_heads(self, num_classes: int) -> None:
        if num_classes < 0:
            raise ValueError(f"num_classes {num_classes}: it takes 0 (no head) or more")
        self.num_classes = num_classes
        self.head = self.fresh_head()
        two = self.spec.two or self.spec.pool == "distilled"
        self.head_dist = self.fresh_head() if two and num_classes else None
        by_patch = self.spec.patches is not None and num_classes
        seen = self.head_hidden_size if self.spec.wide_patches else self.num_features
        self.head_patches = Linear(seen, num_classes) if by_patch else None

    def fresh_head(self) -> nn.Module:
        dim, spec = self.head_hidden_size, self.spec
        if self.num_classes == 0:
            return nn.Identity()
        if spec.hidden is None:
            return Linear(dim, self.num_classes)
        return MlpHead(dim, int(spec.hidden * dim), self.num_classes, spec.dropout, spec.act, spec.hidden_norm)

    def checked_pool(self, global_pool: str | None) -> str:
        own = {"mean": "avg", "token": "token", "distilled": "token", "attention": "attention"}[self.spec.pool]
        if global_pool not in (None, "", own):
            raise ValueError(f"global_pool {global_pool!r}: this model pools by {own!r}, or not at all with ''")
        return own if global_pool is None else global_pool

    def set_distilled_training(self, enable: bool = True) -> None:
        """In training mode give the pair (class logits, distillation logits) instead of their mean (DeiT)."""
        if not (self.spec.two or self.spec.pool == "distilled"):
            raise ValueError(
                f"{self.name or 'this model'} has no distillation token or second head; deit_*_distilled_* have one"
            )
        self.distilled_training = enable

    def set_patch_training(self, enable: bool = True) -> None:
        """In training mode give the pair (class logits, logits of every patch B N classes): token labelling."""
        if self.spec.patches is None:
            raise ValueError(
                f"{self.name or 'this model'} has no head for its patches; svt_* and vit_resnas_* have one"
            )
        self.patch_training = enable

    def fold_(self) -> None:
        """The norm that remains goes into the heads, where they read tokens or their mean."""
        heads = [h for h in (self.head, self.head_dist, self.head_patches) if h is not None]
        linear = self.global_pool != "" and all(is_plain(h) for h in heads)
        direct = linear and self.attention_pool is None and isinstance(self.widen, nn.Identity)
        self.norm = into_readers(self.norm, heads if direct else [])
        pooled = [h for h in heads if h is not self.head_patches]
        self.late_norm = into_readers(self.late_norm, pooled if linear else [])

    def fold(self) -> "Classifier":
        """A copy for inference with batch norms and side branches folded into the weights: equal at 1e-5, faster, and
        not to be trained."""
        return fold(self)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only what enters each block, and compute it again in the backward pass."""
        self.backbone.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Position embeddings, special tokens and relative position tables, as their authors left them out."""
        return undecayed(self)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that sort parameters into stem, blocks (or stages) and head, for layer-wise rates."""
        return layer_groups(coarse)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """The size that `default_cfg` states. Any model takes any size; nothing is rebuilt."""
        size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        self.default_cfg = {
            **self.default_cfg,
            "input_size": (self.in_chans, *size),
            "pool_size": pool_size(self.backbone, size),
        }

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        return self.default_cfg


def pool_size(backbone: Backbone, size: Sequence[int]) -> tuple[int, int] | None:
    """(h, w) of the last map for an image of `size`; None where special tokens stand beside it."""
    if backbone.special:
        return None
    return backbone.grids((size[0], size[1]))[-1]


def default_cfg(model: Classifier, img_size: int | tuple[int, int]) -> dict[str, Any]:
    """How images are prepared for a model without published weights: ImageNet's mean and deviation, nothing cut off."""
    size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    classifier: Any = "head.fc2" if model.spec.hidden else "head"
    if model.spec.two or model.spec.pool == "distilled":
        classifier = ("head", "head_dist")
    stem = model.backbone.stem
    return {
        "url": "", "architecture": "", "tag": "", "license": None, "num_classes": model.num_classes,
        "input_size": (model.in_chans, *size), "pool_size": pool_size(model.backbone, size), "fixed_input_size": False,
        "crop_pct": 1.0, "crop_mode": "center", "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
        "first_conv": "backbone.stem." + first_layer(stem),
        "classifier": classifier,
    }  # fmt: skip


def first_layer(stem: nn.Module) -> str:
    """The name of its first convolution, or first linear layer where it has none."""
    kinds: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear)
    names: list[str] = [n for kind in kinds for n, m in stem.named_modules() if isinstance(m, kind)]
    return names[0]


__all__ = ["Classifier", "Head"]
