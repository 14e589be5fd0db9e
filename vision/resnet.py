"""ResNet, https://arxiv.org/abs/1512.03385, as a pyramid for published detectors and segmenters: the stride in the 3x3
convolution, the names of detectron2."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .heads.conv_norm import ConvNorm
from .network import Rules


class Bottleneck(nn.Module):
    """relu(shortcut(m) + a 1x1, a 3x3 and a 1x1 convolution of it)."""

    def __init__(self, dim: int, width: int, stride: int, build: Callable[..., ConvNorm]):
        super().__init__()
        out = 4 * width
        self.conv1, self.conv2 = build(dim, width), build(width, width, 3, stride)
        self.conv3 = build(width, out)
        self.shortcut = nn.Identity() if dim == out and stride == 1 else build(dim, out, 1, stride)

    def forward(self, m: Tensor) -> Tensor:
        y = self.conv3(F.relu(self.conv2(F.relu(self.conv1(m)))))
        return F.relu(y + self.shortcut(m))


class ResNetPyramid(nn.Module):
    """image (B 3 H W) -> the maps `outputs` in that order: "stem" (behind the pooling) and "res2" (stride 4) to "res5".

    frozen_norm: running statistics are used and kept, also while training, and their scales and shifts do not learn.
    """

    def __init__(
        self, depths: Sequence[int] = (3, 4, 6, 3), outputs: Sequence[str] = ("res2", "res3", "res4", "res5"), *,
        eps: float = 1e-5, momentum: float = 0.1, frozen_norm: bool = False,
    ):  # fmt: skip
        super().__init__()
        known = {"stem": (64, 4)} | {f"res{i + 2}": (256 << i, 4 << i) for i in range(4)}
        if unknown := [o for o in outputs if o not in known]:
            raise ValueError(f"a ResNet gives no map {unknown[0]!r}; there are {', '.join(known)}")
        self.outputs, self.frozen_norm = tuple(outputs), frozen_norm
        self.settings = {"depths": tuple(depths), "eps": eps, "momentum": momentum}
        self.channels = [known[o][0] for o in outputs]
        self.strides = [known[o][1] for o in outputs]
        build = partial(ConvNorm, eps=eps, momentum=momentum)
        self.stem, self.stages, dim = build(3, 64, 7, 2), nn.ModuleList(), 64
        for i, depth in enumerate(depths):
            width, stage = 64 << i, nn.ModuleList()
            for j in range(depth):
                stage.append(Bottleneck(dim, width, 2 if i and not j else 1, build))
                dim = 4 * width
            self.stages.append(stage)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
        for norm in self.norms():
            norm.requires_grad_(not frozen_norm)

    def arguments(self) -> dict[str, Any]:
        """What it was made of, by the names of the constructor."""
        return {"outputs": self.outputs, "frozen_norm": self.frozen_norm, **self.settings}

    def norms(self) -> list[nn.BatchNorm2d]:
        return [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)]

    def train(self, mode: bool = True) -> "ResNetPyramid":
        super().train(mode)
        if self.frozen_norm:
            for norm in self.norms():
                norm.train(False)
        return self

    def forward(self, image: Tensor) -> list[Tensor]:
        m = F.max_pool2d(F.relu(self.stem(image)), 3, 2, 1)
        maps = {"stem": m}
        for i, stage in enumerate(self.stages):
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                m = block(m)
            maps[f"res{i + 2}"] = m
        return [maps[o] for o in self.outputs]


def stage_rules(number: int) -> tuple[tuple[str, str], ...]:
    theirs, ours = rf"res{number + 2}\.(\d+)\.(conv[123]|shortcut)\.", rf"stages.{number}.\1.\2."
    return (theirs + "weight", ours + "conv.weight"), (theirs + r"norm\.(\w+)", ours + r"norm.\3")


RULES = Rules(
    (
        (r"stem\.conv1\.weight", "stem.conv.weight"),
        (r"stem\.conv1\.norm\.(\w+)", r"stem.norm.\1"),
        *(rule for i in range(4) for rule in stage_rules(i)),
    )
)
