"""patchloom eval fid: Fréchet distance of generated pictures to real ones, inception score, precision and recall."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli import UsageError
from ..saved.judge import add_reading, choose_device, image_size, natural, positive
from ..tables import table
from .coco import add_output, deliver
from .fid_protocol import Numbers, Protocol, expect_same, read_numbers, said

if TYPE_CHECKING:  # torch and the extractors come in with `run`
    from .fid_extract import Extractor
    from .fid_sets import Generated, Real

HELP = "Fréchet (inception) distance, IS, precision and recall of generated pictures"
EXAMPLES = """examples:
  patchloom eval fid --real imagenet/val --generated samples/ --size 256 --out dit.json
  patchloom eval fid --real VIRTUAL_imagenet256_labeled.npz --generated RUN --sampler ddpm --steps 250 --guidance 1.5
  patchloom eval fid --real cifar10/test --generated RUN --count 2000 --features runs/cifar10-cct/2026-01-31_12-00
  patchloom eval fid --real imagenet/train --size 256 --save-statistics imagenet256.npz
  patchloom eval fid --compare dit.json mine.json           (refused where they were not made alike)"""
METRICS = ("fid", "is", "pr")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument(
        "--real", metavar="DIR|FILE.npz", help="real pictures, or statistics (mu, sigma) or pictures (arr_0) of them"
    )
    parser.add_argument(
        "--generated", metavar="DIR|FILE.npz|RUN", help="generated pictures, or a run or checkpoint that makes them"
    )
    parser.add_argument(
        "--features", default="inception", metavar="NAME",
        help="whose features: inception (the reference's), or a model's name, timm:…, a checkpoint or run folder",
    )  # fmt: skip
    parser.add_argument("--metrics", default=",".join(METRICS), metavar="LIST", help="of fid,is,pr (all)")
    parser.add_argument(
        "--count", type=positive, metavar="N", help="generated pictures to judge (all there are; of a run 50,000)"
    )
    parser.add_argument(
        "--size", type=image_size, metavar="N|HxW", help="take the middle of every picture at this size"
    )
    parser.add_argument("--save-statistics", metavar="FILE.npz", help="keep what the extractor tells of the real ones")
    parser.add_argument(
        "--compare", nargs="+", metavar="FILE", help="earlier results (--out), to stand beside this one"
    )
    add_reading(parser, batch=64)
    add_output(parser)
    made = parser.add_argument_group("how the pictures are made by a run, or were made where protocol.json is missing")
    made.add_argument("--sampler", metavar="NAME")
    made.add_argument("--steps", metavar="N", help="as patchloom generate takes it")
    made.add_argument("--guidance", type=float, metavar="SCALE")
    made.add_argument("--seed", type=natural, metavar="N")
    made.add_argument("--decoder", "--vae", metavar="NAME", help="the VAE that makes pictures of latents")
    made.add_argument("--adapter", metavar="FOLDER", help="a saved adapter that goes onto the run's network")
    made.add_argument("--captions", metavar="FILE", help="a caption a line, gone through in order, for a text model")


def run(args: argparse.Namespace) -> int:
    earlier = [read_numbers(file) for file in args.compare or ()]
    wanted = metrics_of(args.metrics)
    if args.real is None and args.generated is None:
        if len(earlier) < 2:
            raise UsageError("nothing to do: name --real and --generated, or two files after --compare")
        return show(args, earlier)
    if args.real is None:
        raise UsageError(f"--generated {args.generated}: name the real pictures too (--real)")
    if args.generated is None and args.save_statistics is None:
        raise UsageError(f"--real {args.real}: name the generated pictures too (--generated), or --save-statistics")
    from .fid_extract import load_extractor
    from .fid_sets import Generated, Real

    device = choose_device(args.device)
    made = None if args.generated is None else Generated.of(args)
    extractor = load_extractor(args.features, device)
    real = Real.of(args, extractor)
    size = real.size_words(made and made.pictures, args.size, extractor)
    wanted = real.can(wanted)
    if made is not None and earlier:
        expect_same([*earlier, Numbers(made.name, protocol_of(extractor, size, real, made, wanted, len(made)), 0.0)])
    about = {"extractor": extractor.name, "resize": extractor.resize, "size": size}
    real.extract(extractor, args, wanted)
    if args.save_statistics:
        from .fid_images import save_statistics

        assert real.found is not None
        save_statistics(Path(args.save_statistics), real.found, about | {"real": real.digest, "source": args.real})
        print(f"statistics: {args.save_statistics}", file=sys.stderr)
    if made is None:
        return 0
    return show(args, [*earlier, judged(args, extractor, size, real, made, wanted)])


def metrics_of(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in METRICS]:
        raise UsageError(f"--metrics {text}: there is no {unknown[0]!r}; of {', '.join(METRICS)}, with commas")
    if "fid" not in names:
        raise UsageError(f"--metrics {text}: without fid there is nothing to compare; add it")
    return names


# ---- numbers


def protocol_of(
    extractor: "Extractor", size: str, real: "Real", made: "Generated", wanted: Sequence[str], count: int
) -> Protocol:
    from .fid_numbers import NEIGHBOURS, SPLITS

    how = {name: value for name, value in made.how.items() if name != "seed"}
    return Protocol(
        extractor.name, extractor.resize, size, real.digest, real.count(), count, **how,
        inception_splits=SPLITS if "is" in wanted else None, neighbours=NEIGHBOURS if "pr" in wanted else None,
    )  # fmt: skip


def judged(
    args: argparse.Namespace, extractor: "Extractor", size: str, real: "Real", made: "Generated", wanted: Sequence[str]
) -> Numbers:
    from .fid_images import extract
    from .fid_numbers import frechet_distance, inception_score, precision_recall

    found = extract(extractor, made.pictures, args.size, batch=args.batch, workers=args.workers, on_error=args.on_error)
    truth, notes = real.found, list(real.notes)
    assert truth is not None
    assert found.features is not None
    assert found.logits is not None
    count = found.moments.count
    if count < len(made):
        notes.append(f"{len(made) - count} of {len(made)} generated pictures could not be read and are left out")
    low = min(count, truth.moments.count or count)
    if low <= found.moments.width:
        notes.append(
            f"{low:,} pictures for {found.moments.width:,} features: the distance is biased upwards, and comparable "
            "only at the same counts"
        )
    precision = recall = None
    if "pr" in wanted and truth.features is not None:
        precision, recall = precision_recall(found.features, truth.features)
    score = inception_score(found.logits) if "is" in wanted else None
    protocol = protocol_of(extractor, size, real, made, wanted, count)
    if missing := protocol.unstated():
        notes.append(f"not stated of the generated pictures: {', '.join(missing)}")
    distance = frechet_distance(found.moments, truth.moments)
    return Numbers(made.name, protocol, distance, score, precision, recall, made.how.get("seed"), tuple(notes))


def show(args: argparse.Namespace, numbers: Sequence[Numbers]) -> int:
    """The last result with the earlier ones above it; raises where they cannot be compared."""
    expect_same(numbers)
    last = numbers[-1]
    content = last.as_json()
    if len(numbers) > 1:
        content["compared"] = [n.as_json() for n in numbers[:-1]]
    deliver(args, content, report(numbers))
    return 0


def report(numbers: Sequence[Numbers]) -> str:
    p = numbers[-1].protocol
    made = ", ".join(f"{name} {said(getattr(p, name))}" for name in ("sampler", "steps", "guidance", "decoder"))
    real = "pictures" if p.real_count is None else f"{p.real_count:,} pictures"
    lines = [
        f"real        {real} ({p.real})",
        f"generated   {p.count:,} pictures: {made}",
        f"extractor   {p.extractor}: {p.resize}; pictures {p.size}",
        *(f"note        {note}" for note in numbers[-1].notes),
        "",
    ]
    header = ("what", "FID" if numbers[-1].label == "fid" else "distance", "IS", "precision", "recall")
    rows = [
        (
            n.what, f"{n.frechet:.3f}", "-" if n.inception is None else f"{n.inception[0]:.2f} ± {n.inception[1]:.2f}",
            *("-" if v is None else f"{v:.4f}" for v in (n.precision, n.recall)),
        )
        for n in numbers
    ]  # fmt: skip
    return "\n".join([*lines, table(header, rows, right=header[1:])])
