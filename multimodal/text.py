"""Frozen text encoders of transformers, whose token embeddings condition a denoiser."""

import hashlib
import logging
import re
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger("patchloom.text")
WORDS = "words:"
POSITIONS = 512  # of an encoder made here, whatever length is asked for, so that its weights do not depend on it
CACHE = 256 << 20  # bytes of embeddings that are kept


class TextEncoder(nn.Module):
    """captions -> (embeddings (B, L, d) float32: the last hidden states, mask (B, L): True = token, False = padding).

    `spec` is a local folder or hub name of a text encoder (BERT and its kin, CLIP, T5…), or
    "words:width=128,depth=2,seed=0": a small BERT of random weights over hashed words, the same on every machine. A
    random one tells words and their places apart, which is all that drawn shapes ask for; it knows no language.
    `length` is L: what is longer is cut, and said once; what is shorter is padded, and embeddings of padding are the
    encoder's own (a denoiser sees L tokens).

    It is no part of the module tree: it has no parameters, no state and is never trained; a checkpoint names it by
    `arguments()` and `digest`. It moves with the module that holds it. Embeddings are cached by caption.
    """

    def __init__(self, spec: str, length: int = 77):
        super().__init__()
        if length < 1:
            raise ValueError(f"length = {length}: captions have at least one token")
        self.spec, self.length = spec, length
        tokens, network, most = made_of_words(spec) if spec.startswith(WORDS) else loaded(spec)
        if length > most:
            raise ValueError(f"length = {length}: {spec} has positions for {most} tokens")
        self.width: int = network.config.hidden_size
        # in the instance's dict, past nn.Module's registration
        self.__dict__.update(tokens=tokens, network=network.eval().requires_grad_(False))
        self.cut = False  # whether it was said already that a caption is too long
        self.kept: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()
        self.most = CACHE // (4 * length * self.width)

    @property
    def text(self) -> tuple[int, int]:
        """(L, d), what a denoiser's `text` must be."""
        return self.length, self.width

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @cached_property
    def digest(self) -> str:
        """sha256 of the encoder's weights and of how it takes a probe of text apart."""
        sha = hashlib.sha256(repr(self.tokens(["a red circle left of a blue square, 3 ÄΩ"])).encode())
        for name, t in sorted(self.network.state_dict().items()):
            sha.update(f"{name} {tuple(t.shape)}\n".encode())
            sha.update(t.detach().cpu().float().contiguous().numpy().data)
        return sha.hexdigest()

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"spec": self.spec, "length": self.length}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TextEncoder":
        self.network._apply(fn, recurse)
        return self

    def extra_repr(self) -> str:
        return f"{self.spec!r}, length={self.length}, width={self.width}"

    def forward(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        return self.encode(captions)

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(embeddings (B, L, d), mask (B, L)) on the encoder's device, without gradients."""
        if isinstance(captions, str) or not all(isinstance(c, str) for c in captions):
            raise ValueError(f"captions = {captions!r}: a list of strings is needed")
        if not captions:
            device = self.device
            return torch.zeros(0, *self.text, device=device), torch.zeros(0, self.length, dtype=bool, device=device)
        found = {c: self.kept[c] for c in captions if c in self.kept}
        if new := [c for c in dict.fromkeys(captions) if c not in found]:
            found |= dict(zip(new, zip(*(x.cpu().unbind(0) for x in self.embed(new)), strict=True), strict=True))
        for caption, pair in found.items():
            self.kept[caption] = pair
            self.kept.move_to_end(caption)
        while len(self.kept) > self.most:
            self.kept.popitem(last=False)
        states, mask = (torch.stack(parts) for parts in zip(*(found[c] for c in captions), strict=True))
        return states.to(self.device), mask.to(self.device)

    def embed(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The same, computed."""
        rows, pad = self.tokens(captions)
        if (
            not self.cut
            and (long := next((i for i, row in enumerate(rows) if len(row) > self.length), None)) is not None
        ):
            self.cut = True
            log.warning(
                "captions of more than %d tokens are cut, the first of %d: %r; a larger length of the text encoder "
                "keeps them whole", self.length, len(rows[long]), captions[long],
            )  # fmt: skip
        ids, mask = (x.to(self.device) for x in padded(rows, pad, self.length))
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            states = self.network(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return states.float(), mask


def padded(rows: Sequence[Sequence[int]], pad: int, length: int) -> tuple[Tensor, Tensor]:
    """(ids (B, L), mask (B, L): True = token) of captions, L = `length`: what is longer is cut, but for its last token,
    which closes a caption (</s>, [SEP], CLIP's end)."""
    ids = torch.full((len(rows), length), pad)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        short = row if len(row) <= length else [*row[: length - 1], row[-1]]
        ids[i, : len(short)] = torch.tensor(short)
        mask[i, : len(short)] = True
    return ids, mask


Tokens = Callable[[Sequence[str]], tuple[list[list[int]], int]]  # captions -> the ids of each, the id of padding


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer of transformers, with its own special tokens."""

    tokenizer: Any

    def __call__(self, captions: Sequence[str]) -> tuple[list[list[int]], int]:
        pad = self.tokenizer.pad_token_id
        made = self.tokenizer(list(captions), padding=False, truncation=False, verbose=False)
        return made["input_ids"], 0 if pad is None else pad


@dataclass(frozen=True)
class HashedWords:
    """Words and marks, in lower case, each as a number from 3 on by its checksum; 1 begins and 2 ends a caption."""

    size: int

    def __call__(self, captions: Sequence[str]) -> tuple[list[list[int]], int]:
        return [[1, *map(self.number, re.findall(r"\w+|[^\w\s]", c.lower())), 2] for c in captions], 0

    def number(self, word: str) -> int:
        return 3 + zlib.crc32(word.encode()) % (self.size - 3)


def made_of_words(spec: str) -> tuple[Tokens, Any, int]:
    """words:width=…,depth=…,heads=…,vocabulary=…,seed=…: all of them numbers, each with a default."""
    from transformers import BertConfig, BertModel

    options = {"width": 128, "depth": 2, "heads": 4, "vocabulary": 8192, "seed": 0}
    for part in filter(None, spec.removeprefix(WORDS).split(",")):
        name, _, value = part.partition("=")
        if name not in options or not value.isdecimal():
            raise ValueError(f"text encoder {spec!r}: {part!r} is none of {', '.join(f'{o}=N' for o in options)}")
        options[name] = int(value)
    width, heads = options["width"], options["heads"]
    if width < 1 or heads < 1 or width % heads or options["vocabulary"] < 100:
        raise ValueError(f"text encoder {spec!r}: width is a multiple of heads, and vocabulary at least 100")
    config = BertConfig(
        vocab_size=options["vocabulary"], hidden_size=width, num_hidden_layers=options["depth"],
        num_attention_heads=heads, intermediate_size=4 * width, max_position_embeddings=POSITIONS, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(options["seed"])
        network = BertModel(config, add_pooling_layer=False)
    return HashedWords(options["vocabulary"]), network, POSITIONS


def loaded(spec: str) -> tuple[Tokens, Any, int]:
    """Tokenizer and encoder of a folder or hub name; of one that also decodes or sees, the text encoder alone."""
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer, CLIPTextModel
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES as ENCODERS

    try:
        config = AutoConfig.from_pretrained(spec)
        tokenizer = AutoTokenizer.from_pretrained(spec)
        kind = CLIPTextModel if config.model_type == "clip" else AutoModelForTextEncoding
        network = (kind if config.model_type in (*ENCODERS, "clip") else AutoModel).from_pretrained(spec)
    except OSError as error:
        first = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(
            f"no text encoder {spec!r}: {first}; name a folder that holds one, or {WORDS}width=128,depth=2,seed=0, a "
            "small random one"
        ) from error
    if config.is_encoder_decoder and config.model_type not in ENCODERS:
        network = network.get_encoder()
    if not hasattr(network.config, "hidden_size"):
        raise ValueError(
            f"{spec}: {type(network).__name__} is no text encoder; name one of BERT's, CLIP's or T5's kind"
        )
    places = getattr(network.config, "max_position_embeddings", None)  # T5 has none: its positions are relative
    return Vocabulary(tokenizer), network, places or 1 << 20
