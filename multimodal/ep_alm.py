"""eP-ALM, https://arxiv.org/abs/2303.11403: a frozen language model sees by one token, put into its late layers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..vision.features import take
from ..vision.layers import Linear
from ..vision.model import Classifier
from .connectors import Project
from .decoder import Decoder, LayerSeams
from .splice import Rows, Sample, Side, splice
from .stream import IGNORED, Stream
from .vlm import VisionLanguage

LEVELS = tuple(range(-6, 0))  # the last six blocks
NAMES = (  # the authors' names -> ours, for `llava.load`
    (r"decoder\.(.*)", r"decoder.lm.model.decoder.\1"),
    (r"connector\.(\d+)\.(weight|bias)", r"connector.\1.\2"),
    (r"prompt\.weight", "prompt.words.weight"),
)


@dataclass(frozen=True)
class Percept:
    """How the language model looks: in front of layers `start` to `end` - 1, counted from 0, stands a token of the
    image. Every `step` layers it is put in anew, L levels sharing the layers, floor((end - start) / L) each and what is
    left for the last; behind `end` it stays on as it has become.

    shared: one linear layer connects all levels, which must be of one width; else each has its own.
    prompt: learned tokens in front of the text, without places of their own. deep: they pass an MLP with tanh.
    leak: the image's token sees the whole text, later words too, as it does in the authors' code and in their weights.
        Where it stays on, behind `end` or between steps, answers leak into what comes before them: not to be trained
        with.
    """

    start: int = 19
    end: int = 31
    step: int = 1
    shared: bool = False
    prompt: int = 10
    deep: bool = False
    leak: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"start={self.start}, end={self.end}: layers from the first to before the last, from 0 on")
        if self.step < 1 or self.prompt < 0:
            raise ValueError(f"step={self.step}, prompt={self.prompt}: at least one layer a level, and no fewer than 0 "
                             "learned tokens")  # fmt: skip

    def level(self, layer: int, levels: int) -> int | None:
        """Which of so many levels is put in front of this layer; None: what stands there, if anything, goes on."""
        at = layer - self.start
        if not self.start <= layer < self.end or at % self.step:
            return None
        return min(at // max(1, (self.end - self.start) // levels), levels - 1)


class Levels(nn.Module):
    """image (B 3 H W) -> the class token of each of `levels` blocks (or stages, counted from the end) of a classifier
    behind its last norm, [(B C)]; the mean of the patches where it has no class token."""

    def __init__(self, model: Classifier, levels: Sequence[int] = LEVELS):
        super().__init__()
        self.backbone, self.norm, self.in_chans = model.backbone, model.norm, model.in_chans
        self.levels = tuple(levels)
        self.__dict__["model"] = model  # for `arguments`, as in Tower
        self.taps = take(self.backbone.taps, list(levels))
        if not self.taps or self.taps != sorted(set(self.taps)):
            raise ValueError(f"levels={self.levels}: one block or more, each once, from the first to the last")
        self.dims = [self.backbone.channels[stage] for stage, _ in self.taps]
        self.dim, self.last = self.dims[0], self.backbone.channels[-1]

    def arguments(self) -> dict[str, Any]:
        """What the constructor takes to make it anew, without weights."""
        return {"model": self.__dict__["model"], "levels": self.levels}

    def forward(self, image: Tensor) -> list[Tensor]:
        taken = self.backbone.walk(image, self.taps, stop=True)[1]
        normed = [t.through(self.norm) if dim == self.last else t for t, dim in zip(taken, self.dims, strict=True)]
        return [t.x[:, t.special[0]] if t.special else t.patches().mean(1) for t in normed]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.backbone.grad_checkpointing = enable


class Prompt(nn.Module):
    """`n` learned tokens of a language model's words; `deep`: behind an MLP with tanh."""

    def __init__(self, n: int, dim: int, deep: bool):
        super().__init__()
        self.words = nn.Embedding(n, dim)
        self.mlp = nn.Sequential(Linear(dim, dim), nn.Tanh(), Linear(dim, dim)) if deep else nn.Identity()

    def forward(self) -> Tensor:
        """(n C)"""
        return self.mlp(self.words.weight)  # type: ignore[no-any-return]


class EpAlm(VisionLanguage):
    """Samples of one image each -> logits. The tower and the language model are frozen and stay in evaluation mode;
    the connector (a linear layer a level) and the prompt learn. Placeholders in the text are left out of it.

    Raises ValueError where the decoder has no such layers, or levels of several widths are to share a layer.
    """

    def __init__(self, tower: Levels, decoder: Decoder, image_token: int, percept: Percept | None = None):
        self.percept = p = Percept() if percept is None else percept
        super().__init__(tower, Project(1), decoder, image_token)
        if p.end > decoder.depth:
            raise ValueError(f"end={p.end}: this decoder has {decoder.depth} layers")
        if p.shared and len(set(tower.dims)) > 1:
            raise ValueError(f"levels of {tower.dims} channels cannot share a linear layer")
        dims = tower.dims[:1] if p.shared else tower.dims
        self.connector = nn.ModuleList(Linear(dim, decoder.dim) for dim in dims)
        self.prompt = Prompt(p.prompt, decoder.width, p.deep) if p.prompt else None
        for i, seams in enumerate(decoder.seams):
            entries: list[nn.Module] = []
            if i == 0 and p.prompt:
                entries.append(Front(p.prompt))
            if (level := p.level(i, len(tower.dims))) is not None:
                entries.append(Look(p.prompt + level, i == p.start, p.leak))
            if entries:
                assert isinstance(seams, LayerSeams)
                if seams.before_block is not None:
                    raise ValueError(
                        f"layer {i}: its seam before_block is taken by {type(seams.before_block).__name__}"
                    )
                seams.before_block = entries[0] if len(entries) == 1 else nn.Sequential(*entries)
        self.frozen = (tower, decoder)
        for part in self.frozen:
            part.requires_grad_(False)
        self.train(self.training)

    def arguments(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("tower", "decoder", "image_token", "percept")}

    def count(self, size: tuple[int, int]) -> int:
        """None: what stands in front of the text has no place of its own."""
        return 0

    def train(self, mode: bool = True) -> "EpAlm":
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def levels(self, images: Sequence[Tensor]) -> Tensor:
        """(B L C): what the language model is to see of each image (3 H W)."""
        found: dict[int, Tensor] = {}
        for size in dict.fromkeys(image.shape for image in images):
            at = [i for i, image in enumerate(images) if image.shape == size]
            if len(size) != 3 or size[0] != self.tower.in_chans or 0 in size:
                raise ValueError(
                    f"image {at[0]} of shape {tuple(size)}: ({self.tower.in_chans}, H, W) is wanted, and no tiles"
                )
            found |= dict(zip(at, self.connected(self.tower(torch.stack([images[i] for i in at]))), strict=True))
        return torch.stack([found[i] for i in range(len(images))])

    def connected(self, seen: Sequence[Tensor]) -> Tensor:
        """[(B C')], one a level -> (B L C)."""
        n = len(self.connector)
        return torch.stack([self.connector[i % n](x) for i, x in enumerate(seen)], 1)

    def splice(self, samples: Sequence[Sample], *, side: Side = "right", rows: Rows | None = None) -> Stream:
        """The text, and what is to come in front of it."""
        if rows is not None:
            raise ValueError("eP-ALM puts one image in front of a row: samples cannot be packed into rows")
        for i, sample in enumerate(samples):
            if len(sample.images) != 1:
                raise ValueError(f"sample {i} has {len(sample.images)} images: eP-ALM looks at one")
        texts = [without(sample, self.image_token) for sample in samples]
        stream = splice(texts, [[] for _ in texts], self.decoder.embed, self.image_token, side=side)
        self.check(stream)
        return self.with_levels(stream, self.levels([sample.images[0] for sample in samples]))

    def with_levels(self, stream: Stream, levels: Tensor) -> Stream:
        """The text with the prompt and the levels (B L C) to come."""
        coming = levels
        if self.prompt is not None:
            words = self.prompt()
            if (before := self.decoder.part(self.decoder.anatomy.before)) is not None:
                words = before(words)
            coming = torch.cat([words.expand(len(levels), -1, -1).to(levels.dtype), levels], 1)
        return replace(stream, coming=coming.to(stream.x.dtype))


def without(sample: Sample, image_token: int) -> Sample:
    """The text alone."""
    text = sample.ids != image_token
    return Sample(sample.ids[text], (), None if sample.labels is None else sample.labels[text])


class Front(nn.Module):
    """Stream -> Stream with its first `n` coming tokens in front."""

    def __init__(self, n: int):
        super().__init__()
        self.n = n

    def forward(self, stream: Stream) -> Stream:
        if stream.past:
            return stream
        return in_front(stream, coming(stream)[:, : self.n])


class Look(nn.Module):
    """Stream -> Stream with its coming token `at` in front, or in place of the `first` there; `leak`: that one sees
    all."""

    def __init__(self, at: int, first: bool, leak: bool):
        super().__init__()
        self.at, self.first, self.leak = at, first, leak

    def forward(self, stream: Stream) -> Stream:
        if stream.past:
            return stream
        token = coming(stream)[:, self.at, None]
        if not self.first:
            return replace(stream, x=torch.cat([token, stream.x[:, 1:]], 1))
        stream = in_front(stream, token)
        return replace(stream, bias=leaking(stream)) if self.leak else stream


def coming(stream: Stream) -> Tensor:
    if stream.coming is None:
        raise ValueError("this decoder is an eP-ALM's: no image comes with these tokens")
    return stream.coming


def in_front(stream: Stream, x: Tensor) -> Stream:
    """With the tokens x (B n C), which stand at place 0, in front of all others and of what pads them."""
    n = x.shape[1]

    def grown(y: Tensor | None, value: int | bool) -> Tensor | None:
        return None if y is None else torch.cat([y.new_full((len(x), n), value), y], 1)

    rotary = stream.rotary
    if rotary is not None:
        cos, sin = (r.expand(len(x), -1, -1) for r in rotary)
        rotary = (
            torch.cat([torch.ones_like(cos[:, :1]).expand(-1, n, -1), cos], 1),
            torch.cat([torch.zeros_like(sin[:, :1]).expand(-1, n, -1), sin], 1),
        )
    place, image = grown(stream.place, 0), grown(stream.image, 0)
    assert place is not None
    assert image is not None
    return replace(
        stream, x=torch.cat([x, stream.x], 1), place=place, image=image, real=grown(stream.real, True),
        target=grown(stream.target, IGNORED), rotary=rotary, bias=None,
    )  # fmt: skip


def leaking(stream: Stream) -> Tensor:
    """B 1 N N: all before it and itself, but that the first sees all."""
    n = stream.x.shape[1]
    seen = torch.ones(n, n, dtype=torch.bool, device=stream.x.device).tril()
    seen[0] = True
    seen = seen if stream.real is None else seen & stream.real[:, None]
    return seen.expand(len(stream.x), n, n)[:, None]
