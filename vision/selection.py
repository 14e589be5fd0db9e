"""A small network that begins with a share of a large one's weights (weight selection, https://arxiv.org/abs/2311.18823),
and iLLaMA so begun from LLaMA2 (https://arxiv.org/abs/2404.06773)."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

PARTS = {  # ours, of a block -> theirs, of a layer; several are stacked
    "mixer.qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "ffn.fc1.weight": ("mlp.gate_proj.weight",),
    "ffn.fc2.weight": ("mlp.down_proj.weight",),
    "ffn.fc3.weight": ("mlp.up_proj.weight",),
    "norm1.weight": ("input_layernorm.weight",),
    "norm2.weight": ("post_attention_layernorm.weight",),
}


def select(value: Tensor, shape: Sequence[int]) -> Tensor:
    """Evenly spread elements of a larger tensor: on each axis every (big / small)-th where that is a whole number, else
    those at round(linspace(0, big - 1, small))."""
    if value.ndim != len(shape) or any(big < small for big, small in zip(value.shape, shape, strict=True)):
        raise ValueError(
            f"a tensor of {tuple(value.shape)} holds none of {tuple(shape)}: it must be as large on each axis"
        )
    for axis, small in enumerate(shape):
        big = value.shape[axis]
        if big % small == 0:
            index = torch.arange(small) * (big // small)
        else:
            index = torch.linspace(0, big - 1, small, dtype=torch.float64).round().long()
        value = value.index_select(axis, index.to(value.device))
    return value


def from_llama(llama: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`own`, the state dict of an iLLaMA here, with what its blocks take of the first layers of LLaMA2 (transformers'
    names, with or without `model.`): stacked q, k and v, the gated MLP and both norms. All else stays as it is."""
    given = {name.removeprefix("model."): value for name, value in llama.items()}
    out, found = dict(own), 0
    for name, value in own.items():
        m = re.fullmatch(r"backbone\.stages\.0\.blocks\.(\d+)\.(.+)", name)
        if m is None or m[2] not in PARTS:
            continue
        theirs = [f"layers.{m[1]}.{part}" for part in PARTS[m[2]]]
        if missing := [t for t in theirs if t not in given]:
            raise ValueError(f"nothing fills {name}: these weights have no {missing[0]}; LLaMA2's are wanted")
        stacked = torch.cat([given[t] for t in theirs])
        out[name], found = select(stacked, value.shape).to(value), found + 1
    if not found:
        raise ValueError("this state dict has no blocks of iLLaMA: give that of an illama model")
    return out
