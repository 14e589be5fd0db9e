"""A vision-language model: a tower, a connector and a decoder."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..vision.adapters.mole import routed
from .connectors import Connector
from .decoder import Decoder
from .splice import Rows, Sample, Side, splice
from .stream import IGNORED, Stream
from .tower import Tower


class Answer(NamedTuple):
    logits: Tensor  # B N vocabulary
    target: Tensor | None  # B N: the ids that they are to give, IGNORED where nothing is learned
    stream: Stream  # the decoder's last states, and which tokens they are of


class VisionLanguage(nn.Module):
    """Samples -> logits. `image_token` is the id that stands for an image in the text; it may lie beyond the decoder's
    vocabulary. Images of a batch may differ in size; those of one size run through the tower together.

    A seam for plugins, `against`: what else is read beside the prompt when words are made, and how both are judged
    (plugins/damro.py).
    """

    seams = ("against",)

    def __init__(self, tower: Tower, connector: Connector, decoder: Decoder, image_token: int):
        super().__init__()
        self.tower, self.decoder, self.image_token, self.spec = tower, decoder, image_token, connector
        self.connector = connector.build(tower.dim, decoder.width)
        self.against: nn.Module | None = None
        self.plugins: tuple[Any, ...] = ()  # what is attached to the whole, not to a part (multimodal/plugins)

    def arguments(self) -> dict[str, Any]:
        """What the constructor takes to make it anew, without weights (vision/description.py)."""
        return {"tower": self.tower, "connector": self.spec, "decoder": self.decoder, "image_token": self.image_token}

    def see(self, images: Sequence[Tensor]) -> list[Tensor]:
        """The tokens (n C) of each image, (3 H W) or tiles (T 3 H W), whose tokens follow each other."""
        return see(self.tower, self.connector, images)

    def count(self, size: tuple[int, int]) -> int:
        """How many tokens an image, or a tile, of `size` (H, W) becomes where no plugin makes them fewer."""
        tower = self.tower
        special = len(tower.backbone.specials[tower.taps[0][0]]) if tower.special else 0
        return self.spec.count(tower.grid(size), special)

    def splice(self, samples: Sequence[Sample], *, side: Side = "right", rows: Rows | None = None) -> Stream:
        """What the decoder reads. Raises ValueError where placeholders and images differ, or a row is longer than the
        decoder's context."""
        return self.spliced(samples, self.see(images_of(samples)), side=side, rows=rows)

    def spliced(self, samples: Sequence[Sample], seen: Sequence[Tensor], *, side: Side = "right",
                rows: Rows | None = None) -> Stream:  # fmt: skip
        """The same, where the tokens (n C) of each image were seen already."""
        rest = iter(seen)
        features = [[next(rest) for _ in s.images] for s in samples]
        stream = splice(samples, features, self.decoder.embed, self.image_token, side=side, rows=rows)
        self.check(stream)
        return stream

    def check(self, stream: Stream, room: int = 0) -> None:
        """Raises ValueError where a row, with `room` more tokens, would be longer than the context."""
        longest = int(stream.place.max()) + 1
        if longest + room > self.decoder.context:
            shown = int((stream.image > 0).sum(1).max())
            more = f" and {room} more to be generated" if room else ""
            context = self.decoder.context
            raise ValueError(f"a prompt of {longest} tokens, up to {shown} of them of images,{more} is longer than "
                             f"the context of {context}: shorten it, or show fewer or smaller images")  # fmt: skip

    def forward(self, samples: Sequence[Sample], *, side: Side = "right", rows: Rows | None = None) -> Answer:
        """Of all tokens that the decoder's plugins leave; `rows` packs several samples into a row (`splice.pack`)."""
        out = self.decoder(self.splice(samples, side=side, rows=rows))
        return Answer(self.decoder.logits(out.x), targets(out), out)

    def loss(self, samples: Sequence[Sample], *, side: Side = "right", rows: Rows | None = None) -> Tensor:
        """Mean cross-entropy of the learned tokens, each given those before it; logits of no others are made. Where the
        decoder has a mixture of experts (vision/adapters/mole.py), its weighted balance loss comes on top."""
        stream = self.splice(samples, side=side, rows=rows)
        with routed(self.decoder) as routes:
            out = self.decoder(stream)
        if (target := targets(out)) is None:
            raise ValueError("these samples have no labels to learn")
        learned = target != IGNORED
        if not bool(learned.any()):
            raise ValueError("no token of this batch is learned: all its labels are ignored")
        wrong = F.cross_entropy(self.decoder.logits(out.x[learned]).float(), target[learned])
        return wrong + routes.loss(stream.real) if routes.logits else wrong

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.tower.set_grad_checkpointing(enable)
        self.decoder.grad_checkpointing = enable


class Group(NamedTuple):
    """Images of one size, one after the other: `image` (T 3 H W), `tiles` of which are of each of the images `at`."""

    at: list[int]
    tiles: list[int]
    image: Tensor


def images_of(samples: Sequence[Sample]) -> list[Tensor]:
    return [image for s in samples for image in s.images]


def grouped(channels: int, images: Sequence[Tensor]) -> list[Group]:
    """Images (3 H W), or tiles (T 3 H W), by their size. Raises ValueError for one of another shape."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        if image.ndim not in (3, 4) or image.shape[-3] != channels or 0 in image.shape:
            c = channels
            raise ValueError(f"image {i} of shape {tuple(image.shape)}: ({c}, H, W) or (T, {c}, H, W) is wanted")
        groups.setdefault(tuple(image.shape[-2:]), []).append(i)
    found = []
    for at in groups.values():
        tiles = [images[i] if images[i].ndim == 4 else images[i][None] for i in at]
        found.append(Group(at, [len(t) for t in tiles], torch.cat(tiles)))
    return found


def apart(groups: Sequence[Group], made: Sequence[Tensor]) -> list[Tensor]:
    """What was made of each group's images (T n …) -> of each image (n …), its tiles behind each other."""
    found: dict[int, Tensor] = {}
    for group, y in zip(groups, made, strict=True):
        found |= {i: part.flatten(0, 1) for i, part in zip(group.at, torch.split(y, group.tiles), strict=True)}
    return [found[i] for i in range(len(found))]


def see(tower: Tower, connector: nn.Module, images: Sequence[Tensor]) -> list[Tensor]:
    """The tokens (n C) of each image, (3 H W) or tiles (T 3 H W), whose tokens follow each other."""
    groups = grouped(tower.in_chans, images)
    return apart(groups, [connector(tower(group.image)) for group in groups])


def targets(stream: Stream) -> Tensor | None:
    """(B N): what each token is to be followed by, IGNORED where nothing is learned; None: nobody said."""
    if stream.target is None or stream.real is None:
        return stream.target
    return stream.target.masked_fill(~stream.real, IGNORED)
