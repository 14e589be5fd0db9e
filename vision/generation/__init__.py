"""Denoisers, and the mathematics of diffusion that trains them and samples from them.

A family is a module with VARIANTS (name -> Variant), RULES (whose names -> Rules) and WEIGHTS (name -> Weights); it is
imported when one of its names is asked for.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .denoiser import Variant

FAMILIES = {"dit": "dit", "microdit": "micro_dit", "dimr": "dimr", "lego": "lego"}  # a name's first word -> module


def family(name: str) -> ModuleType:
    """The module of the family that is called so."""
    return import_module(f"{__name__}.{FAMILIES[name]}")


class Denoisers(Mapping[str, "Variant"]):
    """Every published denoiser by its name."""

    def __getitem__(self, name: str) -> "Variant":
        word = name.partition("_")[0]
        if word not in FAMILIES:
            raise KeyError(name)
        there = family(word)
        variants: Mapping[str, Variant] = there.VARIANTS
        return variants[getattr(there, "ALIASES", {}).get(name, name)]

    def __iter__(self) -> Iterator[str]:
        return (name for word in FAMILIES for name in family(word).VARIANTS)

    def __len__(self) -> int:
        return sum(1 for _ in self)


DENOISERS = Denoisers()
