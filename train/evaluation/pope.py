"""patchloom eval pope: whether a model sees objects that are not there; the official numbers, split by split."""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..cli import UsageError
from ..tables import table, write_whole
from .answers import ANSWER, Asked, Row, add_answers, ask, by_id, field, paired, read_rows, settled
from .coco import deliver

HELP = "POPE: accuracy, precision, recall, F1 and share of yes, of answers or a vision-language model"
EXAMPLES = """examples:
  patchloom eval pope --data pope/ --answers random=answers_random.jsonl popular=answers_popular.jsonl
  patchloom eval pope --data pope/coco_pope_popular.json --answers answers.jsonl --json
  patchloom eval pope --data pope/ --images val2014/ --checkpoint RUN --out pope.json
Answers: JSON lines, {"question_id", "answer"} (or "text"), or POPE's own {"question", "answer"} in the order of the
questions."""
RATES = {
    "accuracy": "Accuracy", "precision": "Precision", "recall": "Recall", "f1": "F1 score", "yes_ratio": "Yes ratio",
}  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """Answers to yes/no questions, "yes" as positive; `vague` of them say neither yes nor no."""

    tp: int
    fp: int
    tn: int
    fn: int
    vague: int = 0

    @property
    def questions(self) -> int:
        return self.tp + self.fp + self.tn + self.fn

    def rates(self) -> dict[str, float | None]:
        """Fractions of 1; None where nothing is divided (the official script ends in an error there)."""
        tp, fp, fn, n = self.tp, self.fp, self.fn, self.questions
        precision, recall = (over(tp, tp + fp), over(tp, tp + fn))
        both = None if precision is None or recall is None else precision + recall
        return {
            "accuracy": over(tp + self.tn, n),
            "precision": precision,
            "recall": recall,
            "f1": over(2 * (precision or 0.0) * (recall or 0.0), both or 0.0),
            "yes_ratio": over(tp + fp, n),
        }


def over(a: float, b: float) -> float | None:
    return a / b if b else None


def says_yes(answer: str) -> bool:
    """The official reading: no, where one of the words of the first sentence, commas left out, is No, no or not."""
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return not any(word in ("No", "no", "not") for word in words)


def counted(labels: Sequence[str], answers: Sequence[str]) -> Counts:
    tally = {(truth, said): 0 for truth in (True, False) for said in (True, False)}
    for label, answer in zip(labels, answers, strict=True):
        tally[label != "no", says_yes(answer)] += 1
    vague = sum(says_yes(a) and not re.search(r"\byes\b", a, re.IGNORECASE) for a in answers)
    return Counts(tally[True, True], tally[False, True], tally[False, False], tally[True, False], vague)


# ---- files


def split_files(data: Path) -> dict[str, Path]:
    """The question files of a folder by the name of their split, or the one file."""
    from ...data.folders import existing

    if existing(data).is_file():
        return {split_name(data): data}
    found = sorted(path for path in data.iterdir() if path.suffix in (".json", ".jsonl") and "pope" in path.stem)
    if not found:
        raise FileNotFoundError(f"{data} holds no questions: files such as coco_pope_random.json are due")
    named: dict[str, Path] = {}
    for path in found:
        other = named.setdefault(split_name(path), path)
        if other != path:
            raise ValueError(
                f"{data}: {other.name} and {path.name} are both of {split_name(path)}: name one with --data"
            )
    return named


def split_name(path: Path) -> str:
    return path.stem.rpartition("pope_")[2].rpartition("_")[2] or path.stem


def questions_of(path: Path) -> dict[Any, Row]:
    found = by_id(read_rows(path, "questions"), ("question_id",), str(path))
    for key, row in found.items():
        for name in ("image", "text", "label"):
            if not isinstance(row.get(name), str):
                raise ValueError(f"{path}: question {key} has no {name}")
        if row["label"] not in ("yes", "no"):
            raise ValueError(f"{path}: question {key} has label {row['label']!r}: yes or no is due")
    return found


def given_answers(rows: Sequence[Row], source: str, questions: Mapping[Any, Row], split: str) -> dict[Any, str]:
    """Answers by the id of their questions; by their order where they have none. Raises where a row repeats another
    question, or names another picture, than that of its id: it is of another split."""
    if not any("question_id" in row for row in rows):
        if len(rows) != len(questions):
            raise ValueError(
                f"{source}: {len(rows):,} answers without question_id, to the {len(questions):,} questions of {split}: "
                "they are taken in order, so as many are due"
            )
        keyed: dict[Any, Row] = dict(zip(questions, rows, strict=True))
    else:
        keyed = by_id(rows, ("question_id",), source)
    answers = {}
    for key, row in keyed.items():
        asked = questions.get(key)
        answers[key] = str(field(row, ANSWER, f"{source}, question {key}"))
        if asked is None:
            continue
        for name, truth in (("question", asked["text"]), ("image", asked["image"])):
            if name in row and str(row[name]).strip() != truth:
                raise ValueError(
                    f"{source}: {name} {row[name]!r} of answer {key} is {truth!r} in {split}: they are of another split"
                )
    return answers


def assigned(files: Sequence[str], splits: Mapping[str, Mapping[Any, Row]]) -> dict[str, tuple[str, dict[Any, str]]]:
    """split -> (file, its answers), by SPLIT=FILE, by the file's name, or as the only split that fits."""
    found: dict[str, tuple[str, dict[Any, str]]] = {}
    for word in files:
        name, equals, path = word.partition("=")
        if not equals:
            name, path = "", word
        rows = read_rows(path, "answers")
        stem = Path(path).stem.lower()
        named = [name] if name else [s for s in splits if s in stem] if len(splits) > 1 else list(splits)
        if name and name not in splits:
            raise UsageError(f"--answers {word}: no split {name!r}; there is {', '.join(splits)}")
        tried = named if len(named) == 1 else list(splits)
        fits = {}
        for split in tried:
            try:
                fits[split] = given_answers(rows, path, splits[split], split)
            except ValueError:
                if len(tried) == 1:
                    raise
        if len(fits) != 1:
            what = "any of these splits" if fits else "no split"
            raise UsageError(
                f"--answers {word}: may be of {what} ({', '.join(splits)}): say --answers {next(iter(splits))}={path}"
            )
        split = next(iter(fits))
        if split in found:
            raise UsageError(f"--answers {word}: {found[split][0]} holds the answers to {split} already")
        found[split] = path, fits[split]
    return found


# ---- the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("--data", required=True, metavar="DIR|FILE", help="coco_pope_*.json, or a folder of them")
    add_answers(parser, "--answers", "[SPLIT=]FILE", "answers that are there already, a file a split", nargs="+")


def run(args: argparse.Namespace) -> int:
    settled(args)
    data = Path(args.data)
    files = split_files(data)
    splits = {split: questions_of(path) for split, path in files.items()}
    notes: list[str] = []
    if args.answers is not None:
        given = assigned(args.answers, splits)
        if without := [split for split in splits if split not in given]:
            notes.append(f"no answers to {', '.join(without)}")
    else:
        given, notes = asked_of_model(args, splits, data)
    counts = {}
    for split, (source, answers) in given.items():
        rows = splits[split]
        if args.answers is not None:
            notes += paired(list(rows), answers, source, f"questions of {split}", args.partial)
        keys = [key for key in rows if key in answers]
        counts[split] = counted([rows[k]["label"] for k in keys], [answers[k] for k in keys])
        if counts[split].vague:
            notes.append(f"{counts[split].vague:,} answers to {split} say neither yes nor no: they count as yes")
    content = as_json(args, {split: source for split, (source, _) in given.items()}, counts, notes)
    deliver(args, content, report(content))
    return 0


def asked_of_model(
    args: argparse.Namespace, splits: Mapping[str, Mapping[Any, Row]], data: Path
) -> tuple[dict[str, tuple[str, dict[Any, str]]], list[str]]:
    """What the model says to the questions of all splits; a question that stands in several is asked once."""
    import json

    root = data if data.is_dir() else data.parent
    once = dict.fromkeys((row["image"], row["text"]) for rows in splits.values() for row in rows.values())
    questions = [Asked((image, text), text, image) for image, text in once]
    said, notes = ask(args, questions, [root / "images", root])
    given = {
        split: {k: said[row["image"], row["text"]] for k, row in rows.items() if (row["image"], row["text"]) in said}
        for split, rows in splits.items()
    }
    if args.write_answers:
        place = Path(args.write_answers)
        for split, answers in given.items():
            rows = [{"question_id": k, "question": splits[split][k]["text"], "answer": a} for k, a in answers.items()]
            file = place if len(given) == 1 else place.with_name(f"{place.stem}_{split}{place.suffix}")
            write_whole(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return {split: (args.checkpoint, answers) for split, answers in given.items() if answers}, notes


def as_json(
    args: argparse.Namespace, sources: Mapping[str, str], counts: Mapping[str, Counts], notes: Sequence[str]
) -> dict[str, Any]:
    splits = {s: {**c.rates(), **asdict(c), "questions": c.questions, "source": sources[s]} for s, c in counts.items()}
    means = {name: mean([row[name] for row in splits.values()]) for name in RATES}
    return {"data": args.data, "splits": splits, "mean": means, "notes": list(notes)}


def mean(values: Sequence[float | None]) -> float | None:
    """None where one of them is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def report(content: Mapping[str, Any]) -> str:
    splits = content["splits"]
    rows = [
        (name, *(row[c] for c in ("tp", "fp", "tn", "fn")), *(shown(row[rate]) for rate in RATES))
        for name, row in splits.items()
    ]
    if len(splits) > 1:
        rows.append(("mean", "", "", "", "", *(shown(content["mean"][rate]) for rate in RATES)))
    header = ("split", "TP", "FP", "TN", "FN", *RATES.values())
    lines = [f"data  {content['data']}", *(f"note  {note}" for note in content["notes"]), ""]
    return "\n".join([*lines, table(header, rows, right=header[1:])])


def shown(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"
