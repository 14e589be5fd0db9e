"""Structured sparse fine-tuning (S²FT, https://arxiv.org/abs/2412.06289): whole heads of the mixers and whole channels
of the MLPs learn, as small dense matrices.

The columns of a mixer's last layer that read the chosen heads, and those of an MLP's that read the chosen channels:
y = W x + D x[s], with s the columns and D zero to begin with. The authors permute the weights so that what they chose
at random stands side by side; heads, and the channels of an MLP, have no order, so here a run of neighbours is taken
from a random place on, and nothing is permuted. This is a reading of the paper; the authors' code was not compared.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Linear
from . import AdapterError, Put
from .partial import trunk_modules

LAST, FIRST = ("proj", "out_proj", "fc2"), ("fc1", "fc3")  # of the projections that mixers and MLPs declare


@dataclass(frozen=True)
class S2FT:
    """Whole heads and whole channels of MLPs (S²FT).

    The `share` of the heads of each mixer (its channels, where it has no heads) and of the hidden channels of each
    MLP learns, at least one of them; `seed` says which. `rows`: so do the rows of the MLPs' first layers that make
    those channels."""

    share: float = 0.05
    rows: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share}: a share of heads and channels, above 0 and up to 1")

    def place(self, model: nn.Module) -> list[Put]:
        puts: list[Put] = []
        for path, owner in trunk_modules(model):
            declared = getattr(owner, "projections", ())
            for name in (n for n in LAST if n in declared):
                last = getattr(owner, name)
                if type(last) not in (Linear, nn.Linear):
                    continue
                run = self.run(last.in_features, getattr(owner, "heads", 1), len(puts))
                puts.append(Put(path, name, Columns(last, *run)))
                if self.rows:
                    puts += [Put(path, n, Rows(layer, *run)) for n, layer in firsts(owner, last.in_features)]
        if not puts:
            names = ", ".join(LAST)
            raise AdapterError(f"{type(model).__name__}: no mixer and no MLP declares a linear layer {names}, for s2ft")
        return puts

    def run(self, width: int, heads: int, place: int) -> tuple[int, int]:
        """(first, how many) of the columns: whole heads, if these divide them."""
        unit = width // heads if heads > 1 and width % heads == 0 else 1
        groups = width // unit
        many = max(1, round(self.share * groups))
        generator = torch.Generator().manual_seed(self.seed + (place << 16))
        first = int(torch.randint(groups - many + 1, (), generator=generator))
        return first * unit, many * unit

    def merged(self, layer: nn.Module) -> nn.Module:
        assert isinstance(layer, Columns | Rows)
        return layer.plain()


def firsts(owner: nn.Module, hidden: int) -> list[tuple[str, nn.Linear]]:
    """The linear layers that make the hidden channels, each its own."""
    found = [(n, getattr(owner, n)) for n in FIRST if n in getattr(owner, "projections", ())]
    return [(n, m) for n, m in found if type(m) in (Linear, nn.Linear) and m.out_features == hidden]


class Part(nn.Module):
    """A linear layer a run of whose columns or rows learns; `d` is what they have gained."""

    def __init__(self, layer: nn.Linear, first: int, many: int, shape: tuple[int, int]):
        super().__init__()
        self.layer, self.first, self.many = layer, first, many
        self.d = nn.Parameter(torch.zeros(shape))

    @property
    def bias(self) -> Any:
        return self.layer.bias

    @property
    def out_features(self) -> int:
        return self.layer.out_features

    def where(self) -> tuple[slice, slice]:
        """Of the weight."""
        raise AssertionError(f"{type(self).__name__} does not say what learns")

    @torch.no_grad()
    def plain(self) -> nn.Module:
        old = self.layer
        new = type(old)(old.in_features, old.out_features, old.bias is not None).to(old.weight)
        new.load_state_dict(old.state_dict())
        new.weight[self.where()] += self.d
        return new.train(old.training).requires_grad_(False)

    def extra_repr(self) -> str:
        return f"first={self.first}, many={self.many}"


class Columns(Part):
    """W x + D x[first : first + many], (… C) -> (… C')."""

    def __init__(self, layer: nn.Linear, first: int, many: int):
        super().__init__(layer, first, many, (layer.out_features, many))

    def where(self) -> tuple[slice, slice]:
        return slice(None), slice(self.first, self.first + self.many)

    def forward(self, x: Tensor) -> Tensor:
        seen = x[..., self.where()[1]].contiguous()  # a view would keep all of x for the backward pass
        return self.layer(x) + F.linear(seen, self.d)  # type: ignore[no-any-return]


class Rows(Part):
    """W x, to whose channels first … first + many D x is added, (… C) -> (… C')."""

    def __init__(self, layer: nn.Linear, first: int, many: int):
        super().__init__(layer, first, many, (many, layer.in_features))

    def where(self) -> tuple[slice, slice]:
        return slice(self.first, self.first + self.many), slice(None)

    def forward(self, x: Tensor) -> Tensor:
        behind = self.layer.out_features - self.first - self.many
        return self.layer(x) + F.pad(F.linear(x, self.d), (self.first, behind))  # type: ignore[no-any-return]
