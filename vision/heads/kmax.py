"""kMaX-DeepLab, https://arxiv.org/abs/2207.04044: panoptic segmentation by clustering pixels, on any pyramid; and the
backbones and names of the published networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from ..backbone import Backbone
from ..families import convnext
from ..network import Rules
from ..pyramid import Pyramid
from ..resnet import RULES as RESNET
from ..resnet import ResNetPyramid
from ..stems.aligned import AlignedDown, AlignedPatchify
from ..weights import Report
from .kmax_decoder import KMaxDecoder, KMaxPrediction
from .kmax_pixel_decoder import EPS, LEVELS, MOMENTUM, KMaxPixelDecoder, Level
from .kmax_semantic import CoarseSemantic, FusedSemantic
from .loading import load_parts
from .mask2former import batched, described, embedded, hw


@dataclass(frozen=True)
class KMaxPredictions:
    """`layers`: the predictions of the decoder's layers, the final one last; while training also `semantic` (B K H' W')
    of the head beside it. `size` (H W) of the padded images, `sizes` of each as it came."""

    layers: list[KMaxPrediction]
    semantic: Tensor | None
    size: tuple[int, int]
    sizes: list[tuple[int, int]]

    @property
    def last(self) -> KMaxPrediction:
        return self.layers[-1]


class KMax(nn.Module):
    """Images -> `KMaxPredictions`; `backbone` gives maps, from fine to coarse, and says their `channels` and `strides`.

    Images, scaled to -1..1, are (B 3 H W) or a list of (3 H W) of any sizes; they are padded with zeros at right and
    bottom to a multiple of the coarsest stride, plus 1 where `odd` (as published). `levels`: one for each map, the
    coarsest first. `semantic`: the head beside the decoder. Losses: heads/kmax_losses.py; results:
    heads/kmax_inference.py.
    """

    def __init__(
        self, backbone: nn.Module, classes: int, queries: int = 128, levels: Sequence[Level] = LEVELS,
        semantic: Literal["fused", "coarse"] | None = "fused", drop_path: float = 0.0, odd: bool = True,
    ):  # fmt: skip
        super().__init__()
        channels, strides = described(backbone)
        self.backbone, self.classes, self.stride, self.odd = backbone, classes, max(strides), odd
        self.settings = {"queries": queries, "levels": tuple(levels), "semantic": semantic, "drop_path": drop_path}
        self.pixel_decoder = KMaxPixelDecoder(channels, levels, drop_path)
        widths = self.pixel_decoder.channels
        self.decoder = KMaxDecoder(widths[:3], widths[-1], classes, queries, drop_path=drop_path)
        self.semantic: nn.Module | None = None
        if semantic is not None:
            self.semantic = {"fused": FusedSemantic, "coarse": CoarseSemantic}[semantic](channels, classes)

    def forward(self, images: Tensor | Sequence[Tensor]) -> KMaxPredictions:
        image, sizes = batched(images, self.stride, self.odd)
        maps = self.backbone(image)
        layers = self.decoder(self.pixel_decoder(maps))
        semantic = self.semantic(maps) if self.training and self.semantic is not None else None
        return KMaxPredictions(layers, semantic, hw(image), sizes)

    def arguments(self) -> dict[str, Any]:
        """What it was made of, by the names of the constructor."""
        return {"backbone": self.backbone, "classes": self.classes, "odd": self.odd, **self.settings}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """In the backbone."""
        self.backbone.set_grad_checkpointing(enable)  # type: ignore[operator]

    def no_weight_decay(self) -> set[str]:
        """The names of what is embedded, here and in the backbone."""
        tables = {n for n, _ in self.pixel_decoder.named_parameters("pixel_decoder") if n.endswith("_table")}
        return {"decoder.centres"} | tables | embedded(self.backbone)


# -------------------------------------------------------------------------------------------------- published networks


def convnext_backbone(name: str, drop_path: float = 0.0) -> Pyramid:
    """A ConvNeXt that keeps odd sizes aligned, without a norm on its maps."""
    network, norm = convnext.VARIANTS[name], convnext.NORM
    backbone = Backbone(network.stages, AlignedPatchify(norm), AlignedDown(norm), drop_path=drop_path)
    pyramid = Pyramid(backbone)
    pyramid.name, pyramid.family = name, network.family
    convnext.initialise(pyramid)
    return pyramid


def resnet_backbone(outputs: Sequence[str] = ("res2", "res3", "res4", "res5")) -> ResNetPyramid:
    return ResNetPyramid(outputs=outputs, eps=EPS, momentum=MOMENTUM)


def kmax(variant: str) -> KMax:
    """A published network, with fresh weights: `coco_` or `cityscapes_` and `r50`, `convnext_tiny`, `convnext_small`,
    `convnext_base`, `convnext_large`; `ade20k_` with `r50` or `convnext_large`."""
    data, _, backbone = variant.partition("_")
    if data not in CLASSES or (backbone != "r50" and backbone not in DROP_PATH):
        raise ValueError(
            f"no kMaX-DeepLab {variant!r}: there are {', '.join(CLASSES)}, each with r50 or convnext_tiny …"
        )
    city = data == "cityscapes"
    made: nn.Module
    if backbone == "r50":
        made = resnet_backbone(("res2", "stem", "res3", "res4", "res5") if city else ("res2", "res3", "res4", "res5"))
    elif city:
        raise ValueError(f"{variant}: the Cityscapes form takes a map of the stem, which only r50 gives here")
    else:
        made = convnext_backbone(backbone, DROP_PATH[backbone])
    levels = (*LEVELS, Level(32)) if city else LEVELS
    return KMax(made, CLASSES[data], 256 if city else 128, levels, "coarse" if city else "fused", 0.2)


CLASSES = {"coco": 133, "ade20k": 150, "cityscapes": 19}
DROP_PATH = {"convnext_tiny": 0.3, "convnext_small": 0.4, "convnext_base": 0.5, "convnext_large": 0.6}

ANY = r"\.(\w+)"
PIXEL, PREDICTOR = r"sem_seg_head\.pixel_decoder\.", r"sem_seg_head\.predictor\."
BLOCK, OURS = PIXEL + r"_stages\.(\d)\._blocks\.(\d)\.", r"pixel_decoder.stages.\1.\2."
AXIS = BLOCK + r"_attention\._(height|width)_axis\."
LAYER = PREDICTOR + r"_kmax_transformer_layers\.(\d)\."
SEMANTIC = PREDICTOR + r"_auxiliary_semantic_predictor\."
PREDICT = {
    "_pixel_space_head_conv0bnact": "spread", "_pixel_space_head_conv1bnact": "mix",
    "_pixel_space_head_last_convbn": "pixel", "_transformer_mask_head": "kernel",
}  # fmt: skip
PARTS = {
    "_query_conv1_bn_act": "query_in", "_pixel_conv1_bn_act": "pixel_in", "_query_qkv_conv_bn": "qkv",
    "_pixel_v_conv_bn": "pixel_value", "_kmeans_query_conv3_bn": "update_out", "_query_conv3_bn": "attention_out",
    "_query_ffn_conv1_bn_act": "fc1", "_query_ffn_conv2_bn": "fc2",
}  # fmt: skip
BESIDE = {
    "_aspp._aspp_conv0": "aspp.convs.0", "_aspp._aspp_conv1": "aspp.convs.1", "_aspp._aspp_conv2": "aspp.convs.2",
    "_aspp._aspp_conv3": "aspp.convs.3", "_aspp._aspp_pool": "aspp.mean", "_aspp._proj_conv_bn_act": "aspp.mix",
    "_low_level_projection_os8": "to8.project", "_low_level_fusion_os8_conv0_bn_act": "to8.spread",
    "_low_level_fusion_os8_conv1_bn_act": "to8.mix", "_low_level_projection_os4": "to4.project",
    "_low_level_fusion_os4_conv0_bn_act": "to4.spread", "_low_level_fusion_os4_conv1_bn_act": "to4.mix",
    "conv_block_0": "head.spread", "conv_block_1": "head.mix", "0": "head.spread", "1": "head.mix",
}  # fmt: skip


def conv_rules(start: str, names: Mapping[str, str], ours: str, groups: int) -> tuple[tuple[str, str], ...]:
    """Rules for convolutions with their norms; `groups` are those of `start`."""
    at = rf".\{groups + 1}.\{groups + 2}"
    return tuple((f"{start}{t.replace('.', '[.]')}" + r"\.(conv|norm)" + ANY, ours + o + at) for t, o in names.items())


def predictor_rules(start: str, ours: str, groups: int) -> tuple[tuple[str, str], ...]:
    start = start + r"_predcitor\."  # as published
    return (
        *conv_rules(start, PREDICT, ours + "predictor.", groups),
        (start + r"_transformer_class_head\.conv" + ANY, rf"{ours}predictor.classify.\{groups + 1}"),
        (start + "_pixel_space_mask_batch_norm" + ANY, rf"{ours}predictor.norm.\{groups + 1}"),
    )


DECODER = r"decoder.layers.\1."
RULES = Rules(
    (
        (PIXEL + r"_in_norms\.(\d)" + ANY, r"pixel_decoder.norms.\1.\2"),
        *conv_rules(PIXEL + r"_resized_fuses\.(\d)\._conv_bn_", {"low": "low.1", "high": "high.1"},
                    r"pixel_decoder.fuses.\1.", 1),
        *conv_rules(BLOCK, {"_conv1_bn_act": "reduce", "_conv2_bn_act": "middle", "_conv3_bn": "expand",
                            "_shortcut": "shortcut"}, OURS, 2),
        (AXIS + r"qkv_transform\.conv\.weight", OURS + r"middle.0.\3.qkv.weight"),
        (AXIS + r"_(query|key|value)_rpe\._embeddings\.weight", OURS + r"middle.0.\3.\4_table"),
        (AXIS + "_batch_norm_qkv" + ANY, OURS + r"middle.0.\3.norm_qkv.\4"),
        (AXIS + "_batch_norm_similarity" + ANY, OURS + r"middle.0.\3.norm_scores.\4"),
        (AXIS + "_batch_norm_retrieved_output" + ANY, OURS + r"middle.0.\3.norm_out.\4"),
        *conv_rules(LAYER, PARTS, DECODER, 1),
        (LAYER + r"_query_self_attention\._batch_norm_similarity" + ANY, DECODER + r"attention.norm_scores.\2"),
        (LAYER + r"_query_self_attention\._batch_norm_retrieved_value" + ANY, DECODER + r"attention.norm_out.\2"),
        (LAYER + "_kmeans_query_batch_norm_retrieved_value" + ANY, DECODER + r"norm_update.\2"),
        *predictor_rules(LAYER, DECODER, 1),
        *predictor_rules(PREDICTOR, "decoder.", 0),
        (PREDICTOR + r"_cluster_centers\.weight", "decoder.centres"),
        *conv_rules(PREDICTOR, {"_class_embedding_projection": "class_embedding",
                                "_mask_embedding_projection": "mask_embedding"}, "decoder.", 0),
        *conv_rules(SEMANTIC, BESIDE, "semantic.", 0),
        (SEMANTIC + r"(?:final_conv|2)\.conv" + ANY, r"semantic.head.classify.\1"),
    ),
)  # fmt: skip


def load_kmax(model: KMax, state: Mapping[str, Tensor]) -> Report:
    """Fills the model with the published weights of the authors' names; a model without the semantic head leaves its
    weights out."""
    rules = RULES if model.semantic is not None else replace(RULES, drop=(SEMANTIC + ".*",))
    return load_parts(model, state, rules, own=RESNET if isinstance(model.backbone, ResNetPyramid) else None)
