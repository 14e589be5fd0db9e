"""A class for each pixel, of any pyramid: UPerNet (https://arxiv.org/abs/1807.10221) and Semantic FPN, the semantic
branch of Panoptic FPN (https://arxiv.org/abs/1901.02446).

Shapes: B images (B 3 H W), K classes, maps (B C_i H_i W_i) from fine to coarse.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.sizes import missing
from ..position import same
from .conv_norm import ConvNorm
from .fpn import FPN
from .mask2former import described, embedded, hw
from .multi_level import MultiLevel, in_one_stride
from .pixel_decoder import ConvGroupNorm
from .slide import Slide

Norm = Literal["batch", "group"]


def conv_relu(dim: int, out: int, kernel: int, norm: Norm) -> nn.Module:
    """relu(norm(conv(m))), the norm over the batch, or over groups of channels of one image."""
    if norm not in ("batch", "group"):
        raise ValueError(f"norm {norm!r} is not known; there are batch and group")
    if norm == "group":
        return ConvGroupNorm(dim, out, kernel, relu=True)
    return nn.Sequential(ConvNorm(dim, out, kernel), nn.ReLU())


def resize(m: Tensor, size: tuple[int, int]) -> Tensor:
    return m if same(hw(m), size) else F.interpolate(m, size, mode="bilinear", align_corners=False)


class Classify(nn.Module):
    """Dropout of whole channels, and a 1x1 convolution to the classes."""

    def __init__(self, dim: int, classes: int, dropout: float):
        super().__init__()
        self.drop, self.conv = nn.Dropout2d(dropout), nn.Conv2d(dim, classes, 1)

    def forward(self, m: Tensor) -> Tensor:
        return self.conv(self.drop(m))  # type: ignore[no-any-return]


class PooledPyramid(nn.Module):
    """PSPNet's pyramid pooling (https://arxiv.org/abs/1612.01105): the map beside its means over 1, 4, 9, … regions,
    each through a 1x1 convolution, mixed by a 3x3 one."""

    def __init__(self, dim: int, out: int, pools: Sequence[int], norm: Norm):
        super().__init__()
        if norm == "group" and out // math.gcd(32, out) < 2:
            raise ValueError(
                f"width {out}: norm='group' would have one channel a group, which leaves nothing of the mean of a map; "
                "take 64, say"
            )
        self.pools = tuple(pools)
        self.each = nn.ModuleList(conv_relu(dim, out, 1, norm) for _ in self.pools)
        self.mix = conv_relu(dim + len(self.pools) * out, out, 3, norm)

    def forward(self, m: Tensor) -> Tensor:
        seen = [m]
        for cells, conv in zip(self.pools, self.each, strict=True):
            if cells == 1 and len(m) == 1 and any(type(n) is nn.BatchNorm2d and n.training for n in conv.modules()):
                raise ValueError(
                    "pyramid pooling normalises the mean of each map over the batch: it trains on 2 images or more, or "
                    "with norm='group'"
                )
            seen.append(resize(conv(F.adaptive_avg_pool2d(m, cells)), hw(m)))
        return self.mix(torch.cat(seen, 1))  # type: ignore[no-any-return]


class UPerNetHead(nn.Module):
    """maps -> logits (B K H_0 W_0): pyramid pooling of the coarsest map, sums from there to the finer ones, and all of
    these resized to the finest and mixed."""

    def __init__(self, channels: Sequence[int], classes: int, width: int, pools: Sequence[int], dropout: float,
                 norm: Norm):  # fmt: skip
        super().__init__()
        self.pool = PooledPyramid(channels[-1], width, pools, norm)
        self.lateral = nn.ModuleList(conv_relu(c, width, 1, norm) for c in channels[:-1])
        self.output = nn.ModuleList(conv_relu(width, width, 3, norm) for _ in channels[:-1])
        self.mix = conv_relu(len(channels) * width, width, 3, norm)
        self.classify = Classify(width, classes, dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        m = self.pool(maps[-1])
        found = [m]
        for lateral, output, finer in reversed(list(zip(self.lateral, self.output, maps[:-1], strict=True))):
            m = lateral(finer) + resize(m, hw(finer))
            found.insert(0, output(m))
        return self.classify(self.mix(torch.cat([resize(f, hw(maps[0])) for f in found], 1)))  # type: ignore[no-any-return]


class FcnHead(nn.Module):
    """The auxiliary head: one of the maps -> logits (B K H_i W_i) by a 3x3 convolution and a 1x1 one to the classes
    (https://arxiv.org/abs/1411.4038)."""

    def __init__(self, channels: Sequence[int], classes: int, width: int, dropout: float, norm: Norm):
        super().__init__()
        self.at = max(0, len(channels) - 2)  # published: the map at stride 16 of four
        self.conv, self.classify = conv_relu(channels[self.at], width, 3, norm), Classify(width, classes, dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.classify(self.conv(maps[self.at]))  # type: ignore[no-any-return]


class Rise(nn.Module):
    """A map to the finest one's size: a 3x3 convolution and doubling, as often as its stride asks for; the convolution
    alone where it has the finest one's stride."""

    def __init__(self, dim: int, out: int, doublings: int, norm: Norm):
        super().__init__()
        widths = [dim, *[out] * (max(1, doublings) - 1)]
        self.convs, self.doublings = nn.ModuleList(conv_relu(c, out, 3, norm) for c in widths), doublings

    def forward(self, m: Tensor, size: tuple[int, int]) -> Tensor:
        for left, conv in zip(range(len(self.convs) - 1, -1, -1), self.convs, strict=True):
            h, w = (-(-n // 2**left) for n in size)  # the sizes that halve to what came in, odd ones included
            m = resize(conv(m), (h, w))
        return m


class SemanticFpnHead(nn.Module):
    """maps -> logits (B K H_0 W_0): a feature pyramid, each of its maps raised to the finest one's size, and their sum
    classified."""

    def __init__(self, channels: Sequence[int], strides: Sequence[float], classes: int, width: int, out: int,
                 dropout: float, norm: Norm):  # fmt: skip
        super().__init__()
        self.pyramid = FPN(channels, strides, width)
        doublings = (math.ceil(math.log2(s / strides[0]) - 1e-6) for s in strides)
        self.rise = nn.ModuleList(Rise(width, out, n, norm) for n in doublings)
        self.classify = Classify(out, classes, dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        size = hw(maps[0])
        risen = [rise(m, size) for rise, m in zip(self.rise, self.pyramid(maps), strict=True)]
        return self.classify(torch.stack(risen).sum(0))  # type: ignore[no-any-return]


def check(image: Tensor) -> None:
    """Raises ValueError for anything but one tensor of images."""
    shape = tuple(getattr(image, "shape", ()))
    if len(shape) != 4 or 0 in shape:
        raise ValueError(f"images of shape (B, C, H, W) are wanted; got {shape or type(image).__name__}")


@dataclass(frozen=True)
class SemanticLogits:
    """Logits (B K H W) at the image's size, of the head and of the auxiliary head, None where there is none."""

    main: Tensor
    auxiliary: Tensor | None


class Segmenter(nn.Module):
    """image (B 3 H W), normalised -> logits (B K H W); `backbone` gives maps, and says their `channels` and `strides`.

    Inside, the image is padded with zeros at right and bottom to a multiple of the coarsest stride, so that maps cover
    it exactly. Maps that have one stride pass a `MultiLevel` neck. `slide`: how an image is gone over in evaluation
    mode; None: at once. Losses: heads/semantic_loss.py.
    """

    forwards = ("both",)  # called in training in place of `forward` (see train/sharded.py)
    head: nn.Module

    def __init__(self, backbone: nn.Module, classes: int, norm: Norm, slide: Slide | None = None):
        super().__init__()
        if classes < 1:
            raise ValueError(f"classes {classes}: a segmenter tells at least 1")
        channels, strides = described(backbone)
        if not channels or list(strides) != sorted(strides):
            raise ValueError(f"maps from fine to coarse are wanted; {type(backbone).__name__} gives strides {strides}")
        self.backbone, self.classes, self.stride, self.slide = backbone, classes, max(strides), slide
        self.settings: dict[str, Any] = {"norm": norm}
        self.channels = channels
        self.strides: Sequence[float] = strides  # of the maps that heads see
        self.neck: nn.Module = nn.Identity()
        self.auxiliary: nn.Module | None = None
        if in_one_stride(strides):
            neck = MultiLevel(channels, strides[0], norm)
            self.neck, self.strides = neck, neck.strides

    def forward(self, image: Tensor) -> Tensor:
        check(image)
        if self.slide is not None and not self.training:
            return self.slide(self.whole, image)
        return self.whole(image)

    def whole(self, image: Tensor) -> Tensor:
        """Logits (B K H W) of the image at once."""
        maps, back = self.maps(image)
        return back(self.head(maps))

    def both(self, image: Tensor) -> SemanticLogits:
        """What losses take: with the auxiliary head's."""
        check(image)
        maps, back = self.maps(image)
        return SemanticLogits(back(self.head(maps)), None if self.auxiliary is None else back(self.auxiliary(maps)))

    def maps(self, image: Tensor) -> tuple[list[Tensor], Callable[[Tensor], Tensor]]:
        """What heads see, and how logits of a map become those of the image."""
        h, w = hw(image)
        padded = F.pad(image, (0, missing(w, self.stride), 0, missing(h, self.stride)))
        size = hw(padded)
        maps = self.backbone(padded)
        if (got := [m.shape[1] for m in maps]) != self.channels:
            raise ValueError(
                f"the backbone gives maps of {got} channels, and the head was made for {self.channels}: what changes "
                "them goes into the backbone before the head is made"
            )
        return self.neck(maps), lambda logits: resize(logits, size)[..., :h, :w]

    def arguments(self) -> dict[str, Any]:
        """What it was made of, by the names of the constructor."""
        return {"backbone": self.backbone, "classes": self.classes, **self.settings, "slide": self.slide}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """In the backbone."""
        self.backbone.set_grad_checkpointing(enable)  # type: ignore[operator]

    def no_weight_decay(self) -> set[str]:
        """The names of what the backbone does not want decayed."""
        return embedded(self.backbone)

    def initialise(self) -> None:
        """Fresh heads: convolutions for ReLU, those to the classes near zero; the feature pyramid has its own."""
        for part in (self.head, self.auxiliary):
            for m in () if part is None else part.modules():
                if isinstance(m, (ConvNorm, ConvGroupNorm)):
                    nn.init.kaiming_normal_(m.conv.weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]
                elif isinstance(m, Classify):
                    nn.init.normal_(m.conv.weight, std=0.01)
                    nn.init.zeros_(m.conv.bias)  # type: ignore[arg-type]


class UPerNet(Segmenter):
    """`width` channels everywhere, `pools` x `pools` regions in the pyramid pooling; `auxiliary`: channels of the FCN
    head beside it, None for no such head. norm="group" trains on single images."""

    def __init__(
        self, backbone: nn.Module, classes: int, width: int = 512, pools: Sequence[int] = (1, 2, 3, 6),
        auxiliary: int | None = 256, dropout: float = 0.1, norm: Norm = "batch", slide: Slide | None = None,
    ):  # fmt: skip
        super().__init__(backbone, classes, norm, slide)
        if not pools or min(pools) < 1:
            raise ValueError(f"pools {tuple(pools)}: numbers of regions a side are wanted, each at least 1")
        self.settings |= {"width": width, "pools": tuple(pools), "auxiliary": auxiliary, "dropout": dropout}
        self.head = UPerNetHead(self.channels, classes, width, pools, dropout, norm)
        if auxiliary is not None:
            self.auxiliary = FcnHead(self.channels, classes, auxiliary, dropout, norm)
        self.initialise()


class SemanticFpn(Segmenter):
    """A feature pyramid of `width` channels, and a head of `out`; the paper's norm is over groups."""

    def __init__(
        self, backbone: nn.Module, classes: int, width: int = 256, out: int = 128, dropout: float = 0.1,
        norm: Norm = "group", slide: Slide | None = None,
    ):  # fmt: skip
        super().__init__(backbone, classes, norm, slide)
        self.settings |= {"width": width, "out": out, "dropout": dropout}
        self.head = SemanticFpnHead(self.channels, self.strides, classes, width, out, dropout, norm)
        self.initialise()
