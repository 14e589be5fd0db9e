"""`patchloom bench NAME NAME … --sweep size=224:1280`: time and peak memory against the number of tokens."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..measure import Arm, Case, Spread, alternate, best_layout, build, circumstances, peak_memory_mb
from ..tables import write_whole

COLOURS = ("#3b6fb6", "#d9772b", "#7a9a3a", "#8a5aa8", "#c04040", "#40a0a0")


def sizes_of(text: str) -> list[int]:
    """`size=A:B` or `size=A:B:STEP`, sides in pixels; about eight of them without a step, growing by equal factors, all
    multiples of 32. Raises ValueError for anything else."""
    name, _, values = text.partition("=")
    parts = values.split(":")
    if name != "size" or len(parts) not in (2, 3) or not all(p.isdigit() and int(p) for p in parts):
        raise ValueError(f"--sweep {text!r}: write size=FROM:TO or size=FROM:TO:STEP, e.g. size=224:1280")
    low, high = int(parts[0]), int(parts[1])
    if low > high:
        raise ValueError(f"--sweep {text!r}: {low} is above {high}")
    if len(parts) == 3:
        return list(range(low, high + 1, int(parts[2])))
    return sorted({low, high, *(round(s / 32) * 32 for s in np.geomspace(low, high, 8)[1:-1])})


def tokens_of(model: Any, size: int) -> int:
    """How many tokens the first stage has for an image of this side."""
    stride = model.backbone.strides[0] if hasattr(model, "backbone") else 16
    return (size // stride) ** 2


def sweep(arms: list[Arm], case: Case, sizes: list[int], *, repeats: int, memory: bool) -> dict[str, Any]:
    """The JSON object: for each arm and size tokens, seconds an image with quartiles, and MiB."""
    rows: list[dict[str, Any]] = [{"model": arm.name, "points": []} for arm in arms]
    for size in sizes:
        at = replace(case, size=(size, size))
        steps, chosen, tokens = [], [], []
        for arm in arms:
            model = build(arm, at)
            step, layout = best_layout(model, at)
            steps.append(step)
            chosen.append(replace(arm, layout=layout))
            tokens.append(tokens_of(model, size))
        times = alternate(steps, at.device, repeats=repeats)
        for row, arm, n, column in zip(rows, chosen, tokens, zip(*times, strict=True), strict=True):
            spread = Spread.of([t / at.batch for t in column])
            row["points"].append(
                {
                    "size": size,
                    "tokens": n,
                    "seconds_per_image": spread.median,
                    "spread": [spread.low, spread.high],
                    "peak_memory_mb": peak_memory_mb(arm, at) if memory else None,
                }
            )
    return {
        "mode": "training step" if case.train else "inference", "batch": case.batch, "dtype": case.dtype,
        "models": rows, "crossovers": crossovers(rows), "circumstances": circumstances(case),
    }  # fmt: skip


def crossovers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each later model against the first: the sides from which on it is faster, and takes less memory, at every
    larger size; None where it never is."""
    first, found = rows[0], []
    for other in rows[1:]:
        entry = {"model": other["model"], "against": first["model"]}
        for key, name in (("seconds_per_image", "faster_from"), ("peak_memory_mb", "smaller_from")):
            pairs = [
                (b["size"], a[key], b[key]) for a, b in zip(first["points"], other["points"], strict=True) if a[key]
            ]
            entry[name] = None
            for size, theirs, ours in reversed(pairs):
                if ours >= theirs:
                    break
                entry[name] = size
        found.append(entry)
    return found


def write(result: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """sweep.json and sweep.png in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    data = write_whole(folder / "sweep.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return data, write_whole(folder / "sweep.png", picture(result))


def picture(result: dict[str, Any]) -> bytes:
    """Time and memory over the number of tokens, both axes logarithmic."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with_memory = all(p["peak_memory_mb"] is not None for row in result["models"] for p in row["points"])
    panels = [("seconds_per_image", "seconds an image")] + [("peak_memory_mb", "peak memory, MiB")] * with_memory
    figure = Figure(figsize=(5.4 * len(panels), 4.2), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(1, len(panels)))
    for axis, (key, title) in zip(axes, panels, strict=True):
        for row, colour in zip(result["models"], COLOURS * 9, strict=False):
            x, y = ([p[k] for p in row["points"]] for k in ("size", key))
            axis.plot(x, y, marker="o", markersize=4, color=colour, label=row["model"])
        axis.set(xscale="log", yscale="log", xlabel="side of the image, pixels", title=title)
        ticks = sorted({p["size"] for row in result["models"] for p in row["points"]})
        axis.set_xticks(ticks, [str(t) for t in ticks], rotation=60)
        axis.minorticks_off()
        axis.grid(alpha=0.25)
    axes[0].legend(frameon=False)
    h = result["circumstances"]
    figure.suptitle(f"{result['mode']}, batch {result['batch']}, {result['dtype']}, {h['processor']}, "
                    f"{h['threads']} threads", x=0.01, ha="left", fontsize=9)  # fmt: skip
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def report(result: dict[str, Any]) -> str:
    """The same for people."""
    lines = []
    for row in result["models"]:
        lines.append(row["model"])
        for p in row["points"]:
            peak = "" if p["peak_memory_mb"] is None else f"  {p['peak_memory_mb']:8.0f} MiB"
            lines.append(f"  {p['size']:5} px  {p['tokens']:7} tokens  {p['seconds_per_image'] * 1e3:10.1f} ms{peak}")
    for c in result["crossovers"]:
        faster = f"faster from {c['faster_from']} px" if c["faster_from"] else "nowhere faster"
        smaller = f"smaller from {c['smaller_from']} px" if c["smaller_from"] else "nowhere smaller"
        lines.append(f"{c['model']} against {c['against']}: {faster}, {smaller}")
    return "\n".join(lines)
