"""patchloom export: a network as an ONNX file or an exported program, compared with the network before it is kept."""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..saved.judge import image_size, positive
from ..tables import table

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from .model import Portable, Size

FORMATS = {"onnx": ".onnx", "exported-program": ".pt2"}
DTYPES = ("float32", "float16", "bfloat16")
LARGEST = 8192  # pixels of a side in a file for every size
TOLERANCE = 1e-4  # of the largest output, in float32
EXAMPLES = """examples:
  patchloom export swin_tiny --format onnx --dynamic
  patchloom export runs/cifar10-cct/2026-01-31_12-00 --format onnx --fold --out cct.onnx
  patchloom export deit_small_patch16_224 --tokens tome:r=8 --format exported-program
  patchloom export deit_small_patch16_224 --adapter runs/flowers/2026-01-31_12-00 --format onnx

The file is written beside its place and run at three sizes that it was not made with (without --dynamic: on three other
batches); it gets its name when it agrees with the network, at 1e-4 of the largest output in float32, and in half
precision within twice the network's own distance from its float32. A card lies beside it, as JSON and Markdown."""


class ExportError(ValueError):
    """The network cannot be written as asked, or what was written does not compute what the network does."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("model", metavar="MODEL", help="a model's name, timm:…, NAME=FILE, a checkpoint or run folder")
    parser.add_argument("--format", choices=tuple(FORMATS), default="onnx", help="of the file (onnx)")
    parser.add_argument("--out", metavar="FILE", help="where it goes, a .onnx or .pt2 (MODEL's name, here)")
    parser.add_argument("--dynamic", action="store_true", help="one file for images of every number, height and width")
    parser.add_argument("--fold", action="store_true", help="fold batch norms and side branches into weights first")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of weights and images (float32)")
    parser.add_argument("--size", type=image_size, metavar="N|HxW", help="image size, instead of the model's own")
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="images at a time, if fixed (1)")
    parser.add_argument("--features", action="store_true", help="the maps of the backbone instead of an answer")
    parser.add_argument("--tokens", metavar="SPEC", help="a token plugin, e.g. tome:r=8; none: without its own")
    parser.add_argument("--adapter", metavar="FOLDER", help="a saved adapter, or the run that trained it, merged")
    parser.add_argument("--random-weights", action="store_true", help="export an untrained network all the same")
    parser.add_argument("--json", action="store_true", help="print the card")


def run(args: argparse.Namespace) -> int:
    import torch

    from ..saved.judge import load_any
    from .card import card_of, write_card
    from .model import portable

    out = destination(args)
    if args.dynamic and args.batch != 1:
        raise ValueError(f"--batch {args.batch}: a file of --dynamic takes any number of images; leave one of them out")
    if args.format == "onnx":
        if args.dtype == "bfloat16":
            raise ValueError(
                "--dtype bfloat16: onnxruntime computes in it on no CPU, so the file could not be tried; use float16, "
                "or --format exported-program"
            )
        need_onnx()
    judge = load_any(
        args.model, random_weights=args.random_weights, size=args.size, device="cpu", tokens=args.tokens,
        adapter=args.adapter,
    )  # fmt: skip
    if args.size and not hasattr(judge.model, "set_input_size"):
        raise ValueError(f"--size: {args.model} has the size that it was made for; leave the option out")
    model, classes = (features_of(judge.model, args.model), []) if args.features else (judge.model, judge.classes)
    about = card_of(judge, args, model)  # before the adapter goes into the weights
    network = portable(model, args.model, folded=args.fold, dtype=getattr(torch, args.dtype))
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        part = Path(folder) / out.name
        with contextlib.redirect_stdout(sys.stderr):
            ranges = write(network, part, args, about)
        found = compare(network, part, args.format, sizes_to_try(network, ranges, args.batch))
        about |= {"classes": classes, "ranges": ranges, "compared": found}
        files = [Path(folder) / name for name in os.listdir(folder)]
        write_card(about, part, out, network)
        for file in (*files, part.with_suffix(".json"), part.with_suffix(".md")):
            os.replace(file, out.parent / file.name)
    print(json.dumps(about, indent=1, ensure_ascii=False) if args.json else report(out, about))
    return 0


def destination(args: argparse.Namespace) -> Path:
    suffix = FORMATS[args.format]
    word = args.model.partition("=")[0].replace(":", "_")
    path = Path(args.out or Path(word).absolute().name.removesuffix(".ckpt") + suffix)
    if path.suffix != suffix:
        raise ValueError(f"--out {path}: a file of --format {args.format} ends in {suffix}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--out {path}: there is no folder {path.parent}; make it first")
    return path


def need_onnx() -> None:
    """Raises ModuleNotFoundError, before any work is done, where a package is absent that the command needs."""
    from importlib import import_module

    for name in ("onnx", "onnxscript", "onnxruntime"):
        import_module(name)


def features_of(model: "nn.Module", spec: str) -> "nn.Module":
    """The pyramid of a dense network, or a classifier's backbone as one."""
    from ...vision.model import Classifier
    from ...vision.pyramid import Pyramid

    if isinstance(model, Classifier):
        if model.adapters is not None:
            raise ValueError(f"--features: {spec} has an adapter, which belongs to its head's network; leave one out")
        pyramid = Pyramid(model.backbone)
        pyramid.default_cfg, pyramid.name, pyramid.family = model.default_cfg, model.name, model.family
        return pyramid.eval()
    found = getattr(model, "pyramid", None) or getattr(model, "backbone", None)
    if not isinstance(found, Pyramid):
        raise ValueError(f"--features: {spec} has no backbone of this suite to take maps from")
    return found.eval()


# ---- writing


def write(network: "Portable", path: Path, args: argparse.Namespace, about: dict[str, Any]) -> dict[str, list[int]]:
    """Writes the file; what each of batch, height and width may be: [least, most]."""
    import torch

    program, ranges = programmed(network, args.model, args.dynamic, args.batch)
    text = json.dumps({**about, "ranges": ranges}, ensure_ascii=False)
    if args.format == "exported-program":
        torch.export.save(program, path, extra_files={"patchloom.json": text})
        return ranges
    keep_small(program)
    try:
        onnx = torch.onnx.export(
            program, input_names=list(network.inputs), output_names=list(network.outputs), dynamo=True, verbose=False
        )
    except torch.onnx.errors.OnnxExporterError as error:
        cause = first_line(error.__cause__ or error)
        raise ExportError(
            f"{args.model} has a step that ONNX lacks ({cause}): try --format exported-program"
        ) from error
    assert onnx is not None
    onnx.model.metadata_props["patchloom"] = text
    onnx.save(path)
    return ranges


def programmed(
    network: "Portable", spec: str, dynamic: bool, batch: int = 1
) -> tuple["torch.export.ExportedProgram", dict[str, list[int]]]:
    """The graph of the network, and what sizes it takes."""
    import torch
    from torch._dynamo.exc import UserError

    from ...kernels.sizes import OpenSizeError

    if not dynamic:
        size = (batch, *network.size)
        program = exported(network, network.example(size), None)
        return program, {name: [n, n] for name, n in zip(("batch", "height", "width"), size, strict=True)}
    why = ""
    for least in network.smallest():
        names = {0: ("batch", 1, 65536), 2: ("height", least, LARGEST), 3: ("width", least, LARGEST)}
        dims = {axis: torch.export.Dim(name, min=low, max=high) for axis, (name, low, high) in names.items()}
        example = network.example(network.made_with())
        shapes = (dims, *({0: dims[0]} for _ in example[1:]))
        try:
            return exported(network, example, shapes), {name: [low, high] for name, low, high in names.values()}
        except (UserError, OpenSizeError, AssertionError) as error:  # torch's own assertions on ranges among them
            why = first_line(error)
    raise ExportError(
        f"{spec} cannot be one file for every size ({why}): leave out --dynamic, which makes one file a size"
    )


def exported(network: "Portable", example: tuple["Tensor", ...], shapes: Any) -> "torch.export.ExportedProgram":
    """The graph. torch can prove few things of open sizes (not that n is at most 7 ceil(n / 7)), and refuses what it
    cannot prove: it is told to take them for no special case and to check the rest at run time. Those checks are taken
    out of the graph; `compare` stands for them."""
    import torch
    from torch.fx.experimental import _config

    with torch.no_grad(), _config.patch(backed_size_oblivious=shapes is not None):
        program = torch.export.export(
            network.model, example, dynamic_shapes=shapes,
            prefer_deferred_runtime_asserts_over_guards=shapes is not None,
        )  # fmt: skip
    for graph in (m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)):
        for node in [n for n in graph.nodes if n.target is torch.ops.aten._assert_scalar.default]:
            graph.erase_node(node)
        graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def keep_small(program: "torch.export.ExportedProgram") -> None:
    """Makes each tiny number that is added, as an epsilon is, a tensor (1): onnxscript takes x + 1e-8 for x + 0, and
    leaves the addition out."""
    import torch

    added = (torch.ops.aten.add.Tensor, torch.ops.aten.sub.Tensor)
    for graph in (m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)):
        for node in [n for n in graph.nodes if n.target in added and isinstance(n.args[1], float)]:
            (x, small), like = node.args, node.args[0].meta["val"]
            if 0 < abs(small) < 1e-7 and like.ndim:
                with graph.inserting_before(node):
                    full = graph.call_function(torch.ops.aten.full.default, ([1], small), {"dtype": like.dtype})
                full.meta["val"] = like.new_full((1,), small)
                node.args = (x, full)
    program.graph_module.recompile()


def first_line(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return words if len(words) < 300 else words[:300] + " …"


# ---- comparing


def sizes_to_try(network: "Portable", ranges: dict[str, list[int]], batch: int) -> list["Size"]:
    low, high = ranges["height"]
    return [(batch, *network.size)] * 3 if low == high else network.others(low)


def runner(path: Path, form: str) -> Any:
    """inputs -> outputs of the file, as lists of tensors."""
    import torch

    if form == "exported-program":
        module = torch.export.load(path).module()
        return lambda given: flat(module(*given))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings are about nodes that it leaves out
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def call(given: tuple["Tensor", ...]) -> list["Tensor"]:
        values = {name: x.numpy() for name, x in zip(names, given, strict=True)}
        return [torch.from_numpy(y) for y in session.run(None, values)]

    return call


def flat(y: Any) -> list["Tensor"]:
    return list(y) if isinstance(y, list | tuple) else [y]


def compare(network: "Portable", path: Path, form: str, sizes: list["Size"]) -> list[dict[str, Any]]:
    """What the file and the network differ by at each size, and may. Raises ExportError where that is too much."""
    import copy

    import torch

    call, half = runner(path, form), network.dtype != torch.float32
    exact = copy.deepcopy(network.model).float() if half else network.model
    found = []
    for seed, size in enumerate(sizes, 1):
        given = network.example(size, seed)
        with torch.inference_mode():
            wide = tuple(x.float() if x.is_floating_point() else x for x in given)
            want, own = flat(exact(*wide)), flat(network.model(*given))
            got = call(given)
        error, bound = 0.0, 0.0
        for w, o, g in zip(want, own, got, strict=True):
            if w.shape != g.shape:
                raise ExportError(
                    f"the file gives {tuple(g.shape)} at {shown(size)} where the network gives {tuple(w.shape)}"
                )
            allowed = float(w.abs().max()) * (TOLERANCE if not half else 8 * torch.finfo(network.dtype).eps)
            allowed = max(allowed, 2 * float((o.float() - w).abs().max())) if half else allowed
            apart = float((g.float() - w).abs().max())
            if not apart <= allowed:  # NaN too
                raise ExportError(
                    f"the file differs from the network by {apart:.2g} at {shown(size)}, where {allowed:.2g} is "
                    f"allowed: it was not kept"
                )
            error, bound = max(error, apart), max(bound, allowed)
        found.append({"batch": size[0], "height": size[1], "width": size[2], "difference": error, "allowed": bound})
    return found


def shown(size: "Size") -> str:
    return f"{size[0]} x {size[1]} x {size[2]} (images, height, width)"


# ---- telling


def report(path: Path, about: dict[str, Any]) -> str:
    rows = [(c["batch"], f"{c['height']}x{c['width']}", f"{c['difference']:.1e}", f"{c['allowed']:.1e}")
            for c in about["compared"]]  # fmt: skip
    header = ("images", "size", "differs by", "may by")
    return "\n".join([table(header, rows, right=header), "", *lines(path)])


def lines(path: Path) -> Iterator[str]:
    for file in (path, path.with_suffix(".json"), path.with_suffix(".md")):
        yield f"{file}  {file.stat().st_size:,} bytes"
