"""What linear attention makes of queries and keys: positive features, whose products stand for softmax weights.

Each map takes x (... d) and computes in float32 (float64 for float64), under autocast too.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunks import in_float32, without_autocast

Hedgehog = Literal["exp", "softmax", "joint_softmax"]
HEDGEHOGS = ("exp", "softmax", "joint_softmax")


def elu_features(x: Tensor) -> Tensor:
    """elu(x) + 1 (https://arxiv.org/abs/2006.16236): (... d) -> (... d)."""
    return F.elu(x.to(in_float32(x))) + 1


def relu_features(x: Tensor) -> Tensor:
    """relu(x): (... d) -> (... d). All of a query's products may be 0: attention with it takes an eps."""
    return F.relu(x.to(in_float32(x)))


def hedgehog_features(x: Tensor, weight: Tensor, bias: Tensor, form: Hedgehog = "softmax") -> Tensor:
    """Learned features of each head (https://arxiv.org/abs/2402.04347), with a = W x + b: x (... N h d), weight
    (h d d), bias (h d) -> (... N h 2d).

    exp is the paper's formula, [e^a, e^-a]; softmax, which cannot overflow, [softmax(a), softmax(-a)], each over the d
    channels; joint_softmax is softmax([2a, -2a]) over all 2d."""
    if form not in HEDGEHOGS:
        raise ValueError(f"form {form!r} of Hedgehog's features: there are {', '.join(HEDGEHOGS)}")
    h, d = x.shape[-2:]
    if weight.shape != (h, d, d) or bias.shape != (h, d):
        raise ValueError(
            f"Hedgehog's features of {h} heads of {d} channels take weight {(h, d, d)} and bias {(h, d)}; got "
            f"{tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    kept = in_float32(x)
    with without_autocast(x):
        a = torch.einsum("...hd,hed->...he", x.to(kept), weight.to(kept)) + bias.to(kept)
        if form == "exp":
            return torch.cat([a, -a], -1).exp()
        if form == "softmax":
            return torch.cat([a.softmax(-1), (-a).softmax(-1)], -1)
        return torch.cat([2 * a, -2 * a], -1).softmax(-1)
