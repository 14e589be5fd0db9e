"""Astroformer as timm's CoAtNet with its settings, which is what the authors' code is; under the published names."""

from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitConvCfg, MaxxVitTransformerCfg
from torch import nn

VARIANT = "astroformer_0"
SIZES = {
    "astroformer_0": (64, (96, 192, 384, 768), (2, 3, 5, 2)),
    "astroformer_1": (64, (96, 192, 384, 768), (2, 6, 14, 2)),
}


def build(variant: str = VARIANT, size: int = 224) -> nn.Module:
    """The network at size x size, with fresh weights."""
    width, dims, depths = SIZES[variant]
    cfg = MaxxVitCfg(
        embed_dim=dims,
        depths=depths,
        block_type=("C", "C", "C", "T"),
        stem_width=width,
        conv_cfg=MaxxVitConvCfg(),
        transformer_cfg=MaxxVitTransformerCfg(rel_pos_type="bias"),
        head_hidden_size=dims[-1],
    )
    return MaxxVit(cfg, img_size=size)
