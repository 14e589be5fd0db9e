"""patchloom push: a model into a repository of the Hugging Face hub, or a folder laid out like one."""

import argparse
import json

EXAMPLES = """examples:
  patchloom push runs/flowers/2026-01-31_12-00 OWNER/flowers --private
  patchloom push swin_tiny ./swin                       a folder, without any network
  patchloom push runs/flowers/2026-01-31_12-00/adapter ./adapter

Who may write on the hub is told by huggingface_hub's own login (hf auth login)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("model", metavar="MODEL", help="a run folder, checkpoint, saved adapter, name or NAME=FILE")
    parser.add_argument("place", metavar="OWNER/NAME|./DIR", help="the repository, or a folder")
    parser.add_argument("--license", metavar="NAME", help="of the weights, e.g. apache-2.0 (what is known of them)")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument("--revision", metavar="NAME", help="the branch to write to")
    parser.add_argument("--message", default="", metavar="TEXT", help="of the commit")
    parser.add_argument("--json", action="store_true", help='print {"model", "place"}')


def run(args: argparse.Namespace) -> int:
    from ..export.hub import Place, push

    place = Place.of(args.place, args.revision)
    made = push(args.model, place, license=args.license, private=args.private, message=args.message)
    print(json.dumps({"model": args.model, "place": made}) if args.json else made)
    return 0
