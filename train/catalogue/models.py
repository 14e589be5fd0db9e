"""patchloom models: every variant by name, with its parameters, MACs, input and published weights."""

import argparse
import difflib
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from ..tables import short, table, write_whole
from .figures import FIGURES

EXAMPLES = """examples:
  patchloom models 'swin*'
  patchloom models --pretrained --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument(
        "pattern", nargs="?", default="", metavar="PATTERN", help="names with * and ?, e.g. 'swin*' (all)"
    )
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.add_argument("--pretrained", action="store_true", help="only those with published weights")
    parser.add_argument(
        "--recount", action="store_true", help="count anew, instead of the figures that the package holds"
    )


def run(args: argparse.Namespace) -> int:
    rows = [row(name, recount=args.recount) for name in names(args.pattern, args.pretrained)]
    print(json.dumps(rows, indent=1) if args.json else as_table(rows))
    return 0


def names(pattern: str = "", pretrained: bool = False) -> list[str]:
    """Names that match; raises with near ones where none does."""
    from ...vision import zoo

    found = zoo.list_models(pattern, pretrained=pretrained, include_tags=False)
    if not found:
        known = zoo.list_models()
        close = difflib.get_close_matches(pattern.strip("*?").partition(".")[0], known, n=3, cutoff=0.5)
        what = "with published weights " if pretrained else ""
        hint = f"did you mean {', '.join(close)}?" if close else f"patchloom models lists all {len(known)}"
        raise ValueError(f"no model {what}matches {pattern!r}; {hint}")
    return found


def row(name: str, *, recount: bool = False) -> dict[str, Any]:
    """What `model_info` says of `name`, from the held figures while the network is the one that was counted."""
    from ...vision import zoo

    found = zoo.resolve(name)
    mark, *figures = FIGURES.get(name, ("", 0, 0, 0))
    if recount or mark != fingerprint(found.network):
        info = zoo.model_info(name)
        figures = [info.parameters, info.trainable, info.macs]
    parameters, trainable, macs = figures
    return {
        "name": name, "family": found.network.family, "parameters": parameters, "trainable": trainable, "macs": macs,
        "input": [3, *found.network.size], "weights": [w.tag for w in found.weights],
    }  # fmt: skip


def fingerprint(network: object) -> str:
    """Eight digits that change with a network's stages and parts (frozen dataclasses: their repr is all they are)."""
    fields = {k: v for k, v in vars(network).items() if not callable(v)}
    return hashlib.sha256(repr(fields).encode()).hexdigest()[:8]


def as_table(rows: list[dict[str, Any]]) -> str:
    header = ("name", "family", "params", "MACs", "input", "weights")
    cells = [
        (r["name"], r["family"], short(r["parameters"]), short(r["macs"]), size(r["input"]), shown(r["weights"]))
        for r in rows
    ]  # fmt: skip
    return table(header, cells, right=("params", "MACs"))


def size(shape: list[int]) -> str:
    return "x".join(map(str, shape))


def shown(tags: list[str]) -> str:
    """The default and the number of the others: `patchloom weights list` and --json have them all."""
    return "-" if not tags else tags[0] + (f" +{len(tags) - 1}" if len(tags) > 1 else "")


def write_figures() -> Path:
    """Counts whatever is new or has changed, and writes figures.py."""
    from ...vision import zoo

    path = Path(__file__).with_name("figures.py")
    lines = []
    for name in names():
        r = row(name)
        figures = ", ".join(f"{r[key]:_}" for key in ("parameters", "trainable", "macs"))
        lines.append(f'    "{name}": ("{fingerprint(zoo.VARIANTS[name])}", {figures}),\n')
    head = path.read_text().partition("FIGURES:")[0]
    return write_whole(path, f"{head}FIGURES: dict[str, tuple[str, int, int, int]] = {{\n{''.join(lines)}}}\n")


if __name__ == "__main__":
    print(f"wrote {write_figures()}", file=sys.stderr)
