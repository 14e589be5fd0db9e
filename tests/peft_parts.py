"""The small ViT of peft's records, and what tests of the LoRA house do with it."""

import torch

from patchloom.vision.backbone import Stage
from patchloom.vision.block import PreNorm
from patchloom.vision.families.vit import NORM
from patchloom.vision.heads.classification import Head
from patchloom.vision.mixers.attention import Global
from patchloom.vision.model import Classifier
from patchloom.vision.network import Network
from patchloom.vision.position import Position
from patchloom.vision.stem import Patchify


def small() -> Classifier:
    """The record's ViT: 32 pixels, patches of 8, two blocks of 48 channels."""
    stage = Stage(Global(3), 48, 2, block=PreNorm(NORM))
    stem = Patchify(8, None, position=Position((4, 4), special=1))
    network = Network("vit", (stage,), stem, head=Head(NORM, pool="token"), size=(32, 32))
    model = Classifier(network.backbone(3, 0.0), 10, network.head, img_size=32)
    model.family = "vit"
    return model.eval()


def bare(seed: int = 0) -> Classifier:
    """The same with weights of which none is zero."""
    torch.manual_seed(seed)
    model = small()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return model


def stirred(model):
    """The model with each of the numbers that learn changed."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.05)
    return model
