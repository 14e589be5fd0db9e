"""The tensors of LEGO-Diffusion's published files, which are pickles of whole modules with their source.

NVLabs' way of storing networks: {"ema": module, "loss_fn": …}, where a module is a call of a function that would
compile and run the source beside its state. Here nothing of it is imported or run: every class and function that a file
names is a blank that keeps what it is given, but for what makes a tensor out of numbers.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Blank:
    """Stands for an object of any class, or for what any function would return."""

    def __init__(self, *given: Any):
        self.given, self.state = given, None

    def __new__(cls, *_: Any) -> "Blank":
        made = super().__new__(cls)
        made.given, made.state = (), None
        return made

    def __call__(self, *given: Any) -> "Blank":
        """What a function that was looked up by a function would return."""
        return Blank(*given)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Some are dicts; what is in them is of no interest."""

    def append(self, value: Any) -> None:
        """Others are lists."""

    def extend(self, values: Any) -> None:
        """See `append`."""

    @property
    def attributes(self) -> dict[str, Any]:
        """What the object holds: its own state, or the one beside its source."""
        held = self.given[0].get("state") if self.given and isinstance(self.given[0], dict) else self.state
        return held if isinstance(held, dict) else {}


def storage(content: bytes) -> Any:
    """The numbers of a tensor."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


HARMLESS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch.storage", "_load_from_bytes"): storage,
}


class Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return HARMLESS.get((module, name)) or type(name, (Blank,), {})

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"it refers to something outside of itself: {pid!r}")


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of the averaged network ("ema") by their names. Raises ValueError where there are none."""
    try:
        with Path(path).open("rb") as file:
            content = Reader(file).load()
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        RuntimeError,
    ) as error:
        raise ValueError(f"{path}: is no pickle of a network, or a damaged one ({error}); fetch it again") from error
    network = content.get("ema") if isinstance(content, dict) else None
    found = dict(tensors(network)) if isinstance(network, Blank) else {}
    if not found:
        raise ValueError(f'{path}: holds no network under "ema", as the files of LEGO-Diffusion do')
    return found


def tensors(module: Blank, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of a module and of those below it."""
    held = module.attributes
    for kind in ("_parameters", "_buffers"):
        for name, value in (held.get(kind) or {}).items():
            if isinstance(value, Tensor):
                yield prefix + name, value.detach()
    for name, below in (held.get("_modules") or {}).items():
        if isinstance(below, Blank):
            yield from tensors(below, f"{prefix}{name}.")
