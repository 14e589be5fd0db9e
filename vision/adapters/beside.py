"""How a narrow branch of an adapter's own joins the branches of a block: behind a mixer or an MLP, or beside it.

For a branch f on n (the normalised tokens) and a body: behind it f(n) + s body(f(n)), beside it f(n) + s body(n). All
of it then goes through the block's own residual, LayerScale and stochastic depth, but for what stands beside an MLP of
single tokens: the stream gets that directly.

Shapes: B images, N tokens, C channels.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from ..layers import ACTIVATIONS
from ..plugins import Host, hosts_of
from ..tokens import Tokens
from . import AdapterError, Put
from .partial import norms_below

Act = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu", "tanh"]
Where = Literal["mixer", "ffn", "both"]
Norms = Literal["none", "in", "out", "both"]
Scale = float | Literal["learned"]
ACTS = ACTIVATIONS


class Added(nn.Module):
    """norm(s body(norm(x))) of Tokens, (B N C): what an adapter adds to a branch, with norms or without."""

    def __init__(self, dim: int, body: nn.Module, how: "Beside"):
        super().__init__()
        self.before: nn.Module = nn.LayerNorm(dim) if how.norm in ("in", "both") else nn.Identity()
        self.behind: nn.Module = nn.LayerNorm(dim) if how.norm in ("out", "both") else nn.Identity()
        self.body, self.parallel, scale = body, how.parallel, how.scale
        self.scale = nn.Parameter(torch.ones(1)) if isinstance(scale, str) else float(scale)

    @property
    def needs_grid(self) -> bool:
        return bool(getattr(self.body, "needs_grid", False))

    def said(self, t: Tokens, x: Tensor) -> Tensor:
        y = self.body(replace(t, x=self.before(x)))
        plain = isinstance(self.scale, float) and self.scale == 1
        return self.behind(y if plain else y * self.scale)  # type: ignore[no-any-return]


class OnBranch(Added):
    """(Tokens, y) -> y + what is said of y, or beside it of the tokens: the seams `on_mixer` and `on_ffn`."""

    def forward(self, t: Tokens, y: Tensor) -> Tensor:
        return y + self.said(t, t.x if self.parallel else y)


class AroundFfn(Added):
    """(Tokens, y, normed, then) -> the stream behind the MLP with what is said of the MLP's output, or beside it of its
    input (`raw`: of that before the norm)."""

    def __init__(self, dim: int, body: nn.Module, how: "Beside", raw: bool = False):
        super().__init__(dim, body, how)
        self.raw = raw

    def forward(self, t: Tokens, y: Tensor, normed: Tensor, then: Callable[..., Tensor]) -> Tensor:
        if self.parallel:
            return then(t.x, normed) + self.said(t, y if self.raw else normed)
        return then(t.x, normed, lambda f: f + self.said(t, f))


class Sublayer(NamedTuple):
    """A branch of a block of a foreign model, as paths in it: the linear layer that ends it, and its norm."""

    end: str
    kind: Literal["mixer", "ffn"]
    norm: str
    dim: int


class Behind(nn.Module):
    """y + what is said of y = base(x), the end of a branch of a foreign model; its `tasks` say which task is on."""

    def __init__(self, base: nn.Module, adapter: OnBranch, model: nn.Module):
        super().__init__()
        self.base, self.adapter, self.model = base, adapter, (model,)

    @property
    def weight(self) -> Tensor:
        """Of the layer, whose type T5 asks for."""
        return self.base.weight  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        tasks = getattr(self.model[0], "tasks", None)
        return self.adapter(Tokens(y, None, task=None if tasks is None else tasks.chosen), y)  # type: ignore[no-any-return]


def blocks_of(model: nn.Module, adapter: object) -> list[Host]:
    """The blocks that an adapter can be put into; at least one."""
    if not (hosts := hosts_of(model)):
        raise AdapterError(f"{type(model).__name__} has no blocks with seams, so {adapter} cannot be put into it")
    return hosts


@dataclass(frozen=True)
class Beside:
    """What every adapter of this kind says.

    where: behind the MLP (`ffn`), behind the `mixer`, or `both`; in blocks without an MLP all three are the mixer.
    parallel: beside that branch, not behind it.
    norm: a layer norm of the adapter's own before its body (`in`), behind it (`out`) or `both`.
    scale: what it says is multiplied by, or `learned` from 1 on.
    norms: the trunk's norms learn too.
    """

    where: Where = "ffn"
    parallel: bool = False
    norm: Norms = "none"
    scale: Scale = 1.0
    norms: bool = False
    raw: ClassVar[bool] = False  # beside an MLP: reads the stream before the norm

    def __post_init__(self) -> None:
        check_word("where", self.where, Where)
        check_word("norm", self.norm, Norms)
        if isinstance(self.scale, str):
            check_word("scale", self.scale, Literal["learned"])
        elif self.scale == 0:
            raise ValueError("scale=0: a number other than 0, or learned")

    def body(self, host: Host) -> nn.Module:
        """What reads Tokens of `host.dim` channels and says (B N C), 0 to begin with."""
        raise AssertionError(f"{type(self).__name__} does not say what it adds")

    def place(self, model: nn.Module) -> list[Put]:
        return self.puts(model, self.body)

    def puts(self, model: nn.Module, body: Callable[[Host], nn.Module]) -> list[Put]:
        if callable(own := getattr(model, "sublayers", None)):
            return self.behind(model, own(), body)
        puts: list[Put] = []
        for host in blocks_of(model, self):
            behind_mlp = [s for s in ("around_ffn", "on_ffn") if s in host.block.seams]
            if self.where != "ffn" or not behind_mlp:
                puts.append(Put(host.name, "on_mixer", OnBranch(host.dim, body(host), self)))
            if self.where != "mixer" and behind_mlp == ["around_ffn"]:
                puts.append(Put(host.name, "around_ffn", AroundFfn(host.dim, body(host), self, self.raw)))
            elif self.where != "mixer" and behind_mlp:
                puts.append(Put(host.name, "on_ffn", OnBranch(host.dim, body(host), self)))
        return [*puts, *norms_below(model)] if self.norms else puts

    def behind(self, model: nn.Module, found: Sequence[Sublayer], body: Callable[[Host], nn.Module]) -> list[Put]:
        """The same for a model whose blocks have no seams, but say where their branches end."""
        if self.parallel:
            raise AdapterError(f"{type(model).__name__}: its branches say where they end and not where they begin, so "
                               "parallel=false is wanted")  # fmt: skip
        puts: list[Put] = []
        for i, s in enumerate(found):
            if self.where in (s.kind, "both"):
                end = model.get_submodule(s.end)
                host = Host(s.end, end, 0, i, len(found), i, s.dim)  # type: ignore[arg-type]  # a layer of theirs
                owner, _, name = s.end.rpartition(".")
                puts.append(Put(owner, name, Behind(end, OnBranch(s.dim, body(host), self), model)))
            if self.norms:
                owner, _, name = s.norm.rpartition(".")
                puts.append(Put(owner, name, deepcopy(model.get_submodule(s.norm)).requires_grad_(True)))
        return puts

    def narrow(self, host: Host, width: int | None, reduction: float) -> int:
        """The channels of a bottleneck in a block: `width`, or the block's over `reduction`."""
        wanted, b = (f"width={width}", width) if width else (f"reduction={reduction:g}", round(host.dim / reduction))
        if not 1 <= b <= host.dim:
            raise AdapterError(f"{host.name}: {type(host.block).__name__} has {host.dim} channels, and {wanted} makes "
                               f"a bottleneck of {b}; 1 to {host.dim} will do")  # fmt: skip
        return b


# ----------------------------------------------------------------------------------------------------------- settings


def check_word(name: str, value: str, words: object) -> None:
    if value not in (known := get_args(words)):
        raise ValueError(f"{name}={value!r} is not known; there are {', '.join(known)}")


def check_narrow(width: int | None, reduction: float) -> None:
    if width is not None and width < 1:
        raise ValueError(f"width={width}: a bottleneck has at least 1 channel")
    if not reduction >= 1:
        raise ValueError(f"reduction={reduction}: by 1 or more")


def check_dropout(dropout: float) -> None:
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout}: a probability below 1")
