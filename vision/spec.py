"""What a network is described by: frozen dataclasses, each of which builds a module."""

from typing import TypeVar

S = TypeVar("S")


class Spec:
    """A part of a description. What it builds may be bound to the grid of tokens that it stands on (a table of
    positions, say): `sized` gives the same part made for another grid."""

    def sized(self: S, grid: tuple[int, int]) -> S:
        return self


def sized(spec: S, grid: tuple[int, int]) -> S:
    """`spec` made for `grid`, whatever it is: one that says nothing of grids fits any."""
    return spec.sized(grid) if isinstance(spec, Spec) else spec
