"""Text and images become one sequence of embedded tokens: placeholders are replaced, rows are padded or packed."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .stream import IGNORED, Stream

Side = Literal["left", "right"]
Rows = Sequence[Sequence[int]]


class Sample(NamedTuple):
    """One text and its images. `ids` (L) holds one placeholder for each image, or one for each token of each image;
    an image is (3 H W), or (T 3 H W) where it was cut into tiles. `labels` (L) are ids to be learned, IGNORED where
    nothing is; each stands where its token does (the shift to the next is the loss's)."""

    ids: Tensor
    images: tuple[Tensor, ...] = ()
    labels: Tensor | None = None


def expanded(sample: Sample, counts: Sequence[int], image_token: int, name: str) -> tuple[Tensor, Tensor]:
    """(ids, image), both (N): each placeholder as often as its image has tokens, and which image a token is of (0:
    text). `counts`: how many tokens each of the sample's images has. Raises ValueError where they do not fit."""
    is_image = sample.ids == image_token
    there, wanted = int(is_image.sum()), len(counts)
    if there == wanted:
        times = torch.ones_like(sample.ids)
        times[is_image] = torch.tensor(list(counts), dtype=times.dtype, device=times.device)
        number = is_image.long().cumsum(0) * is_image
        return sample.ids.repeat_interleave(times), number.repeat_interleave(times)
    if wanted and there == sum(counts):
        number = torch.zeros_like(sample.ids)
        of = torch.arange(1, wanted + 1, device=sample.ids.device)
        number[is_image] = of.repeat_interleave(torch.tensor(list(counts), device=of.device))
        return sample.ids, number
    if there == 0:
        raise ValueError(f"{name} has {wanted} image{'s' * (wanted != 1)} but no placeholder (id {image_token}): "
                         "write the image token where each image belongs")  # fmt: skip
    if wanted == 0:
        raise ValueError(f"{name} has {there} placeholder{'s' * (there != 1)} (id {image_token}) but no image")
    raise ValueError(f"{name} has {there} placeholders (id {image_token}) for {wanted} image{'s' * (wanted != 1)} of "
                     f"{sum(counts)} tokens: one for each image, or one for each of their tokens")  # fmt: skip


def splice(samples: Sequence[Sample], features: Sequence[Sequence[Tensor]], embed: Callable[[Tensor], Tensor],
           image_token: int, *, side: Side = "right", rows: Rows | None = None) -> Stream:  # fmt: skip
    """A Stream of the samples, one a row, or those of each of `rows` one behind the other, which do not see each other
    and are counted from 0 each.

    features: of each sample, the tokens (n C) of each of its images. embed: ids (B N) -> (B N C).
    side: where shorter rows are padded.
    """
    if side not in ("left", "right"):
        raise ValueError(f"side {side!r}: rows are padded left or right")
    if not samples:
        raise ValueError("no samples: a batch takes at least one")
    rows = [[i] for i in range(len(samples))] if rows is None else [list(r) for r in rows]
    if sorted(i for r in rows for i in r) != list(range(len(samples))):
        raise ValueError(f"rows {rows} do not hold each of the {len(samples)} samples once")
    ids, image, labels, place, segment = [], [], [], [], []
    if (empty := next((i for i, s in enumerate(samples) if len(s.ids) == 0), None)) is not None:
        raise ValueError(f"sample {empty} has no tokens: a prompt takes at least one")
    learned = [s.labels is not None for s in samples]
    if any(learned) != all(learned):
        raise ValueError(f"sample {learned.index(False)} has no labels, others have; give all of them labels, or none")
    for row in rows:
        parts = [
            (*expanded(samples[i], [len(f) for f in features[i]], image_token, f"sample {i}"), i, j)
            for j, i in enumerate(row)
        ]
        ids.append(torch.cat([p[0] for p in parts]))
        image.append(torch.cat([p[1] for p in parts]))
        place.append(torch.cat([torch.arange(len(p[0]), device=p[0].device) for p in parts]))
        segment.append(torch.cat([torch.full_like(p[0], p[3]) for p in parts]))
        if all(learned):
            labels.append(torch.cat([label(samples[i], there, number, image_token) for there, number, i, _ in parts]))
    whole = padded(ids, 0, side)
    real = padded([torch.ones_like(i, dtype=torch.bool) for i in ids], False, side)
    number = padded(image, 0, side)
    shown = number > 0
    x = embed(whole.masked_fill(shown, 0))  # the placeholder may lie beyond the vocabulary
    if bool(shown.any()):
        flat = torch.cat([f for row in rows for i in row for f in features[i]]).to(x.dtype)
        x = x.masked_scatter(shown[..., None], flat)
    segments = padded(segment, -1, side) if any(len(r) > 1 for r in rows) else None
    target = following(padded(labels, IGNORED, side), real, segments) if all(learned) else None
    return Stream(x, padded(place, 0, side), number, None if bool(real.all()) else real, segments, target)


def following(labels: Tensor, real: Tensor, segment: Tensor | None) -> Tensor:
    """(B N): the label of the token behind each, IGNORED behind the end of a sample and for padding."""
    target = torch.full_like(labels, IGNORED)
    target[:, :-1] = labels[:, 1:]
    target = target.masked_fill(~real, IGNORED)
    if segment is not None:
        target[:, :-1] = target[:, :-1].masked_fill(segment[:, :-1] != segment[:, 1:], IGNORED)
    return target


def label(sample: Sample, ids: Tensor, number: Tensor, image_token: int) -> Tensor:
    """The labels of the expanded sample: no token of an image is learned."""
    assert sample.labels is not None
    if sample.labels.shape != sample.ids.shape:
        raise ValueError(f"labels {tuple(sample.labels.shape)} do not stand beside ids {tuple(sample.ids.shape)}")
    wide = torch.full_like(ids, IGNORED)
    wide[number == 0] = sample.labels[sample.ids != image_token]
    return wide


def padded(rows: Sequence[Tensor], value: int | bool, side: Side) -> Tensor:
    """(B N): the rows, filled up with `value`."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)


def pack(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Samples of these lengths in as few rows of at most `limit` tokens as first-fit by falling length finds."""
    if (longest := max(lengths, default=0)) > limit:
        raise ValueError(f"a sample of {longest} tokens does not fit into rows of {limit}")
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = next((r for r, left in enumerate(room) if left >= lengths[i]), None)
        if at is None:
            at = len(rows)
            rows.append([])
            room.append(limit)
        rows[at].append(i)
        room[at] -= lengths[i]
    return [sorted(r) for r in rows]
