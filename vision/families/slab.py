"""SLAB, https://arxiv.org/abs/2405.11582: simplified linear attention, and layer norms that become batch norms (PRepBN)
in DeiT, Swin and PVT.

Proven against records of the authors' code: slab_deit_tiny, slab_swin_tiny, slab_pvt_tiny, and two blocks of
deit_tiny_prepbn; other sizes of these differ in nothing but width and depth. Without a record: swin_tiny_prepbn (Swin
with the norms of slab_swin) and deit_small_prepbn. Left out, because no published fact says how they are built:
pvt_*_prepbn (which norms stand around PVT's spatial reduction and class token) and slab_cswin_tiny (how its heads are
split between stripes and linear attention).
"""

from torch import Tensor

from ..backbone import Stage
from ..block import Mixer, PreNorm
from ..mixers.attention import Global
from ..mixers.simplified_linear import SimplifiedLinear
from ..mixers.window import Window
from ..model import Classifier, Head
from ..network import Network, Rules
from ..norm import Norm
from ..position import Position
from ..prepbn import Progressive, RepBatch
from ..pyramid import Pyramid
from ..stem import Merge2x2, Patchify
from ..stems.pvt import Repatch
from .slab_weights import WEIGHTS as WEIGHTS
from .swin import BUFFERS, computed

NORM, FINE = Progressive(), Progressive(eps=1e-6)
DEIT = {"tiny": (192, 12, 3), "small": (384, 12, 6)}
SWIN = {
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24), 0.2),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24), 0.3),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32), 0.5),
}


def square(side: int) -> tuple[int, int]:
    return side, side


def deit(size: str, norm: Norm) -> Network:
    """DeiT as it is, but for its norms: in the tiny file RepBN alone; in the small one, as its number of parameters
    says, with the layer norms that it began with."""
    dim, depth, heads = DEIT[size]
    stem = Patchify(16, None, position=Position(square(14), special=1, token_std=0.02))
    return Network("slab", (Stage(Global(heads), dim, depth, block=PreNorm(norm)),), stem,
                   head=Head(norm, pool="token"))  # fmt: skip


def slab_deit(size: str) -> Network:
    """No class token in the sequence; the files hold one all the same."""
    dim, depth, heads = DEIT[size]
    stage = Stage(SimplifiedLinear(heads, square(14)), dim, depth, block=PreNorm(FINE))
    return Network("slab", (stage,), Patchify(16, None, position=Position(square(14))), head=Head(FINE), unread=dim)


def swin(size: str, linear: int) -> Network:
    """Swin whose first `linear` stages attend to the whole map, by simplified linear attention."""
    dim, depths, heads, drop_path = SWIN[size]
    stages = []
    for i, (n, h) in enumerate(zip(depths, heads, strict=True)):
        mixer: Mixer = SimplifiedLinear(h, square(56 >> i)) if i < linear else Window(h, 7)
        stages.append(Stage(mixer, dim << i, n, block=PreNorm(NORM)))
    return Network("slab", tuple(stages), Patchify(4, NORM), Merge2x2(NORM), Head(NORM), drop_path=drop_path)


def slab_pvt() -> Network:
    """PVT's tiny form without spatial reduction, and without a norm before the head."""
    rows = zip((64, 128, 320, 512), (1, 2, 5, 8), (8.0, 8.0, 4.0, 4.0), strict=True)
    places = [Position(square(56 >> i), resize="bilinear") for i in range(4)]
    stages = tuple(
        Stage(SimplifiedLinear(h, square(56 >> i)), d, 2, r, block=PreNorm(FINE),
              down=Repatch(places[i], norm=NORM) if i else None)
        for i, (d, h, r) in enumerate(rows)
    )  # fmt: skip
    return Network("slab", stages, Patchify(4, NORM, position=places[0]), head=Head(None))


VARIANTS = {
    "deit_tiny_prepbn": deit("tiny", RepBatch()),
    "deit_small_prepbn": deit("small", FINE),
    **{f"slab_deit_{s}": slab_deit(s) for s in DEIT},
    **{f"slab_swin_{s}": swin(s, 2) for s in SWIN},
    "swin_tiny_prepbn": swin("tiny", 0),
    "slab_pvt_tiny": slab_pvt(),
}

# ------------------------------------------------------------------------------------------------------------- names

NORMS = (
    r"(?:norm1\.(?:weight|bias)|norm2\.alpha|norm2\.bn\.\w+|warm|iter|total_step"  # LinearNorm
    r"|alpha|bn\.\w+)"  # RepBN
)


def block(theirs: str, ours: str) -> tuple[tuple[str, str], ...]:
    """The rules of one block; `theirs` ends in a group more than it begins with: (stage and) block."""
    n = theirs.count("(")
    return (
        (theirs + rf"(norm[12])\.({NORMS})", ours + rf"\{n + 1}.\{n + 2}"),
        (theirs + r"attn\.(qkv|proj|dwc)\.(weight|bias)", ours + rf"mixer.\{n + 1}.\{n + 2}"),
        (theirs + r"attn\.q\.(weight|bias)", ours + rf"mixer.qkv.\{n + 1}[1/2]"),  # a third and two thirds
        (theirs + r"attn\.kv\.(weight|bias)", ours + rf"mixer.qkv.\{n + 1}[2/2]"),
        (theirs + r"attn\.(?:positional_encoding|relative_position_bias_table)", ours + "mixer.table"),
        (theirs + r"mlp\.(fc[12])\.(weight|bias)", ours + rf"ffn.\{n + 1}.\{n + 2}"),
    )


def stage_of_pvt(i: int) -> tuple[tuple[str, str], ...]:
    """PVT counts its stages from 1."""
    step = f"backbone.stages.{i - 1}.down." if i > 1 else "backbone.stem."
    return (
        *block(rf"block{i}\.(\d+)\.", rf"backbone.stages.{i - 1}.blocks.\1."),
        (rf"patch_embed{i}\.proj\.(weight|bias)", step + r"convolution.conv.\1"),
        (rf"patch_embed{i}\.norm\.({NORMS})", step + r"convolution.norm.\1"),
        (f"pos_embed{i}", step + "position.table"),
    )


def buffer(name: str, value: Tensor, model: Classifier | Pyramid) -> Tensor | None:
    return None if name == "cls_token" else computed(name, value, model)


RULES = {
    "published": Rules(
        (
            *block(r"blocks\.(\d+)\.", r"backbone.stages.0.blocks.\1."),
            *block(r"layers\.(\d+)\.blocks\.(\d+)\.", r"backbone.stages.\1.blocks.\2."),
            *(rule for i in (1, 2, 3, 4) for rule in stage_of_pvt(i)),
            (r"patch_embed\.proj\.(weight|bias)", r"backbone.stem.convolution.conv.\1"),
            (rf"patch_embed\.norm\.({NORMS})", r"backbone.stem.convolution.norm.\1"),
            *((rf"layers\.{i - 1}\.downsample\.reduction\.weight", f"backbone.stages.{i}.down.reduction.weight")
              for i in (1, 2, 3)),
            *((rf"layers\.{i - 1}\.downsample\.norm\.({NORMS})", rf"backbone.stages.{i}.down.norm.\1")
              for i in (1, 2, 3)),
            (r"pos_embed", "backbone.stem.position.table"),
            (r"cls_token", "backbone.stem.position.tokens.0"),
            (rf"norm\.({NORMS})", r"norm.\1"),
            (r"head\.(weight|bias)", r"head.\1"),
        ),
        (*BUFFERS, "cls_token"),  # SLAB's DeiT has no place for one
        pyramid=(r"norm\..*", r"head\..*"),
        check=buffer,
    )
}  # fmt: skip
