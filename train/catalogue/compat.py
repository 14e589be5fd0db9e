"""patchloom compat: which token plugin and which adapter goes into which kind of backbone, and where it does not, why;
which kinds train under dense heads, and which serve as the tower of a vision-language pipeline.

`--write` writes docs/compatibility.md, which tests compare with the code."""

import argparse
import json
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..tables import table, write_whole

if TYPE_CHECKING:
    from torch import nn

    from ...vision.network import Network

EPILOG = """examples:
  patchloom compat
  patchloom compat swin_small cct_7_3x1_32
  patchloom compat --adapters swin_small
  patchloom compat --heads vssd_tiny            trains a step and answers under each head
  patchloom compat --pipelines swin_small       answers as the tower of a vision-language model
  patchloom compat --json"""
PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
LINEAR = "deit_small_patch16_224 with linear attention"  # which nobody published as a network of its own
KINDS = {  # how tokens are mixed -> the variant that stands for it
    "global attention, class token": "deit_small_patch16_224",
    "global attention, class and distillation token": "deit_small_distilled_patch16_224",
    "global attention, no special token": "cct_14_7x2_224",
    "global attention below a language model's layer": "vit_llama_tiny_patch16_224",
    "shifted windows": "swin_tiny",
    "windows and whole maps": "sam_vit_b",
    "attention of convolved tokens": "cvt_13",
    "pooling": "poolformer_s12",
    "identity": "identityformer_s12",
    "a random matrix": "randformer_s12",
    "separable convolutions": "convformer_s18",
    "separable convolutions, then attention": "caformer_s18",
    "depthwise convolutions": "convnext_tiny",
    "tokens of tokens": "t2t_vit_14",
    "tokens inside tokens": "tnt_s_patch16_224",
    "tokens inside tokens, in a pyramid": "pyramid_tnt_ti",
    "convolutions, then windows": "tiny_vit_5m",
    "pooling, then attention with offsets": "efficientformer_l1",
    "convolutions, then talking heads": "efficientformerv2_s0",
    "attention that fades with distance": "rmt_tiny",
    "factorised windows": "favit_b0",
    "frequencies, then attention": "svt_s",
    "sliced attention, repeated": "sret_t",
    "attention with local positions": "resformer_small_patch16",
    "causal attention": "illama_small",
    "linear attention": LINEAR,
    "simplified linear attention": "slab_deit_tiny",
    "searched heads, residual pooling": "vit_resnas_tiny",
    "convolutions, then relative attention": "astroformer_0",
    "multigroup convolutions": "fmvit_own",
    "attention under Gaussian masks": "gmm_vit_64",
    "selective scan, both ways": "vim_small",
    "selective scan, crosswise": "vmamba_tiny_s1l8",
    "selective scan, winding": "plainmamba_l2",
    "non-causal duality": "vssd_tiny",
    "selective scan behind convolutions": "mamba_yolo_tiny",
    "global attention beside a pyramid": "vit_comer_seg_tiny",
    "retention": "vir_small_patch16_224",
}
REAL = ("boft", "s2ft")  # adapters that look at numbers of their own while they are placed
SETTINGS = {"tome": "tome:r=8", "window_merge": "window_merge:share=0.4"}  # of what cannot do without
NOT_EXPORTED: dict[str, str] = {}  # plugins that torch.onnx does not take, and why; tests export the others
INTRODUCTION = """\
# Which plugin goes where

Written by `patchloom compat --write`; do not edit. A row is a way of mixing tokens and the variant that stands for it
here; a column is a plugin of `patchloom.vision.plugins`. A number says why a plugin refuses: below the table, with the
parts of networks that are in its way. It does so when it is attached, by the block's name, and leaves the model as it
was. `patchloom compat NAME …` tells of other variants.
"""
ADAPTERS_INTRODUCTION = """\
## Adapters

The same for the adapters of `patchloom.vision.adapters` (`patchloom compat --adapters NAME …` for other variants), on
classifiers.
"""
HEADS_INTRODUCTION = """\
## Under dense heads

A backbone, plain or with token clustering or LoRA on it, gives the maps for a detector or a segmenter. "yes": it took a
training step on two images of 160 x 224 pixels, with finite losses, and gradients that reach what learns in the
backbone, and then answered; a number says why what was to be put on refuses. `patchloom compat --heads NAME …` tells of
other variants; a test repeats the steps.
"""


class Cell(NamedTuple):
    """Whether a plugin or an adapter with `setting` goes into a variant; where not, the block that it stops at, the
    part of the block that is in the way, and why."""

    kind: str
    variant: str
    method: str
    setting: str
    works: bool
    block: str | None = None
    part: str | None = None
    why: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("variants", nargs="*", metavar="NAME", help="these, instead of one for each kind of mixer")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--adapters", action="store_true", help="adapters, instead of token plugins")
    which.add_argument("--heads", action="store_true", help="dense heads, each of which trains a step (minutes)")
    which.add_argument("--pipelines", action="store_true", help="as towers of vision-language models, which answer")
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.add_argument("--write", action="store_true", help="write docs/compatibility.md")


def run(args: argparse.Namespace) -> int:
    if args.write:
        if args.variants or args.json or args.adapters or args.heads or args.pipelines:
            raise ValueError("--write writes the page, which has one variant for each kind of mixer: give it alone")
        prove(heads_matrix())
        print(f"wrote {write_whole(PAGE, page())}", file=sys.stderr)
        return 0
    if args.pipelines:
        from .pipelines import pipelines_matrix

        cells = pipelines_matrix({name: name for name in args.variants} or None)
    elif args.heads:
        cells = heads_matrix({name: name for name in args.variants} or None)
        prove(cells)
    else:
        some = [cell for name in args.variants for cell in row("", name, args.adapters)]
        cells = some if args.variants else matrix(args.adapters)
    print(json.dumps([cell._asdict() for cell in cells], indent=1) if args.json else report(cells))
    return 0


def spelling(method: str) -> str:
    """The plugin or adapter as it is tried: its defaults, where it has them all."""
    return SETTINGS.get(method, method)


def network(name: str) -> "Network":
    """The network of a variant in KINDS."""
    from dataclasses import replace

    from ...vision import zoo
    from ...vision.mixers.linear import LinearAttention

    if name != LINEAR:
        return zoo.resolve(name).network
    plain = zoo.VARIANTS[LINEAR.partition(" ")[0]]
    return replace(plain, stages=tuple(replace(s, mixer=LinearAttention(s.mixer.heads)) for s in plain.stages))


def matrix(adapters: bool = False) -> list[Cell]:
    """Every plugin, or every adapter, in every kind."""
    return [cell for kind, name in KINDS.items() for cell in row(kind, name, adapters)]


@lru_cache
def row(kind: str, name: str, adapters: bool = False) -> tuple[Cell, ...]:
    """Every plugin, or every adapter, in one variant, which is built without memory."""
    import torch

    from ...vision.adapters import ADAPTERS
    from ...vision.model import Classifier
    from ...vision.plugins import PLUGINS

    wanted = network(name)
    with torch.device("meta"):
        model = Classifier(wanted.backbone(3, 0.0), wanted.classes, wanted.head, img_size=wanted.size)
    methods, tried = (ADAPTERS, fits) if adapters else (PLUGINS, verdict)
    return tuple(Cell(kind, name, method, spelling(method), *tried(model, spelling(method))) for method in methods)


def heads_matrix(kinds: dict[str, str] | None = None) -> list[Cell]:
    """Every dense head on one variant of each kind, plain and with what is put on it; `prove` takes the steps."""
    from .heads import ADDED, HEAD_KINDS, HEADS, obstacles

    cells = []
    for kind, name in (kinds or HEAD_KINDS).items():
        for head in HEADS:
            for added in ADDED:
                error = obstacles(name).get(added)
                found = (True,) if error is None else refusal(error, added)
                cells.append(Cell(kind, name, f"{head} + {added}" if added else head, added, *found))
    return cells


def prove(cells: list[Cell]) -> None:
    """Takes the steps that cells of `heads_matrix` speak of."""
    from tqdm import tqdm

    from .heads import take_steps

    for cell in tqdm([c for c in cells if c.works], "steps", disable=None):
        take_steps(cell.variant, cell.method.partition(" + ")[0], cell.setting)


def verdict(model: "nn.Module", setting: str) -> tuple[Any, ...]:
    """(whether the plugin can be attached, the block that refuses it, its part, the reason)."""
    from ...vision.plugins import SeamError, attach, plugin

    try:
        attach(model, plugin(setting))()
    except SeamError as error:
        return refusal(error)
    return (True,)


def fits(model: "nn.Module", setting: str) -> tuple[Any, ...]:
    """The same of an adapter."""
    import torch

    from ...vision.adapters import AdapterError, adapt, adapter

    try:
        with torch.device("cpu" if setting.partition(":")[0] in REAL else "meta"):
            adapt(model, adapter(setting))()
    except AdapterError as error:
        return refusal(error, setting.partition(":")[0])
    return (True,)


def refusal(error: ValueError, method: str = "") -> tuple[Any, ...]:
    """`block: Part why; hint` taken apart, or `Model: why; hint`, where the method is called `it`."""
    where, _, words = str(error).partition(": ")
    words = re.sub(rf"(?<= ){method}\b", "it", words.partition("; ")[0]) if method else words
    part, _, why = words.partition(" ")
    return (False, where, part, why) if part[:1].isupper() else (False, None, where, words)


def numbered(cells: list[Cell]) -> dict[str, str]:
    """reason -> its number."""
    return {why: str(i) for i, why in enumerate(dict.fromkeys(c.why for c in cells if c.why is not None), 1)}


def reasons(cells: list[Cell]) -> list[str]:
    """Each reason, by its number, and what refuses for it."""
    parts = {why: dict.fromkeys(c.part or "" for c in cells if c.why == why) for why in numbered(cells)}
    return [f"{why} ({', '.join(filter(None, found))})" if any(found) else why for why, found in parts.items()]


def lines(cells: list[Cell]) -> tuple[list[str], list[list[str]]]:
    """The header, and a row for each variant: yes, or the number of a reason."""
    number, methods = numbered(cells), list(dict.fromkeys(c.method for c in cells))
    rows: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        head = rows.setdefault((cell.kind, cell.variant), [])
        head.append("yes" if cell.why is None else number[cell.why])
    return ["mixer", "variant", *methods], [[*head, *marks] for head, marks in rows.items()]


def report(cells: list[Cell]) -> str:
    header, rows = lines(cells)
    if not any(row[0] for row in rows):
        header, rows = header[1:], [row[1:] for row in rows]
    return "\n".join([table(header, rows), "", *(f"{i:>2}  {why}" for i, why in enumerate(reasons(cells), 1))])


def page() -> str:
    from .pipelines import pipelines_section

    return (
        f"{INTRODUCTION}\n{section(matrix())}\n\n{adapters_section(matrix(True))}\n\n{heads_section()}\n\n"
        f"{pipelines_section()}\n\n{onnx()}"
    )


def adapters_section(cells: list[Cell]) -> str:
    """The same for adapters, of which those that go everywhere need no column."""
    picky = {c.method for c in cells if not c.works}
    everywhere = ", ".join(f"`{s}`" for s in dict.fromkeys(c.setting for c in cells if c.method not in picky))
    rest = section([c for c in cells if c.method in picky])
    return f"{ADAPTERS_INTRODUCTION}\nIn all of these kinds: {everywhere}.\n\nOthers: t{rest[1:]}"


def heads_section() -> str:
    return f"{HEADS_INTRODUCTION}\n{grid(heads_matrix(), 'backbone')}"


def section(cells: list[Cell]) -> str:
    """How they were tried, the table, and the reasons."""
    settings = ", ".join(f"`{s}`" for s in dict.fromkeys(c.setting for c in cells))
    return f"Tried as {settings}.\n\n{grid(cells)}"


def grid(cells: list[Cell], first: str = "mixer", second: str = "variant") -> str:
    """The table, and the reasons."""
    header, rows = lines(cells)
    header[:2] = first, second
    marked = [header, ["---"] * len(header), *rows]
    drawn = "\n".join("| " + " | ".join(cell) + " |" for cell in marked)
    listed = "\n".join(f"{i}. {why}" for i, why in enumerate(reasons(cells), 1))
    return f"{drawn}\n\n{listed}".rstrip()


def onnx() -> str:
    """The section about files for other runtimes."""
    from ...vision.plugins import PLUGINS

    able = ", ".join(f"`{m}`" for m in PLUGINS if m not in NOT_EXPORTED)
    said = f"## ONNX\n\nExported with the network, and run by onnxruntime: {able}.\n"
    return said + "".join(f"\n`{method}` is not: {why}.\n" for method, why in NOT_EXPORTED.items())
