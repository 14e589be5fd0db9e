"""Prefix tuning, https://arxiv.org/abs/2101.00190, of attention among image tokens (https://arxiv.org/abs/2312.03694).

Shapes: B images, h heads of d channels, N queries, M keys.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.attend import attend
from ..plugins import hosts_of
from ..tokens import Tokens
from . import AdapterError, Put


@dataclass(frozen=True)
class Prefix:
    """Learned keys and values beside those of the tokens.

    `n` learned keys and values beside those of the tokens in every block whose mixer has the seam `attending`, in
    windows inside each of them; other blocks stay as they are. The authors' `num_tokens` is 2 n: it counts both."""

    n: int = 12

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n={self.n}: at least 1 key and value")

    def place(self, model: nn.Module) -> list[Put]:
        return [Put(name, "attending", PrefixAttention(self.n, *widths(m))) for name, m in attentions(model)]


class PrefixAttention(nn.Module):
    """softmax(q [keys; k]' / sqrt(d) + bias) [values; v], (B h N d); prefixes have no bias, and count once.

    Both are (n h*d), normal with deviation 0.02: a softmax has no prefix that changes nothing.
    """

    def __init__(self, n: int, key: int, value: int):
        super().__init__()
        self.keys, self.values = (nn.Parameter(nn.init.normal_(torch.empty(n, d), std=0.02)) for d in (key, value))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, t: Tokens) -> Tensor:
        b, h = k.shape[:2]
        parts = (p.unflatten(-1, (h, -1)).transpose(0, 1).expand(b, -1, -1, -1) for p in (self.keys, self.values))  # type: ignore[no-untyped-call]
        keys, values = (torch.cat([own.to(y.dtype), y], 2) for own, y in zip(parts, (k, v), strict=True))
        if bias is not None:
            bias = F.pad(bias, (len(self.keys), 0), value=bias.dtype == torch.bool)
        return attend(q, keys, values, bias)

    def extra_repr(self) -> str:
        return f"{len(self.keys)} keys and values of {self.keys.shape[1]} channels"


def attentions(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The mixers, or parts of them, whose attention an adapter may take over, and their names; raises AdapterError if
    there are none."""
    hosts = hosts_of(model)
    named = ((f"{h.name}.mixer{'.' if n else ''}{n}", m) for h in hosts for n, m in h.mixer.named_modules())
    found = [(name, m) for name, m in named if "attending" in getattr(m, "seams", ())]
    if found:
        return found
    if not hosts:
        raise AdapterError(f"{type(model).__name__} has no blocks with seams, in whose attention this adapter goes")
    raise AdapterError(str(hosts[-1].refuse("has no seam 'attending', in which this adapter goes")))


def widths(mixer: Any) -> tuple[int, int]:
    """The channels of the keys and of the values of all heads together."""
    if hasattr(mixer, "value"):
        return mixer.heads * mixer.key, mixer.heads * mixer.value
    same = mixer.qkv.out_features // 3 if hasattr(mixer, "qkv") else mixer.q.out_features
    return same, same
