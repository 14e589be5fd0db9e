"""Bottleneck adapters, up(act(down(x))): C -> b -> C behind or beside the mixers and the MLPs of a frozen trunk.

Houlsby (https://arxiv.org/abs/1902.00751), Pfeiffer (https://arxiv.org/abs/2005.00247), parallel
(https://arxiv.org/abs/2110.04366) and AdaptFormer (https://arxiv.org/abs/2205.13535). All start as the trunk alone:
`up` is zero. Where the authors start both projections at zero, which then never learn, `down` is random here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from ..layers import Linear
from ..network import Rules
from ..plugins import Host
from ..tokens import Tokens
from .beside import ACTS, Act, Beside, Scale, Where, check_dropout, check_narrow, check_word
from .vit_pytorch import RENAME

QKV = ((1, "q"), (2, "k"), (3, "v"))  # parts of our one projection


def small(dim: int, out: int, zero: bool = False) -> Linear:
    """A projection of an adapter: Kaiming uniform weights (a = sqrt 5) or zeros, and a zero bias."""
    layer = Linear(dim, out)
    if zero:
        nn.init.zeros_(layer.weight)
    else:
        nn.init.kaiming_uniform_(layer.weight, a=5**0.5)
    return layer


class Bottleneck(nn.Module):
    """up(dropout(act(down(x)))) of Tokens, (B N C); of several `acts` one behind the other."""

    def __init__(self, down: nn.Module, up: nn.Module, acts: Sequence[Act], dropout: float = 0.0):
        super().__init__()
        self.down, self.act, self.up = down, nn.Sequential(*(ACTS[a]() for a in acts)), up
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, t: Tokens) -> Tensor:
        return self.up(self.drop(self.act(self.down(t.x))))  # type: ignore[no-any-return]


def bottleneck(dim: int, width: int, acts: Sequence[Act], dropout: float = 0.0) -> Bottleneck:
    return Bottleneck(small(dim, width), small(width, dim, zero=True), acts, dropout)


@dataclass(frozen=True)
class Plain(Beside):
    """A bottleneck of `width` channels, or of a block's over `reduction`."""

    reduction: float = 8
    width: int | None = None
    act: Act = "gelu"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_narrow(self.width, self.reduction)
        check_word("act", self.act, Act)
        check_dropout(self.dropout)

    def body(self, host: Host) -> nn.Module:
        return bottleneck(host.dim, self.narrow(host, self.width, self.reduction), (self.act,), self.dropout)


@dataclass(frozen=True)
class Houlsby(Plain):
    """Bottlenecks behind mixers and behind MLPs (Houlsby)."""

    where: Where = "both"


@dataclass(frozen=True)
class Pfeiffer(Plain):
    """Bottlenecks behind MLPs alone (Pfeiffer)."""

    def published(self, hosts: Sequence[Host]) -> Rules:
        """The names of VPT's code, a ViT's with them."""
        theirs = r"transformer\.encoder\.layer\.(\d+)\.adapter_(down|up)sample\.(weight|bias)"
        return Rules((*RENAME, (theirs, r"backbone.stages.0.blocks.\1.around_ffn.body.\2.\3")))


@dataclass(frozen=True)
class Parallel(Plain):
    """Bottlenecks beside MLPs.

    Beside the MLP. Its authors scale by 4 on language; on images nothing is published, and nothing is scaled.
    """

    parallel: bool = True
    act: Act = "relu"


@dataclass(frozen=True)
class AdaptFormer(Plain):
    """AdaptFormer: scaled bottlenecks beside MLPs.

    Beside the MLP, on the stream before its norm; beside an MLP that takes the grid, and beside a mixer, on what
    that takes. A twelfth of the channels is the published width of 64 in a ViT-B."""

    parallel: bool = True
    scale: Scale = 0.1
    reduction: float = 12
    act: Act = "relu"
    dropout: float = 0.1
    raw: ClassVar[bool] = True

    def published(self, hosts: Sequence[Host]) -> Rules:
        """The names of the authors' code, in which a ViT has query, key and value apart and no `mlp`."""
        block, ours = r"blocks\.(\d+)\.", r"backbone.stages.0.blocks.\1."
        body = block + r"adaptmlp\."
        parts = ((block + rf"attn\.{n}_proj\.(weight|bias)", rf"{ours}mixer.qkv.\2[{i}/3]") for i, n in QKV)
        return Rules((
            *parts,
            (block + r"(fc[12])\.(weight|bias)", ours + r"ffn.\2.\3"),
            (body + r"(down|up)_proj\.(weight|bias)", ours + r"around_ffn.body.\2.\3"),
            (body + "scale", ours + "around_ffn.scale"),
            (body + r"adapter_layer_norm_before\.(weight|bias)", ours + r"around_ffn.before.\2"),
            (body + r"adapter_layer_norm_after\.(weight|bias)", ours + r"around_ffn.behind.\2"),
            (r"fc_norm\.(weight|bias)", r"late_norm.\1"),
        ))  # fmt: skip
