"""Transformer in transformer (TNT, https://arxiv.org/abs/2103.00112): every patch, a sentence, is made of words that
have a transformer of their own.

Shapes: B images, N patches, n words a patch of c channels, C channels of a sentence.
"""

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from ..block import Block, BlockSpec
from ..layers import Linear, Mlp
from ..mixers.attention import Global, SelfAttention
from ..residual import Add, add_mlp
from ..tokens import Tokens


class Sentence(nn.Module):
    """norm2(proj(norm1(the words of a patch, one behind the other))), (B*N n c) -> (B*N C)."""

    projections = ("proj",)

    def __init__(self, width: int, dim: int, bias: bool):
        super().__init__()
        self.norm1, self.proj, self.norm2 = nn.LayerNorm(width), Linear(width, dim, bias), nn.LayerNorm(dim)

    def forward(self, words: Tensor) -> Tensor:
        return self.norm2(self.proj(self.norm1(words.flatten(1))))  # type: ignore[no-any-return]


class JointNorm(nn.LayerNorm):
    """Layer norm over all words of a patch together, (B*N n c)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.flatten(1)).view(input.shape)


class InnerBlock(nn.Module):
    """norm1 -> mixer -> add1 -> norm2 -> ffn -> add2 on words (B*N n c); stochastic depth leaves out single patches."""

    def __init__(self, dim: int, heads: int, ratio: float, drop_path: float, norms: tuple[nn.Module, nn.Module]):
        super().__init__()
        self.norm1, self.norm2 = norms
        self.mixer, self.ffn = SelfAttention(dim, heads, bias=False), Mlp(dim, int(dim * ratio))
        self.add1, self.add2 = Add(drop_path), Add(drop_path)

    def forward(self, words: Tensor) -> Tensor:
        words = self.add1(words, self.mixer(Tokens(self.norm1(words), None)))
        return add_mlp(self.add2, self.ffn, words, self.norm2(words))


class WordsBlock(Block):
    """The words' block; what they say goes into their sentences; then the sentences' block:

    w = inner(w); x = x + join(w) for the tokens of patches; x = x + mixer(norm1(x)); x = x + ffn(norm2(x)).
    """

    def __init__(self, inner: InnerBlock, join: Sentence, mixer: nn.Module, ffn: nn.Module,
                 norms: tuple[nn.Module, nn.Module], adds: tuple[Add, Add]):  # fmt: skip
        super().__init__(mixer, ffn, norms, adds)
        self.inner, self.join = inner, join

    def run(self, t: Tokens) -> Tokens:
        if t.inner is None or t.grid is None:
            raise ValueError("these tokens have lost the words that they are made of: none may be merged or dropped")
        words = self.inner(t.inner)
        said = self.join(words).unflatten(0, (t.x.shape[0], -1))
        said = F.pad(said, (0, 0, len(t.special), 0))  # special tokens stand in front and get nothing
        return super().run(replace(t, x=t.x + said, inner=words))


class SentenceAttention(SelfAttention):
    """Attention of the sentences, each of which keeps its place: its words belong to it."""

    needs_grid, takes_special = True, True


@dataclass(frozen=True)
class Sentences(Global):
    """Global attention of tokens that are made of words."""

    def build(self, dim: int, index: int) -> nn.Module:
        return SentenceAttention(dim, self.heads or 1, self.bias, self.out_bias, self.dropout)


@dataclass(frozen=True)
class WithWords(BlockSpec):
    """The TNT block: `words` words of `width` channels in `heads` heads beside each token; `joint`: norms over all
    words of a patch together."""

    width: int
    heads: int
    words: int = 16
    ratio: float = 4.0
    joint: bool = False

    def build(self, dim: int, index: int, mixer: nn.Module, ratio: float, scale: float | None,
              drop_path: float) -> nn.Module:  # fmt: skip
        if scale is not None:
            raise ValueError(f"scale={scale}: a block with words has no LayerScale; leave it out")
        inner_norms = self.norm(), self.norm()
        inner = InnerBlock(self.width, self.heads, self.ratio, drop_path, inner_norms)
        join = Sentence(self.words * self.width, dim, bias=False)
        ffn, norms = Mlp(dim, int(dim * ratio)), (nn.LayerNorm(dim), nn.LayerNorm(dim))
        return WordsBlock(inner, join, mixer, ffn, norms, (Add(drop_path), Add(drop_path)))

    def norm(self) -> nn.Module:
        return JointNorm(self.words * self.width) if self.joint else nn.LayerNorm(self.width)
