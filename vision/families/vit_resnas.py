"""ViT-Res and ViT-ResNAS, https://arxiv.org/abs/2109.00642: three stages of a ViT with class token, residual reductions
between them; widths, heads and depths by hand (Res) or found by search (ResNAS)."""

import re
from collections.abc import Sequence
from typing import Any

from ..backbone import Stage
from ..block import PreNorm, exact_ratio
from ..mixers.attention import Global
from ..mixers.each import Each
from ..model import Classifier, Head
from ..network import Network, Rules
from ..norm import Norm
from ..position import Position
from ..pyramid import Pyramid
from ..stem import Patchify, Stem
from ..stems.vit_resnas import ConvPatches, ResidualReduction
from .names import mlp_and_norms
from .vit_resnas_weights import WEIGHTS as WEIGHTS

Definition = Sequence[Sequence[Any]]
NORM = Norm(eps=1e-6)


def parse(definition: Definition, *, size: int = 224, tokens: int = 1, drop_path: float = 0.0,
          listed: bool = True) -> Network:  # fmt: skip
    """The network that a definition in the authors' language (`network_def`) describes. Its entries, in order:

    (0, C) patches of 14 pixels | (4, C) the same behind convolutions of 24 channels | (5, C, m) of m channels
    (1, (C, heads, head width), (C, hidden), exists) a block; exists = 0: left out
    (3, C, C') a residual spatial reduction to the next stage
    (2, C, classes) the head, last

    tokens: 1 (class; the head looks at patches too, in training) or 2 (class and distillation, a head each).
    Raises ValueError where an entry is none of these, or its width is not that of the one before.
    """
    if tokens not in (1, 2):
        raise ValueError(f"tokens={tokens}: it is 1 (class) or 2 (class and distillation)")
    first, *entries = definition
    if [e[0] for e in entries].count(2) != 1 or entries[-1][0] != 2:
        raise ValueError("a definition ends with its one head, (2, C, classes)")
    side, dim = -(-size // 14), first[1]
    stem = first_layer(first, Position((side, side), special=tokens, token_std=0.02, antialias=False))
    stages: list[Stage] = []
    blocks: list[tuple[Global, float]] = []
    down: ResidualReduction | None = None
    for entry in entries:
        if wrong_width(entry, dim):
            raise ValueError(f"{entry} is no entry of a definition, or not {dim} wide as what stands before it")
        if entry[0] == 1:
            (_, heads, width), (_, hidden), exists = entry[1:]
            blocks += [(Global(heads, width=width), exact_ratio(hidden, dim))] if exists else []
            continue
        if not blocks:
            raise ValueError(f"a stage without a block stands before {entry}")
        mixers, ratios = zip(*blocks, strict=True)
        stages.append(Stage(Each(mixers), dim, len(blocks), ratios, block=PreNorm(NORM), down=down))
        if entry[0] == 3:
            side, dim, blocks = -(-side // 2), entry[2], []
            down = ResidualReduction(Position((side, side), antialias=False), NORM)
    head = Head(NORM, "token", patches=0.0) if tokens == 1 else Head(NORM, "distilled")
    return Network("vit_resnas", tuple(stages), stem, head=head, size=(size, size), classes=entries[-1][2],
                   drop_path=drop_path, listed=listed)  # fmt: skip


def first_layer(entry: Sequence[Any], position: Position) -> Stem:
    if (entry[0], len(entry)) == (0, 2):
        return Patchify(14, None, position=position)
    if (entry[0], len(entry)) in ((4, 2), (5, 3)):
        return ConvPatches(position, *entry[2:])
    raise ValueError(f"a definition begins with (0, C), (4, C) or (5, C, m); got {entry}")


def wrong_width(entry: Sequence[Any], dim: int) -> bool:
    """Whether `entry` is not one that may follow tokens of `dim` channels."""
    if entry[0] == 1 and len(entry) == 4 and len(entry[1]) == 3 and len(entry[2]) == 2:
        return bool(entry[1][0] != dim or entry[2][0] != dim)
    return entry[0] not in (2, 3) or len(entry) != 3 or bool(entry[1] != dim)


def definition(widths: Sequence[int], stages: Sequence[str], head_widths: Sequence[int] = (32, 48, 64)) -> Definition:
    """Widths of the stages and their blocks, `heads:hidden` each -> a definition, with patches behind convolutions."""
    made: list[tuple[Any, ...]] = [(4, widths[0])]
    for i, (dim, blocks, width) in enumerate(zip(widths, stages, head_widths, strict=True)):
        if i:
            made.append((3, widths[i - 1], dim))
        for block in blocks.split():
            heads, hidden = (int(n) for n in block.split(":"))
            made.append((1, (dim, heads, width), (dim, hidden), 1))
    return (*made, (2, widths[-1], 1000))


TINY = definition(
    (176, 352, 704),
    (
        "3:704 3:576 3:640 4:576 4:704",
        "10:1408 8:1408 8:1280 8:1408 10:1280 10:1024",
        "10:2560 10:1792 10:2816 8:2816 8:2560",
    ),
)
SMALL = definition(
    (220, 440, 880),
    (
        "5:880 5:880 7:800 5:720 5:720 5:720",
        "10:1760 10:1440 10:1920 10:1600 12:1600 12:1440",
        "16:3200 12:3200 16:2880 12:2240 14:2560",
    ),
)
MEDIUM = definition(
    (240, 640, 880),
    (
        "7:960 6:960 7:800 8:960 7:880 8:880 6:800",
        "10:1120 14:1760 14:1920 16:1760 14:1440 16:1760 16:1920",
        "16:3200 10:3840 16:3840 12:3200 16:3520 14:3520",
    ),
)
BY_HAND = definition((192, 384, 768), ["3:768 " * 4, "6:1536 " * 4, "12:3072 " * 4], (64, 64, 64))
PLAIN = (
    (0, 96), (1, (96, 3, 32), (96, 288), 1), (3, 96, 192), (1, (192, 4, 48), (192, 576), 1), (3, 192, 384),
    (1, (384, 6, 64), (384, 1152), 1), (2, 384, 1000),
)  # fmt: skip
VARIANTS = {
    "vit_res_tiny": parse(BY_HAND, drop_path=0.2),
    "vit_resnas_tiny": parse(TINY, drop_path=0.2),
    "vit_resnas_small": parse(SMALL, drop_path=0.3),
    "vit_resnas_medium": parse(MEDIUM, drop_path=0.3),
    **{f"vit_resnas_medium_{p}": parse(MEDIUM, size=p, drop_path=0.75) for p in (280, 336, 392)},
    "distilled_plain_patch": parse(PLAIN, tokens=2, listed=False),
}


def by_stage(name: str, model: Classifier | Pyramid) -> str:
    """Their count of blocks and reductions through all stages -> `blocks.STAGE.BLOCK` and `blocks.STAGE` (the
    reduction to it)."""
    if (m := re.match(r"blocks\.(\d+)\.", name)) is None:
        return name
    index, rest = int(m[1]), name[m.end() :]
    for i, stage in enumerate(model.backbone.specs):
        if i:
            if index == 0:
                return f"blocks.{i}.{rest}"
            index -= 1
        if index < stage.depth:
            return f"blocks.{i}.{index}.{rest}"
        index -= stage.depth
    return name


BLOCK, OURS = r"blocks\.(?:(\d+)\.)?(\d+)\.", r"backbone.stages.\1.blocks.\2."
DOWN, STEP = r"blocks\.(\d+)\.", r"backbone.stages.\1.down."
RULES = {
    "published": Rules(
        (
            (BLOCK + r"attn\.(qkv|proj)\.(weight|bias)", OURS + r"mixer.\3.\4"),
            *mlp_and_norms(BLOCK, OURS),
            (DOWN + r"norm\.(weight|bias)", STEP + r"norm.\2"),
            (DOWN + r"patch_reduce\.(weight|bias)", STEP + r"conv.\2"),
            (DOWN + r"token_transform\.(weight|bias)", STEP + r"linear.\2"),
            (DOWN + r"pos_embed", STEP + "position.table"),
            (r"patch_embed\.(conv[123])\.conv\.weight", r"backbone.stem.\1.conv.weight"),
            (r"patch_embed\.(conv[123])\.bn\.(.+)", r"backbone.stem.\1.norm.\2"),
            (r"patch_embed\.(?:conv_)?proj\.(weight|bias)", r"backbone.stem.convolution.conv.\1"),
            (r"pos_embed", "backbone.stem.position.table"),
            (r"tokens(?:\[(\d)\])?", r"backbone.stem.position.tokens.\1"),
            (r"norm\.(weight|bias)", r"norm.\1"),
            (r"cls_head\.(weight|bias)", r"head.\1"),
            (r"dst_head\.(weight|bias)", r"head_dist.\1"),
            (r"patch_head\.(weight|bias)", r"head_patches.\1"),
        ),
        pyramid=(r"norm\..*", r"(cls|dst|patch)_head\..*"),
        number=by_stage,
        split=("tokens",),
    )
}
