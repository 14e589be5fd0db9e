"""patchloom show-tokens IMAGE --model MODEL --tokens SPEC: what becomes of each patch, layer by layer."""

import argparse
import json
from pathlib import Path

from ..saved.judge import image_size, load
from ..tables import table, write_whole

EPILOG = """\
A panel for each block. Patches of one token are filled with their mean colour and outlined, dropped ones are dark (and
those that a block only masks or lets pass), patches on their own are as they are. Class and register tokens are not
shown. Where patches are sums of several tokens, each counts to the one that it has most of.

examples:
  patchloom show-tokens photo.jpg --model deit_small_patch16_224 --tokens tome:r=16
  patchloom show-tokens photo.jpg --model runs/shapes/vit/2026-01-31_12-00 --out layers.png"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("image", metavar="IMAGE", help="an image file")
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="a model's name, NAME=FILE, a checkpoint or a run folder"
    )
    parser.add_argument("--tokens", metavar="SPEC", help="a token plugin, e.g. tome:r=8 (the checkpoint's own)")
    parser.add_argument("--out", metavar="FILE", help="the picture, a .png (IMAGE_tokens.png)")
    parser.add_argument("--size", type=image_size, metavar="N|HxW", help="input size, instead of the model's own")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto: a GPU where there is one)")
    parser.add_argument("--random-weights", action="store_true", help="of an untrained network: to try the plumbing")
    parser.add_argument("--json", action="store_true", help="print a list of objects, one a block")


def run(args: argparse.Namespace) -> int:
    from ...data.read import read_image
    from ...data.transforms import evaluation_transform
    from ...vision.plugins import plugins_of
    from ...vision.plugins.words import in_words
    from ..patch_groups import picture, watch

    out = Path(args.out or f"{Path(args.image).stem}_tokens.png")
    if out.suffix != ".png":
        raise ValueError(f"--out {out}: the picture is written as .png")
    image = read_image(args.image)
    judge = load(args.model, random_weights=args.random_weights, size=args.size, device=args.device, tokens=args.tokens)
    attached = [in_words(p) for p in plugins_of(judge.model)]
    if not attached:
        raise ValueError(f"nothing reduces the tokens of {args.model}: add --tokens SPEC, e.g. --tokens tome:r=8")
    x = evaluation_transform(judge.preprocessing)(image)
    layers = watch(judge.model, x[None].to(judge.device))
    write_whole(out, picture(x, judge.preprocessing, layers, f"{args.model}, {', '.join(attached)}"))
    rows = [layer.summary() for layer in layers]
    if args.json:
        print(json.dumps({"picture": str(out), "tokens": attached, "layers": rows}, indent=1))
    else:
        names = ("block", "tokens", "patches", "groups", "merged", "dropped")
        print(table(names, [[row[name] for name in names] for row in rows], right=names[1:]) + f"\n\n{out}")
    return 0
