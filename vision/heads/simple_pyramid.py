"""ViTDet's simple feature pyramid, https://arxiv.org/abs/2203.16527: several scales from one map of a plain ViT."""

from collections.abc import Sequence

from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map (B C H W)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SimplePyramid(nn.Module):
    """The last of the maps, (B C H W) of stride s -> four maps of `dim` channels at s/4, s/2, s and 2s: transposed
    convolutions of 2x2 make it finer, max-pooling coarser, and 1x1 and 3x3 convolutions with layer norms follow.
    `channels` and `strides` describe them. The finest map has a quarter of C channels before: C divides by 4.

    finest: finer maps than of this stride are not made.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], dim: int = 256, finest: float = 0):
        super().__init__()
        if not channels or len(channels) != len(strides) or channels[-1] % 4:
            raise ValueError(
                f"a simple pyramid is made of a map whose channels divide by 4; these have channels {list(channels)} "
                f"and strides {list(strides)}"
            )
        c, s = channels[-1], strides[-1]
        scales: tuple[list[nn.Module], ...] = (
            [up(c, c // 2), ChannelNorm(c // 2, eps=1e-6), nn.GELU(), up(c // 2, c // 4)],
            [up(c, c // 2)],
            [],
            [nn.MaxPool2d(2, ceil_mode=True)],
        )
        made = [
            (stride, nn.Sequential(*parts, *normed(width, dim, 1), *normed(dim, dim, 3)))
            for parts, width, stride in zip(scales, (c // 4, c // 2, c, c), (s / 4, s / 2, s, 2 * s), strict=True)
            if stride >= finest
        ]
        if not made:
            raise ValueError(f"a map of stride {s} gives none of stride {finest} or coarser")
        self.levels = nn.ModuleList(level for _, level in made)
        self.channels, self.strides = [dim] * len(made), [float(stride) for stride, _ in made]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [level(maps[-1]) for level in self.levels]


def up(dim: int, out: int) -> nn.Module:
    return nn.ConvTranspose2d(dim, out, 2, 2)


def normed(dim: int, out: int, kernel: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(dim, out, kernel, padding=kernel // 2, bias=False), ChannelNorm(out, eps=1e-6)
