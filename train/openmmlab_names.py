"""OpenMMLab's own names of backbones' tensors (mmdetection, mmsegmentation, mmpretrain) -> the authors'."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

Rename = tuple[tuple[str, str], ...]
FFN = ((r"ffn\.layers\.0\.0\.", "mlp.fc1."), (r"ffn\.layers\.1\.", "mlp.fc2."))
SWIN: Rename = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^stages\.(\d+)\.", r"layers.\1."),
    (r"\.attn\.w_msa\.", ".attn."),
    *FFN,
)
VIT: Rename = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^layers\.(\d+)\.", r"blocks.\1."),
    (r"\.attn\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.attn\.out_proj\.", ".attn.proj."),
    (r"\.ln([12])\.", r".norm\1."),
    (r"^ln1\.", "norm."),
    *FFN,
)
CONVNEXT: Rename = ((r"\.depthwise_conv\.", ".dwconv."), (r"\.pointwise_conv([12])\.", r".pwconv\1."))
MARKS = {  # what only OpenMMLab's names of a family hold
    "swin": (r"\.attn\.w_msa\.", SWIN),
    "vit": (r"^layers\.\d+\.ln1\.", VIT),
    "convnext": (r"\.depthwise_conv\.", CONVNEXT),
}
MERGING = re.compile(r"layers\.\d+\.downsample\.(norm|reduction)\.(weight|bias)")


def as_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the authors' names, where they have OpenMMLab's own; others as they are."""
    family = next((f for f, (mark, _) in MARKS.items() if any(re.search(mark, n) for n in state)), None)
    if family is None:
        return dict(state)
    found = {renamed(name, MARKS[family][1]): value for name, value in state.items()}
    if family == "swin":
        found = {n: reordered(v) if MERGING.fullmatch(n) else v for n, v in found.items()}
    return found


def renamed(name: str, rules: Rename) -> str:
    for theirs, ours in rules:
        name = re.sub(theirs, ours, name)
    return name


def reordered(value: Tensor) -> Tensor:
    """(… 4C) of Swin's merging of 2x2 places: OpenMMLab unfolds them, so that channels come first and places run in
    rows; the authors put four maps of C channels behind each other, and go down before they go right."""
    places = value.unflatten(-1, (-1, 4)).movedim(-1, -2)  # … 4 C
    return places.index_select(-2, torch.tensor([0, 2, 1, 3], device=value.device)).flatten(-2)
