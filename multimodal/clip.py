"""CLIP's image encoder, https://arxiv.org/abs/2103.00020, as a backbone, with the names of transformers' files."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..vision.backbone import Backbone, Stage
from ..vision.block import PreNorm, exact_ratio
from ..vision.mixers.attention import Global
from ..vision.norm import Norm
from ..vision.position import Position
from ..vision.stem import Convolution, MapStem, Positioned
from ..vision.tokens import Tokens


class PositionNorm(nn.Module):
    """Position embedding and class token, then a norm of every token."""

    def __init__(self, position: nn.Module, norm: nn.Module):
        super().__init__()
        self.position, self.norm = position, norm

    def forward(self, t: Tokens) -> Tokens:
        return self.position(t).through(self.norm)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class NormedPatches(Positioned):
    """patch x patch patches by a convolution without bias, a class token and positions, and a norm behind them."""

    patch: int
    position: Position
    norm: Norm = Norm()

    @property
    def stride(self) -> int:
        return self.patch

    def build(self, channels: int, dim: int) -> nn.Module:
        conv = nn.Conv2d(channels, dim, self.patch, self.patch, bias=False)
        return MapStem(Convolution(conv, None, None), PositionNorm(self.position.build(dim), self.norm.build(dim)))


def clip(config: Any) -> Backbone:
    """The encoder of a `CLIPVisionConfig`, without the norm of its pooled output. Other sizes of image than the
    configuration's get resampled positions."""
    if config.model_type != "clip_vision_model":
        raise ValueError(f"a tower of type {config.model_type!r}: clip_vision_model is what this loads")
    dim, side, norm = config.hidden_size, config.image_size // config.patch_size, Norm(eps=config.layer_norm_eps)
    block = PreNorm(norm, act=config.hidden_act)
    ratio = exact_ratio(config.intermediate_size, dim)
    stage = Stage(Global(config.num_attention_heads), dim, config.num_hidden_layers, ratio, block=block)
    stem = NormedPatches(config.patch_size, Position((side, side), special=1, antialias=False), norm)
    return Backbone([stage], stem, in_chans=config.num_channels)


LAYER, OURS = r"encoder\.layers\.(\d+)\.", r"stages.0.blocks.\1."
KEYS = (  # transformers' names, behind what stands before them -> ours in the backbone
    (r"embeddings\.class_embedding", "stem.position.position.tokens.0"),
    (r"embeddings\.position_embedding\.weight", "stem.position.position.table"),
    (r"embeddings\.patch_embedding\.weight", "stem.convolution.conv.weight"),
    (r"pre_layrnorm\.(weight|bias)", r"stem.position.norm.\1"),
    (LAYER + r"self_attn\.q_proj\.(weight|bias)", OURS + r"mixer.qkv.\2[1/3]"),
    (LAYER + r"self_attn\.k_proj\.(weight|bias)", OURS + r"mixer.qkv.\2[2/3]"),
    (LAYER + r"self_attn\.v_proj\.(weight|bias)", OURS + r"mixer.qkv.\2[3/3]"),
    (LAYER + r"self_attn\.out_proj\.(weight|bias)", OURS + r"mixer.proj.\2"),
    (LAYER + r"layer_norm([12])\.(weight|bias)", OURS + r"norm\2.\3"),
    (LAYER + r"mlp\.(fc[12])\.(weight|bias)", OURS + r"ffn.\2.\3"),
)
DROPPED = (r"post_layernorm\.(weight|bias)", r"embeddings\.position_ids")  # of the pooled output; a counter
