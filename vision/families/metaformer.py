"""PoolFormer, https://arxiv.org/abs/2111.11418, and the MetaFormer baselines, https://arxiv.org/abs/2210.13452:
IdentityFormer, RandFormer, PoolFormerV2, ConvFormer, CAFormer. Two generations that share no parameter names."""

from torch import nn

from ..backbone import Stage
from ..block import Mixer, PreNorm
from ..mixers.attention import Global
from ..mixers.convolution import Separable
from ..mixers.identity import Identity
from ..mixers.pool import Pool
from ..mixers.random import Random
from ..model import Classifier, Head
from ..network import Dense, Network, Rules
from ..norm import Norm
from ..pyramid import Pyramid
from ..stem import ConvStem, Strided
from .metaformer_weights import WEIGHTS as WEIGHTS
from .names import mlp_and_norms

WIDTHS, WIDE = (64, 128, 320, 512), (96, 192, 384, 768)
SIZES = {
    "s12": ((2, 2, 6, 2), WIDTHS, 0.1),
    "s24": ((4, 4, 12, 4), WIDTHS, 0.1),
    "s36": ((6, 6, 18, 6), WIDTHS, 0.2),
    "m36": ((6, 6, 18, 6), WIDE, 0.3),
    "m48": ((8, 8, 24, 8), WIDE, 0.4),
}
LARGE = {
    "s18": ((3, 3, 9, 3), WIDTHS),
    "s36": ((3, 12, 18, 3), WIDTHS),
    "m36": ((3, 12, 18, 3), (96, 192, 384, 576)),
    "b36": ((3, 12, 18, 3), (128, 256, 512, 768)),
}


def initialise_first(model: Classifier | Pyramid) -> None:
    """PoolFormer: torch's default in the convolutions of stem and down-sampling; the rest is every backbone's."""


def initialise_second(model: Classifier | Pyramid) -> None:
    """The baselines: normal weights of deviation 0.02 in convolutions too, biases zero."""
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.normal_(m.weight, std=0.02)
            if m.bias is not None:
                nn.init.zeros_(m.bias)


def poolformer(name: str) -> Network:
    """Its norm comes before the mean over the map, and has biases, unlike the baselines'."""
    depths, dims, drop_path = SIZES[name]
    norm = Norm("group")
    scale = 1e-5 if name in ("s12", "s24") else 1e-6
    stages = tuple(Stage(Pool(3), d, n, scale=scale, block=PreNorm(norm)) for d, n in zip(dims, depths, strict=True))
    return Network("metaformer", stages, ConvStem(7, 4, 2), Strided(3, 2, 1), Head(norm), Dense(norm),
                   drop_path=drop_path, initialise=initialise_first)  # fmt: skip


def baseline(depths: tuple[int, ...], dims: tuple[int, ...], mixers: tuple[Mixer, ...], norm: Norm, drop_path: float,
             hidden: int | None = None, dropout: float = 0.0, size: int = 224,
             classes: int = 1000) -> Network:  # fmt: skip
    """Residuals are scaled in stages 3 and 4; all norms but the last lack a bias."""
    plain = Norm(eps=1e-6, bias=False)
    stages = tuple(
        Stage(m, d, n, block=PreNorm(norm, "star_relu", False, scale_residual=i >= 2))
        for i, (m, d, n) in enumerate(zip(mixers, dims, depths, strict=True))
    )
    head = Head(Norm(eps=1e-6), late=True, hidden=hidden, dropout=dropout)
    return Network("metaformer", stages, ConvStem(7, 4, 2, plain), Strided(3, 2, 1, plain), head, size=(size, size),
                   classes=classes, drop_path=drop_path, initialise=initialise_second)  # fmt: skip


GROUP, LAYER = Norm("group", 1e-6, bias=False), Norm("layer", 1e-6, bias=False)
POOLED: dict[str, tuple[Mixer, ...]] = {
    "identityformer": (Identity(),) * 4,
    "randformer": (Identity(), Identity(), Random(14, 14), Random(7, 7)),
    "poolformerv2": (Pool(3),) * 4,
}
CONV, ATTEND = Separable(7), Global(width=32, bias=False, out_bias=False)
MIXED: dict[str, tuple[Mixer, ...]] = {"convformer": (CONV,) * 4, "caformer": (CONV, CONV, ATTEND, ATTEND)}
RATES = {  # drop path (224, 384) and dropout of the head (224, 384)
    "convformer": {
        "s18": (0.2, 0.3, 0.0, 0.4),
        "s36": (0.3, 0.5, 0.0, 0.4),
        "m36": (0.4, 0.8, 0.0, 0.5),
        "b36": (0.6, 0.8, 0.0, 0.5),
    },
    "caformer": {
        "s18": (0.15, 0.3, 0.0, 0.4),
        "s36": (0.3, 0.5, 0.4, 0.4),
        "m36": (0.4, 0.7, 0.4, 0.4),
        "b36": (0.6, 0.8, 0.5, 0.5),
    },
}


def mixed(kind: str, size: str, pixels: int, classes: int = 1000) -> Network:
    path, path_384, drop, drop_384 = RATES[kind][size]
    if pixels == 384:
        path, drop = path_384, drop_384
    return baseline(*LARGE[size], MIXED[kind], LAYER, path, 4, drop, pixels, classes)


def pooled_rate(kind: str, size: str) -> float:
    return 0.3 if (kind, size) == ("randformer", "m48") else SIZES[size][2]


VARIANTS = {
    **{f"poolformer_{n}": poolformer(n) for n in SIZES},
    **{f"{k}_{n}": baseline(*SIZES[n][:2], m, GROUP, pooled_rate(k, n)) for k, m in POOLED.items() for n in SIZES},
    **{f"{k}_{n}": mixed(k, n, 224) for k in MIXED for n in LARGE},
    **{f"{k}_{n}_384": mixed(k, n, 384) for k in MIXED for n in LARGE},
    **{f"{k}_{n}_in21k": mixed(k, n, 224, 21841) for k in MIXED for n in LARGE},
}

# ------------------------------------------------------------------------------------------------------------- names

Renames = tuple[tuple[str, str], ...]
STEM, DOWN, OURS = (
    "backbone.stem.convolution.",
    r"backbone.stages.\1.down.convolution.",
    r"backbone.stages.\1.blocks.\2.",
)


def inside(theirs: str) -> Renames:
    """A block's rules, which both sources of the baselines share."""
    return (
        *mlp_and_norms(theirs, OURS),
        (theirs + r"mlp\.act\.(scale|bias)", OURS + r"ffn.act.\3"),
        (theirs + r"res_scale([12])\.scale", OURS + r"add\3.scale"),
        (theirs + r"token_mixer\.random_matrix", OURS + "mixer.matrix"),
        (theirs + r"token_mixer\.(qkv|proj)\.(weight|bias)", OURS + r"mixer.\3.\4"),
        (theirs + r"token_mixer\.pwconv1\.weight", OURS + "mixer.fc1.weight"),
        (theirs + r"token_mixer\.pwconv2\.weight", OURS + "mixer.fc2.weight"),
        (theirs + r"token_mixer\.dwconv\.weight", OURS + "mixer.conv.weight"),
        (theirs + r"token_mixer\.act1\.(scale|bias)", OURS + r"mixer.act.\3"),
    )


FIRST = tuple(
    rule
    for i in range(4)
    for rule in (
        (rf"network\.{2 * i}\.(\d+)\.layer_scale_([12])", rf"backbone.stages.{i}.blocks.\1.add\2.gamma"),
        (rf"network\.{2 * i}\.(\d+)\.(norm[12])\.(weight|bias)", rf"backbone.stages.{i}.blocks.\1.\2.\3"),
        (rf"network\.{2 * i}\.(\d+)\.mlp\.(fc[12])\.(weight|bias)", rf"backbone.stages.{i}.blocks.\1.ffn.\2.\3"),
        (rf"network\.{2 * i - 1}\.proj\.(weight|bias)", rf"backbone.stages.{i}.down.convolution.conv.\1"),
    )
)
RULES = {
    "published": Rules(
        (
            *FIRST,
            *inside(r"stages\.(\d+)\.(\d+)\."),
            (r"patch_embed\.proj\.(weight|bias)", STEM + r"conv.\1"),
            (r"downsample_layers\.0\.conv\.(weight|bias)", STEM + r"conv.\1"),
            (r"downsample_layers\.0\.post_norm\.weight", STEM + "norm.weight"),
            (r"downsample_layers\.(\d)\.conv\.(weight|bias)", DOWN + r"conv.\2"),
            (r"downsample_layers\.(\d)\.pre_norm\.weight", DOWN + "before.weight"),
            (r"norm\.(weight|bias)", r"norm.\1"),
            (r"norm\.(weight|bias)", r"late_norm.\1"),
            (r"head\.(weight|bias|(?:fc1|fc2|norm)\.(?:weight|bias))", r"head.\1"),
        ),
        pyramid=(r"norm\..*", r"head\..*"),
        flatten=(r"network\.\d\.\d+\.mlp\.fc[12]\.weight",),
        dense=tuple((rf"norm{2 * i}\.(weight|bias)", rf"norms.{i}.\1") for i in range(4)),
    ),
    "timm": Rules(
        (
            *inside(r"stages\.(\d+)\.blocks\.(\d+)\."),
            (r"stages\.(\d+)\.blocks\.(\d+)\.layer_scale([12])\.scale", OURS + r"add\3.gamma"),
            (r"stem\.conv\.(weight|bias)", STEM + r"conv.\1"),
            (r"stem\.norm\.weight", STEM + "norm.weight"),
            (r"stages\.(\d)\.downsample\.conv\.(weight|bias)", DOWN + r"conv.\2"),
            (r"stages\.(\d)\.downsample\.norm\.weight", DOWN + "before.weight"),
            (r"head\.norm\.(weight|bias)", r"norm.\1"),
            (r"head\.norm\.(weight|bias)", r"late_norm.\1"),
            (r"head\.fc\.(weight|bias|(?:fc1|fc2|norm)\.(?:weight|bias))", r"head.\1"),
        ),
        pyramid=(r"head\..*",),
        flatten=(r"stages\.\d\.blocks\.\d+\.(mlp\.fc[12]|token_mixer\.pwconv[12])\.weight",),
    ),
}
