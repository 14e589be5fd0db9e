"""What token plugins leave of a backbone's maps on photographs: the cosine similarity of each place's features,
restored to the full map, to those of the same network without the plugin; its mean over places and images, for each
map. In Markdown.

`python tests/benchmarks/dense_similarity.py RUN swin_tiny=FILE --images ../shared/data/flower_photos_mini/val`.
A model is a run folder, a checkpoint, NAME=FILE or a name (`--random-weights`: which says little, since untrained
features hardly differ). "mean" in a row is what a map would score that has its own mean at every place.
"""

import argparse
import random
import sys
from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchloom.train.commands.bench import cost
from patchloom.train.measure import Case
from patchloom.train.saved.judge import Judge, find_images, image_size, load, positive
from patchloom.vision.features import spread
from patchloom.vision.plugins import SeamError, attached, plugin

SETTINGS = (
    "clustering:scale=0.8", "clustering:scale=0.7", "clustering:scale=0.5", "tome:r=8", "tome:r=16",
    "window_merge:share=0.4",
)  # fmt: skip


def maps(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Of the stages, or of four blocks: (B C H W)."""
    rows = len(model.feature_info)
    indices = spread(rows) if len(set(model.backbone.strides)) == 1 else list(range(rows))
    return model.forward_intermediates(x, indices=indices, intermediates_only=True)


def similarity(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a, b, dim=1).mean())


@torch.inference_mode()
def measure(judge: Judge, files: list, settings: list[str], batch: int) -> dict[str, list[float] | str]:
    """Setting -> the similarity for each map, or why the model does not take it."""
    model, found, refused = judge.model, defaultdict(list), {}
    for _, images in judge.batches(files, batch=batch):
        x = images.to(judge.device)
        plain = maps(model, x)
        means = [m.mean((2, 3), keepdim=True).expand_as(m) for m in plain]
        answers = {"mean": means}
        for setting in settings:
            try:
                with attached(model, plugin(setting)):
                    answers[setting] = maps(model, x)
            except SeamError as error:
                refused[setting] = str(error)
        for setting, got in answers.items():
            found[setting].append((len(x), [similarity(a, b) for a, b in zip(got, plain, strict=True)]))
    total = {s: sum(n for n, _ in rows) for s, rows in found.items()}
    kept = {s: [sum(n * v[i] for n, v in rows) / total[s] for i in range(len(rows[0][1]))] for s, rows in found.items()}
    return {s: kept.get(s, refused.get(s, "")) for s in ("mean", *settings)}


def gmacs(judge: Judge, setting: str | None) -> float:
    size = judge.preprocessing["input_size"][1:]
    if setting is None:
        return cost(judge.model, Case(1, size=tuple(size)))["macs"] / 1e9
    with attached(judge.model, plugin(setting)):
        return gmacs(judge, None)


def lines(judge: Judge, files: list, settings: list[str], batch: int) -> list[str]:
    rows, plain = [], gmacs(judge, None)
    for setting, values in measure(judge, files, settings, batch).items():
        if isinstance(values, str):
            rows.append(f"| {judge.spec} | `{setting}` | - | refused: {values} |")
            continue
        macs = "-" if setting == "mean" else f"{plain:.2f} / {gmacs(judge, setting):.2f}"
        name = setting if setting == "mean" else f"`{setting}`"
        rows.append(f"| {judge.spec} | {name} | {macs} | {', '.join(f'{v:.4f}' for v in values)} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--images", nargs="+", required=True, metavar="PATH")
    parser.add_argument("--tokens", nargs="+", default=list(SETTINGS), metavar="SPEC")
    parser.add_argument("--limit", type=positive, default=64, help="images, drawn at random (64)")
    parser.add_argument("--size", type=image_size, metavar="N|HxW")
    parser.add_argument("--batch", type=positive, default=8)
    parser.add_argument("--random-weights", action="store_true")
    args = parser.parse_args()
    files = find_images(*args.images)
    files = sorted(random.Random(0).sample(files, min(args.limit, len(files))))
    rows = []
    for spec in args.models:
        torch.manual_seed(0)
        judge = load(spec, random_weights=args.random_weights, size=args.size, device="cpu")
        rows += lines(judge, files, args.tokens, args.batch)
        print(*rows[-len(args.tokens) - 1 :], sep="\n", file=sys.stderr, flush=True)
    print(f"{len(files)} photographs of {', '.join(args.images)}\n")
    print("| model | tokens | GMACs, plain / reduced | cosine similarity of each map |\n|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
