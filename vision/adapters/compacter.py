"""Compacter, https://arxiv.org/abs/2106.04647: bottlenecks whose matrices are sums of Kronecker products, so that a
layer d -> b costs about d + b numbers; and the bottleneck of low rank that its authors compare.

y = x H + c with H (in, out) = sum_{i=1..n} A_i kron B_i, A_i (n, n) shared by all layers of the model, B_i = left_i
(in/n, r) right_i (r, out/n). As published A is normal of deviation 0.01, the factors Glorot uniform, c zero; but the
last factor of `up` starts at zero here, so that the start is the trunk itself and not only near to it.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ...kernels.linear import linear
from ..plugins import Host
from . import AdapterError, Put
from .beside import Act, Beside, Where, check_narrow, check_word
from .bottleneck import Bottleneck

Whose = Literal["shared", "own", "factored"]


def glorot(n: int, rows: int, columns: int, zero: bool = False) -> nn.Parameter:
    """n matrices (rows, columns), each Glorot uniform or zero; n = 0: one."""
    value = torch.zeros(*((n,) if n else ()), rows, columns)
    if not zero:
        for matrix in value if n else (value,):
            nn.init.xavier_uniform_(matrix)
    return nn.Parameter(value)


class Rule(nn.Module):
    """A (n, n, n), or its factors left (n, n, 1) and right (n, 1, n)."""

    def __init__(self, n: int, factored: bool = False):
        super().__init__()
        if factored:
            self.left, self.right = (nn.Parameter(torch.randn(n, *s) * 0.01) for s in ((n, 1), (1, n)))
        else:
            self.full = nn.Parameter(torch.randn(n, n, n) * 0.01)

    def forward(self) -> Tensor:
        return self.left @ self.right if hasattr(self, "left") else self.full


class Hypercomplex(nn.Module):
    """x H + c, (… in) -> (… out); `rank` of each B_i, None: B_i is one matrix (n, in/n, out/n)."""

    def __init__(self, size: tuple[int, int], rule: Rule, n: int, rank: int | None, zero: bool = False):
        super().__init__()
        (rows, columns), self.rule = (s // n for s in size), rule
        self.weight = glorot(n, rows, columns, zero) if rank is None else None
        self.left = None if rank is None else glorot(n, rows, rank)
        self.right = None if rank is None else glorot(n, rank, columns, zero)
        self.bias = nn.Parameter(torch.zeros(size[1]))

    def matrix(self) -> Tensor:
        """H (in, out)."""
        b = self.weight if self.left is None or self.right is None else self.left @ self.right
        assert b is not None
        return torch.einsum("iab,ipq->apbq", self.rule(), b).flatten(2).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.matrix().mT, self.bias)


class LowRank(nn.Module):
    """x left right + c, (… in) -> (… out)."""

    def __init__(self, size: tuple[int, int], rank: int, zero: bool = False):
        super().__init__()
        self.left, self.right = glorot(0, size[0], rank), glorot(0, rank, size[1], zero)
        self.bias = nn.Parameter(torch.zeros(size[1]))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.left @ self.right + self.bias


@dataclass(frozen=True)
class Compacter(Beside):
    """Bottlenecks of Kronecker products (Compacter).

    Behind the mixer and behind the MLP (Compacter++: `where` ffn). `n` matrices A_i, which divide the channels; a
    bottleneck's are those over `reduction`, rounded to a multiple of n; B_i of `rank`, or `full`. `rule`: the A_i are
    `shared` by all layers, each layer's `own`, or its own and of rank 1 (`factored`)."""

    where: Where = "both"
    reduction: float = 32
    n: int = 4
    rank: int | Literal["full"] = 1
    rule: Whose = "shared"
    act: Act = "gelu_tanh"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_narrow(None, self.reduction)
        check_word("act", self.act, Act)
        if self.n < 1:
            raise ValueError(f"n={self.n}: 1 or more matrices")
        check_word("rule", self.rule, Whose)
        if isinstance(self.rank, str):
            check_word("rank", self.rank, Literal["full"])
        elif self.rank < 1:
            raise ValueError(f"rank={self.rank}: 1 or more, or full")

    def place(self, model: nn.Module) -> list[Put]:
        like = next(model.parameters())
        # made where the model is: moved layer by layer it would not stay one and the same parameter everywhere
        shared = Rule(self.n).to(like.device, like.dtype) if self.rule == "shared" else None
        return self.puts(model, lambda host: self.hypercomplex(host, shared))

    def hypercomplex(self, host: Host, shared: Rule | None) -> Bottleneck:
        dim, n = host.dim, self.n
        if dim % n:
            raise AdapterError(f"{host.name}: {type(host.block).__name__} has {dim} channels, which n={n} must divide")
        width = min(dim, n * max(1, round(dim / self.reduction / n)))
        rank = None if self.rank == "full" else self.rank
        if rank is not None and rank > width // n:
            raise AdapterError(f"{host.name}: {type(host.block).__name__} has bottlenecks of {n} x {width // n}, which "
                               f"have no rank={rank}; 1 to {width // n} will do, or a smaller reduction")  # fmt: skip

        def layer(size: tuple[int, int], zero: bool) -> Hypercomplex:
            return Hypercomplex(size, shared or Rule(n, self.rule == "factored"), n, rank, zero)

        return Bottleneck(layer((dim, width), False), layer((width, dim), True), (self.act,))


@dataclass(frozen=True)
class LowRankAdapter(Beside):
    """Bottlenecks of low rank.

    Behind the mixer and behind the MLP: a bottleneck with projections of `rank`.
    """

    where: Where = "both"
    reduction: float = 32
    rank: int = 1
    act: Act = "gelu_tanh"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_narrow(None, self.reduction)
        check_word("act", self.act, Act)
        if self.rank < 1:
            raise ValueError(f"rank={self.rank}: 1 or more")

    def body(self, host: Host) -> nn.Module:
        width = self.narrow(host, None, self.reduction)
        if self.rank > width:
            raise AdapterError(f"{host.name}: {type(host.block).__name__} has bottlenecks of {width} channels, which "
                               f"have no rank={self.rank}; 1 to {width} will do, or a smaller reduction")  # fmt: skip
        down, up = LowRank((host.dim, width), self.rank), LowRank((width, host.dim), self.rank, zero=True)
        return Bottleneck(down, up, (self.act,))
