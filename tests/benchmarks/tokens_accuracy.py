"""What token plugins cost in accuracy for what they gain in speed, on a classifier trained here, without training on.

    patchloom fit -c shapes/vit --trainer.default_root_dir runs
    python tests/benchmarks/tokens_accuracy.py runs/shapes-vit/TIME [more runs of the same network] --out DIR

Ten settings of every method: top-1 over the same unseen pictures (drawn shapes; with --cifar10 DIR its test images) and
images/s in alternating rounds. ToMe and Zero-TPrune also against random pruning that leaves as many tokens behind each
block, several seeds. Several runs are trained classifiers of one network: accuracies are means over them. Writes
tokens_accuracy.json, .png and .md into DIR; progress goes to stderr.
"""

import argparse
import io
import json
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn

from patchloom.data.modules import Cifar10Data, ShapesData
from patchloom.train.commands.sweep import COLOURS
from patchloom.train.measure import Case, Spread, alternate, circumstances, inference, warm
from patchloom.train.running.checkpoint import load_model
from patchloom.train.saved.judge import positive
from patchloom.train.tables import write_whole
from patchloom.train.tradeoff import counts, twin
from patchloom.vision.plugins import Plugin, attached, hosts_of
from patchloom.vision.plugins.clustering import Clustering
from patchloom.vision.plugins.evit import Evit
from patchloom.vision.plugins.merge import Merge
from patchloom.vision.plugins.random_drop import RandomDrop
from patchloom.vision.plugins.window_merge import WindowMerge
from patchloom.vision.plugins.words import in_words
from patchloom.vision.plugins.zero_tprune import ZeroTPrune

POINTS = 10
AGAINST_RANDOM = ("tome", "zero_tprune")


def shares(low: float, high: float) -> list[float]:
    """POINTS evenly spaced numbers from low to high."""
    return [round(low + (high - low) * i / (POINTS - 1), 3) for i in range(POINTS)]


def evenly(total: int, depth: int) -> tuple[int, ...]:
    """`total` tokens over `depth` blocks."""
    return tuple(total * (i + 1) // depth - total * i // depth for i in range(depth))


CLUSTERED = [
    *product((6, 4, 2), (0.7, 0.5)),
    (5, 0.5),
    (4, 0.8),
    (3, 0.5),
    (1, 0.5),
]  # after which eighth, to which scale
METHODS: dict[str, Callable[[int, int], list[Plugin]]] = {  # settings from weak to strong for (patches, blocks)
    "tome": lambda n, depth: [Merge(evenly(round(n * share), depth)) for share in shares(0.1, 0.9)],
    "zero_tprune": lambda n, depth: [ZeroTPrune(keep) for keep in shares(0.96, 0.56)],
    "evit": lambda n, depth: [Evit(keep) for keep in shares(0.96, 0.42)],
    "clustering": lambda n, depth: [Clustering(at=depth * eighth // 8, scale=scale) for eighth, scale in CLUSTERED],
    "window_merge": lambda n, depth: [WindowMerge(share=share, side=4) for share in shares(0.05, 0.5)],
    "random": lambda n, depth: [RandomDrop(keep=keep) for keep in shares(0.96, 0.42)],
}


# ---------------------------------------------------------------------------------------------- accuracy and speed


def pictures(preprocessing: dict, count: int, cifar10: str | None) -> tuple[Tensor, Tensor]:
    """(images N 3 H W, classes N) that no run was trained on."""
    if cifar10 is None:
        data = ShapesData(test_length=count, batch_size=100, workers=0, preprocessing=preprocessing)
    else:
        data = Cifar10Data(cifar10, batch_size=100, workers=0, preprocessing=preprocessing)
    data.setup("test")
    images, targets = zip(*data.test_dataloader(), strict=True)
    return torch.cat(images)[:count], torch.cat(targets)[:count]


@torch.inference_mode()
def top1(model: nn.Module, images: Tensor, targets: Tensor) -> float:
    """In percent."""
    hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(100), targets.split(100), strict=True))
    return 100 * hits / len(targets)


def equally(left: Sequence[int], tokens: int, seed: int) -> RandomDrop:
    """Random pruning that leaves as many tokens behind each block, of so many before the first."""
    return RandomDrop(tuple(a - b for a, b in pairwise([tokens, *left])), seed=seed)


def speeds(model: nn.Module, plugins: Sequence[Plugin], images: Tensor, seconds: float) -> list[Spread]:
    """Images/s without a plugin, then with each of them, all in alternating rounds."""
    steps = [inference(m, images) for m in (model, *(twin(model, p) for p in plugins))]
    for step in steps:
        warm(step, "cpu")
    times = alternate(steps, seconds=seconds)
    return [Spread.of([len(images) / t for t in column]) for column in zip(*times, strict=True)]


def judged(models: Sequence[nn.Module], plugin: Plugin, images: Tensor, targets: Tensor) -> list[float]:
    """Top-1 of each run with the plugin in it."""
    found = []
    for model in models:
        with attached(model, plugin):
            found.append(top1(model, images, targets))
    return found


# ------------------------------------------------------------------------------------------------------ what is shown


def picture(result: dict) -> bytes:
    """Top-1 over images/s, a line for each method."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.8), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for (name, points), colour in zip(result["methods"].items(), COLOURS * 9, strict=False):
        x, y = zip(*sorted((p["images_per_second"], p["top1"]) for p in points), strict=True)
        axis.plot(x, y, marker="o", markersize=4, color=colour, label=name)
    plain = result["plain"]
    axis.plot(plain["images_per_second"], plain["top1"], "k*", markersize=11, label="no plugin")
    h = result["circumstances"]
    axis.set(xlabel=f"images/s, batch {result['batch']}, {h['threads']} threads", ylabel="top-1, %")
    axis.set_title(f"{result['pictures']} unseen pictures, no training with the plugin", loc="left", fontsize=9)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def report(result: dict) -> str:
    """The tables, in Markdown."""
    plain = result["plain"]
    lines = [
        f"Without a plugin {plain['top1']:.1f} top-1 at {plain['images_per_second']:.0f} images/s.", "",
        "| images/s over plain: top-1 |" + " |" * POINTS, "|---" * (POINTS + 1) + "|",
    ]  # fmt: skip
    for name, points in result["methods"].items():
        cells = [f"{p['images_per_second'] / plain['images_per_second']:.2f}: {p['top1']:.1f}" for p in points]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    heads = ("method", "tokens at the end", "top-1", "random pruning, equal counts", "points more", "beats it")
    lines += ["", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in result["against_random"]:
        chance = [top for run in row["random"] for top in run]
        more = [top - other for top, run in zip(row["top1_of_runs"], row["random"], strict=True) for other in run]
        lines.append(
            f"| {row['method']} | {row['counts'][-1]} | {row['top1']:.1f} | {mean(chance):.1f} "
            f"({min(chance):.1f} … {max(chance):.1f}) | {mean(more):+.1f} ({min(more):+.1f} … {max(more):+.1f}) | "
            f"{'yes' if min(more) > 0 else 'not always' if mean(more) > 0 else 'no'} |"
        )
    return "\n".join(lines)


def said(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders or checkpoints of one network")
    parser.add_argument("--cifar10", metavar="DIR", help="judge on its test images instead of drawn shapes")
    parser.add_argument("--images", type=positive, default=2000, help="how many pictures are judged (2000)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--batch", type=positive, default=64, help="images a step while speed is measured (64)")
    parser.add_argument("--seconds", type=float, default=90.0, help="all speeds, at least five rounds (90)")
    parser.add_argument("--seeds", type=positive, default=3, help="of random pruning (3)")
    parser.add_argument("--threads", type=positive)
    parser.add_argument("--out", type=Path, default=Path("tokens_accuracy"), metavar="DIR")
    return parser.parse_args()


def main() -> None:
    args = parsed()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    models, preprocessing = [], {}
    for run in args.runs:
        model, _, preprocessing = load_model(run)
        models.append(model)
    images, targets = pictures(preprocessing, args.images, args.cifar10)
    tokens, depth = counts(models[0], images[:1])[0], len(hosts_of(models[0]))
    plugins = {name: METHODS[name](tokens - len(models[0].special), depth) for name in args.methods}
    plain = [top1(model, images, targets) for model in models]
    said(f"no plugin: {plain} top-1 on {len(images)} pictures; {tokens} tokens, {depth} blocks")
    every = [p for ps in plugins.values() for p in ps]
    speed = speeds(models[0], every, images[: args.batch], args.seconds)
    rate = iter(speed[1:])
    result: dict = {
        "runs": args.runs, "pictures": len(images), "batch": args.batch, "data": args.cifar10 or "drawn shapes",
        "plain": {"top1": mean(plain), "top1_of_runs": plain, "images_per_second": speed[0].median},
        "methods": {}, "against_random": [], "circumstances": circumstances(Case(args.batch)),
    }  # fmt: skip
    for name, ps in plugins.items():
        result["methods"][name] = []
        for p in ps:
            each, s = judged(models, p, images, targets), next(rate)
            result["methods"][name].append({
                "setting": in_words(p), "top1": mean(each), "top1_of_runs": each,
                "images_per_second": s.median, "images_per_second_spread": [s.low, s.high],
            })  # fmt: skip
            said(f"{in_words(p)}: {mean(each):.2f} top-1, {s.median:.0f} images/s, {s.median / speed[0].median:.3f}x")
    for name in (n for n in AGAINST_RANDOM if n in plugins):
        for p, point in zip(plugins[name], result["methods"][name], strict=True):
            with attached(models[0], p):
                left = counts(models[0], images[:1])
            others = [equally(left, tokens, seed) for seed in range(args.seeds)]
            with attached(models[0], others[0]):
                assert counts(models[0], images[:1]) == left
            by_seed = [judged(models, other, images, targets) for other in others]
            chance = [list(of_run) for of_run in zip(*by_seed, strict=True)]
            point = {key: point[key] for key in ("setting", "top1", "top1_of_runs")}
            result["against_random"].append({"method": name, **point, "counts": left, "random": chance})
            said(f"{name}, tokens {left}: {point['top1_of_runs']}, random {chance}")
    write_whole(args.out / "tokens_accuracy.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_whole(args.out / "tokens_accuracy.png", picture(result))
    write_whole(args.out / "tokens_accuracy.md", report(result) + "\n")
    print(report(result))


if __name__ == "__main__":
    main()
