"""Words from a vision-language model, one after the other, from a cache of what was read."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .cache import Cache
from .decoder import Decoder
from .splice import Sample
from .stream import Stream
from .vlm import VisionLanguage


class Chooser(Protocol):
    """Logits of the next token (B vocabulary) -> its id (B)."""

    def __call__(self, logits: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Greedy:
    """The likeliest word."""

    def __call__(self, logits: Tensor) -> Tensor:
        return logits.argmax(-1)


class Sampled:
    """A word drawn from softmax(logits / temperature), among the `top_k` likeliest and among the fewest whose shares
    make up `top_p`. By a generator of its own: the same seed, the same words."""

    def __init__(self, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0, seed: int = 0):
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}: above 0 is wanted; Greedy takes the likeliest word")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p={top_p}: above 0 and up to 1 is wanted")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k}: 1 or more is wanted, or None")
        self.temperature, self.top_k, self.top_p, self.seed = temperature, top_k, top_p, seed
        self.generators: dict[torch.device, torch.Generator] = {}

    def __call__(self, logits: Tensor) -> Tensor:
        if logits.device not in self.generators:
            self.generators[logits.device] = torch.Generator(logits.device).manual_seed(self.seed)
        values, order = (logits.float() / self.temperature).sort(-1, descending=True)
        share = values.softmax(-1)
        out = share.cumsum(-1) - share >= self.top_p  # the first always stays
        if self.top_k is not None:
            out[..., self.top_k :] = True
        at = torch.multinomial(share.masked_fill(out, 0), 1, generator=self.generators[logits.device])
        return order.gather(-1, at)[..., 0]


class Policy(Protocol):
    """How much of a cache is kept (policies.py)."""

    def cache(self, decoder: Any, room: int) -> Cache: ...


@torch.inference_mode()
def steps(vlm: VisionLanguage, samples: Sequence[Sample], *, most: int = 64, choose: Chooser | None = None,
          policy: Policy | None = None) -> Iterator[Tensor]:  # fmt: skip
    """The next id of each sample (B), `most` times; whoever takes them decides when it is enough. Rows are padded on
    the left. Raises ValueError at once where prompt and words together are longer than the context."""
    if most < 1:
        raise ValueError(f"most={most}: at least one word is to be generated")
    choose = Greedy() if choose is None else choose
    judge: Any = vlm.against
    prompts = [vlm.splice(samples, side="left")] if judge is None else judge.prompts(vlm, samples)
    vlm.check(prompts[0], room=most)
    caches = [vlm.decoder.cache(most) if policy is None else policy.cache(vlm.decoder, most) for _ in prompts]
    readings = [Reading(vlm.decoder, p, cache) for p, cache in zip(prompts, caches, strict=True)]
    for i in range(most):
        logits = [reading.logits() for reading in readings]
        ids = choose(logits[0] if judge is None else judge(*logits))
        yield ids
        if i == most - 1:
            return
        for reading in readings:
            reading.add(ids)


class Reading:
    """A prompt that was read, and the words that are added to it one by one."""

    def __init__(self, decoder: Decoder, prompt: Stream, cache: Cache):
        self.decoder, self.cache, self.past = decoder, cache, prompt.x.shape[1]
        self.place = prompt.place[:, -1:]
        self.text = torch.zeros_like(self.place)
        self.state = last_state(decoder(replace(prompt, target=None), cache))

    def logits(self) -> Tensor:
        """(B vocabulary): of the next word."""
        return self.decoder.logits(self.state)

    def add(self, ids: Tensor) -> None:
        """One word (B) more."""
        self.place = self.place + 1
        step = Stream(self.decoder.embed(ids[:, None]), self.place, self.text, past=self.past)
        self.state = self.decoder(step, self.cache).x[:, -1]
        self.past += 1


def last_state(stream: Stream) -> Tensor:
    """(B C): of the last token of each row."""
    return stream.x[torch.arange(len(stream.x), device=stream.x.device), stream.last()]


def generate(vlm: VisionLanguage, samples: Sequence[Sample], *, most: int = 64, stop: Collection[int] = (),
             choose: Chooser | None = None, policy: Policy | None = None) -> list[Tensor]:  # fmt: skip
    """The ids that each sample is answered with (n), without the one of `stop` that ended them; at most `most`."""
    done = torch.zeros(len(samples), dtype=torch.bool)
    found: list[list[int]] = [[] for _ in samples]
    for ids in steps(vlm, samples, most=most, choose=choose, policy=policy):
        for i, word in enumerate(ids.tolist()):
            if word in stop:
                done[i] = True
            elif not done[i]:
                found[i].append(word)
        if bool(done.all()):
            break
    return [torch.tensor(words, dtype=torch.long) for words in found]


def streamed(vlm: VisionLanguage, sample: Sample, tokenizer: Any, *, most: int = 64, stop: Collection[int] = (),
             choose: Chooser | None = None, policy: Policy | None = None) -> Iterator[str]:  # fmt: skip
    """The answer to one sample, piece by piece as its words are made; a character that several tokens make up comes
    when it is whole."""
    ids: list[int] = []
    said = ""
    for step in steps(vlm, [sample], most=most, choose=choose, policy=policy):
        if (word := int(step[0])) in stop:
            break
        ids.append(word)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        if text.endswith("\ufffd"):  # half a character
            continue
        if len(text) > len(said):
            yield text[len(said) :]
            said = text
    text = tokenizer.decode(ids, skip_special_tokens=True)
    if len(text) > len(said):
        yield text[len(said) :]
