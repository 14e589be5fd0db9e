"""PyramidTNT, https://arxiv.org/abs/2201.00978: TNT in four stages.

Fidelity is unproven: built from a description, without numbers of the original to compare with, and its weights lie
where nothing can fetch them (Baidu). Multiply-accumulates come out as stated, parameters 0.2 to 0.7 percent below. What
the description leaves open is as in TNT: no bias in q and kv, MLPs four times as wide, a norm before the mean.
"""

from ..backbone import Stage
from ..block import EachBlock, PreNorm
from ..blocks.words import WithWords
from ..mixers.pooled_attention import Pooled, PooledAttention
from ..model import Classifier, Head
from ..network import Network, Rules
from ..published import Weights
from ..pyramid import Pyramid
from ..stems.pyramid_tnt import MergeSentences, WordPyramid

GROWTH, POOLS = (1, 2, 4, 4), (4, 2, 1, 1)
WEIGHTS: dict[str, tuple[Weights, ...]] = {}


def pyramid(
    dim: int, width: int, heads: tuple[int, int], depths: tuple[int, int, int, int], pixels: int = 256
) -> Network:
    """heads: of sentences and of words, in the first stage."""
    stages = []
    for i, (g, pool, depth) in enumerate(zip(GROWTH, POOLS, depths, strict=True)):
        side, worded = pixels // (8 << i), 2 if depth > 6 else 1
        blocks = (WithWords(g * width, g * heads[1], joint=True),) * worded + (PreNorm(),) * (depth - worded)
        down = MergeSentences(GROWTH[i - 1] * width, g * width) if i else None
        mixer = Pooled(g * heads[0], pool, (side, side))
        stages.append(Stage(mixer, g * dim, depth, block=EachBlock(blocks), down=down))
    return Network(
        "pyramid_tnt", tuple(stages), WordPyramid(width), head=Head(), size=(pixels, pixels), drop_path=0.1,
        initialise=share_positions,
    )  # fmt: skip


def share_positions(model: Classifier | Pyramid) -> None:
    """All blocks of a stage add the same biases."""
    for stage in model.backbone.stages:
        mixers = [m for m in stage.modules() if isinstance(m, PooledAttention)]
        for m in mixers[1:]:
            m.table = mixers[0].table


VARIANTS = {
    "pyramid_tnt_ti": pyramid(80, 5, (2, 1), (2, 6, 3, 2), 192),
    "pyramid_tnt_s": pyramid(128, 8, (4, 2), (2, 8, 4, 2)),
    "pyramid_tnt_m": pyramid(192, 12, (4, 2), (2, 8, 6, 2)),
    "pyramid_tnt_b": pyramid(256, 16, (4, 2), (2, 10, 6, 2)),
}
RULES: dict[str, Rules] = {}
