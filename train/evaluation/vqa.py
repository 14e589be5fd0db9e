"""patchloom eval vqa: VQAv2's accuracy and exact match, of answers in a file or of a vision-language model."""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..cli import UsageError
from ..tables import table, write_whole
from .answers import ANSWER, Asked, add_answers, ask, by_id, field, paired, read_rows, settled, whole
from .coco import deliver
from .vqa_words import exact_match, vqa_accuracy

HELP = "VQAv2's accuracy, and exact match, of answers or a vision-language model"
EXAMPLES = """examples:
  patchloom eval vqa --questions v2_OpenEnded_mscoco_val2014_questions.json \\
    --annotations v2_mscoco_val2014_annotations.json --results answers.json
  patchloom eval vqa --questions daquar/vqa_test.jsonl --checkpoint RUN --write-answers answers.json
Results: VQA's [{"question_id", "answer"}], also as JSON lines. Questions that hold their answers ("answer", "answers")
need no annotations."""
FEW = 2  # people below whom nobody can agree


class Question(NamedTuple):
    question: str
    image: str
    answers: tuple[str, ...]  # of the people who were asked
    kind: str  # yes/no, number or other
    begins: str  # its first words, as VQA groups them


class Verdict(NamedTuple):
    """Percentages over `questions`; `vqa` is None where single answers are all that is known."""

    vqa: float | None
    exact: float
    questions: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("--questions", required=True, metavar="FILE", help="VQA's questions, or lines with answers too")
    parser.add_argument("--annotations", metavar="FILE", help="VQA's annotations, where the questions hold no answers")
    parser.add_argument("--per-question-type", action="store_true", help="print a row for each kind of question too")
    add_answers(parser, "--results", "FILE", "answers that are there already")


def run(args: argparse.Namespace) -> int:
    settled(args)
    questions = read_questions(args.questions, args.annotations)
    if args.per_question_type and not any(q.begins for q in questions.values()):
        raise UsageError("--per-question-type: the annotations tell no question_type")
    if args.results is not None:
        rows = by_id(read_rows(args.results, "answers", ("answers", "results")), ("question_id",), args.results)
        given = {k: str(field(row, ANSWER, f"{args.results}, question {k}")) for k, row in rows.items()}
        source, notes = args.results, paired(list(questions), given, args.results, "questions", args.partial)
    else:
        root = Path(args.questions).parent
        asked = [Asked(key, q.question, q.image) for key, q in questions.items()]
        given, notes = ask(args, asked, [root, root / "images"])
        source = args.checkpoint
        if args.write_answers:
            rows_out = [{"question_id": key, "answer": answer} for key, answer in given.items()]
            write_whole(args.write_answers, json.dumps(rows_out, ensure_ascii=False, indent=0) + "\n")
    content = judged(questions, given)
    content = {"questions": args.questions, "answers": source, **content, "notes": [*notes, *content.pop("notes")]}
    deliver(args, content, report(content, args.per_question_type))
    return 0


# ---- files


def read_questions(file: str, annotations: str | None) -> dict[Any, Question]:
    from ...data.dialogue_files import VQA_NAME

    rows = by_id(read_rows(file, "questions", ("questions",)), ("question_id",), file)
    truth: Mapping[Any, Mapping[str, Any]] = rows
    if annotations is not None:
        truth = by_id(read_rows(annotations, "annotations", ("annotations",)), ("question_id",), annotations)
    subtype, found = whole(file).get("data_subtype", "val2014"), {}
    for key, row in rows.items():
        place = f"{file}, question {key}"
        if key not in truth:
            raise ValueError(f"{place} has no answer in {annotations}")
        own = truth[key]
        given = own.get("answers", own.get("answer"))
        if given is None or given == []:
            hint = "" if annotations else "; name VQA's annotations too (--annotations)"
            raise ValueError(f"{place} has no answers in {annotations or 'it'}{hint}")
        people = [given] if isinstance(given, (str, int, float)) else given
        words = tuple(str(each["answer"] if isinstance(each, Mapping) else each) for each in people)
        image = row.get("image") or row.get("image_id")
        name = VQA_NAME.format(subtype=subtype, image_id=image) if isinstance(image, int) else str(image)
        kind, begins = str(own.get("answer_type", "")), str(own.get("question_type", ""))
        found[key] = Question(str(field(row, ("question", "text"), place)), name, words, kind, begins)
    return found


# ---- numbers


def judged(questions: Mapping[Any, Question], given: Mapping[Any, str]) -> dict[str, Any]:
    """Overall, and by kind of answer and of question where the annotations tell them."""
    groups: dict[str, dict[str, list[tuple[float | None, bool]]]] = {
        "overall": defaultdict(list), "per_answer_type": defaultdict(list), "per_question_type": defaultdict(list),
    }  # fmt: skip
    lonely = 0
    for key, q in questions.items():
        if key not in given:
            continue
        lonely += len(q.answers) < FEW
        own = None if len(q.answers) < FEW else vqa_accuracy(given[key], q.answers)
        row = own, exact_match(given[key], q.answers)
        groups["overall"][""].append(row)
        for group, name in (("per_answer_type", q.kind), ("per_question_type", q.begins)):
            if name:
                groups[group][name].append(row)
    notes = []
    if lonely:
        notes.append(
            f"{lonely:,} questions have a single answer: VQA's accuracy, which is agreement, is not defined there"
        )
    verdicts = {g: {name: verdict(rows)._asdict() for name, rows in sorted(of.items())} for g, of in groups.items()}
    return {"overall": verdicts.pop("overall")[""], **verdicts, "notes": notes}


def verdict(rows: Sequence[tuple[float | None, bool]]) -> Verdict:
    agreed = [own for own, _ in rows if own is not None]
    vqa = 100 * sum(agreed) / len(agreed) if len(agreed) == len(rows) else None
    return Verdict(vqa, 100 * sum(exact for _, exact in rows) / len(rows), len(rows))


def report(content: Mapping[str, Any], per_question_type: bool) -> str:
    rows = [("all", content["overall"]), *content["per_answer_type"].items()]
    if per_question_type:
        rows += content["per_question_type"].items()
    header = ("questions on", "VQA accuracy", "exact match", "questions")
    cells = [
        (name, "n/a" if v["vqa"] is None else f"{v['vqa']:.2f}", f"{v['exact']:.2f}", f"{v['questions']:,}")
        for name, v in rows
    ]
    lines = [
        f"questions  {content['questions']}",
        f"answers    {content['answers']}",
        *(f"note       {note}" for note in content["notes"]),
        "",
    ]
    return "\n".join([*lines, table(header, cells, right=header[1:])])
