"""VMamba, https://arxiv.org/abs/2401.10166: a pyramid whose maps are scanned along rows and columns, both ways. The
published generations: vanilla (16 states, a gate, no MLP) and the second (one state, MLPs; s2l5, s2l15, s1l8, s1l20
after the width of the scan and the depth of the third stage)."""

from dataclasses import replace

from ..backbone import Stage
from ..block import PreNorm
from ..blocks.mixer_only import MixerOnly
from ..mixers.cross_scan import Cross
from ..network import Dense, Network, Rules
from ..norm import Norm
from ..stem import Merge2x2, Patchify, Strided
from ..stems.convolutions import ConvLayers, Layer
from .vmamba_weights import WEIGHTS as WEIGHTS

LAYER = Norm()


def vanilla(dim: int, third: int, drop_path: float) -> Network:
    stages = tuple(Stage(Cross(), dim * 2**i, n, block=MixerOnly()) for i, n in enumerate((2, 2, third, 2)))
    return Network("vmamba", stages, Patchify(4), Merge2x2(), dense=Dense(LAYER), drop_path=drop_path)


def second(dim: int, third: int, ratio: float, drop_path: float) -> Network:
    mixer = Cross(1, ratio, gate=False, conv_bias=False)
    stages = tuple(Stage(mixer, dim * 2**i, n, block=PreNorm()) for i, n in enumerate((2, 2, third, 2)))
    stem = ConvLayers((Layer(dim // 2, stride=2, act="gelu", norm=LAYER), Layer(stride=2, norm=LAYER)))
    return Network("vmamba", stages, stem, Strided(after=LAYER), dense=Dense(LAYER), drop_path=drop_path)


VARIANTS = {
    "vmamba_vanilla_tiny": vanilla(96, 9, 0.2),
    "vmamba_vanilla_small": vanilla(96, 27, 0.3),
    "vmamba_vanilla_base": vanilla(128, 27, 0.6),
    "vmamba_tiny_s2l5": second(96, 5, 2, 0.2),
    "vmamba_small_s2l15": second(96, 15, 2, 0.3),
    "vmamba_base_s2l15": second(128, 15, 2, 0.6),
    "vmamba_tiny_s1l8": second(96, 8, 1, 0.2),
    "vmamba_small_s1l20": second(96, 20, 1, 0.3),
    "vmamba_base_s1l20": second(128, 20, 1, 0.5),
}
VARIANTS |= {n.removeprefix("vmamba_"): replace(v, listed=False) for n, v in VARIANTS.items() if "vanilla" in n}

OURS, OP = r"backbone.stages.\1.blocks.\2.", r"layers\.(\d+)\.blocks\.(\d+)\.(?:op|self_attention)\."
BLOCK = r"layers\.(\d+)\.blocks\.(\d+)\."
STEM = "backbone.stem."
RULES = {
    "published": Rules(
        (
            (OP + r"x_proj_weight\[(\d)\]", OURS + r"mixer.scans.\3.x_proj.weight"),
            (OP + r"dt_projs_(weight|bias)\[(\d)\]", OURS + r"mixer.scans.\4.dt_proj.\3"),
            (OP + r"A_logs\[(\d)\]", OURS + r"mixer.scans.\3.A_log"),
            (OP + r"Ds\[(\d)\]", OURS + r"mixer.scans.\3.D"),
            (OP + r"(in_proj|out_proj)\.weight", OURS + r"mixer.\3.weight"),
            (OP + r"conv2d\.(weight|bias)", OURS + r"mixer.conv.\3"),
            (OP + r"out_norm\.(weight|bias)", OURS + r"mixer.norm.\3"),
            (BLOCK + r"(?:norm|ln_1)\.(weight|bias)", OURS + r"norm1.\3"),
            (BLOCK + r"(?:norm|ln_1)\.(weight|bias)", OURS + r"norm.\3"),
            (BLOCK + r"norm2\.(weight|bias)", OURS + r"norm2.\3"),
            (BLOCK + r"mlp\.(fc[12])\.(weight|bias)", OURS + r"ffn.\3.\4"),
            (r"patch_embed\.(?:0|proj)\.(weight|bias)", STEM + r"convolution.conv.\1"),
            (r"patch_embed\.(?:2|norm)\.(weight|bias)", STEM + r"convolution.norm.\1"),
            (r"patch_embed\.0\.(weight|bias)", STEM + r"layers.0.0.conv.\1"),
            (r"patch_embed\.2\.(weight|bias)", STEM + r"layers.0.0.norm.\1"),
            (r"patch_embed\.5\.(weight|bias)", STEM + r"layers.1.conv.\1"),
            (r"patch_embed\.7\.(weight|bias)", STEM + r"layers.1.norm.\1"),
            *(
                rule for i in (0, 1, 2) for rule in (
                    (rf"layers\.{i}\.downsample\.(norm|reduction)\.(weight|bias)",
                     rf"backbone.stages.{i + 1}.down.\1.\2"),
                    (rf"layers\.{i}\.downsample\.1\.(weight|bias)",
                     rf"backbone.stages.{i + 1}.down.convolution.conv.\1"),
                    (rf"layers\.{i}\.downsample\.3\.(weight|bias)",
                     rf"backbone.stages.{i + 1}.down.convolution.norm.\1"),
                )
            ),
            (r"(?:classifier\.)?norm\.(weight|bias)", r"norm.\1"),
            (r"(?:classifier\.)?head\.(weight|bias)", r"head.\1"),
        ),
        pyramid=(r"(classifier\.)?(norm|head)\..*",),
        flatten=(r"layers\.\d+\.blocks\.\d+\.(op\.(in|out)_proj|mlp\.fc[12])\.weight",),
        stacked=tuple((r".*\.(?:op|self_attention)\." + n, 4)
                      for n in ("x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds")),
        dense=((r"outnorm(\d)\.(weight|bias)", r"norms.\1.\2"),),
    )
}  # fmt: skip
