"""What plugins of a vision-language model do to its answers on drawn pictures, and to its time: one table, one picture.

    patchloom fit -c shapes/vlm
    python tests/benchmarks/vlm_plugins.py RUN [--questions 1000] [--threads 2] [--out DIR]

The questions are those of the test split, each about a combination that training never saw (`ShapesDialogues`); the
answer counts as `train.converse` counts it. Time: milliseconds a question, in batches of 16, measured on the first 64
in alternating rounds (median). A plugin that this run's parts refuse is listed with its reason. Writes
vlm_plugins.json, .md and .png into DIR.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from patchloom.data.dialogues import ABOUT, Dialogue, ShapesDialogues
from patchloom.multimodal.plugins import attached, plugin
from patchloom.train.converse import is_right
from patchloom.train.saved.talker import Talker, load_talker
from patchloom.vision.plugins import SeamError

PLAIN = "plain"
Asked = list[tuple[str, tuple[Image.Image, ...], Dialogue]]


def neutral(depth: int) -> list[str]:
    """Settings that are to change no answer."""
    return ["fastv:k=1,r=0", f"visual_depth:k={depth}", f"dpvr:k={depth - 1}", "tome:r=0", "damro:alpha=0",
            "heavy_hitters", "keyformer"]  # fmt: skip


def settings(depth: int, tokens: int) -> list[str]:
    """For a decoder of so many layers, and pictures of so many tokens."""
    layers, few = range(1, depth), (tokens // 2, tokens // 4)
    return [
        *[f"fastv:k={k},r={r}" for k in layers for r in (0.5, 0.75)],
        *[f"visual_depth:k={k}" for k in (0, *layers)],
        *[f"visual_depth:k={k},frozen=true" for k in layers],
        *[f"dpvr:k={k}" for k in range(1, depth - 1)],
        *[f"tome:r={tokens // n}" for n in (32, 16, 8)],
        *[f"{name}:budget={n},recent={n // 2}" for name in ("heavy_hitters", "keyformer") for n in few],
        *[f"damro:top={top},alpha={alpha}" for top in (2, 8) for alpha in (0.5, 1.0)],
    ]  # fmt: skip


def asked(count: int, preprocessing: dict[str, Any]) -> Asked:
    data = ShapesDialogues(test_length=count, preprocessing=preprocessing)
    data.setup("test")
    source = data.predictable()
    found = [source.load(i, 0) for i in range(count)]
    return [(dialogue.turns[0].question, pictures, dialogue) for pictures, dialogue in found]


def answered(talker: Talker, questions: Asked, text: str) -> list[str]:
    with nullcontext() if text == PLAIN else attached(talker.vlm, plugin(text)):
        return list(talker.answers([(q, pictures) for q, pictures, _ in questions]))


def accuracy(questions: Asked, said: Sequence[str]) -> dict[str, float]:
    right = [is_right(s, dialogue) for s, (_, _, dialogue) in zip(said, questions, strict=True)]
    about = [dialogue.turns[0].about for _, _, dialogue in questions]
    kinds = {k: [r for r, a in zip(right, about, strict=True) if a == k] for k in ABOUT}
    return {"all": statistics.mean(right)} | {k: statistics.mean(v) for k, v in kinds.items() if v}


def times(talker: Talker, questions: Asked, texts: Sequence[str], rounds: int) -> dict[str, float]:
    """Milliseconds a question."""
    found: dict[str, list[float]] = {text: [] for text in texts}
    for i in range(rounds + 1):
        for text in texts:
            start = time.perf_counter()
            answered(talker, questions, text)
            if i:
                found[text].append(1e3 * (time.perf_counter() - start) / len(questions))
    return {text: statistics.median(values) for text, values in found.items()}


def drawn(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against time, a colour a method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for method in dict.fromkeys(row["setting"].partition(":")[0] for row in rows):
        some = sorted((r for r in rows if r["setting"].partition(":")[0] == method), key=lambda r: r["ms"])
        axes.plot([r["ms"] for r in some], [r["all"] for r in some], "o-", label=method)
        for row in some:
            axes.annotate(row["setting"].partition(":")[2], (row["ms"], row["all"]), fontsize=6)
    axes.set_xlabel("milliseconds a question")
    axes.set_ylabel("answered rightly")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--timed", type=int, default=64, help="questions of the timed rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=64, help="of the pictures")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("vlm_plugins"))
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    talker = load_talker(args.run, device="cpu")
    questions = asked(args.questions, {"input_size": (3, args.size, args.size)})
    tokens = len(talker.vlm.see([talker.eye(questions[0][1][0])])[0])
    plain = answered(talker, questions, PLAIN)
    rows: list[dict[str, Any]] = []
    depth = talker.vlm.decoder.depth
    for text in [PLAIN, *neutral(depth), *settings(depth, tokens)]:
        try:
            said = answered(talker, questions, text)
        except SeamError as error:
            print(f"{text}: {error}")
            continue
        same = statistics.mean(a == b for a, b in zip(said, plain, strict=True))
        rows.append({"setting": text, "same answers": same, **accuracy(questions, said)})
        print(json.dumps(rows[-1]), flush=True)
    spent = times(talker, questions[: args.timed], [row["setting"] for row in rows], args.rounds)
    for row in rows:
        row["ms"] = spent[row["setting"]]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "vlm_plugins.json").write_text(
        json.dumps({"run": args.run, "image tokens": tokens, "rows": rows}, indent=1)
    )
    head = ["setting", "same answers", "all", *ABOUT, "ms"]
    lines = [
        head,
        ["---"] * len(head),
        *[[row["setting"], *(f"{row.get(k, 0):.3f}" for k in head[1:])] for row in rows],
    ]
    (args.out / "vlm_plugins.md").write_text("".join("| " + " | ".join(line) + " |\n" for line in lines))
    drawn(rows, args.out / "vlm_plugins.png")
    changed = [row["setting"] for row in rows if row["setting"] in neutral(depth) and row["same answers"] < 1]
    print(f"neutral settings that changed an answer: {', '.join(changed) or 'none'}")


if __name__ == "__main__":
    main()
