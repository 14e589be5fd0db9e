"""DiT, https://arxiv.org/abs/2212.09748: latent diffusion by a plain transformer with conditioned norms."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..backbone import Stage
from ..layers import Linear
from ..mixers.attention import Global
from ..network import Rules
from ..published import Weights
from .adaln import AdaLNZero, CrossAttention, FinalLayer, Modulation
from .denoiser import Variant
from .meta_denoiser import MetaDenoiser


class DiT(MetaDenoiser):
    """`depth` blocks of `dim` channels and `heads` heads over patch x patch patches of a latent, or of pixels.

    With `text` in place of `num_classes` the blocks look at a caption's tokens too (not in the paper)."""

    family = "dit"

    def __init__(self, depth: int, dim: int, heads: int, patch: int = 2, in_channels: int = 4,
                 size: Sequence[int] = (32, 32), *, num_classes: int | None = 1000, text: Sequence[int] | None = None,
                 learn_variance: bool = True, dropout: float = 0.1, ratio: float = 4.0):  # fmt: skip
        self.shape = {"depth": depth, "dim": dim, "heads": heads, "ratio": ratio}
        block = AdaLNZero(cross_heads=None if text is None else heads)
        stages = [Stage(Global(heads), dim, depth, ratio, block=block)]
        super().__init__(stages, patch, in_channels, size, num_classes=num_classes, text=text,
                         learn_variance=learn_variance, dropout=dropout)  # fmt: skip

    def arguments(self) -> dict[str, Any]:
        own = super().arguments()
        names = ("patch", "in_channels", "size", "num_classes", "text", "learn_variance", "dropout")
        return {**self.shape, **{name: own[name] for name in names}}

    def initialise(self) -> None:
        """As published: Xavier for linear layers and patches, normal 0.02 for the time's, zero for what modulates or
        comes last."""
        for m in self.modules():
            if isinstance(m, Linear | nn.Conv2d):
                nn.init.xavier_uniform_(m.weight.view(len(m.weight), -1))
                if m.bias is not None:
                    nn.init.zeros_(m.bias)
        super().initialise()
        for m in self.modules():
            if isinstance(m, Modulation | FinalLayer | CrossAttention):
                m.reset_parameters()


SIZES = {"s": (12, 384, 6), "b": (12, 768, 12), "l": (24, 1024, 16), "xl": (28, 1152, 16)}  # depth, dim, heads

VARIANTS = {
    f"dit_{name}_{patch}_{pixels}": Variant("dit", DiT, {
        "depth": depth, "dim": dim, "heads": heads, "patch": patch, "size": (pixels // 8, pixels // 8),
    })
    for name, (depth, dim, heads) in SIZES.items() for patch in (2, 4, 8) for pixels in (256, 512)
}  # fmt: skip
ALIASES = {name.removesuffix("_256"): name for name in VARIANTS if name.endswith("_256")}

BLOCK, OURS = r"blocks\.(\d+)\.", r"backbone.stages.0.blocks.\1."
RULES = {
    "published": Rules((
        (r"pos_embed", "backbone.stem.position.table"),
        (r"x_embedder\.proj\.(weight|bias)", r"backbone.stem.convolution.conv.\1"),
        (r"t_embedder\.mlp\.0\.(weight|bias)", r"time_embedding.fc1.\1"),
        (r"t_embedder\.mlp\.2\.(weight|bias)", r"time_embedding.fc2.\1"),
        (r"y_embedder\.embedding_table\.weight", "labels.table.weight"),
        (BLOCK + r"attn\.(qkv|proj)\.(weight|bias)", OURS + r"mixer.\2.\3"),
        (BLOCK + r"mlp\.(fc[12])\.(weight|bias)", OURS + r"ffn.\2.\3"),
        (BLOCK + r"adaLN_modulation\.1\.(weight|bias)", OURS + r"modulation.linear.\2"),
        (r"final_layer\.linear\.(weight|bias)", r"final.linear.\1"),
        (r"final_layer\.adaLN_modulation\.1\.(weight|bias)", r"final.modulation.linear.\1"),
    )),
}  # fmt: skip


def row(pixels: int, **metrics: float) -> Weights:
    return Weights(
        "in1k", f"https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-{pixels}x{pixels}.pt", "cc-by-nc-4.0",
        input_size=(4, pixels // 8, pixels // 8), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0, metrics=metrics,
        form="denoiser",
    )  # fmt: skip


WEIGHTS = {
    "dit_xl_2_256": (row(256, fid=2.27, inception_score=278.24),),
    "dit_xl_2_512": (row(512, fid=3.04, inception_score=240.82),),
}
