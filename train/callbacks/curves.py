"""curves.png: how loss, accuracy and learning rate went, from a metrics.csv."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..running.runs import read_metrics
from ..tables import write_whole

TRAIN, VAL, OTHER, INK, FAINT = "#3b6fb6", "#d9772b", "#7a9a3a", "#333333", "#8a8a8a"
SHARES = ("top1", "top5", "map", "map50", "mask_map50", "miou", "macc", "f1")  # shown as per cent
COLOURS = (VAL, OTHER, TRAIN, VAL, OTHER, VAL, OTHER, OTHER)


def draw_curves(
    metrics: str | os.PathLike[str], path: str | os.PathLike[str], steps_per_epoch: float | None = None
) -> Path | None:
    """One panel a quantity, over epochs (over steps where their length is unknown); None while there is nothing to
    draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_metrics(metrics) if Path(metrics).is_file() else []
    panels = [panel for panel in (_losses(rows), _shares(rows), _rates(rows)) if panel]
    if not panels:
        return None
    figure = Figure(figsize=(5.2 * len(panels), 3.9), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (title, lines) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        _panel(axis, title, lines, steps_per_epoch)
    figure.suptitle(_summary(rows, Path(metrics).parent), x=0.01, ha="left", color=INK, fontsize=10)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return write_whole(path, image.getvalue())


def series(rows: Sequence[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) where `name` was logged; the step counts those that were done."""
    points = [(row["step"] + 1, row[name]) for row in rows if name in row]
    return np.array([p[0] for p in points], float), np.array([p[1] for p in points], float)


def smooth(values: np.ndarray, width: float) -> np.ndarray:
    """An average that forgets over `width` points and doesn't lag at the start."""
    out, total, weight, keep = np.empty_like(values), 0.0, 0.0, 1 - 1 / max(width, 1.0)
    for i, value in enumerate(values):
        total, weight = keep * total + value, keep * weight + 1
        out[i] = total / weight
    return out


def _losses(rows):
    lines = []
    for name, label, colour in (("train/loss", "training", TRAIN), ("val/loss", "validation", VAL)):
        steps, values = series(rows, name)
        if len(steps):
            lines.append((steps, values, label, colour, ".3f", min if name == "val/loss" else None))
    return ("loss", lines) if lines else None


def _shares(rows):
    lines = []
    for key, colour in zip(SHARES, COLOURS, strict=True):
        steps, values = series(rows, f"val/{key}")
        if len(steps):
            lines.append((steps, 100 * values, f"validation {key}", colour, ".1f", max))
    return ("accuracy, %", lines) if lines else None


def _rates(rows):
    steps, values = series(rows, "lr")
    return ("learning rate", [(steps, values, "", TRAIN, ".2g", None)]) if len(steps) else None


def _panel(axis, title, lines, steps_per_epoch) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold")
    axis.set_xlabel("epoch" if steps_per_epoch else "step", color=FAINT)
    for steps, values, label, colour, form, best in lines:
        x = steps / steps_per_epoch if steps_per_epoch else steps
        good = np.isfinite(values)
        if label == "training" and len(x) > 30:
            axis.plot(x, values, color=colour, alpha=0.22, linewidth=0.8)
            values = smooth(values, len(x) / 40)
        marker = "o" if len(x) <= 40 and label != "training" and label else None
        axis.plot(x, values, color=colour, linewidth=1.8, marker=marker, markersize=3, label=label or None)
        if best and good.any():
            at = int(np.nanargmin(values) if best is min else np.nanargmax(values))
            axis.plot(
                x[at],
                values[at],
                "o",
                color=colour,
                markersize=7,
                markerfacecolor="white",
                markeredgewidth=1.8,
                zorder=5,
            )
            axis.annotate(
                f"{values[at]:{form}}",
                (x[at], values[at]),
                xytext=(0, -13 if best is max else 8),
                ha="center",
                textcoords="offset points",
                color=colour,
                fontsize=9,
                fontweight="bold",
            )
    axis.xaxis.set_major_locator(MaxNLocator(7, integer=lines[0][0].max() >= 2 * (steps_per_epoch or 1)))
    axis.margins(x=0.03, y=0.09)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#cccccc")
    axis.tick_params(colors=FAINT, labelsize=9)
    axis.grid(True, color="#ececec", linewidth=0.8)
    axis.set_axisbelow(True)
    if title == "learning rate":
        axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    if title.startswith("accuracy"):
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, 0) if low > -15 else low, min(high, 101))
    if any(line[2] for line in lines):
        axis.legend(frameon=False, fontsize=9, labelcolor=INK)


def _summary(rows, folder: Path) -> str:
    parts = [str(folder)]
    for key in SHARES:
        steps, values = series(rows, f"val/{key}")
        if len(steps):
            at = int(np.nanargmax(values))
            parts.append(f"best validation {key} {values[at]:.1%} at step {steps[at]:,.0f}")
            break
    seconds = max((row.get("seconds", 0.0) for row in rows), default=0.0)
    return "   ·   ".join([*parts, f"{seconds / 60:.1f} minutes"])
