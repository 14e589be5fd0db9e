"""patchloom eval zeroshot: classes that are only named, told apart by a contrastive run."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli import UsageError
from ..saved.judge import add_reading, positive
from ..tables import table
from .coco import add_output, deliver

if TYPE_CHECKING:
    from torch import Tensor

HELP = "Acc@1 and Acc@5 of classes that are only named, by a contrastive run"
EXAMPLES = """examples:
  patchloom eval zeroshot RUN --data photos/ --prompts 'a photo of a {}.' 'a picture of a {}.'
  patchloom eval zeroshot RUN --drawn 50       drawn pictures of the combinations that RUN's training never showed"""
SPLITS = ("test", "val")
TOP = (1, 5)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("model", metavar="RUN", help="a contrastive run folder or checkpoint")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", metavar="DIR", help="class folders, or a split folder that holds them")
    source.add_argument(
        "--drawn", type=positive, metavar="N",
        help="N drawn pictures of each kind and colour that training left out, told from all kinds and colours",
    )  # fmt: skip
    parser.add_argument("--split", metavar="NAME", help="the split folder under DIR (test, or val)")
    parser.add_argument(
        "--prompts", nargs="+", default=["{}"], metavar="TEXT", help="what is said of a class, {} where its name goes"
    )
    add_reading(parser, batch=64)
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    if args.drawn is not None and args.split is not None:
        raise UsageError(f"--split {args.split} goes with --data")
    for prompt in args.prompts:
        if prompt.count("{}") != 1:
            raise UsageError(f"--prompts {prompt!r}: it holds {{}} once, where a class's name goes")
    results, pictures = of_folder(args) if args.drawn is None else of_drawings(args)
    content = {
        "model": args.model,
        "data": args.data or f"{args.drawn} drawn pictures of each held-out kind and colour",
        "prompts": args.prompts,
        "pictures": pictures,
        "results": results,
    }
    deliver(args, content, report(content))
    return 0


def of_folder(args: argparse.Namespace) -> tuple[list[dict[str, Any]], int]:
    import torch

    from ...multimodal.two_towers import ZeroShot
    from ..saved.matcher import image_vectors, load_matcher
    from .classes import labelled_files, split_folder

    files, names = labelled_files(split_folder(Path(args.data), args.split, SPLITS))
    classes = sorted(set(names))
    judge, pair, _ = load_matcher(args.model, args.device)
    network = ZeroShot(pair, [name.replace("_", " ") for name in classes], args.prompts)
    at, image = image_vectors(judge, pair, files, batch=args.batch, workers=args.workers, on_error=args.on_error)
    target = torch.tensor([classes.index(names[i]) for i in at])
    return [measured("the class folders", image @ network.vectors.cpu().mT, target)], len(at)


def of_drawings(args: argparse.Namespace) -> tuple[list[dict[str, Any]], int]:
    """Pictures of each pair that training left out, told from all pairs, and from those left out alone."""
    import torch
    from PIL import Image

    from ...data.questions import named
    from ...data.sample import COLOURS, KINDS
    from ...data.shapes import Shapes
    from ...data.transforms import evaluation_transform
    from ...multimodal.two_towers import ZeroShot
    from ..saved.matcher import load_matcher

    judge, pair, held = load_matcher(args.model, args.device)
    if not held:
        raise ValueError(f"{args.model}: its training left out no kind and colour of drawn pictures; name --data DIR")
    every = [(kind, colour) for kind in KINDS for colour in COLOURS]
    network = ZeroShot(pair, [named(each) for each in every], args.prompts)
    transform, vectors, target = evaluation_transform(judge.preprocessing), [], []
    for number, each in enumerate(held):
        shapes = Shapes(
            args.drawn, tuple(judge.preprocessing["input_size"][1:]), "class", number, "test", featured=[each]
        )
        for start in range(0, args.drawn, args.batch):
            drawn = [shapes[i] for i in range(start, min(start + args.batch, args.drawn))]
            x = torch.stack([transform(Image.fromarray(sample.image)) for sample in drawn])
            with torch.inference_mode():
                vectors.append(pair.of_images(x.to(judge.device)).cpu())
        target += [every.index(each)] * args.drawn
    score, truth = torch.cat(vectors) @ network.vectors.cpu().mT, torch.tensor(target)
    columns = torch.tensor([every.index(each) for each in held])
    results = [measured("all kinds and colours", score, truth)]
    if len(held) > 1:
        among = (truth[:, None] == columns).int().argmax(1)
        results.append(measured("the held-out ones", score[:, columns], among))
    return results, len(truth)


def measured(among: str, score: "Tensor", target: "Tensor") -> dict[str, Any]:
    """Percentages of pictures whose class is among the best k; equal scores, and NaN, count against it."""
    own = score.gather(1, target[:, None])
    rank = (~(score < own)).sum(1)
    count = score.shape[1]
    found: dict[str, Any] = {"among": among, "classes": count}
    for k in TOP:
        found[f"acc{k}"] = 100 * float((rank <= k).double().mean())
    return found | {"chance": 100 / count, "times_chance": found["acc1"] * count / 100}


def report(content: Mapping[str, Any]) -> str:
    rows = [
        (f"{r['among']} ({r['classes']:,})", *(f"{r[name]:.2f}" for name in ("acc1", "acc5", "chance", "times_chance")))
        for r in content["results"]
    ]
    header = ("told from", "Acc@1", "Acc@5", "chance", "Acc@1 / chance")
    lines = [
        f"model     {content['model']}",
        f"data      {content['data']}: {content['pictures']:,} pictures",
        f"prompts   {', '.join(content['prompts'])}",
        "",
    ]
    return "\n".join([*lines, table(header, rows, right=header[1:])])
