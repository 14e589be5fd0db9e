"""ViT, https://arxiv.org/abs/2010.11929 (as trained by https://arxiv.org/abs/2106.10270), and DeiT,
https://arxiv.org/abs/2012.12877, under timm's names and numbers."""

from dataclasses import replace

from ..backbone import Stage
from ..block import PreNorm
from ..mixers.attention import Global
from ..model import Head
from ..network import Network, Rules
from ..norm import Norm
from ..position import Position
from ..stem import Patchify
from .names import mlp_and_norms
from .vit_weights import WEIGHTS as WEIGHTS

SIZES = {
    "tiny": (192, 12, 3), "256": (256, 12, 4), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16),
}  # fmt: skip
NORM = Norm(eps=1e-6)


def vit(size: str, patch: int, pixels: int, distilled: bool = False, drop_path: float = 0.0) -> Network:
    dim, depth, heads = SIZES[size]
    position = Position((pixels // patch, pixels // patch), special=2 if distilled else 1, token_std=1e-6)
    head = Head(NORM, pool="distilled" if distilled else "token")
    stages = (Stage(Global(heads), dim, depth, block=PreNorm(NORM)),)
    return Network(
        "vit", stages, Patchify(patch, None, position=position), head=head, size=(pixels, pixels), drop_path=drop_path
    )


VARIANTS = {
    **{f"vit_{s}_patch16_{p}": vit(s, 16, p) for s in SIZES if s != "256" for p in (224, 384)},
    **{f"vit_{s}_patch32_{p}": vit(s, 32, p) for s in ("small", "base", "large") for p in (224, 384)},
    **{f"deit_{s}_patch16_224": vit(s, 16, 224, drop_path=0.1) for s in ("tiny", "small", "base")},
    **{f"deit_{s}_distilled_patch16_224": vit(s, 16, 224, True, 0.1) for s in ("tiny", "small", "base")},
    "deit_256_patch16_224": replace(vit("256", 16, 224, drop_path=0.1), listed=False),  # published by DynamicViT alone
    "deit_base_patch16_384": vit("base", 16, 384, drop_path=0.1),
    "deit_base_distilled_patch16_384": vit("base", 16, 384, True, 0.1),
}

BLOCK, OURS = r"blocks\.(\d+)\.", r"backbone.stages.0.blocks.\1."
NAMES = Rules(
    (
        (BLOCK + r"attn\.(qkv|proj)\.(weight|bias)", OURS + r"mixer.\2.\3"),
        *mlp_and_norms(BLOCK, OURS),
        (r"patch_embed\.proj\.(weight|bias)", r"backbone.stem.convolution.conv.\1"),
        (r"pos_embed", "backbone.stem.position.table"),
        (r"cls_token", "backbone.stem.position.tokens.0"),
        (r"dist_token", "backbone.stem.position.tokens.1"),
        (r"norm\.(weight|bias)", r"norm.\1"),
        (r"head\.(weight|bias)", r"head.\1"),
        (r"head_dist\.(weight|bias)", r"head_dist.\1"),
    ),
    pyramid=(r"norm\..*", r"head\..*", r"head_dist\..*"),
)
RULES = {"published": NAMES, "timm": NAMES}
