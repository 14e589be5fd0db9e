"""patchloom eval retrieval: recall at 1, 5 and 10 between pictures and captions, of a contrastive run or of vectors."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli import UsageError
from ..saved.judge import natural, positive
from ..tables import table
from .coco import add_output, add_source, deliver, settle

if TYPE_CHECKING:
    from .recall import Recall, Retrieval

HELP = "recall@1, 5, 10 between pictures and captions, both ways, of a contrastive run or of vectors"
EXAMPLES = """examples:
  patchloom eval retrieval --checkpoint RUN --captions flickr8k/captions_test.jsonl
  patchloom eval retrieval --checkpoint RUN --captions captions_val2017.json --images coco/val2017 --json
  patchloom eval retrieval --vectors vectors.safetensors
Vectors: a safetensors file with image (N d), text (M d), of (M): the picture of each text."""
DEFAULTS = {"captions": None, "images": None, "batch": 64, "workers": 2, "device": "auto", "on_error": "stop"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    add_source(parser, "--vectors", "FILE", "vectors that are there already")
    add_output(parser)
    only = parser.add_argument_group("with --checkpoint")
    only.add_argument("--captions", metavar="FILE", help="COCO's captions_*.json, or lines with image and captions")
    only.add_argument("--images", metavar="DIR", help="the pictures (where the captions' place doesn't tell)")
    only.add_argument("--batch", type=positive, metavar="N", help="pictures or captions at a time (64)")
    only.add_argument("--workers", type=natural, metavar="N", help="processes that read pictures (2)")
    only.add_argument("--device", help="auto, cpu, cuda or cuda:N (auto: a GPU where there is one)")
    only.add_argument("--on-error", choices=("stop", "skip"), help="what to do at an unreadable picture (stop)")


def run(args: argparse.Namespace) -> int:
    settle(args, DEFAULTS)
    if args.checkpoint is not None and args.captions is None:
        raise UsageError(f"--checkpoint {args.checkpoint}: name the captions too (--captions FILE)")
    found, notes = of_vectors(args.vectors) if args.checkpoint is None else of_checkpoint(args)
    content = {
        "source": args.checkpoint or args.vectors,
        "captions": args.captions,
        "image_to_text": as_json(found.image_to_text),
        "text_to_image": as_json(found.text_to_image),
        "mean_recall": found.mean,
        "notes": notes,
    }
    deliver(args, content, report(content))
    return 0


def of_vectors(file: str) -> "tuple[Retrieval, list[str]]":
    import torch

    from ..running.checkpoint import read
    from .recall import retrieval

    held = read(file)["state_dict"] if Path(file).suffix == ".safetensors" else read(file)
    if missing := [name for name in ("image", "text", "of") if name not in held]:
        raise ValueError(f"{file}: has no {missing[0]}; image (N d), text (M d) and of (M) are due")
    image, text, of = held["image"], held["text"], held["of"].long()
    if of.ndim != 1 or not 0 < len(of) == len(text) or int(of.min()) < 0 or int(of.max()) >= len(image):
        raise ValueError(f"{file}: of has shape {tuple(of.shape)}: for each of {len(text)} texts its picture, 0 to "
                         f"{len(image) - 1}")  # fmt: skip
    norm = torch.nn.functional.normalize
    return retrieval(norm(image.double(), dim=-1), norm(text.double(), dim=-1), of), []


def of_checkpoint(args: argparse.Namespace) -> "tuple[Retrieval, list[str]]":
    import torch

    from ..saved.matcher import image_vectors, load_matcher, text_vectors
    from .answers import Asked, located
    from .caption import beside, read_captions
    from .recall import retrieval

    truth = read_captions(args.captions)
    root = Path(args.captions).parent
    roots = [root, root / "images", *beside(root, args.captions)] if args.images is None else [Path(args.images)]
    asked = [Asked(key, "", file) for key, file in truth.files.items()]
    there = located(asked, roots, args.on_error)
    judge, pair, _ = load_matcher(args.checkpoint, args.device)
    files = [file for _, file in there]
    indices, image = image_vectors(judge, pair, files, batch=args.batch, workers=args.workers, on_error=args.on_error)
    captions = [truth.captions[there[i][0].id] for i in indices]
    of = torch.tensor([row for row, own in enumerate(captions) for _ in own])
    flat = [caption for own in captions for caption in own]
    words = {caption: number for number, caption in enumerate(dict.fromkeys(flat))}
    found = retrieval(image, text_vectors(pair, flat, args.batch), of, torch.tensor([words[c] for c in flat]))
    left = len(truth.captions) - len(indices)
    return found, [f"{left:,} of {len(truth.captions):,} pictures could not be read: left out"] * bool(left)


def as_json(one: "Recall") -> dict[str, Any]:
    whole = asdict(one)
    return {
        **{f"r{k}": value for k, value in whole["at"].items()},
        "median_rank": one.median_rank,
        "queries": one.queries,
        "chance": {f"r{k}": value for k, value in whole["chance"].items()},
    }


def report(content: Mapping[str, Any]) -> str:
    rows = []
    for name, title in (("image_to_text", "picture to text"), ("text_to_image", "text to picture")):
        one = content[name]
        rows.append(
            (title, *(f"{one[f'r{k}']:.2%}" for k in (1, 5, 10)), f"{one['median_rank']:g}", f"{one['queries']:,}")
        )
        rows.append(("  by chance", *(f"{one['chance'][f'r{k}']:.2%}" for k in (1, 5, 10)), "", ""))
    header = ("from", "R@1", "R@5", "R@10", "median rank", "queries")
    lines = [f"vectors  {content['source']}", *(f"note     {note}" for note in content["notes"]), ""]
    return "\n".join(
        [*lines, table(header, rows, right=header[1:]), f"\nmean of the recalls  {content['mean_recall']:.2%}"]
    )
