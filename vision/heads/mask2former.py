"""Mask2Former, https://arxiv.org/abs/2112.01527: one network for semantic, instance and panoptic segmentation, on any
pyramid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..network import Rules
from ..weights import Report
from .loading import load_parts
from .masked_decoder import MaskedDecoder, MaskPrediction
from .pixel_decoder import PixelDecoder


@dataclass(frozen=True)
class Predictions:
    """`layers`: the predictions of the queries and behind each layer of the decoder, or the last only; `size` (H W) of
    the padded images, `sizes` of each as it came."""

    layers: list[MaskPrediction]
    size: tuple[int, int]
    sizes: list[tuple[int, int]]

    @property
    def last(self) -> MaskPrediction:
        return self.layers[-1]


class Mask2Former(nn.Module):
    """Images -> `Predictions`; `backbone` gives maps, and says their `channels` and `strides`.

    Images are normalised, (B 3 H W) or a list of (3 H W) of any sizes; they are padded with zeros at right and bottom
    to a multiple of the coarsest stride. Losses: heads/mask_losses.py; results: heads/mask_inference.py.
    """

    def __init__(self, backbone: nn.Module, classes: int, queries: int = 100, dim: int = 256, heads: int = 8,
                 encoder_depth: int = 6, decoder_depth: int = 9):  # fmt: skip
        super().__init__()
        channels, strides = described(backbone)
        self.backbone, self.classes, self.stride = backbone, classes, max(strides)
        self.settings = {"queries": queries, "dim": dim, "heads": heads, "encoder_depth": encoder_depth,
                         "decoder_depth": decoder_depth}  # fmt: skip
        self.pixel_decoder = PixelDecoder(channels, dim, encoder_depth, 4 * dim, heads)
        levels = len(self.pixel_decoder.input_proj)
        self.decoder = MaskedDecoder(classes, queries, dim, decoder_depth, 8 * dim, heads, levels)

    def forward(self, images: Tensor | Sequence[Tensor], depth: int | None = None) -> Predictions:
        """With every layer's prediction while it trains; `depth`: by the first layers of the encoder only."""
        image, sizes = batched(images, self.stride)
        decoded = self.pixel_decoder(self.backbone(image), depth)
        return Predictions(self.decoder(decoded, every=self.training), hw(image), sizes)

    def arguments(self) -> dict[str, Any]:
        """What it was made of, by the names of the constructor."""
        return {"backbone": self.backbone, "classes": self.classes, **self.settings}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """In the backbone."""
        self.backbone.set_grad_checkpointing(enable)  # type: ignore[operator]

    def no_weight_decay(self) -> set[str]:
        """The names of what is embedded, here and in the backbone."""
        own = {"pixel_decoder.level_embed"} | {f"decoder.{n}" for n in ("query_feat", "query_embed", "level_embed")}
        return own | embedded(self.backbone)


def embedded(backbone: nn.Module) -> set[str]:
    """What a backbone does not want decayed, as a part of a model."""
    if not hasattr(backbone, "no_weight_decay"):
        return set()
    return {f"backbone.{n}" for n in backbone.no_weight_decay()}  # type: ignore[operator]


def described(backbone: nn.Module) -> tuple[list[int], list[int]]:
    """Channels and strides of the maps that a backbone gives."""
    if not hasattr(backbone, "channels") or not hasattr(backbone, "strides"):
        raise ValueError(
            f"{type(backbone).__name__} does not say its channels and strides; "
            "a pyramid does: create_model(name, features_only=True)"
        )
    return list(backbone.channels), list(backbone.strides)  # type: ignore[arg-type]


def hw(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def batched(
    images: Tensor | Sequence[Tensor], multiple: int, odd: bool = False
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Images as one tensor (B 3 H W), padded with zeros at right and bottom to a multiple (plus 1 where `odd`), and the
    size that each had."""
    if not len(images):
        raise ValueError("a batch holds at least one image")
    sizes = [hw(i) for i in images]
    high, wide = (-(-(max(n) - odd) // multiple) * multiple + odd for n in zip(*sizes, strict=True))
    if isinstance(images, Tensor):
        return F.pad(images, (0, wide - images.shape[-1], 0, high - images.shape[-2])), sizes
    return torch.stack([F.pad(i, (0, wide - w, 0, high - h)) for i, (h, w) in zip(images, sizes, strict=True)]), sizes


PIXEL, LAYER = r"sem_seg_head\.pixel_decoder\.", r"pixel_decoder.layers.\1."
ENCODER = PIXEL + r"transformer\.encoder\.layers\.(\d+)\."
PREDICTOR, ENDS = r"sem_seg_head\.predictor\.", r"\.(weight|bias)"
OWN = {"sampling_offsets": "offsets", "attention_weights": "weigh", "value_proj": "value", "output_proj": "proj"}
KINDS = ((r"cross_attention_layers\.(\d+)\.multihead_attn", "cross", "1"),
         (r"self_attention_layers\.(\d+)\.self_attn", "among", "2"))  # fmt: skip


def attention_rules(theirs: str, ours: str, norm: str) -> tuple[tuple[str, str], ...]:
    start, layer = PREDICTOR + "transformer_" + theirs, r"decoder.layers.\1."
    parts = ((rf"{start}\.in_proj_(weight|bias)\[{i}\]", rf"{layer}{ours}.{p}.\2") for i, p in enumerate("qkv"))
    block = start.rpartition(r"\.")[0]
    return (
        *parts,
        (start + r"\.out_proj" + ENDS, rf"{layer}{ours}.proj.\2"),
        (block + r"\.norm" + ENDS, rf"{layer}norm{norm}.\2"),
    )


RULES = Rules(
    (
        (PIXEL + r"input_proj\.(\d)\.0" + ENDS, r"pixel_decoder.input_proj.\1.conv.\2"),
        (PIXEL + r"input_proj\.(\d)\.1" + ENDS, r"pixel_decoder.input_proj.\1.norm.\2"),
        (PIXEL + r"transformer\.level_embed", "pixel_decoder.level_embed"),
        *((ENCODER + "self_attn" + rf"\.{t}" + ENDS, rf"{LAYER}attention.{o}.\2") for t, o in OWN.items()),
        (ENCODER + r"norm([12])" + ENDS, LAYER + r"norm\2.\3"),
        (ENCODER + r"linear([12])" + ENDS, LAYER + r"ffn.fc\2.\3"),
        (PIXEL + r"mask_features" + ENDS, r"pixel_decoder.mask_features.\1"),
        (PIXEL + r"adapter_1\.weight", "pixel_decoder.lateral.0.conv.weight"),
        (PIXEL + r"adapter_1\.norm" + ENDS, r"pixel_decoder.lateral.0.norm.\1"),
        (PIXEL + r"layer_1\.weight", "pixel_decoder.output.0.conv.weight"),
        (PIXEL + r"layer_1\.norm" + ENDS, r"pixel_decoder.output.0.norm.\1"),
        *(r for kind in KINDS for r in attention_rules(*kind)),
        (PREDICTOR + r"transformer_ffn_layers\.(\d+)\.linear([12])" + ENDS, r"decoder.layers.\1.ffn.fc\2.\3"),
        (PREDICTOR + r"transformer_ffn_layers\.(\d+)\.norm" + ENDS, r"decoder.layers.\1.norm3.\2"),
        (PREDICTOR + r"decoder_norm" + ENDS, r"decoder.norm.\1"),
        (PREDICTOR + r"(?:query_feat|static_query)\.weight", "decoder.query_feat"),
        (PREDICTOR + r"(query_embed|level_embed)\.weight", r"decoder.\1"),
        (PREDICTOR + r"class_embed" + ENDS, r"decoder.class_embed.\1"),
        (PREDICTOR + r"mask_embed\.layers\.(\d)" + ENDS, r"decoder.mask_embed.layers.\1.\2"),
    ),
    drop=(r"criterion\.empty_weight",),
    stacked=((PREDICTOR + r"transformer_(?:cross|self)_attention_layers\.\d+\.\w+\.in_proj_(?:weight|bias)", 3),),
)


def load_mask2former(model: Mask2Former, state: Mapping[str, Tensor], backbone: Rules | None = None) -> Report:
    """Fills the model with the published weights of the authors' names (`model` of their files)."""
    return load_parts(model, state, RULES, own=backbone)
