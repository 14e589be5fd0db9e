"""patchloom pull: a model from a repository that patchloom push wrote, on the Hugging Face hub or in a folder."""

import argparse
import json
import sys
from pathlib import Path

EXAMPLES = """examples:
  patchloom pull OWNER/flowers && patchloom predict flowers photo.jpg
  patchloom pull ./swin --out model"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("place", metavar="OWNER/NAME|./DIR", help="the repository, or a folder laid out like one")
    parser.add_argument("--out", metavar="DIR", help="where it goes (NAME, here)")
    parser.add_argument("--revision", metavar="NAME", help="a branch, tag or commit")
    parser.add_argument("--json", action="store_true", help='print {"place", "folder"}')


def run(args: argparse.Namespace) -> int:
    from ..export.hub import README, HubError, Place, pull

    place = Place.of(args.place, args.revision)
    name = place.repository.rpartition("/")[2] if place.folder is None else place.folder.resolve().name
    out = Path(args.out or name)
    if place.folder is not None and out.resolve() == place.folder.resolve():
        raise HubError(f"{place} is where it would go: name another folder with --out")
    folder = pull(place, out)
    print(json.dumps({"place": args.place, "folder": str(folder)}) if args.json else folder)
    print(f"{folder / README} says how it is used", file=sys.stderr)
    return 0
