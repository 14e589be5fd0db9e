"""Small segmenters on tiny pyramids, images and their maps of classes."""

import torch
from torch import nn
from vision_tiny import tiny_pyramid

from patchloom.vision.heads.semantic import SemanticFpn, UPerNet

SIZE, CLASSES = (160, 224), 5


def upernet(backbone, **options):
    return UPerNet(backbone, CLASSES, **{"width": 16, "auxiliary": 8} | options)


def semantic_fpn(backbone, **options):
    return SemanticFpn(backbone, CLASSES, **{"width": 16, "out": 8} | options)


def small(name="swin_tiny", make=upernet, **options):
    torch.manual_seed(0)
    return make(tiny_pyramid(name), **options)


def image(size=SIZE, batch=2, seed=0):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def labels(size=SIZE, batch=2):
    """Classes, and some pixels of none."""
    found = torch.randint(0, CLASSES, (batch, *size), generator=torch.Generator().manual_seed(1))
    found[:, :9, :13] = 255
    return found


class Maps(nn.Module):
    """A backbone that has its maps ready."""

    def __init__(self, channels=(8, 16, 24, 32), strides=(4, 8, 16, 32), size=(64, 96)):
        super().__init__()
        self.channels, self.strides = list(channels), list(strides)
        g = torch.Generator().manual_seed(0)
        self.maps = [
            torch.randn(2, c, -(-size[0] // s), -(-size[1] // s), generator=g)
            for c, s in zip(channels, strides, strict=True)
        ]

    def forward(self, image):
        return self.maps


def stirred(model):
    """With norms that have seen something, and nothing hidden by a zero."""
    with torch.no_grad():
        for n, t in model.state_dict().items():
            if t.is_floating_point():
                t.copy_(torch.rand_like(t) + 0.5 if n.endswith("var") else t + torch.randn_like(t) * 0.1)
    return model.eval()
