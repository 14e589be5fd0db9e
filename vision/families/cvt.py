"""CvT, https://arxiv.org/abs/2103.15808: attention behind depthwise convolutions, no position embedding, and a class
token in the last stage only. (The compact transformers' CVT is another network: families/cct.py.)"""

from torch import nn

from ..backbone import Stage
from ..block import PreNorm
from ..mixers.conv_attention import Convolved
from ..model import Classifier, Head
from ..network import Network, Rules
from ..norm import Norm
from ..pyramid import Pyramid
from ..stem import ConvStem, Strided
from ..stems.class_token import WithClassToken
from .cvt_weights import WEIGHTS as WEIGHTS
from .names import mlp_and_norms

DOWN = Strided(3, 2, 1, after=Norm())


def initialise(model: Classifier | Pyramid) -> None:
    """The head's bias is torch's default; linear layers and the class token have a deviation of 0.02 already."""
    if isinstance(model, Classifier) and isinstance(model.head, nn.Linear):
        bound = model.head.in_features**-0.5
        nn.init.uniform_(model.head.bias, -bound, bound)


def cvt(dims: tuple[int, int, int], depths: tuple[int, int, int], heads: tuple[int, int, int], drop_path: float,
        size: int) -> Network:  # fmt: skip
    """Stochastic depth rises over the blocks of the last stage; the others have none."""

    def stage(i: int) -> Stage:
        n, last = depths[i], i == 2
        shares = tuple(j / max(1, n - 1) if last else 0.0 for j in range(n))
        return Stage(Convolved(heads[i]), dims[i], n, block=PreNorm(act="quick_gelu"), drop_path=shares,
                     down=WithClassToken(DOWN) if last else None)  # fmt: skip

    return Network("cvt", tuple(map(stage, range(3))), ConvStem(7, 4, 2, Norm()), DOWN, Head(pool="token"),
                   size=(size, size), drop_path=drop_path, initialise=initialise)  # fmt: skip


NARROW, WIDE = (64, 192, 384), (192, 768, 1024)
VARIANTS = {
    "cvt_13": cvt(NARROW, (1, 2, 10), (1, 3, 6), 0.1, 224),
    "cvt_13_384": cvt(NARROW, (1, 2, 10), (1, 3, 6), 0.1, 384),
    "cvt_21": cvt(NARROW, (1, 4, 16), (1, 3, 6), 0.1, 224),
    "cvt_21_384": cvt(NARROW, (1, 4, 16), (1, 3, 6), 0.1, 384),
    "cvt_w24_384": cvt(WIDE, (2, 2, 20), (3, 12, 16), 0.3, 384),
}

BLOCK, OURS = r"stage(\d)\.blocks\.(\d+)\.", r"backbone.stages.\1.blocks.\2."
EMBED = r"stage(\d)\.patch_embed\."
RULES = {
    "published": Rules(
        (
            (BLOCK + r"attn\.conv_proj_([qkv])\.conv\.weight", OURS + r"mixer.conv_\3.conv.weight"),
            (BLOCK + r"attn\.conv_proj_([qkv])\.bn\.(\w+)", OURS + r"mixer.conv_\3.norm.\4"),
            (BLOCK + r"attn\.proj_([qkv])\.(weight|bias)", OURS + r"mixer.\3.\4"),
            (BLOCK + r"attn\.proj\.(weight|bias)", OURS + r"mixer.proj.\3"),
            *mlp_and_norms(BLOCK, OURS),
            (r"stage0\.patch_embed\.proj\.(weight|bias)", r"backbone.stem.convolution.conv.\1"),
            (r"stage0\.patch_embed\.norm\.(weight|bias)", r"backbone.stem.convolution.norm.\1"),
            (EMBED + r"proj\.(weight|bias)", r"backbone.stages.\1.down.convolution.conv.\2"),
            (EMBED + r"norm\.(weight|bias)", r"backbone.stages.\1.down.convolution.norm.\2"),
            (EMBED + r"proj\.(weight|bias)", r"backbone.stages.\1.down.step.convolution.conv.\2"),
            (EMBED + r"norm\.(weight|bias)", r"backbone.stages.\1.down.step.convolution.norm.\2"),
            (r"stage(\d)\.cls_token", r"backbone.stages.\1.down.tokens.0"),
            (r"(norm|head)\.(weight|bias)", r"\1.\2"),
        ),
        pyramid=(r"norm\..*", r"head\..*"),
    )
}
