"""Compact transformers, https://arxiv.org/abs/2104.05704: ViT-Lite, CVT (compact, unrelated to CvT) and CCT."""

from dataclasses import replace

from ..backbone import Stage
from ..block import StreamNorm
from ..mixers.attention import Global
from ..model import Head
from ..network import Network, Rules
from ..position import Position
from ..stem import ConvTokenizer, Patchify
from .cct_weights import WEIGHTS as WEIGHTS

SIZES = {2: (2, 2, 1, 128), 4: (4, 2, 1, 128), 6: (6, 4, 2, 256), 7: (7, 4, 2, 256), 14: (14, 6, 3, 384)}


def encoder(size: int) -> tuple[Stage, ...]:
    depth, heads, ratio, dim = SIZES[size]
    return (Stage(Global(heads, bias=False, dropout=0.1), dim, depth, ratio, block=StreamNorm()),)


def place(side: int, special: int = 0) -> Position:
    """Learned; at another size resampled bilinearly, as the authors do."""
    return Position((side, side), std=0.2, special=special, resize="bilinear")


def cct(size: int, kernel: int, layers: int, pixels: int, classes: int) -> Network:
    stem = ConvTokenizer(place(1), kernel, layers)
    stem = replace(stem, position=place(-(-pixels // stem.stride)))
    return Network(
        "cct", encoder(size), stem, head=Head(pool="attention"), size=(pixels, pixels), classes=classes, drop_path=0.1
    )


def patches(size: int, patch: int, token: bool) -> Network:
    """CVT, or with a class token ViT-Lite, at 32 x 32."""
    stem = Patchify(patch, None, pad=True, position=place(32 // patch, int(token)))
    head = Head(pool="token" if token else "attention")
    return Network("cct", encoder(size), stem, head=head, size=(32, 32), classes=10, drop_path=0.1)


def sine(network: Network) -> Network:
    """The same with a fixed sinusoid for its positions."""
    stem = network.stem
    assert isinstance(stem, Patchify | ConvTokenizer)
    assert stem.position is not None
    return replace(network, stem=replace(stem, position=replace(stem.position, kind="sinusoid")))


LEARNED = {
    **{f"vit_lite_{n}_4_32": patches(n, 4, True) for n in (2, 4, 6, 7)},
    **{f"cvt_{n}_4_32": patches(n, 4, False) for n in (2, 4, 6, 7)},
    "cct_2_3x2_32": cct(2, 3, 2, 32, 10),
    "cct_4_3x2_32": cct(4, 3, 2, 32, 10),
    "cct_6_3x1_32": cct(6, 3, 1, 32, 10),
    "cct_6_3x2_32": cct(6, 3, 2, 32, 10),
    "cct_7_3x1_32": cct(7, 3, 1, 32, 10),
    "cct_7_3x2_32": cct(7, 3, 2, 32, 10),
    "cct_7_7x2_224": cct(7, 7, 2, 224, 102),
    "cct_14_7x2_224": cct(14, 7, 2, 224, 1000),
    "cct_14_7x2_384": cct(14, 7, 2, 384, 1000),
}
SMALL = [n for n in LEARNED if n.endswith("_32")]
VARIANTS = {
    **LEARNED,
    **{f"{n}_sine": sine(v) for n, v in LEARNED.items()},
    **{f"{n}_c100": LEARNED[n].with_classes(100) for n in SMALL},
    **{f"{n}_sine_c100": sine(LEARNED[n]).with_classes(100) for n in SMALL},
    "cct_14_7x2_384_fl": cct(14, 7, 2, 384, 102),
}

BLOCK, OURS = r"classifier\.blocks\.(\d+)\.", r"backbone.stages.0.blocks.\1."
RULES = {
    "published": Rules(
        (
            (BLOCK + r"pre_norm\.(weight|bias)", OURS + r"norm1.\2"),
            (BLOCK + r"self_attn\.(qkv|proj)\.(weight|bias)", OURS + r"mixer.\2.\3"),
            (BLOCK + r"norm1\.(weight|bias)", OURS + r"norm2.\2"),
            (BLOCK + r"linear([12])\.(weight|bias)", OURS + r"ffn.fc\2.\3"),
            (r"tokenizer\.conv_layers\.(\d)\.0\.weight", r"backbone.stem.convs.\1.weight"),
            (r"tokenizer\.conv_layers\.0\.0\.(weight|bias)", r"backbone.stem.convolution.conv.\1"),
            (r"classifier\.class_emb", "backbone.stem.position.tokens.0"),
            (r"classifier\.positional_emb", "backbone.stem.position.table"),
            (r"classifier\.attention_pool\.(weight|bias)", r"attention_pool.score.\1"),
            (r"classifier\.norm\.(weight|bias)", r"norm.\1"),
            (r"classifier\.fc\.(weight|bias)", r"head.\1"),
        ),
        pyramid=(r"classifier\.(norm|fc|attention_pool)\..*",),
    )
}
