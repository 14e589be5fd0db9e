"""Norms whose parameters depend on the time: DiMR's way of telling a network how much noise there is."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TimeDependent(nn.Module):
    """A vector of parameters (C) as a function of the time tau (B): between two of them, P(tau) = param1 +
    sigmoid(tau (1 + nodecay_weight) + nodecay_bias) (param0 - param1), each number by itself -> (B C) in float32."""

    def __init__(self, dim: int, value: float):
        super().__init__()
        self.param0, self.param1 = (nn.Parameter(torch.full((dim,), value)) for _ in range(2))
        self.nodecay_weight, self.nodecay_bias = (nn.Parameter(torch.zeros(dim)) for _ in range(2))

    def forward(self, tau: Tensor) -> Tensor:
        wide = torch.promote_types(tau.dtype, torch.float32)
        first, last, weight, bias = (
            p.to(wide) for p in (self.param0, self.param1, self.nodecay_weight, self.nodecay_bias)
        )
        return last + torch.sigmoid(tau.to(wide)[:, None] * (weight + 1) + bias) * (first - last)


def over(values: Tensor, x: Tensor) -> Tensor:
    """(B C) -> (B 1 … 1 C), to go with x (B … C)."""
    return values.view(values.shape[0], *(1,) * (x.ndim - 2), -1)


class TimeLayerNorm(nn.Module):
    """Layer normalisation of the last dimension of x (B … C), in float32, with time-dependent weight and bias."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight, self.bias = TimeDependent(dim, 1.0), TimeDependent(dim, 0.0)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        weight, bias = over(self.weight(tau), x), over(self.bias(tau), x)
        return torch.addcmul(bias, F.layer_norm(x.to(weight.dtype), (self.dim,), eps=self.eps), weight).to(x.dtype)


class TimeRMSNorm(nn.Module):
    """x / (sqrt(mean(x²)) + eps) over the last dimension of x (B … C), in float32, with a time-dependent scale. As
    published, eps is added to the root."""

    def __init__(self, dim: int, eps: float = 1e-8):
        super().__init__()
        self.eps, self.scale = eps, TimeDependent(dim, 1.0)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        scale = over(self.scale(tau), x)
        y = x.to(scale.dtype)
        return (y / (y.square().mean(-1, keepdim=True).sqrt() + self.eps) * scale).to(x.dtype)
