"""ResFormer, https://arxiv.org/abs/2212.00776: a DeiT that takes any size, by positions from convolutions. Trained on
several sizes of each image at once: `train/objectives/resolutions.py`."""

from ..backbone import Stage
from ..block import PreNorm
from ..mixers.local_position import LocalPosition
from ..model import Head
from ..network import Network, Rules
from ..norm import Norm
from ..stems.resformer import SinePatchify
from .names import mlp_and_norms
from .resformer_weights import WEIGHTS as WEIGHTS

NORM = Norm(eps=1e-6)
SIZES = {"tiny": (192, 3, 0.1), "small": (384, 6, 0.1), "base": (768, 12, 0.2)}  # width, heads, drop path


def resformer(size: str, listed: bool = True) -> Network:
    dim, heads, drop_path = SIZES[size]
    stages = (Stage(LocalPosition(heads), dim, 12, block=PreNorm(NORM)),)
    head = Head(NORM, pool="token")
    return Network("resformer", stages, SinePatchify(16), head=head, drop_path=drop_path, listed=listed)


VARIANTS = {
    **{f"resformer_{s}_patch16": resformer(s) for s in SIZES},
    **{f"resformer_{s}": resformer(s, listed=False) for s in SIZES},  # a shorter name, to which a size may be put
}

BLOCK, OURS = r"blocks\.(\d+)\.", r"backbone.stages.0.blocks.\1."
NAMES = Rules(
    (
        (BLOCK + r"attn\.(qkv|proj)\.(weight|bias)", OURS + r"mixer.\2.\3"),
        (BLOCK + r"attn\.get_v\.(weight|bias)", OURS + r"mixer.local.\2"),
        *mlp_and_norms(BLOCK, OURS),
        (r"patch_embed\.proj\.(weight|bias)", r"backbone.stem.convolution.conv.\1"),
        (r"pos_embed\.embed_layer\.(weight|bias)", r"backbone.stem.position.conv.\1"),
        (r"cls_token", "backbone.stem.position.tokens.0"),
        (r"norm\.(weight|bias)", r"norm.\1"),
        (r"head\.(weight|bias)", r"head.\1"),
    ),
    pyramid=(r"norm\..*", r"head\..*"),
)
RULES = {"published": NAMES}
