"""SReT, Sliced Recursive Transformer, https://arxiv.org/abs/2111.05297: three stages of blocks that run twice in a row
with the same weights, a small layer of its own behind each turn, attention inside slices of the sequence."""

from torch import Tensor, nn

from ..backbone import Stage
from ..blocks.recursive import Recursive, Weighed, WeighedMlp
from ..mixers.attention import Global
from ..mixers.sliced import Sliced
from ..model import Classifier, Head
from ..network import Network, Rules
from ..norm import Norm
from ..position import Position
from ..pyramid import Pyramid
from ..stem import Strided
from ..stems.sret import Halving
from .sret_weights import WEIGHTS as WEIGHTS

NORM = Norm(eps=1e-6)
SHARED = (2, 5, 3)  # blocks of a stage, each of which runs twice
FIRST, SECOND = (8, 4, 1), (2, 1, 1)  # slices of the three stages, at a block's first and second turn


def default_linear(model: Classifier | Pyramid) -> None:
    """Linear layers begin as torch has them."""
    for m in model.modules():
        if isinstance(m, nn.Linear):
            nn.Linear.reset_parameters(m)


def sret(base: int, heads: tuple[int, ...], ratio: float, own: float = 1.0, size: int = 224,
         slices: tuple[tuple[int, ...], tuple[int, ...]] | None = None) -> Network:  # fmt: skip
    """`base` channels a head; `slices` at the first and at the second turn, one number a stage."""
    total, past, stages = 2 * sum(SHARED), 0, []
    for i, (h, shared) in enumerate(zip(heads, SHARED, strict=True)):
        mixer = Global(h) if slices is None else Sliced(h, (slices[0][i], slices[1][i]))
        block = Recursive(Weighed(NORM), 2, WeighedMlp(own, NORM))
        # the rate rises over all turns; a stage's shared blocks got the first of its values, as published
        rises = tuple((past + k) / total for k in range(shared))
        stages.append(Stage(mixer, base * h, shared, ratio, block=block, drop_path=rises))
        past += 2 * shared
    position = Position((size // 8, size // 8))
    return Network(
        "sret", tuple(stages), Halving(position), Strided(depthwise=True), Head(NORM, late=True),
        size=(size, size), drop_path=0.0 if slices is None else 0.1, initialise=default_linear,
    )  # fmt: skip


T, LT, S = (32, (2, 4, 8), 3.6), (32, (2, 4, 8), 4.0), (42, (3, 6, 12), 3.0, 2.0)
AT_224 = {
    "sret_t": sret(*T, slices=(FIRST, SECOND)),
    "sret_t_wo_slice": sret(*T),
    "sret_lt": sret(*LT, slices=(FIRST, SECOND)),
    "sret_lt_wo_slice": sret(*LT),
    "sret_s": sret(*S, slices=(FIRST, SECOND)),
    "sret_s_wo_slice": sret(*S),
}
VARIANTS = {
    **AT_224,
    "sret_lt_16_14_1": sret(*LT, slices=((16, 14, 1), (1, 1, 1))),
    **{f"{name}_distill": network for name, network in AT_224.items()},  # a teacher's soft labels, no other head
    "sret_t_wo_slice_384": sret(*T, size=384),
    "sret_s_wo_slice_384": sret(*S, size=384),
    "sret_s_wo_slice_512": sret(*S, size=512),
}


def row_a_place(value: Tensor, host: nn.Module) -> Tensor:
    """Their map of positions (1 C H W) as a table (1 H*W C)."""
    return value.flatten(2).mT if value.ndim == 4 else value


def uses(k: int) -> tuple[tuple[str, str], ...]:
    """Shared block k of a stage. Theirs are counted by what runs: the block, own layer, the same block, own layer."""
    theirs, ours = r"transformers\.(\d)\.blocks\.", rf"backbone.stages.\1.blocks.{k}."
    block = rf"{theirs}{4 * k}\."
    return (
        (block + r"attn\.(qkv|proj)\.(weight|bias)", ours + r"block.mixer.\2.\3"),
        (block + r"mlp\.(fc[12])\.(weight|bias)", ours + r"block.ffn.\2.\3"),
        (block + r"(norm[12])\.(weight|bias)", ours + r"block.\2.\3"),
        *((block + rf"coefficient{c}\.bias", ours + f"block.{add}") for c, add in enumerate(ADDS, 1)),
        *(
            rule
            for j in (0, 1)
            for own in [rf"{theirs}{4 * k + 1 + 2 * j}\."]
            for rule in (
                (own + r"norm1\.(weight|bias)", ours + rf"own.{j}.norm.\2"),
                (own + r"mlp\.(fc[12])\.(weight|bias)", ours + rf"own.{j}.ffn.\2.\3"),
                (own + r"coefficient1\.bias", ours + f"own.{j}.add.stream"),
                (own + r"coefficient2\.bias", ours + f"own.{j}.add.branch"),
            )
        ),
    )


ADDS = ("add1.stream", "add1.branch", "add2.stream", "add2.branch")
RULES = {
    "published": Rules(
        (
            *(rule for k in range(max(SHARED)) for rule in uses(k)),
            (r"pos_embed", "backbone.stem.position.table"),
            *(
                (rf"patch_embed\.{theirs}{i + 1}\.(.+)", rf"backbone.stem.convs.{i}.{ours}.\1")
                for i in range(3)
                for theirs, ours in (("conv", "conv"), ("bn", "norm"))
            ),
            *((rf"pools\.{i}\.conv\.(.+)", rf"backbone.stages.{i + 1}.down.convolution.conv.\1") for i in (0, 1)),
            (r"norm\.(weight|bias)", r"late_norm.\1"),
            (r"head\.(weight|bias)", r"head.\1"),
        ),
        pyramid=(r"norm\..*", r"head\..*"),
        convert=((r"backbone\.stem\.position\.table", row_a_place),),
        copies=tuple(
            (rf"transformers\.(\d)\.blocks\.{4 * k + 2}\.(.+)", rf"transformers.\1.blocks.{4 * k}.\2")
            for k in range(max(SHARED))
        ),
    )
}
