"""The published families, one a file: variants, the names in their checkpoints, and where their weights lie.

A family is a module with VARIANTS (name -> Network), RULES (whose names -> Rules) and WEIGHTS (name -> Weights, the
first one being the default).
"""

from types import ModuleType

from . import cct, convnext, metaformer, swin, vit

FAMILIES: dict[str, ModuleType] = {"vit": vit, "swin": swin, "metaformer": metaformer, "convnext": convnext, "cct": cct}
