"""Denoisers of each published kind, a few channels wide, and what goes into them."""

import torch

from patchloom.vision.generation.dimr import Branch, DiMR
from patchloom.vision.generation.lego import Lego
from patchloom.vision.generation.lego_bricks import Brick
from patchloom.vision.generation.micro_dit import MicroDiT


def small_micro_dit(**options):
    torch.manual_seed(0)
    given = {"dim": 64, "depth": 3, "head": 16, "mixer": (2, 32), "size": (8, 8), "text": (5, 12)}
    return MicroDiT(**given | options)


def small_dimr(**options):
    torch.manual_seed(0)
    branches = (Branch(16, 3, 4, heads=2), Branch(12, 3, 2, kernel=3), Branch(8, 1, 1, kernel=3))
    return DiMR(**{"branches": branches, "size": (16, 16), "num_classes": 5} | options)


def small_lego(**options):
    torch.manual_seed(0)
    bricks = (Brick(4, 2, 1), Brick(8, 4, 1), Brick(16, 2, 2))
    return Lego(**{"bricks": bricks, "dim": 16, "heads": 2, "size": (16, 16), "num_classes": 5} | options)


def awake(model):
    """With weights where a fresh network has zeros, which hide what stands before them."""
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(std=0.2)
    return model


def batch(model, n=2, size=None, seed=1):
    """(x, t, y) for n samples."""
    g = torch.Generator().manual_seed(seed)
    x, t = torch.randn(n, model.in_channels, *(size or model.size), generator=g), torch.linspace(-1, 0.5, n)
    return x, t, torch.arange(n) % 5 if model.text is None else torch.randn(n, *model.text, generator=g)
