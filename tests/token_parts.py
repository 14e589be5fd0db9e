"""A small ViT for the commands about tokens."""

import torch
from torch import nn

from patchloom.vision import zoo

CLASSES = ["ant", "bee", "cat", "dog", "eel", "fox"]


def vit(**options: object) -> nn.Module:
    """17 tokens, 12 blocks."""
    torch.manual_seed(0)
    return zoo.create_model("deit_tiny_patch16_224", img_size=64, num_classes=len(CLASSES), **options).eval()
