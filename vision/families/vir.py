"""ViR, https://arxiv.org/abs/2310.19731: a plain vision transformer with retention for attention, class token last.

The names with `_softmax` are what the authors' release computes in its parallel mode, which puts a softmax on the
masked scores: it is not causal, and another function than the paper's. Nobody published weights; the paper's
two-dimensional and hybrid variants have no public form and are not here."""

from dataclasses import replace

from ..backbone import Stage
from ..block import PreNorm
from ..mixers.retention import Form, Retain
from ..model import Head
from ..network import Network, Rules
from ..norm import Norm
from ..position import Position
from ..published import Weights
from ..stem import Patchify
from .names import mlp_and_norms

NORM = Norm(eps=1e-6)
SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}


def vir(size: str, patch: int, form: Form = "chunked") -> Network:
    dim, depth, heads = SIZES[size]
    position = Position((224 // patch, 224 // patch), special=1, token_std=1e-6, where="last", rows=False)
    stage = Stage(Retain(heads, form), dim, depth, scale=1e-5, block=PreNorm(NORM))
    return Network("vir", (stage,), Patchify(patch, None, position=position), head=Head(NORM, "token"), drop_path=0.2)


SHAPES = (("small", 16), ("base", 16), ("large", 16), ("large", 14))
VARIANTS = {
    **{f"vir_{s}_patch{p}_224": vir(s, p) for s, p in SHAPES},
    **{f"vir_{s}_patch{p}_224_softmax": vir(s, p, "softmax") for s, p in SHAPES},
}
VARIANTS |= {f"vir_{s}": replace(VARIANTS[f"vir_{s}_patch16_224"], listed=False) for s in SIZES}
WEIGHTS: dict[str, tuple[Weights, ...]] = {}

BLOCK, OURS = r"blocks\.(\d+)\.", r"backbone.stages.0.blocks.\1."
RULES = {
    "published": Rules(
        (
            (BLOCK + r"retention\.qkv\.(weight|bias)", OURS + r"mixer.qkv.\2"),
            (BLOCK + r"retention\.out_proj\.(weight|bias)", OURS + r"mixer.proj.\2"),
            (BLOCK + r"ls([12])\.gamma", OURS + r"add\2.gamma"),
            *mlp_and_norms(BLOCK, OURS),
            (r"patch_embed\.proj\.(weight|bias)", r"backbone.stem.convolution.conv.\1"),
            (r"pos_embed", "backbone.stem.position.table"),
            (r"cls_token", "backbone.stem.position.tokens.0"),
            (r"norm\.(weight|bias)", r"norm.\1"),
            (r"head\.(weight|bias)", r"head.\1"),
        ),
        pyramid=(r"norm\..*", r"head\..*"),
    )
}
