"""predictions.png: images that the model got right and wrong, with names and probabilities."""

import heapq
import io
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..tables import write_whole

RIGHT, WRONG, INK, FAINT = "#2e7d4f", "#b3372f", "#333333", "#8a8a8a"


@dataclass(frozen=True)
class Answer:
    image: Tensor  # (3, H, W) as the model saw it
    truth: str
    top: tuple[tuple[str, float], ...]  # the likeliest names with their probabilities
    chance: float  # probability of the truth
    right: bool


class Collection:
    """Of all images that pass: the wrong ones with the surest answers, and right ones spread over the classes.

    Right ones: of each class first the least sure, then, as there is room, the next; so the sheet shows the hard ones
    too.
    """

    def __init__(self, classes: Sequence[str], count: int):
        self.classes, self.count = list(classes), count
        self.wrong: list[tuple[float, int, Answer]] = []  # a heap, the least sure on top
        self.rights: dict[str, list[tuple[float, int, Answer]]] = {}
        self.seen = self.correct = 0

    def add(self, images: Tensor, logits: Tensor, target: Tensor) -> None:
        """images (B, 3, H, W), logits (B, C), target (B,) or (B, C) of 0 and 1"""
        chances = (logits.float().softmax(1) if target.ndim == 1 else logits.float().sigmoid()).cpu()
        target = target.cpu()
        best, index = chances.topk(min(3, chances.shape[1]))
        right = index[:, 0] == target if target.ndim == 1 else ((chances > 0.5) == (target > 0.5)).all(1)
        sure = best[:, 0]
        for i in range(len(target)):
            self.seen += 1
            self.correct += bool(right[i])
            heap = self.rights.setdefault(self._truth(target[i]), []) if right[i] else self.wrong
            limit = max(2, -(-self.count // max(len(self.rights), 1))) if right[i] else self.count
            key = -float(sure[i]) if right[i] else float(sure[i])
            if len(heap) < limit or key > heap[0][0]:
                top = tuple(
                    (self.classes[k], float(p)) for k, p in zip(index[i].tolist(), best[i].tolist(), strict=True)
                )
                chance = (
                    float(chances[i, target[i]])
                    if target.ndim == 1
                    else min(chances[i][target[i] > 0.5].tolist(), default=1.0)
                )
                answer = Answer(
                    images[i].detach().float().cpu().clone(), self._truth(target[i]), top, chance, bool(right[i])
                )
                (heapq.heappush if len(heap) < limit else heapq.heapreplace)(heap, (key, self.seen, answer))

    def _truth(self, target: Tensor) -> str:
        if target.ndim == 0:
            return self.classes[int(target)]
        return ", ".join(self.classes[i] for i in target.nonzero()[:, 0].tolist()) or "none"

    def chosen(self) -> tuple[list[Answer], list[Answer]]:
        """(right, wrong), at most `count` of each."""
        wrong = [answer for _, _, answer in sorted(self.wrong, key=lambda w: (-w[0], w[1]))]
        queues = [sorted(heap, key=lambda h: (-h[0], h[1])) for _, heap in sorted(self.rights.items())]
        rights: list[Answer] = []
        while len(rights) < self.count and any(queues):
            rights += [queue.pop(0)[2] for queue in queues if queue]
        return rights[: self.count], wrong


def shown(image: Tensor, preprocessing: Mapping[str, Any]) -> Tensor:
    """(3, H, W) normalised -> (H, W, 3) in [0, 1]"""
    mean, std = (torch.tensor(preprocessing[key], dtype=torch.float32)[:, None, None] for key in ("mean", "std"))
    return (image * std + mean).clamp(0, 1).permute(1, 2, 0)


def draw_sheet(
    collection: Collection, preprocessing: Mapping[str, Any], path: str | os.PathLike[str], title: str, columns: int = 6
) -> Path | None:
    """Two blocks, right and wrong; under each image bars of the three likeliest names, the true one in green."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    right, wrong = collection.chosen()
    blocks = [
        (name, colour, answers)
        for name, colour, answers in (
            (
                f"right: {collection.correct:,} of {collection.seen:,}; of each class those it was least sure of",
                RIGHT,
                right,
            ),
            (f"wrong: {collection.seen - collection.correct:,}; those it was surest of", WRONG, wrong),
        )
        if answers
    ]
    if not blocks:
        return None
    cell, foot, head = 1.75, 0.78, 0.42  # inches: image, bars below it, title of a block
    lines = [-(-len(answers) // columns) for _, _, answers in blocks]
    width, height = columns * (cell + 0.12) + 0.25, sum(lines) * (cell + foot) + head * len(blocks) + 0.45
    figure = Figure(figsize=(width, height), dpi=130)
    FigureCanvasAgg(figure)
    figure.text(0.18 / width, 1 - 0.26 / height, title, color=INK, fontsize=11, fontweight="bold", va="center")
    y = height - 0.45
    for (name, colour, answers), rows in zip(blocks, lines, strict=True):
        figure.text(0.18 / width, (y - 0.2) / height, name, color=colour, fontsize=10, va="center")
        y -= head
        for i, answer in enumerate(answers):
            left, bottom = 0.18 + (i % columns) * (cell + 0.12), y - (i // columns) * (cell + foot) - cell
            axis = figure.add_axes((left / width, bottom / height, cell / width, cell / height))
            _picture(axis, answer, preprocessing, colour)
            bars = figure.add_axes((left / width, (bottom - foot + 0.14) / height, cell / width, (foot - 0.2) / height))
            _bars(bars, answer)
        y -= rows * (cell + foot)
    image = io.BytesIO()
    figure.savefig(image, format="png", facecolor="white")
    return write_whole(path, image.getvalue())


def _picture(axis, answer: Answer, preprocessing: Mapping[str, Any], colour: str) -> None:
    pixels = shown(answer.image, preprocessing).numpy()
    axis.imshow(pixels, interpolation="bicubic" if min(pixels.shape[:2]) < 160 else "antialiased")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=2)


def _bars(axis, answer: Answer) -> None:
    """The three likeliest; the truth too where it is not among them."""
    lines = list(answer.top)
    if not answer.right and all(name != answer.truth for name, _ in lines):
        lines[-1] = (answer.truth, answer.chance)
    for row, (name, chance) in enumerate(lines):
        true = name == answer.truth
        axis.barh(
            -row,
            max(chance, 0.004),
            height=0.86,
            color=RIGHT if true else WRONG if row == 0 else "#c9c9c9",
            alpha=0.28 if true or row == 0 else 0.45,
        )
        label = textwrap.shorten(name.split(",")[0], 22, placeholder="…")
        axis.text(0.02, -row, label, va="center", fontsize=8, color=INK, fontweight="bold" if true else "normal")
        axis.text(
            0.99, -row, f"{chance:.0%}", va="center", ha="right", fontsize=8, color=INK if row == 0 or true else FAINT
        )
    axis.set(xlim=(0, 1), ylim=(-2.55, 0.55))
    axis.axis("off")
