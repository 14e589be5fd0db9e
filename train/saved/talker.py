"""A vision-language model that answers, from a run, a checkpoint or a folder of LLaVA's kind."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...data.transforms import Preprocessing, evaluation_transform
from ...multimodal.eye import open_eye
from ...multimodal.generate import Chooser, Policy, generate, streamed
from ...multimodal.llava import open_llava
from ...multimodal.prompt import Message, Prompter
from ...multimodal.splice import Sample
from ...multimodal.tiles import tiled
from ...multimodal.vlm import VisionLanguage
from ...multimodal.words import from_plain, open_tokenizer
from ...vision.parts import unplain
from ..running import checkpoint
from ..running.checkpoint import CheckpointError
from .judge import choose_device

Pictures = Sequence[Image.Image]


@dataclass(frozen=True)
class Talker:
    """`eye` makes of a picture what the tower takes. `most`: tokens of an answer; `stop`: the ids that end it."""

    spec: str
    vlm: VisionLanguage
    prompter: Prompter
    eye: Callable[[Image.Image], Tensor]
    most: int
    stop: Collection[int]
    device: torch.device
    precision: torch.dtype = torch.float32

    @property
    def tokenizer(self) -> Any:
        return self.prompter.tokenizer

    def sample(self, said: Sequence[Message], pictures: Pictures = ()) -> Sample:
        """What the model reads: all that was said, and the pictures, which stand before the first question unless
        that says where."""
        token = self.prompter.image_token
        if pictures and not any(token in m["content"] for m in said):
            first = next(i for i, m in enumerate(said) if m["role"] == "user")
            content = "\n".join([token] * len(pictures) + [said[first]["content"]])
            said = [*said[:first], {**said[first], "content": content}, *said[first + 1 :]]
        made = self.prompter.sample(said, [self.eye(p).to(self.device) for p in pictures])
        return made._replace(ids=made.ids.to(self.device))

    def stream(self, said: Sequence[Message], pictures: Pictures = (), *, most: int | None = None,
               choose: Chooser | None = None, policy: Policy | None = None) -> Iterator[str]:  # fmt: skip
        """The answer to the last question, piece by piece."""
        sample = self.sample(said, pictures)
        with self.cast():
            yield from streamed(
                self.vlm, sample, self.tokenizer, most=most or self.most, stop=self.stop, choose=choose, policy=policy
            )

    def answer(self, question: str, pictures: Pictures = (), **options: Any) -> str:
        """`options` as in `stream`."""
        return "".join(self.stream([{"role": "user", "content": question}], pictures, **options)).strip()

    def answers(self, asked: Iterable[tuple[str, Pictures]], *, batch: int = 16, most: int | None = None,
                choose: Chooser | None = None, policy: Policy | None = None) -> Iterator[str]:  # fmt: skip
        """In order; `batch` questions at a time."""
        rest = iter(asked)
        while some := list(islice(rest, batch)):
            samples = [self.sample([{"role": "user", "content": q}], pictures) for q, pictures in some]
            with self.cast():
                found = generate(
                    self.vlm, samples, most=most or self.most, stop=self.stop, choose=choose, policy=policy
                )
            for ids in found:
                yield self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def cast(self) -> AbstractContextManager[Any]:
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.precision)


def load_talker(
    spec: str | Path, *, device: str = "auto", ema: bool = True, precision: torch.dtype = torch.float32
) -> Talker:
    """`spec`: a run folder or checkpoint of train.converse, or a folder of LLaVA-1.5's kind that transformers saved.
    `ema`: with the average of the weights where there is one. `precision`: of what is computed (autocast)."""
    target = choose_device(device)
    folder = Path(spec)
    if (folder / "config.json").is_file():
        return of_llava(folder, target, precision)
    path = checkpoint.find(spec)
    if path is None or not path.is_file():
        raise FileNotFoundError(f"{spec} is no run, no checkpoint and no folder of a model that talks")
    head = checkpoint.read(path).get("patchloom", {})
    if not isinstance(head, dict) or head.get("tokenizer") is None:
        raise CheckpointError(f"{path}: does not talk; patchloom fit with train.converse.Converse writes such")
    vlm, _, preprocessing = checkpoint.load_model(str(path), ema=ema)
    if not isinstance(vlm, VisionLanguage):
        raise CheckpointError(f"{path}: holds a {type(vlm).__name__}, which does not talk")
    speech = head["speech"]
    tokenizer = from_plain(head["tokenizer"])
    template = None if speech["template"] is None else unplain(speech["template"])
    prompter = Prompter(tokenizer, speech["image_token"], context=vlm.decoder.context, template=template)
    eye = sight(preprocessing, speech["tiles"])
    return Talker(
        str(spec), vlm.to(target).eval(), prompter, eye, speech["most"], {tokenizer.eos_token_id}, target, precision
    )


def of_llava(folder: Path, device: torch.device, precision: torch.dtype) -> Talker:
    vlm = open_llava(folder)
    tokenizer = open_tokenizer(str(folder))
    prompter = Prompter(tokenizer, context=vlm.decoder.context)
    if prompter.image_id != vlm.image_token:
        raise ValueError(f"{folder}: its tokeniser has <image> as {prompter.image_id}, its model {vlm.image_token}")
    stop = set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
    return Talker(str(folder), vlm.to(device).eval(), prompter, open_eye(folder), 256, stop, device, precision)


def sight(preprocessing: dict[str, Any], tiles: int) -> Callable[[Image.Image], Tensor]:
    """How pictures were prepared in training."""
    p = Preprocessing.of(preprocessing)
    if not tiles:
        transform = evaluation_transform(preprocessing)
        return lambda picture: transform(picture)

    def eye(picture: Image.Image) -> Tensor:
        import numpy as np

        x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        return tiled(p.normalise(x[None])[0], (p.height, p.width), tiles)

    return eye
