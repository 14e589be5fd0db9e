"""Vision Mamba, https://arxiv.org/abs/2401.09417: a plain sequence of patches with a class token in its middle, scanned
in both directions. The `_stride8` variants cut the same patches twice as densely.

The originals carry the stream and what was last added to it as a pair, in float32; here the sum is carried, which is
the same. Their dense form hands out what block 5, 11, 17 and 23 added, not the stream; ours is the stream."""

import math
from dataclasses import replace

from torch import nn

from ..backbone import Stage
from ..blocks.mixer_only import MixerOnly
from ..mixers.mamba import Mamba, MambaMixer
from ..model import Classifier, Head
from ..network import Network, Rules
from ..norm import Norm
from ..position import Position
from ..pyramid import Pyramid
from ..stem import ConvStem
from .vim_weights import WEIGHTS as WEIGHTS

RMS = Norm("rms")


def initialise(model: Classifier | Pyramid) -> None:
    """torch's default in the projections, the last one of a mixer divided by the root of the depth."""
    mixers = [m for m in model.modules() if isinstance(m, MambaMixer)]
    for mixer in mixers:
        for scan in (d.scan for d in (mixer.ahead, mixer.back) if d is not None):
            nn.init.kaiming_uniform_(scan.x_proj.weight, a=math.sqrt(5))
        for projection in (mixer.in_proj, mixer.out_proj):
            nn.init.kaiming_uniform_(projection.weight, a=math.sqrt(5))
        mixer.out_proj.weight.data.div_(math.sqrt(len(mixers)))


def vim(dim: int, stride: int = 16, drop_path: float = 0.0) -> Network:
    side = (224 - 16) // stride + 1
    position = Position((side, side), special=1, token_std=0.02, antialias=False, where="middle")
    stage = Stage(Mamba(), dim, 24, block=MixerOnly(RMS))
    return Network("vim", (stage,), ConvStem(16, stride, 0, position=position), head=Head(RMS, "token"),
                   drop_path=drop_path, initialise=initialise)  # fmt: skip


VARIANTS = {
    "vim_tiny": vim(192),
    "vim_small": vim(384, drop_path=0.05),
    "vim_base": vim(768),
    "vim_tiny_stride8": vim(192, 8),
    "vim_small_stride8": vim(384, 8),
}
LONG = "bimambav2_final_pool_mean_abs_pos_embed_with"
VARIANTS |= {  # the names under which the authors registered them
    f"vim_{size}_patch16_{stride}224_{LONG}_{token}_div2": replace(VARIANTS[ours], listed=False)
    for ours, size, stride, token in (
        ("vim_tiny", "tiny", "", "midclstok"), ("vim_small", "small", "", "midclstok"),
        ("vim_base", "base", "", "middle_cls_token"), ("vim_tiny_stride8", "tiny", "stride8_", "midclstok"),
        ("vim_small_stride8", "small", "stride8_", "midclstok"),
    )
}  # fmt: skip

BLOCK, OURS = r"layers\.(\d+)\.", r"backbone.stages.0.blocks.\1."


def direction(theirs: str, ours: str) -> tuple[tuple[str, str], ...]:
    """The tensors of one direction, whose names end in `theirs`."""
    mixer = BLOCK + r"mixer\."
    return (
        (mixer + rf"conv1d{theirs}\.(weight|bias)", OURS + rf"mixer.{ours}.conv.\2"),
        (mixer + rf"(x_proj|dt_proj){theirs}\.(weight|bias)", OURS + rf"mixer.{ours}.scan.\2.\3"),
        (mixer + rf"A{theirs}_log", OURS + f"mixer.{ours}.scan.A_log"),
        (mixer + rf"D{theirs}", OURS + f"mixer.{ours}.scan.D"),
    )


RULES = {
    "published": Rules(
        (
            *direction("", "ahead"),
            *direction("_b", "back"),
            (BLOCK + r"mixer\.(in_proj|out_proj)\.weight", OURS + r"mixer.\2.weight"),
            (BLOCK + r"norm\.weight", OURS + "norm.weight"),
            (r"patch_embed\.proj\.(weight|bias)", r"backbone.stem.convolution.conv.\1"),
            (r"cls_token", "backbone.stem.position.tokens.0"),
            (r"pos_embed", "backbone.stem.position.table"),
            (r"norm_f\.weight", "norm.weight"),
            (r"head\.(weight|bias)", r"head.\1"),
        ),
        pyramid=(r"norm_f\..*", r"head\..*"),
    )
}
