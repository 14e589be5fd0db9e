"""Questions about sizes that a model may be exported without knowing."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


class OpenSizeError(ValueError):
    """An export that leaves sizes open meets a step that goes another way for some of them."""


def missing(size: int, multiple: int) -> int:
    """What `size` lacks of the next multiple; written so that a padded size is known to be one where sizes are open."""
    return (size + multiple - 1) // multiple * multiple - size


def always(condition: bool) -> bool:
    """`condition` on the sizes of tensors; in an export with sizes left open: whether it holds for all of them, so that
    the graph takes no branch that fits only the example it was made with."""
    if not torch.compiler.is_exporting():
        return bool(condition)
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)


def table(make: Callable[..., Any], *sizes: Any) -> Tensor:
    """`make(*sizes)` as a tensor: what depends on sizes only, kept from call to call. In an export with sizes left open
    `make(*sizes, xp=torch)`, computed in the graph: `make` keeps to what numpy and torch have in common.

    Kept as numpy: a tensor would carry the first call's inference mode, device or tracer into all later ones.
    """
    if is_open(*sizes):
        made: Tensor = make(*sizes, xp=torch)
        return made
    return torch.from_numpy(kept(make, *sizes))


@lru_cache(maxsize=256)
def kept(make: Callable[..., Any], *sizes: Any) -> Any:
    """`make(*sizes)`, of whose last 256 results each is there again. One memory for all: torch.compile looks through a
    function with a memory, and not into a memory of such functions."""
    return make(*sizes)


def modulo(x: Any, n: Any, xp: Any) -> Any:
    """x % n for whole numbers, where n may be a size that is left open: ONNX divides tensors by tensors."""
    return x % (xp.full((1,), n) if is_open(n) else n)


def is_open(*sizes: Any) -> bool:
    """Whether this is an export that leaves one of the sizes open."""
    return any(isinstance(s, torch.SymInt) for s in sizes)
