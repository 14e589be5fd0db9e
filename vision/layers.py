"""Layers that every family shares: linear layers, activations and MLPs, and whether they are as they were built."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.linear import linear
from ..kernels.mlp import mlp
from ..kernels.star_relu import star_relu


class Linear(nn.Linear):
    """`nn.Linear` by the fastest product that this machine has (kernels/linear.py); normal weights of deviation 0.02
    and zero biases to begin with."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def unhooked(module: nn.Module) -> bool:
    """Whether nobody looks at or changes what goes in and out of `module`."""
    m = module
    return not (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)


def is_plain(module: nn.Module) -> bool:
    """Whether `module` is our Linear as it was built: no adapter, quantiser or hook stands before, in or behind it, so
    that a kernel may take its weights instead of calling it."""
    return type(module) is Linear and unhooked(module)


def entries(module: nn.Module) -> list[nn.Module]:
    """The linear layers that alone read what goes into `module`, as it declares them; none where one of them has been
    replaced."""
    found = [getattr(module, name) for name in getattr(module, "entries", ())]
    return found if unhooked(module) and all(is_plain(layer) for layer in found) else []


class StarReLU(nn.Module):
    """s relu(x)² + b with learned scalars s and b, https://arxiv.org/abs/2210.13452."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return star_relu(x, self.scale, self.bias)


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1.702 * x).sigmoid()


class SquaredReLU(nn.Module):
    """relu(x)²."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU, "gelu_tanh": partial(nn.GELU, approximate="tanh"), "quick_gelu": QuickGELU, "relu": nn.ReLU,
    "silu": nn.SiLU, "tanh": nn.Tanh, "star_relu": StarReLU, "squared_relu": SquaredReLU,
}  # fmt: skip


class Mlp(nn.Module):
    """fc2(act(fc1(x))), channels C -> hidden -> C."""

    projections, entries = ("fc1", "fc2"), ("fc1",)

    def __init__(self, dim: int, hidden: int, act: str = "gelu", bias: bool = True, drop: float = 0.0):
        super().__init__()
        if act not in ACTIVATIONS:
            raise ValueError(f"act {act!r} is not known; there are {', '.join(ACTIVATIONS)}")
        self.fc1, self.act, self.fc2 = Linear(dim, hidden, bias), ACTIVATIONS[act](), Linear(hidden, dim, bias)
        self.drop = nn.Dropout(drop) if drop else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.whole():
            return self.at_once(x)
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))  # type: ignore[no-any-return]

    def whole(self) -> bool:
        """Whether all of it may be one kernel: nothing stands in place of or between its layers, no dropout acts."""
        plain = is_plain(self.fc1) and is_plain(self.fc2)
        known = type(self.act) in (nn.GELU, StarReLU) and unhooked(self.act)
        return plain and known and not (self.training and type(self.drop) is nn.Dropout)

    def at_once(self, x: Tensor, gamma: Tensor | None = None) -> Tensor:
        """gamma fc2(act(fc1(x)))."""
        star = (self.act.scale, self.act.bias) if isinstance(self.act, StarReLU) else None
        tanh = isinstance(self.act, nn.GELU) and self.act.approximate == "tanh"
        return mlp(x, (self.fc1.weight, self.fc1.bias), (self.fc2.weight, self.fc2.bias), star, gamma, tanh)


class SwiGLU(nn.Module):
    """fc2(act(fc1(x)) * fc3(x)), channels C -> hidden -> C (https://arxiv.org/abs/2002.05202);
    GeGLU with `act` gelu."""

    projections, entries = ("fc1", "fc2", "fc3"), ("fc1", "fc3")

    def __init__(self, dim: int, hidden: int, bias: bool = False, act: str = "silu"):
        super().__init__()
        self.fc1, self.fc3 = Linear(dim, hidden, bias), Linear(dim, hidden, bias)
        self.act, self.fc2 = ACTIVATIONS[act](), Linear(hidden, dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)) * self.fc3(x))  # type: ignore[no-any-return]
