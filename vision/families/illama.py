"""iLLaMA, https://arxiv.org/abs/2404.06773: a causal ViT out of LLaMA's parts, with its class token at the end."""

from math import ceil

from ..backbone import Stage
from ..blocks.gated import GatedPreNorm
from ..mixers.soft_mask import SoftMask
from ..model import Head
from ..network import Network, Rules
from ..norm import Norm
from ..position import Position
from ..stem import Patchify
from .illama_weights import WEIGHTS as WEIGHTS

NORM = Norm("rms", 1e-6)
SIZES = {"tiny": (192, 12, 0.0), "small": (384, 12, 0.1), "base": (768, 12, 0.4), "large": (1024, 24, 0.0)}


def hidden(dim: int) -> int:
    """LLaMA's width of the gated MLP: two thirds of four times the channels, up to a multiple of 256."""
    return 256 * ceil(int(2 * 4 * dim / 3) / 256)


def illama(size: str, pixels: int) -> Network:
    dim, depth, drop_path = SIZES[size]
    stage = Stage(SoftMask(dim // 64), dim, depth, ratio=hidden(dim) / dim, block=GatedPreNorm(NORM))
    position = Position((pixels // 16, pixels // 16), special=1, token_std=0.02, where="last", antialias=False)
    return Network(
        "illama", (stage,), Patchify(16, None, position=position), head=Head(NORM, pool="token"),
        size=(pixels, pixels), drop_path=drop_path,
    )  # fmt: skip


VARIANTS = {
    "illama_tiny": illama("tiny", 224),
    "illama_small": illama("small", 224),
    "illama_base": illama("base", 224),
    "illama_base_384": illama("base", 384),
    "illama_large": illama("large", 224),
    "illama_large_384": illama("large", 384),
}

BLOCK, OURS = r"blocks\.(\d+)\.", r"backbone.stages.0.blocks.\1."
NAMES = Rules(
    (
        (BLOCK + r"attn\.(qkv|proj)\.(weight|bias)", OURS + r"mixer.\2.\3"),
        (BLOCK + r"mlp\.(fc[123])\.weight", OURS + r"ffn.\2.weight"),
        (BLOCK + r"(norm[12])\.weight", OURS + r"\2.weight"),
        (r"patch_embed\.proj\.(weight|bias)", r"backbone.stem.convolution.conv.\1"),
        (r"pos_embed", "backbone.stem.position.table"),
        (r"cls_token", "backbone.stem.position.tokens.0"),
        (r"norm\.weight", "norm.weight"),
        (r"head\.(weight|bias)", r"head.\1"),
    ),
    pyramid=(r"norm\..*", r"head\..*"),
)
RULES = {"published": NAMES}
