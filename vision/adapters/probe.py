"""The linear probe: the head alone learns."""

from dataclasses import dataclass

from torch import nn

from . import Put


@dataclass(frozen=True)
class Probe:
    """Nothing in the trunk; each adapter has the head for its own anyway."""

    def place(self, model: nn.Module) -> list[Put]:
        return []
