"""`Converse`: a vision-language model that learns to answer, in one stage or two, and is judged by what it says."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from PIL import Image
from torch import Tensor, nn

from ..data.dialogues import Dialogue
from ..multimodal.generate import generate
from ..multimodal.prompt import Prompter, Template
from ..multimodal.splice import Sample, pack
from ..multimodal.tiles import tiled
from ..multimodal.vlm import VisionLanguage
from ..multimodal.words import IMAGE, from_plain, learned, open_tokenizer, plain_words
from ..vision.adapters.lora_data import needs_data
from ..vision.parts import plain
from .drawing import picture_of, with_words
from .ema import Ema
from .evaluation.means import Means
from .evaluation.said import is_right, messages, to
from .module import Trained
from .optim import Schedule
from .running import checkpoint

log = logging.getLogger("patchloom.train")
PARTS = ("tower", "connector", "decoder")
LEARN = "learn:"
Batch = tuple[Sequence[tuple[Tensor, ...]], Sequence[Dialogue]]


class Converse(Trained):
    """Trains `model`, a VisionLanguage, on dialogues as `data.dialogues` gives them: of each, the answers and their
    ends are learned, and nothing else.

    tokenizer   `learn:SIZE`: byte pairs of the training texts; a folder or name of transformers; or a run, whose words
                are taken over. The checkpoint holds it.
    learns      which of tower, connector and decoder learn: (connector,) is LLaVA's first stage. What does not learn
                stays in evaluation mode.
    adapter     learns in place of the decoder's weights: lora:r=128,alpha=256 or mole:… (whose balance loss is added)
    pack        several dialogues share a row of up to so many tokens, so that hardly any is padding; null: one a row
    tiles       pictures that kept their size (data.keep) are cut into up to so many tiles behind the whole of it
    template    how a conversation is written; null: the tokeniser's own, else LLaVA-1.5's
    most        tokens of an answer in validation and test, at most
    checkpointing   computes activations again in the backward pass

    A dialogue that is longer than the decoder's context loses its last turns. Logged: train/loss, train/real (the share
    of tokens that are no padding), and of the first answer of each dialogue val/loss, val/exact (the share that is word
    for word right, but for capitals, blanks and a last full stop) and the same of each kind of question that the data
    tells apart; likewise test/.
    """

    headline = ("exact", "loss")

    def __init__(
        self,
        model: nn.Module,
        tokenizer: str = LEARN + "1024",
        learns: Sequence[str] = PARTS,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05),
        schedule: Schedule | LRSchedulerCallable | None = None,
        lr_scales: dict[str, float] | None = None,
        ema: Ema | None = None,
        adapter: Any = None,
        pack: int | None = None,
        tiles: int = 0,
        template: Template | None = None,
        image_token: str = IMAGE,
        most: int = 32,
        checkpointing: bool = False,
    ):
        if not isinstance(model, VisionLanguage):
            raise ValueError(
                f"model: {type(model).__name__} does not speak: patchloom.multimodal.vlm.VisionLanguage does"
            )
        check_parts(learns, adapter)
        super().__init__(model, optimizer, schedule, None, lr_scales, ema, adapter)
        self.learns, self.pack, self.tiles, self.most = tuple(learns), pack, tiles, most
        self.template, self.image_token, self.words = template, image_token, tokenizer
        self.tokenizer: Any = None
        self.counts: dict[tuple[int, int], int] = {}
        self.cut = False  # whether it was said already that a dialogue is too long
        self.frozen = [getattr(model, part) for part in PARTS if part not in self.learns]
        for part in self.frozen:
            part.requires_grad_(False)
        if checkpointing:
            model.set_grad_checkpointing()
        if needs_data(model):
            raise ValueError(f"adapter {adapter} begins as a batch of images has it, and a decoder reads no such: "
                             "leave its init out")  # fmt: skip
        self.preprocessing = checkpoint.preprocessing_of(model.tower.arguments()["model"])

    def train(self, mode: bool = True) -> "Converse":
        """What does not learn stays in evaluation mode."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    # ------------------------------------------------------------------------------------------------ before a run

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        kinds = tuple(getattr(data, "kinds", ()))
        self.judges = nn.ModuleDict({kind: Means(("loss", "exact", *kinds)) for kind in ("val", "test")})
        if self.tokenizer is None:
            self.speak(self.tokens(data, stage))

    def tokens(self, data: Any, stage: str) -> Any:
        """The tokeniser; None where it is to come from a checkpoint."""
        if not self.words.startswith(LEARN):
            return from_run(self.words) or open_tokenizer(self.words, self.image_token)
        size = self.words.removeprefix(LEARN)
        if not size.isdecimal():
            raise ValueError(f"tokenizer {self.words!r}: {LEARN}SIZE with a number, a name, or a run")
        if stage != "fit":
            self.untrained = f"the tokeniser is {self.words}, and only a checkpoint knows what was learned"
            return None
        if not hasattr(data, "texts"):
            raise ValueError(f"{type(data).__name__} gives no dialogues: take one of patchloom.data.dialogues")
        return learned(data.texts(), int(size))

    def speak(self, tokenizer: Any) -> None:
        """Takes over a tokeniser. Raises ValueError where it does not fit the model."""
        if tokenizer is None:
            return
        prompter, model = Prompter(tokenizer, self.image_token, template=self.template), self.model
        if prompter.image_id != model.image_token:
            raise ValueError(
                f"{self.image_token} is token {prompter.image_id} to the tokeniser, model.image_token is "
                f"{model.image_token}: make them the same"
            )
        most = max(i for word, i in tokenizer.get_vocab().items() if word != self.image_token)
        if most >= model.decoder.vocabulary:
            raise ValueError(
                f"the tokeniser has {most + 1} tokens, the decoder {model.decoder.vocabulary}: give it a vocab_size of "
                f"{most + 1} or more"
            )
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokeniser has no token that ends an answer (eos_token)")
        self.tokenizer, self.prompter = tokenizer, prompter

    # ------------------------------------------------------------------------------------------------------- steps

    @property
    def speaker(self) -> VisionLanguage:
        """The network that is judged: the average where there is one."""
        return self.model if self.ema is None or self.training else self.ema.module

    def samples(self, batch: Batch) -> list[Sample]:
        """The dialogues as what is learned."""
        return [self.fitting(images, dialogue) for images, dialogue in zip(*batch, strict=True)]

    def fitting(self, images: Sequence[Tensor], dialogue: Dialogue) -> Sample:
        """As many of its turns as the context has room for."""
        images = self.cut_up(images)
        context = self.model.decoder.context
        for count in range(len(dialogue.turns), 0, -1):
            shorter = dialogue._replace(turns=dialogue.turns[:count])
            sample = self.prompter.sample(messages(shorter, len(images), self.image_token), images, learn=True)
            if (length := self.length(sample)) <= context:
                return to(sample, self.device)
            if not self.cut:
                self.cut = True
                log.warning("dialogue %r of %d tokens is longer than the context of %d: its last turns are left out, "
                            "as of others", dialogue.id, length, context)  # fmt: skip
        raise ValueError(
            f"the first answer of dialogue {dialogue.id!r} is at token {length}, beyond the context of {context}: "
            "show fewer or smaller pictures, or take a longer context"
        )

    def cut_up(self, images: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if not self.tiles:
            return tuple(images)
        height, width = self.preprocessing["input_size"][1:]
        return tuple(tiled(image, (height, width), self.tiles) for image in images)

    def length(self, sample: Sample) -> int:
        """In tokens, those of the images among them."""
        own = len(sample.ids) - len(sample.images)
        for image in sample.images:
            own += (image.shape[0] if image.ndim == 4 else 1) * self.count((image.shape[-2], image.shape[-1]))
        return own

    def count(self, size: tuple[int, int]) -> int:
        """How many tokens an image, or tile, of this size becomes."""
        if size not in self.counts:  # a tower goes through all its stages to tell
            self.counts[size] = self.model.count(size)
        return self.counts[size]

    def training_step(self, batch: Batch, index: int) -> Tensor:
        samples = self.samples(batch)
        lengths = [self.length(sample) for sample in samples]
        rows = None if self.pack is None else pack(lengths, max(self.pack, *lengths))
        loss = self.model.loss(samples, rows=rows)
        wide = max(lengths) if rows is None else max(sum(lengths[i] for i in row) for row in rows)
        real = sum(lengths) / (wide * len(samples if rows is None else rows))
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(samples))
        self.log("train/real", real, batch_size=len(samples))
        return loss

    def run_again(self, batch: Batch) -> Tensor:
        """The forward pass once more, for those who look where a bad number arose."""
        return self.model.loss(self.samples(batch))

    def judge_step(self, kind: str, batch: Batch) -> list[str]:
        """The first answer to each dialogue."""
        images, dialogues = batch
        first = [d._replace(turns=d.turns[:1]) for d in dialogues]
        loss = self.speaker.loss(self.samples((images, first)))
        asked = [
            self.prompter.sample(messages(d, len(x), self.image_token)[:-1], self.cut_up(x))
            for x, d in zip(images, first, strict=True)
        ]
        stop = {self.tokenizer.eos_token_id}
        ids = generate(self.speaker, [to(s, self.device) for s in asked], most=self.most, stop=stop)
        said = [self.tokenizer.decode(each, skip_special_tokens=True).strip() for each in ids]
        right = [float(is_right(text, d)) for text, d in zip(said, first, strict=True)]
        found: dict[str, list[float]] = {"exact": right}
        for value, dialogue in zip(right, first, strict=True):
            if (about := dialogue.turns[0].about) in self.judges[kind].names:
                found.setdefault(about, []).append(value)
        numbers = {name: torch.tensor(values) for name, values in found.items()}
        self.judges[kind].update({"loss": loss.detach().expand(len(said)), **numbers})
        return said

    def pictured(self, batch: Batch, outputs: Sequence[str]) -> Iterator[tuple[Image.Image, Image.Image]]:
        """The first picture of each dialogue with the question, and the right answer or what was said."""
        for images, dialogue, said in zip(*batch, outputs, strict=True):
            if not images:
                continue
            here = self.preprocessing
            picture = Image.fromarray(picture_of(images[0], here["mean"], here["std"]))
            turn = dialogue.turns[0]
            yield with_words(picture, turn.question, turn.answer), with_words(picture, turn.question, said)

    # ------------------------------------------------------------------------------------------------- checkpoints

    def own_state(self) -> dict[str, Any]:
        template = None if self.template is None else plain(self.template)
        words = None if self.tokenizer is None else plain_words(self.tokenizer)
        speech = {"template": template, "image_token": self.image_token, "most": self.most, "tiles": self.tiles}
        return {"tokenizer": words, "speech": {**speech, "tokenizer": self.words}}

    def take_state(self, saved: Mapping[str, Any]) -> None:
        if "speech" not in saved:
            raise ValueError("the checkpoint is of a run that does not speak")
        then = {k: v for k, v in saved["speech"].items() if k != "most"}
        now = {k: v for k, v in self.own_state()["speech"].items() if k != "most"}
        if other := [name for name in then if then[name] != now[name]]:
            raise ValueError(
                f"the checkpoint was trained with {other[0]} {then[other[0]]!r}, now it is {now[other[0]]!r}: go on "
                "with the settings that it was trained with"
            )
        self.speak(from_plain(saved["tokenizer"]))


def check_parts(learns: Sequence[str], adapter: Any) -> None:
    if isinstance(learns, str) or not learns or set(learns) - set(PARTS):
        raise ValueError(f"learns={learns!r}: a list of {', '.join(PARTS)}, of at least one")
    if adapter is not None and "decoder" not in learns:
        raise ValueError(f"adapter {adapter} learns in the decoder: name it in learns, or leave the adapter out")


def from_run(spec: str) -> Any:
    """The tokeniser of a run or checkpoint of Converse; None where `spec` is none."""
    from pathlib import Path

    if not (Path(spec).is_file() or any(Path(spec).glob("*.ckpt"))):
        return None
    path = checkpoint.find(spec)
    saved = None if path is None else checkpoint.read(path).get("patchloom", {}).get("tokenizer")
    if saved is None:
        raise ValueError(f"tokenizer {spec}: holds no tokeniser; a run of train.converse.Converse does")
    return from_plain(saved)
