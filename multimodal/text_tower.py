"""A text encoder that learns: blocks of the suite over the words of captions."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..vision.block import PreNorm
from ..vision.mixers.attention import Global
from ..vision.norm import Norm
from ..vision.tokens import Tokens
from .text import WORDS, HashedWords, Vocabulary, padded

log = logging.getLogger("patchloom.text")


class TextTower(nn.Module):
    """captions (B) -> (their tokens (B L d) behind a norm, mask (B L): True = token), L that of the longest caption.

    tokens: "words:vocabulary=4096" (words and marks as numbers by their checksum, the same on every machine; two words
    in the same place are told apart by nothing), or a folder or hub name of a tokenizer of transformers.
    `length`: what is longer is cut, and said once. A token of padding stands for nothing, so nobody attends to it.
    """

    def __init__(self, tokens: str = "words:vocabulary=4096", width: int = 128, depth: int = 2, heads: int = 4,
                 length: int = 32):  # fmt: skip
        super().__init__()
        if length < 2:
            raise ValueError(f"length={length}: captions have at least two tokens, their begin and end")
        self.spec, self.width, self.depth, self.heads, self.length = tokens, width, depth, heads, length
        self.tokens, count = tokens_of(tokens)
        self.table = nn.Embedding(count, width)
        self.place = nn.Parameter(torch.zeros(length, width))
        nn.init.normal_(self.table.weight, std=0.02)
        nn.init.normal_(self.place, std=0.01)
        mixer = Global(heads)
        self.blocks = nn.ModuleList(
            PreNorm().build(width, i, mixer.build(width, i), 4.0, None, 0.0) for i in range(depth)
        )
        self.norm = Norm().build(width)
        self.cut = False  # whether it was said already that a caption is too long

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = ("width", "depth", "heads", "length")
        return {"tokens": self.spec} | {name: getattr(self, name) for name in names}

    def forward(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        if isinstance(captions, str) or not captions or not all(isinstance(c, str) for c in captions):
            raise ValueError(f"captions = {captions!r}: a list of strings, at least one, is needed")
        rows, pad = self.tokens(captions)
        longest = max(map(len, rows))
        if longest > self.length and not self.cut:
            self.cut = True
            log.warning("captions of more than %d tokens are cut: one has %d; a larger length keeps them whole",
                        self.length, longest)  # fmt: skip
        ids, mask = (x.to(self.place.device) for x in padded(rows, pad, min(longest, self.length)))
        t = Tokens(self.table(ids) + self.place[: ids.shape[1]], None, size=mask[..., None].float())
        for block in self.blocks:
            t = block(t)
        return self.norm(t.x), mask


def tokens_of(spec: str) -> tuple[HashedWords | Vocabulary, int]:
    """What makes numbers of captions, and how many numbers there are."""
    if spec.startswith(WORDS):
        name, _, value = spec.removeprefix(WORDS).partition("=")
        if name != "vocabulary" or not value.isdecimal() or int(value) < 100:
            raise ValueError(f"tokens={spec!r}: {WORDS}vocabulary=N, with N at least 100, or a tokenizer's folder")
        return HashedWords(int(value)), int(value)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(spec)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"no tokenizer {spec!r}: {str(error).strip().partition(chr(10))[0]}; name a folder that holds one, or "
            f"{WORDS}vocabulary=4096"
        ) from error
    return Vocabulary(tokenizer), len(tokenizer)
