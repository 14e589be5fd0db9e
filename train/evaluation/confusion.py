"""The confusion matrix as a picture that can be read with ten classes and with a thousand."""

from pathlib import Path

import torch
from torch import Tensor

from .metrics import row_shares

CELLS = 30  # classes up to which every cell and name is written out
PAIRS = 25  # lines of the lists beside a larger matrix


def draw_confusion(counts: Tensor, classes: list[str], path: str | Path) -> Path:
    """counts (C, C), true class by predicted -> a PNG: rows are true classes, shades the share of their images.

    Up to 30 classes every cell shows its count; beyond, the map stands beside lists of the most frequent mistakes and
    of the classes with the lowest share of right answers, which is what a person looks for in it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = counts.cpu()
    right = float(counts.trace() / counts.sum().clamp(min=1))
    small = len(classes) <= CELLS
    width, height = (max(6.0, 0.45 * len(classes) + 2.6),) * 2 if small else (16.0, 9.0)
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    if small:  # 1.9 inches for the names at the left and below
        _cells(figure.add_axes((1.9 / width, 1.9 / height, 1 - 2.1 / width, 1 - 2.4 / height)), counts, classes)
    else:
        _map(figure.add_axes((0.05, 0.08, 0.5, 0.83)), counts)
        _lists(figure.add_axes((0.57, 0.02, 0.42, 0.91)), counts, classes)
    figure.suptitle(f"{right:.1%} of {int(counts.sum()):,} images right, {len(classes)} classes", y=1 - 0.12 / height)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _cells(axis, counts: Tensor, classes: list[str]) -> None:
    share = row_shares(counts)
    axis.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1)
    names = [_short(c, 18) for c in classes]
    axis.set_xticks(range(len(names)), names, rotation=90)
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="predicted", ylabel="true")
    size = 10 if len(classes) <= 12 else 7
    for i, j in counts.nonzero().tolist():
        axis.text(
            j,
            i,
            f"{int(counts[i, j])}",
            ha="center",
            va="center",
            fontsize=size,
            color="white" if share[i, j] > 0.5 else "black",
        )


def _map(axis, counts: Tensor) -> None:
    shade = row_shares(counts).sqrt()  # so that rare mistakes are seen too
    axis.imshow(
        shade.numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest" if len(counts) < 400 else "antialiased"
    )
    axis.set(xlabel="predicted class number", ylabel="true class number", title="square root of the share")


def _lists(axis, counts: Tensor, classes: list[str]) -> None:
    axis.axis("off")
    wrong = counts.clone().fill_diagonal_(0)
    top = torch.topk(wrong.flatten(), min(PAIRS, wrong.numel()))
    lines = ["most frequent mistakes", ""]
    for n, at in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        if n:
            true, predicted = (_short(classes[c], 30) for c in divmod(at, len(classes)))
            lines.append(f"{int(n):5}  {true:30} taken for {predicted}")
    seen = counts.sum(1)
    share = row_shares(counts).diagonal().masked_fill(seen == 0, 2.0)
    lines += ["", "lowest share right", ""]
    for at in share.argsort(stable=True)[:PAIRS].tolist():
        if seen[at]:
            lines.append(f"{float(share[at]):5.0%}  {_short(classes[at], 40):40} of {int(seen[at])}")
    axis.text(0, 1, "\n".join(lines), family="monospace", fontsize=8.5, va="top", ha="left")


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
