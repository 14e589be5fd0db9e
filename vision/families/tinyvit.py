"""TinyViT, https://arxiv.org/abs/2207.10666: inverted bottlenecks, then attention inside windows with a depthwise
convolution between attention and MLP."""

from dataclasses import replace

from torch import Tensor, nn

from ..backbone import Stage
from ..blocks.convolutional import LocalConv, Residual
from ..conv import LinearNorm
from ..mixers.distance import WindowDistance, by_part
from ..mixers.inverted import Inverted, InvertedMixer
from ..model import Classifier, Head
from ..network import Network, Rules
from ..pyramid import Pyramid
from ..stems.convolutional import InvertedDown, TwoConvStem
from .tinyvit_weights import WEIGHTS as WEIGHTS

WIDTH = 32  # channels of a head


def initialise(model: Classifier | Pyramid) -> None:
    """1x1 convolutions begin as torch's convolutions do; a bottleneck with a residual around it begins at nothing."""
    for m in model.modules():
        if isinstance(m, LinearNorm):
            nn.Linear.reset_parameters(m.linear)
        elif isinstance(m, InvertedMixer):
            nn.init.zeros_(m.branch.fc2.norm.weight)  # type: ignore[arg-type]


def tinyvit(dims: tuple[int, int, int, int], drop_path: float = 0.0, size: int = 224) -> Network:
    """Windows cover a quarter of the sides in stage 2, all of them in stages 3 and 4."""
    windows = (size // 32, size // 16, size // 32)
    rows = zip(dims[1:], (2, 6, 2), windows, strict=True)
    stages = (
        Stage(Inverted(4), dims[0], 2, block=Residual("gelu")),
        *(Stage(WindowDistance(d // WIDTH, w), d, n, block=LocalConv()) for d, n, w in rows),
    )
    return Network("tinyvit", stages, TwoConvStem(), InvertedDown(), Head(late=True), size=(size, size),
                   drop_path=drop_path, initialise=initialise)  # fmt: skip


SMALL, MEDIUM, LARGE = (64, 128, 160, 320), (64, 128, 256, 448), (96, 192, 384, 576)


def with_22k(dims: tuple[int, int, int, int], drop_path: float = 0.0) -> Network:
    return replace(tinyvit(dims, drop_path), classes=21841)


VARIANTS = {
    "tiny_vit_5m": tinyvit(SMALL),
    "tiny_vit_11m": tinyvit(MEDIUM, 0.1),
    "tiny_vit_21m": tinyvit(LARGE, 0.2),
    "tiny_vit_21m_384": tinyvit(LARGE, 0.1, 384),
    "tiny_vit_21m_512": tinyvit(LARGE, 0.1, 512),
    "tiny_vit_5m_22k": with_22k(SMALL),
    "tiny_vit_11m_22k": with_22k(MEDIUM),
    "tiny_vit_21m_22k": with_22k(LARGE, 0.1),
}


def rows_by_part(value: Tensor, host: nn.Module) -> Tensor:
    """Published: q, k, v of one head after another; ours: all q, all k, all v."""
    return by_part(value, value.shape[0] // (3 * WIDTH), (WIDTH,) * 3)


# ------------------------------------------------------------------------------------------------------------- names

Renames = tuple[tuple[str, str], ...]
NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
PIECES = (("conv1", "fc1", "linear"), ("conv2", "mid", "conv"), ("conv3", "fc2", "linear"))


def bottleneck(theirs: str, ours: str, conv: str, groups: int) -> Renames:
    """The three convolutions of a bottleneck; `groups` stand in the pattern `theirs`, `conv` is their word for one."""
    last = rf"\{groups + 1}"
    return tuple(
        rule
        for name, part, layer in PIECES
        for rule in (
            (theirs + rf"{name}\.{conv}\.(weight)", ours + f"{part}.{layer}.{last}"),
            (theirs + rf"{name}\.bn\.{NORM}", ours + f"{part}.norm.{last}"),
        )
    )


def names(stage: str, conv: str) -> Renames:
    """The blocks, which both sources share but for the words `stage` and `conv`."""
    block, ours = rf"{stage}\.(\d)\.blocks\.(\d+)\.", r"backbone.stages.\1.blocks.\2."
    return (
        *bottleneck(block, ours + "mixer.branch.", conv, 2),
        (block + r"attn\.attention_biases", ours + "mixer.bias.table"),
        (block + r"attn\.(norm|qkv|proj)\.(weight|bias)", ours + r"mixer.\3.\4"),
        (block + rf"local_conv\.{conv}\.weight", ours + "conv.conv.weight"),
        (block + rf"local_conv\.bn\.{NORM}", ours + r"conv.norm.\3"),
        (block + r"mlp\.norm\.(weight|bias)", ours + r"norm2.\3"),
        (block + r"mlp\.(fc[12])\.(weight|bias)", ours + r"ffn.\3.\4"),
    )


def downs(stage: str, conv: str, shift: int) -> Renames:
    """The steps down, which belong to the stage before them (the authors) or behind them (timm, and here)."""
    ours = "backbone.stages.{}.down.convolution."
    return tuple(
        rule for i in (1, 2, 3) for rule in bottleneck(rf"{stage}\.{i - shift}\.downsample\.", ours.format(i), conv, 0)
    )


def stem(theirs: tuple[str, str], conv: str) -> Renames:
    return tuple(
        rule
        for i, name in enumerate(theirs, 1)
        for rule in (
            (rf"patch_embed\.{name}\.{conv}\.weight", f"backbone.stem.conv{i}.conv.weight"),
            (rf"patch_embed\.{name}\.bn\.{NORM}", rf"backbone.stem.conv{i}.norm.\1"),
        )
    )


INDICES, FLAT = (r".*attention_bias_idxs",), (r".*\.conv[13]\.(c|conv)\.weight",)
CONVERT = ((r".*\.mixer\.qkv\.(weight|bias)", rows_by_part),)
RULES = {
    "published": Rules(
        (
            *names("layers", "c"),
            *downs("layers", "c", 1),
            *stem((r"seq\.0", r"seq\.2"), "c"),
            (r"norm_head\.(weight|bias)", r"late_norm.\1"),
            (r"head\.(weight|bias)", r"head.\1"),
        ),
        INDICES,
        pyramid=(r"norm_head\..*", r"head\..*"),
        flatten=FLAT,
        convert=CONVERT,
    ),
    "timm": Rules(
        (
            *names("stages", "conv"),
            *downs("stages", "conv", 0),
            *stem(("conv1", "conv2"), "conv"),
            (r"head\.norm\.(weight|bias)", r"late_norm.\1"),
            (r"head\.fc\.(weight|bias)", r"head.\1"),
        ),
        INDICES,
        pyramid=(r"head\..*",),
        flatten=FLAT,
        convert=CONVERT,
    ),
}
