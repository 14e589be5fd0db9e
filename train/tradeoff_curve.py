"""The picture of a trade-off: what each setting of a token plugin costs over the time that it takes."""

import io
from collections.abc import Sequence
from typing import Any

from .commands.sweep import COLOURS
from .tradeoff import Answers, Point


def picture(plain: dict[str, Any], points: Sequence[Point], chosen: Point | None, target: str, title: str) -> bytes:
    """What each setting costs over its time: the change of the answers, or the accuracy where labels are known."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labelled = plain["acc1"] is not None

    def cost_of(a: Answers) -> float:
        return a.acc1 if a.acc1 is not None else max(a.kl, 1e-9)

    figure = Figure(figsize=(7.4, 4.8), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for method, colour in zip(dict.fromkeys(p.method for p in points), COLOURS * 9, strict=False):
        mine = [p for p in points if p.method == method]
        axis.plot([1000 * p.seconds.median for p in mine], [cost_of(p.answers) for p in mine], marker="o", markersize=4,
                  color=colour, label=method)  # fmt: skip
        drawn = [(1000 * p.seconds.median, cost_of(p.random)) for p in mine if p.random is not None]
        if drawn:
            axis.plot(*zip(*drawn, strict=True), "x:", markersize=4, color=colour, alpha=0.6)
    time = 1000 * plain["seconds"]["median"]
    budget = float(target[:-2]) if target.endswith("ms") else time * float(target[:-1])
    axis.axvline(time, color="#8a8a8a", linewidth=1, label="no plugin")
    axis.axvline(budget, color="#333333", linewidth=1, linestyle="--", label=f"target {target}")
    if chosen is not None:
        axis.plot(1000 * chosen.seconds.median, cost_of(chosen.answers), "k*", markersize=12, label=chosen.tokens)
    axis.plot([], [], "x:", color="#8a8a8a", label="as many tokens, at random")
    axis.set(xlabel="ms an image", ylabel="Acc@1, %" if labelled else "KL divergence from the plain model's answers")
    if not labelled:
        axis.set_yscale("log")
    axis.set_title(title, loc="left", fontsize=8)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()
