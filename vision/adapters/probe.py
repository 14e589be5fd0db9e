"""The linear probe: the head alone learns."""

from dataclasses import dataclass

from torch import nn

from . import Put


@dataclass(frozen=True)
class Probe:
    """The linear probe: the head alone learns, which every adapter has for its own."""

    def place(self, model: nn.Module) -> list[Put]:
        return []
