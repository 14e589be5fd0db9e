"""`python -m patchloom.train.families` writes docs/families.md: every family with its variants, their figures, and what
its authors published. `--check` says whether the page is up to date."""

import argparse
import sys
from pathlib import Path
from urllib.parse import urlparse

from .models import row

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
INTRODUCTION = """\
# Families

Written by `python -m patchloom.train.families`; do not edit. What each module says of itself stands above its table.

Parameters are those of the published model, frozen tensors included. MACs are multiply-accumulates of matrix products
and convolutions, attention's two products among them, for one image of the stated size; norms, activations, pooling and
other elementwise work are not counted (one counter for all: `patchloom models --recount`). Accuracy is top-1 as the
authors report it for the first file of weights, in percent, on that file's own data; "-" where nobody published
weights. """
HEAD = (
    "| variant | parameters | GMACs | input | weights | accuracy | licence | from |\n|---|---|---|---|---|---|---|---|"
)


def page() -> str:
    from ..vision.families import FAMILIES

    parts = [INTRODUCTION]
    for name, family in FAMILIES.items():
        listed = [n for n, network in family.VARIANTS.items() if network.listed]
        text = (family.__doc__ or "").strip()
        parts.append(f"## {name}\n\n{text}\n\n{HEAD}\n" + "\n".join(map(line, listed)) + "\n")
    return "\n".join(parts)


def line(name: str) -> str:
    """A variant's row."""
    from ..vision.weights import published

    r, weights = row(name), published(name)
    figures = f"{r['parameters']:,} | {r['macs'] / 1e9:.2f} | {r['input'][1]}x{r['input'][2]}"
    if not weights:
        return f"| {name} | {figures} | - | - | - | - |"
    first = weights[0]
    more = f" +{len(weights) - 1}" if len(weights) > 1 else ""
    top1 = first.metrics.get("top1")
    host = urlparse(first.url).netloc or first.url.partition("/")[0]
    accuracy = "-" if top1 is None else f"{top1:.1f}"
    return f"| {name} | {figures} | {first.tag}{more} | {accuracy} | {first.license} | {host} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    wanted = page()
    if args.check:
        return 0 if PAGE.read_text() == wanted else 1
    PAGE.write_text(wanted)
    print(f"wrote {PAGE}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
