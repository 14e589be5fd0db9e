"""patchloom weights list|get|check: what is published, into the cache, and whether a file is what a model takes."""

import argparse
import fnmatch
import json
from pathlib import Path
from typing import Any

from ..tables import table

EXAMPLES = """examples:
  patchloom weights list 'swin*'
  patchloom weights get swin_tiny caformer_s18.sail_in22k_ft_in1k
  patchloom weights check swin_tiny.ms_in1k
  patchloom weights check mine.pth --model swin_tiny"""

SUFFIXES = (
    ".pth",
    ".pt",
    ".bin",
    ".safetensors",
    ".zip",
    ".tar",
    ".ckpt",
)  # what is a file even where it does not exist


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", title="actions")
    one = actions.add_parser("list", help="size, licence, metric, input and source; * where in the cache")
    one.add_argument(
        "pattern", nargs="?", default="*", metavar="PATTERN", help="names with * and ?, e.g. 'swin*' (all)"
    )
    one.add_argument("--json", action="store_true", help="print a list of objects")
    two = actions.add_parser("get", help="download into the cache, resumed and verified; prints the path")
    two.add_argument("names", nargs="+", metavar="NAME[.TAG]")
    three = actions.add_parser("check", help="verify the digest and load it into the model")
    three.add_argument("what", metavar="NAME[.TAG]|FILE")
    three.add_argument("--model", metavar="NAME", help="the model that FILE is for, where its name does not say so")
    three.add_argument("--wrapper", metavar="KEY", help="the key of FILE under which the tensors lie (found by itself)")
    three.add_argument("--json", action="store_true", help="print one object")


def run(args: argparse.Namespace) -> int:
    return {"list": run_list, "get": run_get, "check": run_check}[args.action](args)


# ---- list


def run_list(args: argparse.Namespace) -> int:
    found = matching(args.pattern)
    rows = [as_object(variant, weights) for variant, weights in found]
    print(json.dumps(rows, indent=1) if args.json else as_table(rows))
    return 0


def matching(pattern: str) -> list[tuple[str, Any]]:
    """(variant, weights) whose variant or variant.tag fits; raises with near names where none does."""
    from ...vision.tables import WEIGHTS, find_weights

    found = [
        (variant, w)
        for variant, rows in WEIGHTS.items()
        for w in rows
        if fnmatch.fnmatch(variant, pattern) or fnmatch.fnmatch(f"{variant}.{w.tag}", pattern)
    ]
    if not found:
        if not set(pattern) & set("*?["):
            find_weights(pattern)  # says what is near
        raise ValueError(f"no published weights match {pattern!r}; `patchloom weights list` shows all")
    return found


def as_object(variant: str, weights: Any) -> dict[str, Any]:
    from ...vision.cache import address, cached
    from ...vision.tables import megabytes

    path, size = cached(weights), megabytes(variant, weights)
    return {
        "name": f"{variant}.{weights.tag}",
        "bytes": path.stat().st_size if path else weights.bytes,
        "megabytes": round(path.stat().st_size / 1e6, 1) if path else size and round(size, 1),
        "license": weights.license,
        "metrics": weights.metrics,
        "input": list(weights.input_size),
        "num_classes": weights.num_classes,
        "form": weights.form,
        "source": weights.source,
        "address": address(weights),
        "sha256": weights.sha256,
        "preprocessing": weights.preprocessing(),
        "cached": str(path) if path else None,
    }


def as_table(rows: list[dict[str, Any]]) -> str:
    cells = [
        (
            f"{r['name']}{' *' if r['cached'] else ''}",
            "-" if r["megabytes"] is None else f"{'' if r['bytes'] else '~'}{r['megabytes']:.0f}",
            r["license"],
            " ".join(f"{name.replace('_multiscale', '_ms')} {value:g}" for name, value in r["metrics"].items()) or "-",
            "x".join(map(str, r["input"][1:])),
            r["num_classes"] or "-",
            r["source"],
        )
        for r in rows
    ]
    header = ("name (* cached)", "MB", "license", "metric", "input", "classes", "source")
    return table(header, cells, right=("MB", "classes"))


# ---- get and check


def run_get(args: argparse.Namespace) -> int:
    from ...vision.download import fetch
    from ...vision.tables import find_weights

    wanted = [find_weights(name)[1] for name in args.names]  # all names are looked at before anything is fetched
    for weights in wanted:
        print(fetch(weights), flush=True)
    return 0


def run_check(args: argparse.Namespace) -> int:
    from ...vision.download import fetch, open_file, open_weights, read_state, verify
    from ...vision.tables import find_file, find_weights

    path, weights = Path(args.what), None
    if path.exists() or path.suffix in SUFFIXES:
        known = find_file(path)
        if known is None and args.model is None:
            raise ValueError(
                f"{path}: its name is that of no published file; say which model it is for with --model NAME"
            )
        variant, weights = known or (args.model, None)
        state = open_file(path) if args.wrapper is None else read_state(path, args.wrapper)
    else:
        if args.wrapper is not None:
            raise ValueError(f"--wrapper is for a file; the table says where the tensors of {args.what} lie")
        variant, weights = find_weights(args.what)
        path, state = fetch(weights), open_weights(weights)
    variant = args.model or variant
    digest = verify(path, weights or unknown(path))
    report = load(variant, weights, state)
    result = {
        "path": str(path),
        "model": variant,
        "sha256": digest,
        "verified": bool(weights and weights.sha256),
        "matched": len(report.matched),
        "dropped": list(report.dropped),
        "fresh": list(report.fresh),
        "resized": list(report.resized),
    }
    print(json.dumps(result, indent=1) if args.json else as_text(result))
    return 0


def unknown(path: Path) -> Any:
    """A file that no table describes: nothing to compare it with."""
    from ...vision.published import Weights

    return Weights(path.name, path.resolve().as_uri(), "unknown")


def load(variant: str, weights: Any, state: dict[str, Any]) -> Any:
    """The report of loading `state` into the variant, in the form and with the classes that the weights are for."""
    from ...vision.weights import load_published
    from ...vision.zoo import create_model

    if weights is not None and weights.form == "dense":
        return load_published(create_model(variant, features_only=True, dense=True), state)
    size = None if weights is None else weights.input_size[1:]
    return load_published(create_model(variant, num_classes=weights and weights.num_classes, img_size=size), state)


def as_text(result: dict[str, Any]) -> str:
    """The path, its digest, and what became of the tensors."""
    lines = [
        result["path"],
        f"sha256   {result['sha256']}" + ("" if result["verified"] else " (nothing known to compare with)"),
    ]
    lines.append(f"matched  {result['matched']} tensors of {result['model']}")
    for title in ("dropped", "fresh", "resized"):
        names = result[title]
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            lines.append(f"{title:<7}  {len(names)}: {', '.join(names[:5])}{more}")
    return "\n".join(lines)
