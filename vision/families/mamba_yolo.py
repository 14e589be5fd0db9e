"""Mamba YOLO, https://arxiv.org/abs/2406.05835: the backbone of a detector whose maps are scanned along rows and
columns, both ways, behind convolutions of a token's neighbours.

Without classes: features_only gives the maps at strides 4 to 32; a classifier's answer is the mean of the last. The
detector, its neck and head included, is `patchloom.vision.heads.yolo.mamba_yolo`. No weights are published.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..backbone import Stage
from ..block import EachBlock, Mixer
from ..blocks.local_scan import EPS, LocalScan
from ..blocks.no_residual import Replacing
from ..mixers.cross_scan import Cross, CrossScan
from ..mixers.each import Each
from ..mixers.pyramid_pool import PyramidPool
from ..model import Head
from ..network import Network, Rules
from ..norm import Norm
from ..published import Weights
from ..stems.convolutions import ConvLayers, Layer
from ..stems.mamba_yolo import ClueMerge

WEIGHTS: dict[str, tuple[Weights, ...]] = {}
SCALES = {  # depth and width over those of the widest, and the largest width before that
    "mamba_yolo_tiny": (0.33, 0.25, 1024), "mamba_yolo_base": (0.33, 0.5, 1024), "mamba_yolo_large": (0.67, 0.75, 768),
}  # fmt: skip
SCAN = Cross(act="gelu")


def width(channels: int, scale: tuple[float, float, int]) -> int:
    """In steps of eight, rounded up."""
    return math.ceil(min(channels, scale[2]) * scale[1] / 8) * 8


def repeats(n: int, scale: tuple[float, float, int]) -> int:
    return max(round(n * scale[0]), 1)


def mamba_yolo(scale: tuple[float, float, int]) -> Network:
    widths, depths = [width(c, scale) for c in (128, 256, 512, 1024)], [repeats(n, scale) for n in (3, 3, 9, 3)]
    norm = Norm("batch", EPS)
    stem = ConvLayers((Layer(widths[0] // 2, 3, 2, "gelu", False, norm), Layer(None, 3, 2, "silu", False, norm)))
    stages = [Stage(SCAN, c, n, block=LocalScan()) for c, n in zip(widths[:3], depths[:3], strict=True)]
    n, total = depths[3], sum(depths)
    mixers: tuple[Mixer, ...] = (*(SCAN,) * n, PyramidPool(eps=EPS))
    shares = (*((total - n + j) / max(1, total - 1) for j in range(n)), 0.0)
    stages.append(
        Stage(Each(mixers), widths[3], n + 1, block=EachBlock((*(LocalScan(),) * n, Replacing(None))), drop_path=shares)
    )
    return Network("mamba_yolo", tuple(stages), stem, ClueMerge(), Head(None), size=(640, 640), classes=0,
                   initialise=initialise)  # fmt: skip


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Every state decays alike at first, and steps are normal."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.03  # those of the stem too
        if isinstance(module, CrossScan):
            for scan in module.scans:
                nn.init.zeros_(scan.A_log)  # type: ignore[arg-type]
                nn.init.normal_(scan.dt_proj.weight)  # type: ignore[union-attr,arg-type]
                nn.init.normal_(scan.dt_proj.bias)  # type: ignore[union-attr,arg-type]


VARIANTS = {name: mamba_yolo(scale) for name, scale in SCALES.items()}

AFFINE, NORMS = r"(weight|bias)", r"(weight|bias|running_mean|running_var|num_batches_tracked)"
PARTS = ("x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds")


def scan(theirs: str, ours: str, n: int) -> Iterator[tuple[str, str]]:
    """Names of a cross scan; `theirs` has n groups."""
    one, two = rf"\{n + 1}", rf"\{n + 2}"
    yield rf"{theirs}x_proj_weight\[(\d)\]", f"{ours}scans.{one}.x_proj.weight"
    yield rf"{theirs}dt_projs_(weight|bias)\[(\d)\]", f"{ours}scans.{two}.dt_proj.{one}"
    yield rf"{theirs}A_logs\[(\d)\]", f"{ours}scans.{one}.A_log"
    yield rf"{theirs}Ds\[(\d)\]", f"{ours}scans.{one}.D"
    yield rf"{theirs}(in_proj|out_proj)\.weight", f"{ours}{one}.weight"
    yield rf"{theirs}conv2d\.{AFFINE}", f"{ours}conv.{one}"
    yield rf"{theirs}out_norm\.{AFFINE}", f"{ours}norm.{one}"


def block(theirs: str, ours: str, n: int, enter: str) -> Iterator[tuple[str, str]]:
    """Names of a block but for its scans; `theirs` has n groups, `enter` is their layer at the entrance."""
    one, two = rf"\{n + 1}", rf"\{n + 2}"
    yield rf"{theirs}{enter}\.0\.{AFFINE}", f"{ours}enter.linear.{one}"
    yield rf"{theirs}{enter}\.1\.{NORMS}", f"{ours}enter.norm.{one}"
    yield rf"{theirs}norm\.norm\.{AFFINE}", f"{ours}norm1.{one}"
    yield rf"{theirs}norm2\.norm\.{AFFINE}", f"{ours}norm2.{one}"
    yield rf"{theirs}lsblock\.fc1\.{AFFINE}", f"{ours}local.conv.conv.{one}"
    yield rf"{theirs}lsblock\.norm\.{NORMS}", f"{ours}local.conv.norm.{one}"
    yield rf"{theirs}lsblock\.fc2\.{AFFINE}", f"{ours}local.mlp.fc1.{one}"
    yield rf"{theirs}lsblock\.fc3\.{AFFINE}", f"{ours}local.mlp.fc2.{one}"
    yield rf"{theirs}mlp\.(fc[12])\.{AFFINE}", f"{ours}ffn.{one}.{two}"
    yield rf"{theirs}mlp\.dwconv\.{AFFINE}", f"{ours}ffn.conv.conv.{one}"


def backbone(ours: str) -> Iterator[tuple[str, str]]:
    """Names of layers 0 to 8 of a detector's file; `ours` is what ours begin with."""
    for i, j in enumerate((0, 3)):
        yield rf"model\.0\.conv\.{j}\.weight", f"{ours}stem.layers.{i}.conv.weight"
        yield rf"model\.0\.conv\.{j + 1}\.{NORMS}", f"{ours}stem.layers.{i}.norm.\\1"
    for i in range(4):
        stage = f"{ours}stages.{i}."
        for theirs, mine, n in ((rf"model\.{2 * i + 1}\.(\d)\.", rf"{stage}blocks.\1.", 1),
                                (rf"model\.{2 * i + 1}\.", f"{stage}blocks.0.", 0)):  # fmt: skip
            yield from block(theirs, mine, n, "proj_conv")
            yield from scan(theirs + r"op\.", mine + "mixer.", n)
        yield rf"model\.{2 * i}\.pw_linear\.0\.{AFFINE}", f"{stage}down.reduction.linear.\\1"
        yield rf"model\.{2 * i}\.pw_linear\.1\.{NORMS}", f"{stage}down.reduction.norm.\\1"
    for i in (1, 2, 3):  # the pools stand behind as many blocks as the last stage has
        for a, b in (("cv1", "before"), ("cv2", "after")):
            mine = f"{ours}stages.3.blocks.{i}.mixer.{b}."
            yield rf"model\.8\.{a}\.conv\.weight", mine + "linear.weight"
            yield rf"model\.8\.{a}\.bn\.{NORMS}", mine + r"norm.\1"


def neck(ours: str) -> Iterator[tuple[str, str]]:
    """Names of layers 9 to 20."""
    for layer, mine in ((11, "up.1."), (14, "up.0."), (17, "down.0."), (20, "down.1.")):
        theirs = rf"model\.{layer}\."
        yield from block(theirs, ours + mine, 0, "in_proj")
        yield from scan(rf"{theirs}ss2d\.(\d)\.", rf"{ours}{mine}mixer.mixers.\1.", 1)
    for i, layer in enumerate((15, 18)):
        yield rf"model\.{layer}\.conv\.weight", f"{ours}steps.{i}.conv.weight"
        yield rf"model\.{layer}\.bn\.{NORMS}", f"{ours}steps.{i}.norm.\\1"


def head(ours: str) -> Iterator[tuple[str, str]]:
    """Names of layer 21."""
    for a, b in (("cv2", "boxes"), ("cv3", "scores")):
        theirs = rf"model\.21\.{a}\.(\d)\."
        yield rf"{theirs}([01])\.conv\.weight", rf"{ours}{b}.\1.\2.conv.weight"
        yield rf"{theirs}([01])\.bn\.{NORMS}", rf"{ours}{b}.\1.\2.norm.\3"
        yield rf"{theirs}2\.{AFFINE}", rf"{ours}{b}.\1.2.\2"


def distances(name: str, value: Tensor, model: nn.Module) -> Tensor | None:
    """The fixed weights of the layer that takes the expectation of a side."""
    return torch.arange(value.numel()).view(1, -1, 1, 1) if "dfl" in name else None


FLAT = (r"model\.\d+\..*(in_proj(\.0)?|out_proj|fc[123]|proj_conv\.0|pw_linear\.0)\.weight",
        r"model\.8\.cv[12]\.conv\.weight", r"model\.21\.cv[23]\.\d\.2\.weight")  # fmt: skip
STACKED = tuple((rf"model\..*\.{part}", 4) for part in PARTS)
RULES = {
    "published": Rules(
        tuple(backbone("backbone.")), (r"model\.(11|14|15|17|18|20|21)\..*",), flatten=FLAT, stacked=STACKED
    )
}
DETECTOR = Rules(
    (*backbone("backbone.backbone."), *neck("neck."), *head("branches.")),
    (r"model\.21\.dfl\.conv\.weight",), flatten=FLAT, stacked=STACKED, check=distances,
)  # fmt: skip
