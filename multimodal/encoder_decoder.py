"""A vision encoder-decoder as VL-Adapter tunes it, https://arxiv.org/abs/2112.06825: BART or T5 reads image tokens too.

Adapters for several tasks stand behind self-attention, cross-attention and MLPs, in encoder and decoder; the language
model's norms and the projection of what the tower saw learn with them:

    model = EncoderDecoder(tower, Project(1), TextToText(lm), image_token)
    adapt(model.language, adapter("vl_adapter:tasks=vqa+caption,reduction=8"))
    choose(model.language, "caption")

The adapters read a branch before its dropout.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .connectors import Connector
from .splice import Sample, splice
from .stream import IGNORED, Stream
from .text_to_text import TextToText
from .tower import Tower
from .vlm import see


class EncoderDecoder(nn.Module):
    """Samples and answers -> logits. Image tokens stand in the encoder's text where placeholders did."""

    def __init__(self, tower: Tower, connector: Connector, language: TextToText, image_token: int):
        super().__init__()
        self.tower, self.language, self.image_token = tower, language, image_token
        self.connector = connector.build(tower.dim, language.dim)

    def read(self, samples: Sequence[Sample]) -> Stream:
        """What the encoder reads. Raises ValueError where placeholders and images differ, or a row is too long."""
        seen = iter(see(self.tower, self.connector, [image for s in samples for image in s.images]))
        features = [[next(seen) for _ in s.images] for s in samples]
        stream = splice([Sample(s.ids, s.images) for s in samples], features, self.language.embed, self.image_token)
        longest, most = stream.x.shape[1], self.language.context
        if most is not None and longest > most:
            raise ValueError(f"a text of {longest} tokens with its images is longer than the context of {most}")
        return stream

    def forward(self, samples: Sequence[Sample], answers: Sequence[Tensor]) -> Tensor:
        """(B M vocabulary): what each word of each answer (m) is to be, given those before it; padded on the right."""
        stream, words = self.read(samples), self.told(answers)
        begin = words.new_full((len(words), 1), self.language.begin)
        before = torch.cat([begin, words[:, :-1].masked_fill(words[:, :-1] == IGNORED, self.language.pad)], 1)
        return self.language(stream.x, stream.real, before)  # type: ignore[no-any-return]

    def loss(self, samples: Sequence[Sample], answers: Sequence[Tensor]) -> Tensor:
        """Mean cross-entropy of the answers' words."""
        logits = self(samples, answers)
        return F.cross_entropy(logits.flatten(0, 1).float(), self.told(answers).flatten(), ignore_index=IGNORED)

    def told(self, answers: Sequence[Tensor]) -> Tensor:
        """(B M): the answers, filled up with IGNORED."""
        if any(len(a) == 0 for a in answers):
            raise ValueError("an answer without a word: at least the one that ends it is wanted")
        return torch.nn.utils.rnn.pad_sequence(list(answers), batch_first=True, padding_value=IGNORED)

    def generate(self, samples: Sequence[Sample], stop: int, most: int = 20) -> list[Tensor]:
        """The answers, without the word `stop` that ends them."""
        if most < 1:
            raise ValueError(f"most={most}: at least one word is to be generated")
        with torch.inference_mode():
            stream = self.read(samples)
        return self.language.generate(stream.x, stream.real, most, stop)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.tower.set_grad_checkpointing(enable)
        self.language.set_grad_checkpointing(enable)
