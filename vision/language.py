"""Frozen layers of a language model as layers of a visual encoder, https://arxiv.org/abs/2310.12973."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .heads.classification import Neck
from .layers import Linear, SwiGLU
from .mixers.attention import SelfAttention
from .norm import RMSNorm
from .tokens import Tokens

THEIRS = (  # of a layer: LLaMA's own files, transformers' -> ours, a third of it where q, k and v are one
    (r"attention\.wq|self_attn\.q_proj", "mixer.qkv", 0), (r"attention\.wk|self_attn\.k_proj", "mixer.qkv", 1),
    (r"attention\.wv|self_attn\.v_proj", "mixer.qkv", 2), (r"attention\.wo|self_attn\.o_proj", "mixer.proj", None),
    (r"feed_forward\.w1|mlp\.gate_proj", "ffn.fc1", None), (r"feed_forward\.w2|mlp\.down_proj", "ffn.fc2", None),
    (r"feed_forward\.w3|mlp\.up_proj", "ffn.fc3", None), (r"attention_norm|input_layernorm", "norm1", None),
    (r"ffn_norm|post_attention_layernorm", "norm2", None),
)  # fmt: skip


@dataclass(frozen=True)
class LanguageLayers(Neck):
    """W2 norm(layers(W1 x)) for all tokens, the special ones too: `depth` layers of LLaMA, `width` channels wide, with
    `heads` heads and `hidden` channels in their MLPs, frozen with the norm behind them. No token is hidden from another
    and none has a place. W1 and W2, without biases, learn; no residual is around it all."""

    width: int = 4096
    heads: int = 32
    hidden: int = 11008
    depth: int = 1
    eps: float = 1e-6

    def build(self, dim: int) -> nn.Module:
        return Spoken(dim, self)


class LanguageBlock(nn.Module):
    """h = x + mixer(norm1(x)); h + ffn(norm2(h)), of Tokens. Not for plugins: they go into the blocks before it."""

    def __init__(self, spec: LanguageLayers):
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(spec.width, spec.eps), RMSNorm(spec.width, spec.eps)
        self.mixer = SelfAttention(spec.width, spec.heads, bias=False, out_bias=False)
        self.ffn = SwiGLU(spec.width, spec.hidden)

    def forward(self, t: Tokens) -> Tokens:
        x = t.x + self.mixer(t.through(self.norm1))
        return replace(t, x=x + self.ffn(self.norm2(x)))


class Spoken(nn.Module):
    """Tokens -> Tokens through a language model's layers."""

    def __init__(self, dim: int, spec: LanguageLayers):
        super().__init__()
        self.enter, self.leave = Linear(dim, spec.width, bias=False), Linear(spec.width, dim, bias=False)
        self.blocks = nn.ModuleList(LanguageBlock(spec) for _ in range(spec.depth))
        self.norm = RMSNorm(spec.width, spec.eps)
        for part in (self.blocks, self.norm):
            part.requires_grad_(False)

    def forward(self, t: Tokens) -> Tokens:
        y = replace(t, x=self.enter(t.x), lost=None)
        for block in self.blocks:
            y = block(y)
        return replace(t, x=self.leave(self.norm(y.x)), lost=None)


def load_language(model: nn.Module, state: Mapping[str, Tensor], layer: int = 31) -> None:
    """Copies layers `layer`, `layer` + 1, … of a LLaMA's weights (its own consolidated files, or transformers') into
    the frozen ones of `model`. The norm behind them stays at one, as in the published models. Raises ValueError where
    the model has none, and where a tensor is missing or of another shape; nothing is copied then."""
    found = [m for m in model.modules() if isinstance(m, Spoken)]
    if len(found) != 1:
        raise ValueError(f"{type(model).__name__} has {len(found)} necks with a language model's layers; one is wanted")
    copies: list[tuple[Tensor, Tensor]] = []
    for i, block in enumerate(found[0].blocks):
        own = block.state_dict()
        for theirs, ours, third in THEIRS:
            pattern = rf"(?:model\.)?layers\.{layer + i}\.(?:{theirs})\.weight"
            name = next((n for n in state if re.fullmatch(pattern, n)), None)
            to = own[f"{ours}.weight"]
            to = to if third is None else to.chunk(3)[third]
            if name is None:
                raise ValueError(f"no weights of layer {layer + i} for {ours}: no name like {pattern}")
            if state[name].shape != to.shape:
                raise ValueError(f"{name} is {tuple(state[name].shape)}; {tuple(to.shape)} is wanted")
            copies.append((to, state[name]))
    with torch.no_grad():
        for to, value in copies:
            to.copy_(value)
