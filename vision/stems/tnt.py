"""Words and sentences of an image (TNT, https://arxiv.org/abs/2103.00112)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.sizes import missing
from ..blocks.words import Sentence
from ..position import Position
from ..stem import Positioned
from ..tokens import Tokens

PATCH = 16


class WordEmbedding(nn.Module):
    """image (B channels H W) -> Tokens whose `inner` are 16 words a patch.

    The convolution sees each patch alone, in a border of zeros: that is no convolution of the whole image. `table` is
    the words' position, the same in every patch.
    """

    def __init__(self, channels: int, width: int, dim: int, position: nn.Module):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 7, 4, 3)
        self.table = nn.Parameter(nn.init.normal_(torch.empty(1, 16, width), std=0.02))
        self.sentence, self.position = Sentence(16 * width, dim, bias=True), position

    def forward(self, image: Tensor) -> Tokens:
        image = F.pad(image, (0, missing(image.shape[3], PATCH), 0, missing(image.shape[2], PATCH)))
        b, c, height, width = image.shape
        h, w = height // PATCH, width // PATCH
        patches = image.view(b, c, h, PATCH, w, PATCH).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, PATCH, PATCH)
        words = self.conv(patches).flatten(2).transpose(1, 2).contiguous() + self.table  # B*h*w 16 width
        x = self.sentence(words).unflatten(0, (b, h * w))
        return self.position(Tokens(x, (h, w), inner=words))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class WordStem(Positioned):
    """16 x 16 patches of 16 words with `width` channels; a token is made of its words."""

    width: int
    position: Position

    @property
    def stride(self) -> int:
        return PATCH

    def build(self, channels: int, dim: int) -> nn.Module:
        return WordEmbedding(channels, self.width, dim, self.position.build(dim))
