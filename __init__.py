"""patchloom: vision and multimodal backbones with shared kernels, plugins, adapters and heads."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["create_model", "list_models"]


def __getattr__(name: str) -> Any:
    """`create_model` and `list_models`, imported at first use: `import patchloom` itself costs nothing."""
    if name in __all__:
        return getattr(import_module(".vision.zoo", __name__), name)
    raise AttributeError(f"module 'patchloom' has no attribute {name!r}; it has {', '.join(__all__)}")
