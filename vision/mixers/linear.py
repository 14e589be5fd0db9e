"""Linear attention with a feature map of one's choice (https://arxiv.org/abs/2006.16236), causal or not."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ...kernels.feature_maps import Hedgehog, elu_features, hedgehog_features, relu_features
from ...kernels.linear_attention import causal_linear_attention, linear_attention
from ..layers import Linear
from ..tokens import Probe, Tokens

Features = Literal["elu", "relu", "hedgehog", "hedgehog_exp", "hedgehog_joint"]
FIXED: dict[str, Callable[[Tensor], Tensor]] = {"elu": elu_features, "relu": relu_features}
LEARNED: dict[str, Hedgehog] = {"hedgehog": "softmax", "hedgehog_exp": "exp", "hedgehog_joint": "joint_softmax"}


class HedgehogMap(nn.Module):
    """Hedgehog's features of (B N h d) -> (B N h 2d); W begins as the identity, b as 0."""

    def __init__(self, heads: int, width: int, form: Hedgehog):
        super().__init__()
        self.form = form
        self.weight = nn.Parameter(torch.eye(width).repeat(heads, 1, 1))
        self.bias = nn.Parameter(torch.zeros(heads, width))

    def forward(self, x: Tensor) -> Tensor:
        return hedgehog_features(x, self.weight, self.bias, self.form)

    def extra_repr(self) -> str:
        return f"form={self.form}"


class LinearMixer(nn.Module):
    """phi(q_t)' (sum_s phi(k_s) v_s') / (phi(q_t)' sum_s phi(k_s) + 1e-6), over all tokens or, causal, over those up to
    t in the order of the sequence. No scale. A token that stands for n patches counts n times."""

    needs_grid, offers, projections, entries = False, ("keys",), ("qkv", "proj"), ("qkv",)
    eps = 1e-6  # with relu no feature of a query may be shared by any key

    def __init__(self, dim: int, heads: int, features: Features, causal: bool):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads")
        if features not in FIXED and features not in LEARNED:
            raise ValueError(f"features {features!r} are not known; there are {', '.join((*FIXED, *LEARNED))}")
        self.heads, self.features, self.causal = heads, features, causal
        self.qkv, self.proj = Linear(dim, 3 * dim), Linear(dim, dim)
        learned = LEARNED.get(features)
        maps = () if learned is None else (HedgehogMap(heads, dim // heads, learned) for _ in range(2))
        self.maps = nn.ModuleList(maps)  # of queries and of keys, where they are learned

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        q, k, v = self.qkv(t.x).unflatten(-1, (3, self.heads, -1)).unbind(2)  # B N h d
        if probe is not None:
            probe["keys"] = k.transpose(1, 2)  # B h N d
        of_queries, of_keys = self.maps or (FIXED[self.features],) * 2
        q, k = of_queries(q), of_keys(k)
        if t.size is not None:
            k = k * t.size[..., None]
        if self.causal:
            y = causal_linear_attention(q, k, v, self.eps)
        else:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # B h N d
            y = linear_attention(q, k, v, self.eps).transpose(1, 2)
        return self.proj(y.flatten(2))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"heads={self.heads}, features={self.features}, causal={self.causal}"


@dataclass(frozen=True)
class LinearAttention:
    """Linear attention with `heads` heads. `features`: elu(x) + 1, relu, or Hedgehog's learned ones (with softmaxes, as
    the paper's exponentials, or with one joint softmax). A `causal` one may follow any order (mixers/scanned.py)."""

    heads: int
    features: Features = "elu"
    causal: bool = False

    def build(self, dim: int, index: int) -> nn.Module:
        return LinearMixer(dim, self.heads, self.features, self.causal)
