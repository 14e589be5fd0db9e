"""Swin Transformer, https://arxiv.org/abs/2103.14030: the variants, and the names in their checkpoints."""

import re

import torch
from torch import Tensor

from ..backbone import Stage
from ..mixers.window import Window, WindowAttention, apart, offsets
from ..model import Classifier
from ..network import Dense, Network, Rules
from ..norm import Norm
from ..pyramid import Pyramid
from .names import mlp_and_norms
from .swin_weights import WEIGHTS as WEIGHTS


def swin(dim: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int = 7, size: int = 224,
         drop_path: float = 0.2, classes: int = 1000) -> Network:  # fmt: skip
    def stages(dense: bool) -> tuple[Stage, ...]:
        rows = enumerate(zip(depths, heads, strict=True))
        return tuple(Stage(Window(h, window, dense), dim * 2**i, n) for i, (n, h) in rows)

    return Network("swin", stages(False), dense=Dense(Norm(), stages(True)), size=(size, size), classes=classes,
                   drop_path=drop_path)  # fmt: skip


SMALL, SIZES = (2, 2, 18, 2), (4, 8, 16, 32)
VARIANTS = {
    "swin_tiny": swin(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "swin_small": swin(96, SMALL, (3, 6, 12, 24), drop_path=0.3),
    "swin_base": swin(128, SMALL, SIZES, drop_path=0.5),
    "swin_base_384": swin(128, SMALL, SIZES, 12, 384, drop_path=0.5),
    "swin_large": swin(192, SMALL, (6, 12, 24, 48)),
    "swin_large_384": swin(192, SMALL, (6, 12, 24, 48), 12, 384),
    "swin_tiny_c24_256": swin(96, (2, 2, 6, 2), SIZES, 8, 256),
    "swin_tiny_22k": swin(96, (2, 2, 6, 2), (3, 6, 12, 24), drop_path=0.1, classes=21841),
    "swin_small_22k": swin(96, SMALL, (3, 6, 12, 24), classes=21841),
    "swin_base_22k": swin(128, SMALL, SIZES, classes=21841),
    "swin_large_22k": swin(192, SMALL, (6, 12, 24, 48), classes=21841),
    "swin_base_384_22k": swin(128, SMALL, SIZES, 12, 384, classes=21841),
    "swin_large_384_22k": swin(192, SMALL, (6, 12, 24, 48), 12, 384, classes=21841),
}


def computed(name: str, value: Tensor, model: Classifier | Pyramid) -> Tensor | None:
    """What the buffer `name` of a checkpoint must hold: the rows of the bias table, or the mask of a shifted block."""
    i, j = (int(n) for n in re.findall(r"\d+", name)[:2])
    mixer = model.backbone.stages[i].blocks[j].mixer  # type: ignore[union-attr, index]
    assert isinstance(mixer, WindowAttention)
    s = round(value.shape[-1] ** 0.5)
    if s * s != value.shape[-1] or s > mixer.size:
        return None
    if name.endswith("relative_position_index"):
        return torch.from_numpy(offsets(s, s))
    side = round(value.shape[0] ** 0.5) * s
    mask = apart(side, side, s, s // 2, False)
    return None if mask is None else torch.from_numpy(mask)


BLOCK = r"layers\.(\d+)\.blocks\.(\d+)\."
OURS = r"backbone.stages.\1.blocks.\2."
BLOCKS = (
    (BLOCK + r"attn\.relative_position_bias_table", OURS + "mixer.table"),
    (BLOCK + r"attn\.(qkv|proj)\.(weight|bias)", OURS + r"mixer.\3.\4"),
    *mlp_and_norms(BLOCK, OURS),
    (r"patch_embed\.proj\.(weight|bias)", r"backbone.stem.convolution.conv.\1"),
    (r"patch_embed\.norm\.(weight|bias)", r"backbone.stem.convolution.norm.\1"),
    (r"norm\.(weight|bias)", r"norm.\1"),
)
NORMS = ((r"norm([0-3])\.(weight|bias)", r"norms.\1.\2"),)
BUFFERS = (r"layers\.\d+\.blocks\.\d+\.(attn\.relative_position_index|attn_mask)",)


def later(shift: int) -> tuple[tuple[str, str], ...]:
    """Patch merging, which belongs to the stage before it (the authors) or behind it (timm); ours to the one behind."""
    return tuple(
        (rf"layers\.{i - shift}\.downsample\.(norm|reduction)\.(weight|bias)", rf"backbone.stages.{i}.down.\1.\2")
        for i in (1, 2, 3)
    )


HEAD = r"head\.(weight|bias)"
RULES = {
    "published": Rules(
        (*BLOCKS, *later(1), (HEAD, r"head.\1")), BUFFERS, (r"norm\..*", r"head\..*"), dense=NORMS, check=computed
    ),
    "timm": Rules(
        (*BLOCKS, *later(0), (r"head\.fc\.(weight|bias)", r"head.\1")),
        BUFFERS,
        (r"norm\..*", r"head\..*"),
        check=computed,
    ),
}
