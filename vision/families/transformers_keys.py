"""transformers' names of Swin, ConvNeXt, ViT, DeiT, PoolFormer and CvT -> the published ones (timm's for ViT and DeiT).

transformers keeps query, key and value apart; where the publisher has one layer they are stacked in this order. Its ViT
and DeiT have eps 1e-12 in their norms where the authors and timm have 1e-6: a difference of about 1e-5 in the logits.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

Renames = tuple[tuple[str, str], ...]

# theirs -> published; a second group `(query|key|value)` is what gets stacked, "" drops the tensor
_VIT: Renames = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.distillation_token", "dist_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(\w+)", r"blocks.\1.attn.qkv.\3"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layer\.(\d+)\.output\.dense\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"encoder\.layer\.(\d+)\.layernorm_before\.(\w+)", r"blocks.\1.norm1.\2"),
    (r"encoder\.layer\.(\d+)\.layernorm_after\.(\w+)", r"blocks.\1.norm2.\2"),
    (r"layernorm\.(\w+)", r"norm.\1"),
    (r"(?:cls_)?classifier\.(\w+)", r"head.\1"),
    (r"distillation_classifier\.(\w+)", r"head_dist.\1"),
    (r"pooler\.dense\.\w+|embeddings\.mask_token", ""),  # of the pre-training
)
_SWIN_BLOCK = r"encoder\.layers\.(\d+)\.blocks\.(\d+)\."
_CVT_BLOCK = r"encoder\.stages\.(\d+)\.layers\.(\d+)\."
_CVT_EMBED = r"encoder\.stages\.(\d+)\.embedding\.convolution_embeddings\."


def _cvt_part(full: str) -> Renames:
    """CvT keeps its three projections apart, as its authors do."""
    theirs, to = _CVT_BLOCK + r"attention\.attention\.", r"stage\1.blocks.\2.attn."
    conv = theirs + rf"convolution_projection_{full}\.convolution_projection\."
    return (
        (conv + r"convolution\.(\w+)", to + rf"conv_proj_{full[0]}.conv.\3"),
        (conv + r"normalization\.(\w+)", to + rf"conv_proj_{full[0]}.bn.\3"),
        (theirs + rf"projection_{full}\.(\w+)", to + rf"proj_{full[0]}.\3"),
    )


RENAMES: dict[str, Renames] = {
    "cvt": (
        *(rule for full in ("query", "key", "value") for rule in _cvt_part(full)),
        (_CVT_BLOCK + r"attention\.output\.dense\.(\w+)", r"stage\1.blocks.\2.attn.proj.\3"),
        (_CVT_BLOCK + r"intermediate\.dense\.(\w+)", r"stage\1.blocks.\2.mlp.fc1.\3"),
        (_CVT_BLOCK + r"output\.dense\.(\w+)", r"stage\1.blocks.\2.mlp.fc2.\3"),
        (_CVT_BLOCK + r"layernorm_before\.(\w+)", r"stage\1.blocks.\2.norm1.\3"),
        (_CVT_BLOCK + r"layernorm_after\.(\w+)", r"stage\1.blocks.\2.norm2.\3"),
        (_CVT_EMBED + r"projection\.(\w+)", r"stage\1.patch_embed.proj.\2"),
        (_CVT_EMBED + r"normalization\.(\w+)", r"stage\1.patch_embed.norm.\2"),
        (r"encoder\.stages\.(\d+)\.cls_token", r"stage\1.cls_token"),
        (r"layernorm\.(\w+)", r"norm.\1"),
        (r"classifier\.(\w+)", r"head.\1"),
    ),
    "vit": _VIT,
    "deit": _VIT,
    "swin": (
        (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
        (r"embeddings\.norm\.(\w+)", r"patch_embed.norm.\1"),
        (_SWIN_BLOCK + r"attention\.self\.(query|key|value)\.(\w+)", r"layers.\1.blocks.\2.attn.qkv.\4"),
        (_SWIN_BLOCK + r"attention\.self\.(relative_position_\w+)", r"layers.\1.blocks.\2.attn.\3"),
        (_SWIN_BLOCK + r"attention\.output\.dense\.(\w+)", r"layers.\1.blocks.\2.attn.proj.\3"),
        (_SWIN_BLOCK + r"intermediate\.dense\.(\w+)", r"layers.\1.blocks.\2.mlp.fc1.\3"),
        (_SWIN_BLOCK + r"output\.dense\.(\w+)", r"layers.\1.blocks.\2.mlp.fc2.\3"),
        (_SWIN_BLOCK + r"layernorm_before\.(\w+)", r"layers.\1.blocks.\2.norm1.\3"),
        (_SWIN_BLOCK + r"layernorm_after\.(\w+)", r"layers.\1.blocks.\2.norm2.\3"),
        (r"encoder\.layers\.(\d+)\.downsample\.(norm|reduction)\.(\w+)", r"layers.\1.downsample.\2.\3"),
        (r"layernorm\.(\w+)", r"norm.\1"),
        (r"classifier\.(\w+)", r"head.\1"),
    ),
    "convnext": (
        (r"embeddings\.patch_embeddings\.(\w+)", r"downsample_layers.0.0.\1"),
        (r"embeddings\.layernorm\.(\w+)", r"downsample_layers.0.1.\1"),
        (r"encoder\.stages\.(\d+)\.downsampling_layer\.(\d)\.(\w+)", r"downsample_layers.\1.\2.\3"),
        (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(dwconv|pwconv1|pwconv2)\.(\w+)", r"stages.\1.\2.\3.\4"),
        (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layernorm\.(\w+)", r"stages.\1.\2.norm.\3"),
        (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer_scale_parameter", r"stages.\1.\2.gamma"),
        (r"layernorm\.(\w+)", r"norm.\1"),
        (r"classifier\.(\w+)", r"head.\1"),
    ),
    "poolformer": (
        (r"encoder\.patch_embeddings\.0\.projection\.(\w+)", r"patch_embed.proj.\1"),
        *((rf"encoder\.patch_embeddings\.{i}\.projection\.(\w+)", rf"network.{2 * i - 1}.proj.\1") for i in (1, 2, 3)),
        *(
            rule
            for i in range(4)
            for rule in (
                (rf"encoder\.block\.{i}\.(\d+)\.before_norm\.(\w+)", rf"network.{2 * i}.\1.norm1.\2"),
                (rf"encoder\.block\.{i}\.(\d+)\.after_norm\.(\w+)", rf"network.{2 * i}.\1.norm2.\2"),
                (rf"encoder\.block\.{i}\.(\d+)\.output\.conv([12])\.(\w+)", rf"network.{2 * i}.\1.mlp.fc\2.\3"),
                (rf"encoder\.block\.{i}\.(\d+)\.layer_scale_([12])", rf"network.{2 * i}.\1.layer_scale_\2"),
            )
        ),
        (r"norm\.(\w+)", r"norm.\1"),
        (r"classifier\.(\w+)", r"head.\1"),
    ),
}


def family_of(state: Mapping[str, Tensor]) -> str | None:
    """Which of the families these names are transformers' of (a bare ViT has no prefix); None where of none."""
    for family in RENAMES:
        if any(name.startswith(f"{family}.e") for name in state):
            return family
    return "vit" if "embeddings.cls_token" in state and "encoder.layer.0.layernorm_before.weight" in state else None


def to_published(family: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the publisher's names, query, key and value stacked; ValueError for a name of no rule."""
    renamed: dict[str, Tensor] = {}
    stacks: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        theirs = name.removeprefix(f"{family}.")
        found = next(((m, to) for rule, to in RENAMES[family] if (m := re.fullmatch(rule, theirs))), None)
        if found is None:
            raise ValueError(f"{name} {tuple(value.shape)} is no tensor of transformers' {family}")
        match, target = found
        part = next((group for group in match.groups() if group in ("query", "key", "value")), None)
        if part is not None:
            stacks.setdefault(match.expand(target), {})[part] = value
        elif target:
            renamed[match.expand(target)] = value
    for name, parts in stacks.items():
        if len(parts) != 3:
            raise ValueError(f"{name} needs query, key and value; there is only {' and '.join(parts)}")
        renamed[name] = torch.cat([parts["query"], parts["key"], parts["value"]])
    return renamed
