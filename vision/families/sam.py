"""The image encoders of Segment Anything (SAM), https://arxiv.org/abs/2304.02643: a ViT whose blocks attend in windows
of 14, but for four that see the whole map, and a neck to 256 channels. Without classes: it gives the mean of the neck's
map; with features_only the last map is the neck's."""

from ..backbone import Stage
from ..block import PreNorm
from ..blocks.no_residual import Replacing
from ..mixers.convolution import Dense
from ..mixers.decomposed import Decomposed
from ..mixers.each import Each
from ..model import Head
from ..network import Network, Rules
from ..norm import Norm
from ..position import Position
from ..published import Weights
from ..stem import Patchify
from ..stems.sam import Narrow

WEIGHTS: dict[str, tuple[Weights, ...]] = {}
NORM = Norm(eps=1e-6)


def sam(dim: int, depth: int, heads: int, whole: tuple[int, ...], window: int = 14, size: int = 1024,
        out: int = 256) -> Network:  # fmt: skip
    """`whole`: the blocks that see the whole map."""
    grid = (size // 16, size // 16)
    mixers = tuple(Decomposed(heads, None if i in whole else window, grid) for i in range(depth))
    encoder = Stage(Each(mixers), dim, depth, block=PreNorm(NORM))
    neck = Stage(Dense(3, bias=False), out, 1, block=Replacing(NORM), down=Narrow(NORM), drop_path=(0.0,))
    stem = Patchify(16, None, position=Position(grid))
    return Network("sam", (encoder, neck), stem, head=Head(None), size=(size, size), classes=0)


VARIANTS = {
    "sam_vit_b": sam(768, 12, 12, (2, 5, 8, 11)),
    "sam_vit_l": sam(1024, 24, 16, (5, 11, 17, 23)),
    "sam_vit_h": sam(1280, 32, 16, (7, 15, 23, 31)),
}

FILE = r"(?:image_encoder\.)?"  # a published file holds the prompt encoder and the mask decoder as well
BLOCK, OURS = FILE + r"blocks\.(\d+)\.", r"backbone.stages.0.blocks.\1."
NECK = "backbone.stages.1."
RULES = {
    "published": Rules(
        (
            (BLOCK + r"attn\.(qkv|proj)\.(weight|bias)", OURS + r"mixer.\2.\3"),
            (BLOCK + r"attn\.rel_pos_h", OURS + "mixer.rows"),
            (BLOCK + r"attn\.rel_pos_w", OURS + "mixer.columns"),
            (BLOCK + r"mlp\.lin([12])\.(weight|bias)", OURS + r"ffn.fc\2.\3"),
            (BLOCK + r"(norm[12])\.(weight|bias)", OURS + r"\2.\3"),
            (FILE + r"patch_embed\.proj\.(weight|bias)", r"backbone.stem.convolution.conv.\1"),
            (FILE + r"pos_embed", "backbone.stem.position.table"),
            (FILE + r"neck\.0\.weight", NECK + "down.convolution.conv.weight"),
            (FILE + r"neck\.1\.(weight|bias)", NECK + r"down.convolution.norm.\1"),
            (FILE + r"neck\.2\.weight", NECK + "blocks.0.mixer.conv.weight"),
            (FILE + r"neck\.3\.(weight|bias)", NECK + r"blocks.0.norm.\1"),
        ),
        drop=(r"(prompt_encoder|mask_decoder)\..*",),
        convert=((r"backbone\.stem\.position\.table", lambda value, _: value.flatten(1, -2)),),  # a map, theirs
    )
}
