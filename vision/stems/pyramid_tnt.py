"""Words and sentences at falling resolution (PyramidTNT, https://arxiv.org/abs/2201.00978)."""

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from ..conv import ConvNorm
from ..mixers.convolution import convolve
from ..stem import Down, Stem
from ..tokens import Tokens


class ConvWords(nn.Module):
    """image -> 3x3 convolution by 2 -> one more for the words, 4 x 4 a patch; three more for the patches, 8 pixels
    apart. Batch norm and ReLU behind each."""

    def __init__(self, channels: int, width: int, dim: int):
        super().__init__()
        self.common = ConvNorm(channels, 2 * width, 3, 2, bias=True, act="relu")
        self.words = ConvNorm(2 * width, width, 3, bias=True, act="relu")
        self.patches = nn.Sequential(
            ConvNorm(2 * width, 4 * width, 3, 2, bias=True, act="relu"),
            ConvNorm(4 * width, 8 * width, 3, 2, bias=True, act="relu"),
            ConvNorm(8 * width, dim, 3, bias=True, act="relu"),
        )

    def forward(self, image: Tensor) -> Tokens:
        image = F.pad(image, (0, -image.shape[3] % 8, 0, -image.shape[2] % 8))
        m = self.common(image.permute(0, 2, 3, 1))
        x = self.patches(m)
        h, w = x.shape[1:3]
        return Tokens(x.flatten(1, 2), (h, w), inner=cut(self.words(m), h, w))


def cut(words: Tensor, h: int, w: int) -> Tensor:
    """A map of words (B 4h 4w c) -> (B*h*w 16 c)."""
    b, c = words.shape[0], words.shape[-1]
    return words.reshape(b, h, 4, w, 4, c).transpose(2, 3).reshape(-1, 16, c)


class MergeWords(nn.Module):
    """2 x 2 patches become one: a 3x3 convolution by 2 behind a norm on the sentences, and one on the 8 x 8 words of
    those patches alone. Odd sides get zeros."""

    def __init__(self, dim: int, out: int, width: int, out_width: int):
        super().__init__()
        self.norm, self.conv = nn.LayerNorm(dim), nn.Conv2d(dim, out, 3, 2, 1)
        self.word_norm, self.word_conv = nn.LayerNorm(width), nn.Conv2d(width, out_width, 3, 2, 1)

    def forward(self, t: Tokens) -> Tokens:
        assert t.inner is not None
        m = self.norm(t.map())
        words = self.word_norm(t.inner).view(*m.shape[:3], 4, 4, -1)
        words = F.pad(words, (0, 0) * 3 + (0, m.shape[2] % 2, 0, m.shape[1] % 2))
        b, h, w, c = words.shape[0], words.shape[1] // 2, words.shape[2] // 2, words.shape[-1]
        words = words.reshape(b, h, 2, w, 2, 4, 4, c).permute(0, 1, 3, 2, 5, 4, 6, 7).reshape(-1, 8, 8, c)
        words = convolve(self.word_conv, words).flatten(1, 2)
        return replace(t.with_map(convolve(self.conv, m)), inner=words)


@dataclass(frozen=True)
class WordPyramid(Stem):
    """Patches 8 pixels apart with 16 words of `width` channels each."""

    width: int

    @property
    def stride(self) -> int:
        return 8

    def build(self, channels: int, dim: int) -> nn.Module:
        return ConvWords(channels, self.width, dim)


@dataclass(frozen=True)
class MergeSentences(Down):
    """Sentences and their words, from `width` to `out_width` channels, at half the resolution."""

    width: int
    out_width: int

    def build(self, dim: int, out: int) -> nn.Module:
        return MergeWords(dim, out, self.width, self.out_width)
