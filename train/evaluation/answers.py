"""Questions with pictures, and answers to them: given in a file, or asked of a vision-language model."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..cli import UsageError
from ..saved.judge import positive
from .coco import add_output, settle

Row = dict[str, Any]
DEFAULTS: dict[str, Any] = {
    "images": None, "prompt": "{}", "most": None, "batch": 16, "device": "auto", "on_error": "stop",
    "write_answers": None,
}  # fmt: skip
ANSWER = ("answer", "text", "caption", "response")  # the first that a row has is what was answered


class Asked(NamedTuple):
    """What a model is asked, of the picture in `image` (as the questions name it)."""

    id: Any
    question: str
    image: str


# ---- files


def read_rows(path: str | Path, what: str, within: Sequence[str] = ()) -> list[Row]:
    """The objects of a JSON list, of JSON lines (whatever the file is called), or of the list that a JSON object holds
    under one of the names `within`. Raises ValueError that names the file and the line."""
    from ...data.folders import existing

    path = existing(path)
    text = path.read_text(encoding="utf-8")
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = [parsed(line, f"{path}:{i}") for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    if isinstance(found, dict):
        held = next((name for name in within if isinstance(found.get(name), list)), None)
        found = [found] if held is None else found[held]
    if not isinstance(found, list) or not found:
        raise ValueError(f"{path}: holds no {what}: a JSON list of objects, or one a line, is due")
    for i, row in enumerate(found):
        if not isinstance(row, dict):
            raise ValueError(f"{path}: entry {i} is {str(row)[:60]!r}: {what} are objects, one each")
    return found


def whole(path: str | Path) -> Row:
    """What a file of rows says beside them: the object that it is; {} of a list or of lines."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def parsed(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: no JSON ({error.msg})") from error


def field(row: Mapping[str, Any], names: Sequence[str], place: str) -> Any:
    """The first of the fields that the row has."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise ValueError(f"{place}: has {', '.join(row) or 'nothing'}; {' or '.join(names)} is due")


def by_id(rows: Sequence[Row], names: Sequence[str], source: str) -> dict[Any, Row]:
    """The rows by what the first of `names` that they have says; a second one of the same is an error."""
    found: dict[Any, Row] = {}
    for i, row in enumerate(rows):
        key = field(row, names, f"{source}, entry {i}")
        if key in found:
            raise ValueError(f"{source}: {names[0]} {key} is there twice")
        found[key] = row
    return found


def paired(wanted: Sequence[Any], given: Mapping[Any, Any], source: str, what: str, partial: bool) -> list[str]:
    """Notes on what of `wanted` (ids) is not in `given`; an error unless `partial`, and for ids that nobody asked."""
    known = set(wanted)
    strange = [key for key in given if key not in known]
    if strange:
        raise ValueError(f"{source}: {len(strange):,} answers are to no {what} of the data, the first to {strange[0]}")
    missing = [key for key in wanted if key not in given]
    if not missing:
        return []
    said = f"{len(missing):,} of {len(wanted):,} have no answer in {source}, the first of them {missing[0]}"
    if len(missing) == len(wanted):
        raise ValueError(f"{what}: {said}")
    if not partial:
        raise ValueError(f"{what}: {said} (--partial judges the others)")
    return [f"{said}: left out, so these are not the official numbers"]


# ---- a model


def add_answers(
    parser: argparse.ArgumentParser, option: str, metavar: str, text: str, nargs: str | None = None
) -> None:
    """Where answers come from, and how a model is asked for them."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(option, metavar=metavar, nargs=nargs, help=text)
    source.add_argument("--checkpoint", metavar="RUN", help="a vision-language run, its checkpoint or a LLaVA's folder")
    parser.add_argument("--partial", action="store_true", help="judge what is answered where some answers are missing")
    add_output(parser)
    only = parser.add_argument_group("with --checkpoint")
    only.add_argument("--images", metavar="DIR", help="the pictures (DATA/images, or DATA, by what the data names)")
    only.add_argument("--prompt", metavar="TEXT", help="what is asked, {} where the question goes ({})")
    only.add_argument("--most", type=positive, metavar="N", help="tokens of an answer, at most (the checkpoint's own)")
    only.add_argument("--write-answers", metavar="FILE", help="keep the answers, in the form that can be judged again")
    only.add_argument("--batch", type=positive, metavar="N", help="questions at a time (16)")
    only.add_argument("--device", help="auto, cpu, cuda or cuda:N (auto: a GPU where there is one)")
    only.add_argument("--on-error", choices=("stop", "skip"), help="what to do at a missing or unreadable image (stop)")


def settled(args: argparse.Namespace) -> None:
    """Fills in what goes with --checkpoint; raises for what does not go with answers that are there already."""
    settle(args, DEFAULTS)
    if args.prompt.count("{}") != 1:
        raise UsageError(f"--prompt {args.prompt!r}: it holds {{}} once, where the question goes")


def ask(
    args: argparse.Namespace, questions: Sequence[Asked], roots: Sequence[Path]
) -> tuple[dict[Any, str], list[str]]:
    """(answers by id, notes): what the model of --checkpoint says to each question, greedily."""
    from tqdm import tqdm

    from ...data.read import UnreadableImage, read_image
    from ..saved.talker import load_talker

    files = located(questions, roots if args.images is None else [Path(args.images)], args.on_error)
    talker = load_talker(args.checkpoint, device=args.device)
    answers: dict[Any, str] = {}
    with tqdm(total=len(files), unit="question", desc="eval", disable=None, file=sys.stderr) as bar:
        for start in range(0, len(files), args.batch):
            batch, read = files[start : start + args.batch], []
            for asked, file in batch:
                try:
                    read.append((asked, read_image(file)))
                except UnreadableImage as error:
                    if args.on_error == "stop":
                        raise UnreadableImage(error.file, f"{error.reason} (--on-error skip leaves it out)") from None
            said = talker.answers(
                [(args.prompt.replace("{}", asked.question), (picture,)) for asked, picture in read],
                batch=args.batch, **({} if args.most is None else {"most": args.most}),
            )  # fmt: skip
            answers |= {asked.id: text for (asked, _), text in zip(read, said, strict=True)}
            bar.update(len(batch))
    left = len(questions) - len(answers)
    if not answers:
        raise ValueError(f"none of the pictures of {len(questions):,} questions could be read")
    note = f"{left:,} of {len(questions):,} are left out, whose pictures are missing or unreadable: not the official"
    return answers, [f"{note} numbers"] * bool(left)


def located(questions: Sequence[Asked], roots: Sequence[Path], on_error: str) -> list[tuple[Asked, Path]]:
    """Each question with the file of its picture below one of `roots`."""
    found, missing = [], []
    for asked in questions:
        file = next((root / asked.image for root in roots if (root / asked.image).is_file()), None)
        if file is None:
            missing.append(asked.image)
        else:
            found.append((asked, file))
    if missing and (on_error == "stop" or not found):
        raise FileNotFoundError(
            f"{len(set(missing)):,} pictures are not in {' or '.join(map(str, roots))}, the first {missing[0]}: "
            "name their folder with --images (--on-error skip leaves their questions out)"
        )
    return found
