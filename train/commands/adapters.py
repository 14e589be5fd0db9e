"""patchloom adapters list|show|merge: the methods, saved adapters, and plain weights made of them."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..tables import short, table, write_whole

if TYPE_CHECKING:
    from torch import nn

EXAMPLES = """examples:
  patchloom adapters list                                   the methods
  patchloom adapters show lora                              one of them, and its options
  patchloom adapters list runs/                             the adapters that are saved below a folder
  patchloom adapters show runs/flowers/2026-01-31_12-00     what it is of, and what is in it
  patchloom adapters show lora:r=8 --model swin_tiny        what would learn
  patchloom adapters merge FOLDER --model swin_tiny --out flowers.safetensors"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", title="actions")
    one = actions.add_parser("list", help="the methods; with DIR, the adapters saved below it")
    one.add_argument("folder", nargs="?", metavar="DIR", help="searched to the bottom")
    one.add_argument("--json", action="store_true", help="print a list of objects")
    two = actions.add_parser("show", help="what a saved adapter is, what a method does, what it would train in a model")
    two.add_argument("what", metavar="FOLDER|SPEC")
    two.add_argument(
        "--model", metavar="MODEL", help="what SPEC would train there: a model's name, a checkpoint or a run folder"
    )
    two.add_argument("--json", action="store_true", help="print one object")
    three = actions.add_parser("merge", help="fold it into the weights: a file that is a plain model's")
    three.add_argument("what", metavar="FOLDER|RUN", help="a saved adapter, or a run or checkpoint with one")
    three.add_argument("--model", metavar="MODEL", help="what FOLDER was trained on (its backbone's published weights)")
    three.add_argument("--out", required=True, metavar="FILE", help="the weights, a .safetensors")


def run(args: argparse.Namespace) -> int:
    return {"list": run_list, "show": run_show, "merge": run_merge}[args.action](args)


# ---- list


def run_list(args: argparse.Namespace) -> int:
    rows = methods() if args.folder is None else saved(Path(args.folder))
    if args.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    elif args.folder is None:
        print(table(("method", "what it does"), [(r["name"], brief(r["what"])) for r in rows]))
    else:
        header = ("folder", "adapter", "backbone", "classes", "parameters", "bytes")
        cells = [
            (r["folder"], r["words"], r["backbone"], len(r["classes"]) or r["num_classes"] or "-",
             short(r["parameters"]), short(r["bytes"]))
            for r in rows
        ]  # fmt: skip
        print(table(header, cells, right=("classes", "parameters", "bytes")))
    return 0


def methods() -> list[dict[str, Any]]:
    """Every spelling, with its options as they are by default, and what is said of it."""
    from ...vision.adapters import ADAPTERS

    return [method(name) for name in ADAPTERS]


def method(name: str) -> dict[str, Any]:
    from dataclasses import MISSING, fields
    from importlib import import_module
    from inspect import cleandoc

    from ...vision import adapters
    from ...vision.spelling import in_word

    module, kind = adapters.ADAPTERS[name]
    made = getattr(import_module(f"{adapters.__name__}.{module}"), kind)
    options = {f.name: None if f.default is MISSING else in_word(f.default) for f in fields(made) if f.init}
    return {"name": name, "options": options, "what": cleandoc(made.__doc__ or "")}


def brief(text: str, most: int = 100) -> str:
    """The first sentence."""
    first = " ".join(text.split()).partition(". ")[0].rstrip(".")
    return first if len(first) <= most else first[: most - 1].rsplit(" ", 1)[0] + " …"


def saved(folder: Path) -> list[dict[str, Any]]:
    from ...data.folders import existing
    from ...vision.adapters.files import CONFIG

    found = [path.parent for path in sorted(existing(folder).rglob(CONFIG))]
    if not found:
        raise ValueError(f"no adapter is saved below {folder}: patchloom fit … --adapter SPEC makes one")
    return [card_of(each) for each in found]


def card_of(folder: Path) -> dict[str, Any]:
    """What the files say, and how large they are."""
    from ...vision.adapters.files import CONFIG, TENSORS, read_card

    size = sum((folder / name).stat().st_size for name in (CONFIG, TENSORS))
    return {"folder": str(folder), "bytes": size, **asdict(read_card(folder))}


# ---- show


def run_show(args: argparse.Namespace) -> int:
    from ...vision.adapters.files import chosen

    what = chosen(args.what)
    if isinstance(what, Path):
        if args.model:
            raise ValueError(f"--model {args.model}: {what} says itself what it was trained on; leave the option out")
        return show_saved(args, what)
    return show_setting(args, what) if args.model else show_method(args)


def show_method(args: argparse.Namespace) -> int:
    said = method(args.what.partition(":")[0])
    if args.json:
        print(json.dumps(said, indent=1, ensure_ascii=False))
    else:
        rows = [(name, "-" if value is None else value or "''") for name, value in said["options"].items()]
        print(said["what"] + ("\n\n" + table(("option", "by default"), rows) if rows else ""))
    return 0


def show_saved(args: argparse.Namespace, folder: Path) -> int:
    from ...vision.adapters.files import read_tensors

    card = card_of(folder)
    tensors = {name: list(t.shape) for name, t in read_tensors(folder).items()}
    if args.json:
        print(json.dumps({**card, "tensors": tensors}, indent=1, ensure_ascii=False))
        return 0
    made = ", ".join(f"{key}={value}" for key, value in card["arguments"].items())
    names = card["classes"]
    lines = [
        ("folder", folder),
        ("adapter", card["words"]),
        ("backbone", card["backbone"] + (f" ({made})" if made else "")),
        ("weights", f"sha256 {card['trunk']}"),
        ("classes", f"{card['num_classes']}: {', '.join(names[:8])}{' …' * (len(names) > 8)}" if names else "-"),
        ("parameters", f"{card['parameters']:,}"),
        ("bytes", f"{card['bytes']:,}"),
    ]
    print("\n".join(f"{name:<10}  {value}" for name, value in lines) + "\n")
    print(table(("tensor", "shape"), [(name, "x".join(map(str, shape)) or "1") for name, shape in tensors.items()]))
    return 0


def show_setting(args: argparse.Namespace, adapter: Any) -> int:
    from ...vision.adapters import adapt, counts, in_words
    from ..learning import learning, summary

    model = bare(args.model)
    adapt(model, adapter)
    own, total = counts(model)
    if args.json:
        rows = [row._asdict() for row in learning(model)]
        said = {"model": args.model, "adapter": in_words(adapter), "learn": own, "parameters": total, "rows": rows}
        print(json.dumps(said, indent=1))
    else:
        print(summary(model, most=100))
    return 0


def bare(spec: str) -> "nn.Module":
    """A name's model with fresh weights, a checkpoint's with its own."""
    from ...vision import zoo
    from ..running.checkpoint import find, load_model

    return zoo.create_model(spec) if find(spec) is None else load_model(spec)[0]


# ---- merge


def run_merge(args: argparse.Namespace) -> int:
    from ...vision.adapters.files import is_adapter
    from ..running.checkpoint import find, load_model
    from ..saved.adapted import load_adapted

    out = Path(args.out)
    if out.suffix != ".safetensors":
        raise ValueError(f"--out {out}: the weights are written as .safetensors")
    folder = Path(args.what)
    if args.model or is_adapter(folder):
        model, classes, preprocessing = load_adapted(args.model, folder)
    elif find(args.what) is None:
        raise ValueError(f"{args.what} is no folder of an adapter, no run and no checkpoint")
    else:
        model, classes, preprocessing = load_model(args.what)
    print(export_merged(model, classes, preprocessing, out))
    return 0


def export_merged(model: "nn.Module", classes: list[str], preprocessing: dict[str, Any], path: Path) -> Path:
    """Writes the model with its adapter folded in, as a file that is read like any checkpoint of a plain model."""
    from safetensors.torch import save

    from ...vision.adapters import merge
    from ..running.checkpoint import header

    head = header(model, classes, preprocessing)
    head.pop("trunk", None)
    head["model"].pop("adapter", None)
    unmerge = merge(model)
    try:
        tensors = {name: t.detach().cpu().clone().contiguous() for name, t in model.state_dict().items()}
    finally:
        unmerge()
    return write_whole(path, save(tensors, {"format": "pt", "patchloom": json.dumps(head)}))
