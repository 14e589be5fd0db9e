"""ViT-CoMer, https://arxiv.org/abs/2403.07392: a plain ViT (DeiT's or DINOv2's, to begin with) that exchanges features
with a pyramid of convolutions, as a backbone of segmentation (`seg`) or detection (`det`).

Without classes: features_only gives the four maps at strides 4 to 32; a classifier's answer is the mean of the last.
The authors' large backbone was not released.
"""

from torch import Tensor, nn

from ..backbone import Stage
from ..block import Mixer, PreNorm
from ..mixers.attention import Global
from ..mixers.each import Each
from ..mixers.padded_window import PaddedWindow
from ..model import Head
from ..network import Rules
from ..norm import Norm
from ..position import Position
from ..published import Weights
from ..stem import Patchify
from ..two_branches import Branch, TwoBranched
from .names import mlp_and_norms

WEIGHTS: dict[str, tuple[Weights, ...]] = {}  # detectors and segmentors, on Baidu's disk only
NORM = Norm(eps=1e-6)
WHOLE = (2, 5, 8, 11)  # the blocks of a detector that see the whole map


def vit_comer(dim: int, heads: int, mixer: Mixer, branch: Branch, grid: int, size: int, rate: float) -> TwoBranched:
    """`grid`: the side of the map that positions were learned on."""
    stem = Patchify(16, None, position=Position((grid, grid), antialias=False))
    stages = (Stage(mixer, dim, 12, scale=1.0, block=PreNorm(NORM)),)
    return TwoBranched("vit_comer", stages, stem, head=Head(None), size=(size, size), classes=0, drop_path=rate,
                       unread=dim, branch=branch)  # fmt: skip


def seg(dim: int, heads: int, branch: Branch, rate: float) -> TwoBranched:
    return vit_comer(dim, heads, Global(heads), branch, 14, 512, rate)


def det(dim: int, heads: int, branch: Branch, rate: float) -> TwoBranched:
    mixers = tuple(Global(heads) if i in WHOLE else PaddedWindow(heads, 14) for i in range(12))
    return vit_comer(dim, heads, Each(mixers), branch, 37, 1024, rate)


VARIANTS = {
    "vit_comer_seg_tiny": seg(192, 3, Branch(6.0), 0.1),
    "vit_comer_seg_small": seg(384, 6, Branch(1.5), 0.2),
    "vit_comer_seg_base": seg(768, 12, Branch(1.0, 12, 0.5), 0.3),
    "vit_comer_det_small": det(384, 6, Branch(0.5, each=False), 0.2),
    "vit_comer_det_base": det(768, 12, Branch(0.5, 12, 0.5, each=False), 0.3),
}
ALIASES = {name.removeprefix("vit_comer_"): name for name in VARIANTS}  # what the records are called


def without_class_row(value: Tensor, _: nn.Module) -> Tensor:
    """A file's table keeps the first row, of a class token that the network does not have."""
    return value[:, 1:]


P, AFFINE = r"(?:backbone\.)?", r"\.(weight|bias)"  # a detector's or segmentor's file has names of its heads as well
NORMS = r"\.(weight|bias|running_mean|running_var|num_batches_tracked)"
BLOCK, OURS = P + r"blocks\.(\d+)\.", r"backbone.stages.0.blocks.\1."


def attention(theirs: str, ours: str) -> list[tuple[str, str]]:
    """Deformable attention; `theirs` has one group, the number of the step."""
    parts = {"sampling_offsets": "offsets", "attention_weights": "weigh", "value_proj": "value", "output_proj": "proj"}
    return [(rf"{theirs}\.{a}{AFFINE}", rf"{ours}.{b}.\2") for a, b in parts.items()]


def ffn(theirs: str, ours: str) -> list[tuple[str, str]]:
    return [
        (rf"{theirs}\.(fc[12]){AFFINE}", rf"{ours}.\2.\3"),
        (rf"{theirs}\.dwconv\.dwconv{AFFINE}", rf"{ours}.conv.\2"),
    ]


def norms(theirs: str, ours: str, names: dict[str, str]) -> list[tuple[str, str]]:
    return [(rf"{theirs}\.{a}{AFFINE}", rf"{ours}.{b}.\2") for a, b in names.items()]


def within(theirs: str, ours: str) -> list[tuple[str, str]]:
    """A step within the pyramid: norms outside of `cfinter` and inside it."""
    inner = rf"{theirs}\.cfinter"
    return [
        *norms(theirs, ours, {"query_norm": "before_query", "feat_norm": "before_value"}),
        *norms(inner, ours, {"query_norm": "query_norm", "feat_norm": "value_norm", "ffn_norm": "ffn_norm"}),
        *attention(rf"{inner}\.attn", f"{ours}.attention"),
        *ffn(rf"{inner}\.ffn", f"{ours}.ffn"),
    ]


def exchange() -> list[tuple[str, str]]:
    theirs, ours = P + r"interactions\.(\d)", r"backbone.exchanges.\1"
    extra, more = P + r"interactions\.\d\.extra_CTIs\.(\d)", r"backbone.extra.\1"
    fields, told = rf"{theirs}\.mrfp", rf"{theirs}\.cti_tov"
    convs = [
        (rf"{fields}\.dwconv\.dwconv{2 * level + k + 1}{AFFINE}", rf"{ours}.fields.convs.{level}.{k}.\2")
        for level in range(3) for k in range(2)
    ]  # fmt: skip
    batch = [(rf"{fields}\.dwconv\.bn{i + 1}{NORMS}", rf"{ours}.fields.norms.{i}.\2") for i in range(3)]
    return [
        (rf"{fields}\.(fc[12]){AFFINE}", rf"{ours}.fields.\2.\3"), *convs, *batch,
        (rf"{told}\.gamma", f"{ours}.to_tokens.gamma"),
        *norms(told, f"{ours}.to_tokens", {"query_norm": "query_norm", "feat_norm": "value_norm",
                                           "ffn_norm": "ffn_norm"}),
        *attention(rf"{told}\.attn", f"{ours}.to_tokens.attention"), *ffn(rf"{told}\.ffn", f"{ours}.to_tokens.ffn"),
        *within(rf"{theirs}\.cti_toc", f"{ours}.within"),
        *within(extra, more), *norms(extra, more, {"ffn_norm": "first_norm"}), *ffn(rf"{extra}\.ffn", f"{more}.first"),
    ]  # fmt: skip


CONVS = "backbone.convolutions."
RULES = {
    "published": Rules(
        (
            (BLOCK + r"attn\.(qkv|proj)\.(weight|bias)", OURS + r"mixer.\2.\3"),
            (BLOCK + r"gamma([12])", OURS + r"add\2.gamma"),
            *mlp_and_norms(BLOCK, OURS),
            (P + r"patch_embed\.proj\.(weight|bias)", r"backbone.stem.convolution.conv.\1"),
            (P + r"pos_embed", "backbone.stem.position.table"),
            (P + r"level_embed", "backbone.levels"),
            *(
                rule for i in range(3) for rule in (
                    (rf"{P}spm\.stem\.{3 * i}\.weight", rf"{CONVS}stem.{i}.conv.weight"),
                    (rf"{P}spm\.stem\.{3 * i + 1}{NORMS}", rf"{CONVS}stem.{i}.norm.\1"),
                    (rf"{P}spm\.conv{i + 2}\.0\.weight", rf"{CONVS}convs.{i}.conv.weight"),
                    (rf"{P}spm\.conv{i + 2}\.1{NORMS}", rf"{CONVS}convs.{i}.norm.\1"),
                )
            ),
            *((rf"{P}spm\.fc{i + 1}{AFFINE}", rf"{CONVS}out.{i}.\1") for i in range(4)),
            *exchange(),
            (P + rf"up{AFFINE}", r"backbone.up.\1"),
            *((rf"{P}norm{i + 1}{NORMS}", rf"backbone.norms.{i}.\1") for i in range(4)),
        ),
        (r"(neck|decode_head|auxiliary_head|rpn_head|roi_head|bbox_head|query_head|mask_head)\..*",),
        flatten=(P + r"spm\.fc\d\.weight",),
        convert=((r"backbone\.stem\.position\.table", without_class_row),),
    )
}  # fmt: skip
