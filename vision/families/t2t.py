"""T2T-ViT, https://arxiv.org/abs/2101.11986: a deep narrow ViT behind a tokens-to-token stem, by random features
(t2t_vit_*) or by softmax attention (t2t_vit_t_*)."""

from dataclasses import replace

from ..backbone import Stage
from ..mixers.attention import Global
from ..model import Head
from ..network import Network, Rules
from ..position import Position
from ..stems.t2t import TokensToToken
from .names import mlp_and_norms
from .t2t_weights import WEIGHTS as WEIGHTS


def t2t(dim: int, depth: int, heads: int, ratio: float, pixels: int = 224, width: int = 64) -> Network:
    side = pixels // 16
    stem = TokensToToken(Position((side, side), "sinusoid", special=1, token_std=0.02), width=width)
    stages = (Stage(Global(heads, bias=False), dim, depth, ratio),)
    return Network("t2t", stages, stem, head=Head(pool="token"), size=(pixels, pixels), drop_path=0.1)


def softmax(network: Network) -> Network:
    """The same with transformer layers in its stem."""
    assert isinstance(network.stem, TokensToToken)
    return replace(network, stem=replace(network.stem, layer="transformer"))


VARIANTS = {
    "t2t_vit_7": t2t(256, 7, 4, 2),
    "t2t_vit_10": t2t(256, 10, 4, 2),
    "t2t_vit_12": t2t(256, 12, 4, 2),
    "t2t_vit_14": t2t(384, 14, 6, 3),
    "t2t_vit_19": t2t(448, 19, 7, 3),
    "t2t_vit_24": t2t(512, 24, 8, 3),
    "t2t_vit_14_384": t2t(384, 14, 6, 3, pixels=384),
    "t2t_vit_14_resnext": t2t(384, 14, 32, 3),  # 32 narrow heads
    "t2t_vit_14_wide": t2t(768, 4, 12, 3),
    "t2t_vit_t_14": softmax(t2t(384, 14, 6, 3)),
    "t2t_vit_t_19": softmax(t2t(448, 19, 7, 3)),
    "t2t_vit_t_24": softmax(t2t(512, 24, 8, 3)),
    "t2t_vit_7_narrow_tokens": replace(t2t(256, 7, 4, 2, width=8), listed=False),
}

ANY = r"(?:module\.)?"  # what training on several devices puts in front of every name
BLOCK, OURS = ANY + r"blocks\.(\d+)\.", r"backbone.stages.0.blocks.\1."
LAYER, STEM = ANY + r"tokens_to_token\.attention([12])\.", r"backbone.stem.layer\1."
RULES = {
    "published": Rules(
        (
            (BLOCK + r"attn\.(qkv|proj)\.(weight|bias)", OURS + r"mixer.\2.\3"),
            *mlp_and_norms(BLOCK, OURS),
            (LAYER + r"(norm[12])\.(weight|bias)", STEM + r"\2.\3"),
            (LAYER + r"w", STEM + "attention.w"),
            (LAYER + r"(kqv|proj)\.(weight|bias)", STEM + r"attention.\2.\3"),
            (LAYER + r"attn\.(qkv|proj)\.(weight|bias)", STEM + r"attention.\2.\3"),
            (LAYER + r"mlp\.0\.(weight|bias)", STEM + r"mlp.fc1.\2"),
            (LAYER + r"mlp\.2\.(weight|bias)", STEM + r"mlp.fc2.\2"),
            (LAYER + r"mlp\.(fc[12])\.(weight|bias)", STEM + r"mlp.\2.\3"),
            (ANY + r"tokens_to_token\.project\.(weight|bias)", r"backbone.stem.project.\1"),
            (ANY + r"pos_embed", "backbone.stem.position.table"),
            (ANY + r"cls_token", "backbone.stem.position.tokens.0"),
            (ANY + r"norm\.(weight|bias)", r"norm.\1"),
            (ANY + r"head\.(weight|bias)", r"head.\1"),
        ),
        pyramid=(ANY + r"norm\..*", ANY + r"head\..*"),
    )
}
