"""TNT, https://arxiv.org/abs/2103.00112: a transformer on the words of every patch inside one on the patches.

timm's tnt_s_patch16_224 and tnt_b_patch16_224 are these networks; its tnt_s_legacy_patch16_224 is another one (a
convolution of the whole image, other norms where words join sentences).
"""

from torch import Tensor, nn

from ..backbone import Stage
from ..blocks.words import Sentences, WithWords
from ..model import Head
from ..network import Network, Rules
from ..position import Position
from ..stems.tnt import WordStem
from .tnt_weights import WEIGHTS as WEIGHTS


def tnt(dim: int, heads: int, width: int, inner_heads: int) -> Network:
    stem = WordStem(width, Position((14, 14), special=1, token_std=0.02))
    stages = (Stage(Sentences(heads, bias=False), dim, 12, block=WithWords(width, inner_heads)),)
    unread = 14 * 14 * dim  # outer_tokens: zeros that nothing reads
    return Network("tnt", stages, stem, head=Head(pool="token"), drop_path=0.1, unread=unread)


VARIANTS = {
    "tnt_ti_patch16_224": tnt(192, 3, 12, 2),
    "tnt_s_patch16_224": tnt(384, 6, 24, 4),
    "tnt_b_patch16_224": tnt(640, 10, 40, 4),
}
ALIASES = {n.removesuffix("_patch16_224"): n for n in VARIANTS}


def word_positions(value: Tensor, _: nn.Module) -> Tensor:
    """timm's are a map (1 c 4 4)."""
    return value.flatten(2).mT if value.ndim == 4 else value


def names(block: dict[str, str], stem: dict[str, str]) -> Rules:
    """Rules by the names of a block's and of the stem's parts, theirs -> ours."""
    ours = r"backbone.stages.0.blocks.\1."
    rename = [(rf"blocks\.(\d+)\.{a}\.(weight|bias)", rf"{ours}{b}.\2") for a, b in block.items()]
    for attention, mixer in [(a, b) for a, b in block.items() if b.endswith("mixer")]:
        theirs = rf"blocks\.(\d+)\.{attention}\."
        rename += [
            (theirs + r"qk\.weight", rf"{ours}{mixer}.qkv.weight[1/2]"),  # two thirds of its rows
            (theirs + r"v\.weight", rf"{ours}{mixer}.qkv.weight[2/2]"),  # the last third
            (theirs + r"proj\.(weight|bias)", rf"{ours}{mixer}.proj.\2"),
        ]
    for mlp, ffn in [(a, b) for a, b in block.items() if b.endswith("ffn")]:
        rename.append((rf"blocks\.(\d+)\.{mlp}\.(fc[12])\.(weight|bias)", rf"{ours}{ffn}.\2.\3"))
    for theirs, mine in stem.items():
        rename.append((rf"{theirs}(\.weight|\.bias|)", rf"backbone.stem.{mine}\1"))
    rename += [(r"norm\.(weight|bias)", r"norm.\1"), (r"head\.(weight|bias)", r"head.\1")]
    convert = ((r"backbone\.stem\.table", word_positions),)
    return Rules(tuple(rename), (r"outer_tokens",), (r"norm\..*", r"head\..*"), convert=convert)


RULES = {
    "published": names(
        {
            "inner_norm1": "inner.norm1", "inner_attn": "inner.mixer", "inner_norm2": "inner.norm2",
            "inner_mlp": "inner.ffn", "proj_norm1": "join.norm1", "proj": "join.proj", "proj_norm2": "join.norm2",
            "outer_norm1": "norm1", "outer_attn": "mixer", "outer_norm2": "norm2", "outer_mlp": "ffn",
        },
        {
            r"patch_embed\.proj": "conv", "inner_pos": "table", "proj_norm1": "sentence.norm1",
            "proj": "sentence.proj", "proj_norm2": "sentence.norm2", "outer_pos": "position.table",
            "cls_token": "position.tokens.0",
        },
    ),
    "timm": names(
        {
            "norm_in": "inner.norm1", "attn_in": "inner.mixer", "norm_mlp_in": "inner.norm2", "mlp_in": "inner.ffn",
            "norm1_proj": "join.norm1", "proj": "join.proj", "norm2_proj": "join.norm2", "norm_out": "norm1",
            "attn_out": "mixer", "norm_mlp": "norm2", "mlp": "ffn",
        },
        {
            r"pixel_embed\.proj": "conv", "pixel_pos": "table", "norm1_proj": "sentence.norm1",
            "proj": "sentence.proj", "norm2_proj": "sentence.norm2", "patch_pos": "position.table",
            "cls_token": "position.tokens.0",
        },
    ),
}  # fmt: skip
