"""patchloom generate: images from a trained denoiser, as files and as one sheet."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli import near
from ..saved.judge import image_size, natural, positive
from ..tables import write_whole

if TYPE_CHECKING:
    from torch import Tensor

    from ..saved.maker import Conditions, ImageMaker, MakeSettings

EXAMPLES = """examples:
  patchloom generate --checkpoint runs/shapes/dit/2026-01-31_12-00 --classes star,heart --count 8 --grid out.png
  patchloom generate --checkpoint RUN --classes all --steps 50 --sampler ddim --guidance 2 --seed 7 --out images/
  patchloom generate --checkpoint RUN --captions "a red circle left of a blue square" --grid out.png
  patchloom generate --checkpoint RUN --classes star --inpaint photo.png --mask hole.png --grid out.png
  patchloom generate --checkpoint RUN --captions "…" --panels 1x2 --given left.png --out pairs/
  patchloom generate --checkpoint dit_xl_2_256 --classes 207 --guidance 4 --guidance-channels 3 --grid out.png"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="MODEL", help="a run folder, a checkpoint, a published name, NAME=FILE")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--classes", metavar="A,B|all", help="names or numbers between commas (all of up to 10)")
    what.add_argument("--captions", nargs="+", metavar="TEXT", help="one or more captions, or a .txt with one a line")
    add("--count", type=positive, default=8, metavar="N", help="images of each class or caption (8)")
    add("--out", metavar="DIR", help="write each image, and protocol.json, there")
    add("--grid", metavar="FILE.png", help="write one sheet, a row a class or caption")
    add("--sampler", metavar="NAME", help="ddpm, ddim, euler, heun, dpm++ or dpm-fast (the process's own)")
    add("--steps", metavar="N", help="a number, or a respacing such as ddim50 or 10,20 (what was published)")
    add("--eta", type=float, metavar="X", help="of ddim: 0 adds no noise, 1 as much as ddpm")
    add("--guidance", type=float, default=1.0, metavar="W", help="scale of classifier-free guidance (1: none)")
    add("--guidance-channels", type=positive, metavar="N", help="guide the first N only (3: as DiT was published)")
    add("--guidance-interval", type=interval, metavar="LO,HI", help="guide between these noise levels only")
    add("--guidance-power", type=float, metavar="P", help="let it grow towards the image, DiMR's power-cosine")
    add("--seed", type=natural, default=0, metavar="N", help="image i depends on it and i, not on the batch (0)")
    add("--size", type=image_size, metavar="N|HxW", help="in pixels (what it was trained for)")
    add("--inpaint", metavar="IMAGE", help="make what --mask says of it")
    add("--mask", metavar="IMAGE", help="white is to be made, black stays")
    add("--repeats", type=positive, metavar="N", help="go back and forth so often when inpainting (1)")
    add("--panels", type=panels, metavar="RxC", help="images are sets of panels: cut them apart in --out")
    add("--given", nargs="+", default=[], metavar="IMAGE", help="with --panels: the first ones; the others are made")
    add("--vae", metavar="DIR|NAME", help="decodes latents (that of the data)")
    add("--text", metavar="DIR|NAME", help="encodes captions (that of the run)")
    add("--adapter", metavar="FOLDER", help="a saved adapter, or the run that trained it, with its classes")
    add("--weights", choices=("ema", "raw"), default="ema", help="the average of the weights or themselves (ema)")
    add("--precision", choices=("float32", "bfloat16"), default="float32", help="of the network (float32)")
    add("--batch", type=positive, default=32, metavar="N", help="images at a time (32)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto: a GPU where there is one)")
    add("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(parser=parser)


def interval(text: str) -> tuple[float, float]:
    low, _, high = text.partition(",")
    try:
        return float(low), float(high)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no pair of numbers LO,HI") from None


def panels(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    if not (rows.isdecimal() and columns.isdecimal() and int(rows) * int(columns) > 1):
        raise argparse.ArgumentTypeError(f"{text!r} is no ROWSxCOLUMNS of at least two panels")
    return int(rows), int(columns)


def run(args: argparse.Namespace) -> int:
    check(args)
    import torch

    from ..saved.load_maker import load_maker
    from ..saved.maker import MakeSettings

    maker = load_maker(
        args.checkpoint, device=args.device, ema=args.weights == "ema", adapter=args.adapter, vae=args.vae,
        text=args.text, precision=getattr(torch, args.precision),
    )  # fmt: skip
    steps = int(args.steps) if args.steps and args.steps.isdecimal() else args.steps
    settings = MakeSettings(
        args.sampler, steps, args.guidance, args.guidance_channels, args.guidance_power, args.guidance_interval,
        args.eta, args.seed, args.size,
    )  # fmt: skip
    conditions, titles = wanted(args, maker)
    images = maker.images(conditions, settings, batch=args.batch, progress=True, region=region(args, settings, maker))
    said = written(args, images, maker.protocol(settings), titles)
    if args.json:
        print(json.dumps(said, indent=1, ensure_ascii=False))
    else:
        print("\n".join(f"{name}  {said[name]}" for name in ("grid", "out") if name in said))
    return 0


def check(args: argparse.Namespace) -> None:
    """What can be said of the line before anything is loaded."""
    if not args.out and not args.grid:
        args.parser.error("say where the images go: --out DIR, --grid FILE.png or both")
    if args.grid and Path(args.grid).suffix != ".png":
        raise ValueError(f"--grid {args.grid}: the sheet is written as .png")
    if args.grid and not Path(args.grid).resolve().parent.is_dir():
        raise FileNotFoundError(f"--grid {args.grid}: there is no folder {Path(args.grid).parent}; make it first")
    if args.out and Path(args.out).is_dir() and any(Path(args.out).iterdir()):
        raise ValueError(f"--out {args.out} is not empty: take another folder")
    if bool(args.inpaint) != bool(args.mask):
        args.parser.error("--inpaint IMAGE and --mask IMAGE belong together")
    if args.given and (not args.panels or args.inpaint):
        args.parser.error("--given needs --panels, and does not go with --inpaint")
    if args.repeats and not (args.inpaint or args.given):
        args.parser.error("--repeats needs something that is known: --inpaint IMAGE, or --panels with --given")
    if args.panels and not (args.out or args.given):
        args.parser.error("--panels cuts the images in --out DIR apart: say where")
    if args.given and len(args.given) >= args.panels[0] * args.panels[1]:
        raise ValueError(
            f"--given {len(args.given)} images for {args.panels[0]} x {args.panels[1]} panels: none is left"
        )


def wanted(args: argparse.Namespace, maker: "ImageMaker") -> "tuple[Conditions, list[str]]":
    """(a condition for each image, a title for each row)."""
    if args.captions:
        texts = [line for c in args.captions for line in lines_of(c)]
        return [text for text in texts for _ in range(args.count)], texts
    if maker.model.num_classes is None:
        if args.classes:
            raise ValueError(f"--classes {args.classes}: {maker.model.called} takes no classes")
        return args.count, []
    labels = chosen(args.classes or "all", maker)
    if args.classes in (None, "all") and not args.out:
        labels = labels[:10]
    names = [maker.classes[label] if label < len(maker.classes) else str(label) for label in labels]
    return [label for label in labels for _ in range(args.count)], names


def lines_of(caption: str) -> list[str]:
    if not caption.endswith(".txt"):
        return [caption]
    found = [line.strip() for line in Path(caption).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not found:
        raise ValueError(f"{caption}: no captions in it")
    return found


def chosen(text: str, maker: "ImageMaker") -> list[int]:
    """The labels that names and numbers between commas mean."""
    count = maker.model.num_classes or 0
    if text == "all":
        return list(range(count))
    found = []
    for word in (w.strip() for w in text.split(",") if w.strip()):
        if word in maker.classes:
            found.append(maker.classes.index(word))
        elif word.lstrip("-").isdecimal():
            found.append(int(word))
        else:
            raise ValueError(f"no class {word!r}{near(word, maker.classes)}; there are 0 .. {count - 1}")
    for label in found:
        if not 0 <= label < count:
            raise ValueError(f"class {label} is out of range: {maker.model.called} has 0 .. {count - 1}")
    return found


def region(args: argparse.Namespace, settings: "MakeSettings", maker: "ImageMaker") -> Any:
    """What is known beforehand; None where all is to be made."""
    size = settings.size or maker.size
    if args.inpaint:
        from ..inpaint import read_region

        return read_region(args.inpaint, args.mask, size, args.repeats or 1)
    if args.given:
        from ...data.panels import Layout
        from ...data.read import read_image
        from ..inpaint import Region

        canvas, keep = Layout(*args.panels).canvas([read_image(file) for file in args.given], size)
        return Region(canvas, keep, args.repeats or 1)
    return None


def written(args: argparse.Namespace, images: Any, protocol: dict[str, Any], titles: list[str]) -> dict[str, Any]:
    """Writes files as images come, and the sheet at the end."""
    import torch

    from ..grid import draw_grid

    kept: list[Tensor] = []
    count = 0
    if args.out:
        Path(args.out).mkdir(parents=True, exist_ok=True)
    for x in images:
        if args.out:
            for image in x:
                write_image(image, args, count)
                count += 1
        if args.grid:
            kept.append(x)
    said: dict[str, Any] = {"protocol": protocol}
    if args.out:
        text = json.dumps({**protocol, "count": count}, indent=1, ensure_ascii=False)
        write_whole(Path(args.out) / "protocol.json", text + "\n")
        said |= {"out": args.out, "images": count}
    if args.grid:
        said["grid"] = str(draw_grid(torch.cat(kept), args.count, args.grid, titles))
    return said


def write_image(image: "Tensor", args: argparse.Namespace, number: int) -> None:
    """NUMBER.png, or NUMBER_1.png … of its panels."""
    from PIL import Image

    from ..grid import png

    parts = [image]
    if args.panels:
        from ...data.panels import Layout

        parts = Layout(*args.panels).cut(image)
    for i, part in enumerate(parts, 1):
        suffix = f"_{i}" if args.panels else ""
        picture = Image.fromarray(part.permute(1, 2, 0).contiguous().numpy())
        write_whole(Path(args.out) / f"{number:06}{suffix}.png", png(picture))
