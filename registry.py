"""What mmengine imports when a config names the scope `patchloom` (`type='patchloom.swin_tiny'`)."""

from .train.openmmlab import MODELS

__all__ = ["MODELS"]
