"""Does a model that talks answer what it was never taught word for word? One command each; progress goes to stderr.

    python tests/benchmarks/vlm_judged.py shapes --minutes 30 --out runs/judged
    python tests/benchmarks/vlm_judged.py photographs --data ../shared/data --out runs/judged

shapes: trains shapes/vlm from nothing for so many minutes, takes the checkpoint that validation liked best, and asks
2,000 questions on drawings, each about a pair of kind and colour that training neither showed nor named. Printed beside
the goals, with what chance would give (the commonest answer of each kind of question) and with the share that is right
on pairs that were seen, so that one sees what is lost between both.
photographs: trains daquar/vlm and flickr8k/captions on the small real sets and prints their numbers beside the answer
that is given whatever the picture.
Writes DIR/vlm_WHAT.json. --run judges a run that is there already.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from patchloom.data.dialogue_files import DialogueFiles
from patchloom.data.dialogues import ABOUT, ShapesDialogues
from patchloom.train.evaluation.said import bare, is_right
from patchloom.train.running import checkpoint
from patchloom.train.running.runs import read_metrics
from patchloom.train.saved.talker import load_talker

GOALS = {"colour": 0.90, "count": 0.70, "relation": 0.70, "caption": 0.70}
RECIPES = {"daquar_mini": "daquar/vlm", "flickr8k_mini": "flickr8k/captions"}


def patchloom(*line: object) -> dict[str, Any]:
    """One command with --json; its progress is seen."""
    words = [sys.executable, "-m", "patchloom", *map(str, line), "--json"]
    print("$", " ".join(words[2:]), file=sys.stderr, flush=True)
    return json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout)


def trained(args: argparse.Namespace, recipe: str, *more: object) -> Path:
    if args.run:
        return Path(args.run)
    hours, minutes = divmod(args.minutes, 60)
    limit = ["--trainer.max_time", f"00:{hours:02}:{minutes:02}:00", "--test", "false"]
    epochs = ["--trainer.max_epochs", args.epochs] if args.epochs else []
    root = ["--trainer.default_root_dir", args.out]
    return Path(patchloom("fit", "-c", recipe, *limit, *epochs, *root, *more)["run"])


def asked(source: Any, count: int) -> tuple[list[Any], list[tuple[str, Any]]]:
    loaded = [source.load(i, 0) for i in range(min(count, len(source)))]
    return [d for _, d in loaded], [(d.turns[0].question, pictures) for pictures, d in loaded]


def shares(right: list[tuple[str, bool]]) -> dict[str, float]:
    kinds = {about for about, _ in right}
    return {k: round(sum(ok for about, ok in right if about == k) / sum(a == k for a, _ in right), 4) for k in kinds}


def commonest(dialogues: list[Any]) -> dict[str, float]:
    """The share that is right where the commonest answer of each kind of question is always given."""
    found = {}
    for kind in {d.turns[0].about for d in dialogues}:
        answers = Counter(bare(d.turns[0].answer) for d in dialogues if d.turns[0].about == kind)
        found[kind] = round(max(answers.values()) / sum(answers.values()), 4)
    return found


def shapes(args: argparse.Namespace) -> dict[str, Any]:
    run = trained(args, "shapes/vlm")
    talker = load_talker(run, device=args.device)
    preprocessing = checkpoint.read(checkpoint.find(run))["patchloom"]["preprocessing"]
    data = ShapesDialogues(1, args.questions, args.questions, preprocessing=preprocessing, workers=0)
    data.setup()
    report: dict[str, Any] = {"run": str(run), "questions": args.questions, **progress(run)}
    for name, source in (("held out", data.splits.test), ("seen", data.splits.val)):
        dialogues, questions = asked(source, args.questions)
        said = talker.answers(questions, batch=64)
        right = [(d.turns[0].about, is_right(s, d)) for s, d in zip(said, dialogues, strict=True)]
        report[name], report[f"chance, {name}"] = shares(right), commonest(dialogues)
    report["goals"] = GOALS
    report["reached"] = all(report["held out"][kind] >= GOALS[kind] for kind in ABOUT)
    return report


def progress(run: Path) -> dict[str, Any]:
    rows = read_metrics(run / "metrics.csv")
    judged = [
        {k: round(v, 4) for k, v in row.items() if k in ("step", "seconds") or k.startswith("val/")} for row in rows
    ]
    return {
        "steps": rows[-1]["step"],
        "seconds": rows[-1].get("seconds"),
        "validations": [r for r in judged if len(r) > 2],
    }


def photographs(args: argparse.Namespace) -> dict[str, Any]:
    report: dict[str, Any] = {}
    for name, recipe in RECIPES.items():
        root = Path(args.data) / name
        run = trained(args, recipe, "--data.root", root)
        files = {"daquar_mini": ("vqa_train.jsonl", "vqa_test.jsonl")}.get(
            name, ("captions_train.jsonl", "captions_test.jsonl")
        )
        preprocessing = checkpoint.read(checkpoint.find(run))["patchloom"]["preprocessing"]
        data = DialogueFiles(
            str(root), files[0], None, files[1], val_fraction=0, preprocessing=preprocessing, workers=0
        )
        data.setup()
        dialogues, questions = asked(data.splits.test, args.questions)
        said = list(load_talker(run, device=args.device).answers(questions))
        always = Counter(bare(t.answer) for e in data.splits.train.entries for t in e.dialogue.turns).most_common(1)[0][
            0
        ]
        report[name] = {
            "run": str(run), **progress(run), "questions": len(said),
            "exact": round(sum(map(is_right, said, dialogues)) / len(said), 4),
            f"always {always!r}": round(sum(is_right(always, d) for d in dialogues) / len(said), 4),
            "different answers": len(set(said)),
            "examples": [
                {"picture": data.splits.test.name(i), "question": questions[i][0], "answer": said[i],
                 "right": dialogues[i].turns[0].answer}
                for i in range(min(8, len(said)))
            ],
        }  # fmt: skip
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("shapes", "photographs"))
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--epochs", type=int, help="of the schedule, where the machine is faster or slower")
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--data", default="../shared/data", help="where daquar_mini and flickr8k_mini lie")
    parser.add_argument("--run", help="judge this run instead of training one (shapes)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("runs/judged"))
    args = parser.parse_args()
    if args.run and args.what != "shapes":
        parser.error(f"--run {args.run}: photographs trains a run of its own on each set")
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    report = {"shapes": shapes, "photographs": photographs}[args.what](args)
    text = json.dumps(report, indent=1, ensure_ascii=False)
    (args.out / f"vlm_{args.what}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
