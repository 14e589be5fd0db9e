"""patchloom eval caption: CIDEr, BLEU and ROUGE-L of captions in a file or of a vision-language model."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..cli import UsageError
from ..tables import table, write_whole
from .answers import ANSWER, Asked, add_answers, ask, by_id, field, paired, read_rows, settled, whole
from .caption_score import JAVA, TOKENIZERS, score
from .coco import deliver

HELP = "CIDEr, BLEU and ROUGE-L of captions, in a file or by a vision-language model"
EXAMPLES = """examples:
  patchloom eval caption --captions captions_val2017.json --results captions.json
  patchloom eval caption --captions flickr8k/captions_test.jsonl --checkpoint RUN --write-answers captions.json
Results: COCO's [{"image_id", "caption"}], or {"image", "caption"}; also as JSON lines."""
METRICS = ("cider", "bleu", "rouge")
ASK = "describe the picture."
KEYS = ("image_id", "image", "file_name")


class Truth(NamedTuple):
    """What people wrote of pictures: by the id that results name them by; `files` of the pictures."""

    captions: dict[Any, list[str]]
    files: dict[Any, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument(
        "--captions", required=True, metavar="FILE", help="COCO's captions_*.json, or lines with captions"
    )
    parser.add_argument("--metrics", default=",".join(METRICS), metavar="LIST", help="of cider,bleu,rouge (all)")
    parser.add_argument(
        "--tokenizer", choices=TOKENIZERS, default="own",
        help="how captions become words: own, or ptb, COCO's own, which needs Java (own)",
    )  # fmt: skip
    parser.add_argument("--ask", default=ASK, metavar="TEXT", help=f"with --checkpoint: what is asked ({ASK})")
    add_answers(parser, "--results", "FILE", "captions that are there already")


def run(args: argparse.Namespace) -> int:
    settled(args)
    wanted = metrics_of(args.metrics)
    truth = read_captions(args.captions)
    if args.results is not None:
        rows = by_id(read_rows(args.results, "captions", ("annotations",)), KEYS, args.results)
        given = {k: str(field(row, ("caption", *ANSWER), f"{args.results}, {k}")) for k, row in rows.items()}
        source, notes = args.results, paired(list(truth.captions), given, args.results, "pictures", args.partial)
    else:
        root = Path(args.captions).parent
        asked = [Asked(key, args.ask, file) for key, file in truth.files.items()]
        given, notes = ask(args, asked, [root, root / "images", *beside(root, args.captions)])
        source = args.checkpoint
        if args.write_answers:
            kind = "image_id" if all(isinstance(key, int) for key in given) else "image"
            rows_out = [{kind: key, "caption": caption} for key, caption in given.items()]
            write_whole(args.write_answers, json.dumps(rows_out, ensure_ascii=False, indent=0) + "\n")
    keys = [key for key in truth.captions if key in given]
    found = score({str(k): truth.captions[k] for k in keys}, {str(k): given[k] for k in keys}, args.tokenizer)
    if len(keys) == 1:
        notes.append("CIDEr weighs words by how rare they are among pictures: of a single picture it is 0")
    content = {
        "captions": args.captions,
        "answers": source,
        "pictures": len(keys),
        "tokenizer": "Stanford's" if args.tokenizer == "ptb" else "own, PTB-like",
        "metrics": {name: value for name, value in found.overall.items() if name.lower().startswith(tuple(wanted))},
        "notes": notes,
    }
    deliver(args, content, report(content))
    return 0


def metrics_of(text: str) -> list[str]:
    names = text.lower().split(",")
    for name in names:
        if name in JAVA:
            raise UsageError(f"--metrics {text}: {JAVA[name]} is a Java program with data of its own, which is not run "
                             f"here; of {', '.join(METRICS)}, with commas")  # fmt: skip
        if name not in METRICS:
            raise UsageError(f"--metrics {text}: there is no {name!r}; of {', '.join(METRICS)}, with commas")
    return names


def beside(root: Path, captions: str) -> list[Path]:
    """COCO's layout: the split's folder, named as the file is, beside annotations/ or in images/ there."""
    split = Path(captions).stem.rpartition("_")[2]
    return [root.parent / split, root.parent / "images" / split]


def read_captions(file: str) -> Truth:
    """COCO's {"images", "annotations": [{"image_id", "caption"}]}, or lines {"image", "captions"} (or "caption")."""
    rows = read_rows(file, "captions", ("annotations",))
    files: dict[Any, str] = {}
    captions: dict[Any, list[str]] = {}
    for i, row in enumerate(rows):
        key = field(row, KEYS, f"{file}, entry {i}")
        said = field(row, ("captions", "caption"), f"{file}, entry {i}")
        captions.setdefault(key, []).extend([said] if isinstance(said, str) else said)
        files.setdefault(key, str(row.get("file_name", key)))
    if empty := [key for key, said in captions.items() if not said]:
        raise ValueError(f"{file}: {empty[0]} has no caption")
    if any("image_id" in row for row in rows):
        files |= {image["id"]: image["file_name"] for image in whole(file).get("images", ())}
    return Truth(captions, {key: files[key] for key in captions})


def report(content: Mapping[str, Any]) -> str:
    rows: Sequence[tuple[str, str]] = [(name, f"{value:.4f}") for name, value in content["metrics"].items()]
    lines = [
        f"captions   {content['captions']}: {content['pictures']:,} pictures",
        f"answers    {content['answers']}",
        f"tokenizer  {content['tokenizer']}",
        *(f"note       {note}" for note in content["notes"]),
        "",
    ]
    return "\n".join([*lines, table(("metric", "value"), rows, right=("value",))])
