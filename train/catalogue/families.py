"""`python -m patchloom.train.catalogue.families` writes docs/families.md: every family with its variants, their
figures, and what its authors published. `--check` says whether the page is up to date, `--count` counts
the denoisers first."""

import argparse
import sys
from pathlib import Path
from urllib.parse import urlparse

from ..tables import write_whole
from . import denoisers
from .models import fingerprint, row

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
INTRODUCTION = """\
# Families

Written by `python -m patchloom.train.catalogue.families`; do not edit. What each module says of itself stands above
its table.

Parameters are those of the published model, frozen tensors included. MACs are multiply-accumulates of matrix products
and convolutions, attention's two products among them, for one image of the stated size; norms, activations, pooling and
other elementwise work are not counted (one counter for all: `patchloom models --recount`). Accuracy is top-1 as the
authors report it for the first file of weights, in percent, on that file's own data; "-" where nobody published
weights. """
HEAD = (
    "| variant | parameters | GMACs | input | weights | accuracy | licence | from |\n|---|---|---|---|---|---|---|---|"
)

DENOISING = """\
`create_model(name)` and `list_models(kind="denoiser")`; what they take and how they are trained:
[denoisers](denoisers.md). Counted for one latent of the size that each was made for, one network call."""
DENOISER_HEAD = "| variant | family | parameters | GMACs | weights | licence |\n|---|---|---|---|---|---|"


def page() -> str:
    from ...vision.families import FAMILIES

    parts = [INTRODUCTION]
    for name, family in FAMILIES.items():
        listed = [n for n, network in family.VARIANTS.items() if network.listed]
        text = (family.__doc__ or "").strip()
        parts.append(f"## {name}\n\n{text}\n\n{HEAD}\n" + "\n".join(map(line, listed)) + "\n")
    return "\n".join([*parts, denoiser_section()])


def denoiser_section() -> str:
    """The section on the networks of vision/generation."""
    from ...vision.zoo import list_models

    rows = "\n".join(denoiser_line(name) for name in list_models(kind="denoiser"))
    return f"## Denoisers\n\n{DENOISING}\n\n{DENOISER_HEAD}\n{rows}\n"


def denoiser_line(name: str) -> str:
    from ...vision.generation import DENOISERS
    from ...vision.weights import published

    made, weights = DENOISERS[name], published(name)
    mark, parameters, macs = denoisers.FIGURES[name]
    assert mark == fingerprint(made), f"{name} was counted when it was another: --count"
    tags = "-" if not weights else weights[0].tag + (f" +{len(weights) - 1}" if len(weights) > 1 else "")
    figures = f"{parameters:,} | {macs / 1e9:.2f}"
    return f"| {name} | {made.family} | {figures} | {tags} | {weights[0].license if weights else '-'} |"


def count() -> Path:
    """Counts all denoisers anew, which takes minutes, and writes denoisers.py."""
    from ...vision.generation import DENOISERS
    from ...vision.zoo import list_models, model_info

    path = Path(denoisers.__file__)
    lines = []
    for name in list_models(kind="denoiser"):
        info = model_info(name)
        lines.append(f'    "{name}": ("{fingerprint(DENOISERS[name])}", {info.parameters:_}, {info.macs:_}),\n')
    head = path.read_text().partition("FIGURES:")[0]
    return write_whole(path, f"{head}FIGURES: dict[str, tuple[str, int, int]] = {{\n{''.join(lines)}}}\n")


def line(name: str) -> str:
    """A variant's row."""
    from ...vision.weights import published

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
    parser.add_argument("--count", action="store_true")
    args = parser.parse_args()
    if args.count:
        print(f"wrote {count()}; call again for the page", file=sys.stderr)
        return 0
    wanted = page()
    if args.check:
        return 0 if PAGE.read_text() == wanted else 1
    PAGE.write_text(wanted)
    print(f"wrote {PAGE}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
