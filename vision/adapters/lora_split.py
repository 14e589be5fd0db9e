"""A fused projection (q, k and v in one linear layer) as several layers, so that some of them can be adapted alone."""

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from ...kernels.linear import linear
from ..layers import Linear
from . import AdapterError

FUSED = {"qkv": ("q", "k", "v"), "kqv": ("k", "q", "v"), "kv": ("k", "v"), "qk": ("q", "k")}  # in the order of rows


def rows_of(path: str, layer: nn.Linear, owner: nn.Module) -> dict[str, tuple[int, int]]:
    """Part of a fused layer -> its first row, and that behind its last. Parts are equal unless `owner` has heads of
    `key` and `value` channels."""
    parts, rows = FUSED[path.rpartition(".")[2]], layer.out_features
    heads, key, value = (getattr(owner, n, None) for n in ("heads", "key", "value"))
    sizes = [rows // len(parts)] * len(parts)
    if isinstance(heads, int) and isinstance(key, int) and isinstance(value, int):
        sizes = [heads * (value if p == "v" else key) for p in parts]
    if sum(sizes) != rows:
        raise AdapterError(f"{path}: its {rows} rows do not divide into {', '.join(parts)}; adapt it as a whole")
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return {p: (end - size, end) for p, size, end in zip(parts, sizes, ends, strict=True)}


class Rows(nn.Linear):
    """Some rows of a frozen linear layer as a layer, without a copy of them: C -> stop - start."""

    def __init__(self, fused: nn.Linear, start: int, stop: int):
        nn.Module.__init__(self)
        self.fused = (fused,)  # no submodule: it stands in the model once, beside this
        self.start, self.stop = start, stop
        self.in_features, self.out_features = fused.in_features, stop - start

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.fused[0].weight.detach()[self.start : self.stop]

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        bias = self.fused[0].bias
        return None if bias is None else bias.detach()[self.start : self.stop]

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"rows {self.start}:{self.stop} of {self.fused[0]}"


class Split(nn.Module):
    """A fused linear layer whose parts are layers of their own, side by side in what comes out: `adapted` ones stand
    around their part, the rest is as it was."""

    def __init__(self, fused: nn.Linear, rows: Mapping[str, tuple[int, int]], adapted: Mapping[str, nn.Module]):
        super().__init__()
        self.base_layer, self.rows = fused, dict(rows)
        self.in_features, self.out_features = fused.in_features, fused.out_features
        for part, (start, stop) in rows.items():
            self.add_module(part, adapted[part] if part in adapted else Rows(fused, start, stop))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([getattr(self, part)(x) for part in self.rows], -1)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias


def apart(rows: Rows) -> Linear:
    """The same layer with weights of its own."""
    layer = Linear(rows.in_features, rows.out_features, rows.bias is not None).to(rows.weight)
    with torch.no_grad():
        layer.weight.copy_(rows.weight)
        if rows.bias is not None:
            layer.bias.copy_(rows.bias)
    return layer


def joined(split: Split, layers: Mapping[str, nn.Linear]) -> nn.Linear:
    """A plain copy of the fused layer with the rows of these layers in the place of its own."""
    fused = deepcopy(split.base_layer)
    with torch.no_grad():
        for part, layer in layers.items():
            start, stop = split.rows[part]
            fused.weight[start:stop] = layer.weight
            if layer.bias is not None:
                fused.bias[start:stop] = layer.bias
    return fused
