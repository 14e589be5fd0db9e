"""patchloom demo: the page on which every task is tried on one's own pictures, served on this machine."""

import argparse
import sys
import time
from pathlib import Path

EXAMPLES = """examples:
  patchloom demo                                             what lies under runs/; small models are trained at a button
  patchloom demo --checkpoint runs/shapes/cct/2026-01-31_12-00-00 swin_tiny=weights.pth
  patchloom demo --train                                     first train the small models that runs/ lacks
  patchloom demo --port 8000 --open"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument(
        "--checkpoint", nargs="+", default=[], metavar="MODEL",
        help="run folders, checkpoints, NAME=FILE, published names, or folders of LLaVA: beside what lies in --runs",
    )  # fmt: skip
    parser.add_argument("--runs", default="runs", metavar="DIR", help="the folder of runs (runs)")
    parser.add_argument("--port", type=port, metavar="N", help="on 127.0.0.1 (the first free one from 7860 on)")
    parser.add_argument("--share", action="store_true", help="a public address by Gradio's servers, for 72 hours")
    parser.add_argument("--train", action="store_true", help="first train the small models of which DIR has none")
    parser.add_argument("--open", action="store_true", help="open it in the browser")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto: a GPU where there is one)")
    parser.add_argument("--seconds", type=seconds, default=90.0, metavar="S", help="a request may take so long (90)")


def port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port, from 1 to 65535")
    return int(text)


def seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return found


def run(args: argparse.Namespace) -> int:
    import gradio  # noqa: F401  what is not installed is said before anything is trained

    from ..saved.judge import choose_device
    from .app import App
    from .limits import Limits
    from .page import serve
    from .shelf import Shelf
    from .starters import Trainer

    choose_device(args.device)
    if Path(args.runs).exists() and not Path(args.runs).is_dir():
        raise NotADirectoryError(f"--runs {args.runs} is a file: name the folder of runs")
    shelf = Shelf(args.runs, args.checkpoint, device=args.device)
    if args.train:
        trainer = Trainer(args.runs)
        try:
            trainer.all()
        finally:
            trainer.end()
    app = App(shelf, Limits(seconds=args.seconds), trains=not args.share)
    try:
        page, address = serve(app, port=args.port, share=args.share, browser=args.open)
        count = len(shelf.entries())
        print(f"patchloom demo: {address} ({count} models; Ctrl-C ends it)", flush=True)
        try:
            while page.is_running:
                time.sleep(0.2)
        except KeyboardInterrupt:  # how it is meant to end
            print("patchloom demo: closed", file=sys.stderr)
        finally:
            page.close(verbose=False)
    finally:
        app.close()
    return 0
