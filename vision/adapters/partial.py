"""Some of the trunk's own parameters learn and nothing is added: its biases, or the scales and shifts of its norms."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn

from ..norm import OneGroupNorm, RMSNorm
from ..plugins import plugged
from ..prepbn import ProgressiveNorm, RepBN
from . import HEADS, AdapterError, Put

NORMS = (
    nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm, OneGroupNorm, RMSNorm, RepBN,
)  # fmt: skip


@dataclass(frozen=True)
class BiasTuning:
    """Biases alone (BitFit).

    Every bias of the trunk, those of its norms included (BitFit, https://arxiv.org/abs/2106.10199).
    """

    def place(self, model: nn.Module) -> list[Put]:
        found = own(model, lambda _, name: name == "bias" or name.endswith("_bias"))
        if not found:
            raise AdapterError(f"bias: no layer of {type(model).__name__} behind whose product a bias is added")
        return found


@dataclass(frozen=True)
class NormTuning:
    """Norms alone.

    The scales and shifts of every norm of the trunk (https://arxiv.org/abs/2312.11420, which tunes layer norms); the
    statistics of its batch norms stay."""

    def place(self, model: nn.Module) -> list[Put]:
        found = norms_below(model)
        if not found:
            raise AdapterError(f"norm: no norm of {type(model).__name__} has a scale or a shift to train")
        return found


def norms_below(model: nn.Module, *paths: str) -> list[Put]:
    """Scales and shifts of the trunk's norms; where `paths` are given, of those inside these modules alone."""
    return own(model, lambda module, _: isinstance(module, NORMS), *paths)


def own(model: nn.Module, wanted: Callable[[nn.Module, str], bool], *paths: str) -> list[Put]:
    """Copies that learn, in place of those of the trunk's parameters for which `wanted`(module, name) holds; one that
    several modules share stays shared."""
    copies: dict[int, nn.Parameter] = {}
    puts = []
    for path, module in trunk_modules(model):
        if paths and not f"{path}.".startswith(tuple(f"{p}." for p in paths)):
            continue
        for name, p in module.named_parameters(recurse=False):
            if wanted(module, name):
                copies.setdefault(id(p), nn.Parameter(p.detach().clone()))
                puts.append(Put(path, name, copies[id(p)]))
    return puts


def trunk_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(path, module) of all that the trunk computes with: without heads, token plugins and the layer norms that a
    progressive norm leaves behind once it evaluates."""
    left_out: tuple[str, ...] = (*(f"{head}." for head in HEADS), *plugged(model))
    left_out += tuple(f"{path}.norm1." for path, m in model.named_modules() if isinstance(m, ProgressiveNorm))
    return ((path, m) for path, m in model.named_modules() if not f"{path}.".startswith(left_out))
