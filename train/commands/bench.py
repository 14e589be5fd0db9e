"""`patchloom bench`: images/s, peak memory, MACs and parameters of a model, alone or against another one."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from ..saved.judge import choose_device, image_size, positive

if TYPE_CHECKING:
    from torch import nn

    from ..measure import Arm, Case

EPILOG = """\
Blocks of the two models' steps alternate in one process (A B, B A, …); the ratio is the median over these rounds of
ours/theirs in speed, above 1 is faster, with its quartiles. Each model runs in the faster of two memory layouts, found
while warming up, unless --channels-last says which; timm's fused attention is on. A training step is forward,
cross-entropy, backward, an SGD step and gradients back to None. bfloat16 means bfloat16 weights and images in
inference, autocast over float32 weights in training. Peak memory is what the model and its steps add to a child process
of their own; on a GPU, what torch's allocator held."""
DTYPES = ("float32", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument(
        "model",
        nargs="+",
        metavar="MODEL",
        help="a model's name, timm:…, a checkpoint or a run folder; several with --sweep",
    )
    parser.add_argument("--against", metavar="MODEL", help="another one, usually timm:NAME")
    parser.add_argument(
        "--size", type=image_size, metavar="S|HxW", help="image size, e.g. 224 or 160x288 (the first model's own)"
    )
    parser.add_argument("--batch", type=positive, default=8, metavar="B", help="images a step (8)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument(
        "--channels-last", action="store_true", help="channels_last memory, instead of the faster layout"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile both models first")
    parser.add_argument("--train", action="store_true", help="a training step instead of inference")
    parser.add_argument("--device", default="auto", metavar="D", help="cpu, cuda or cuda:N (cuda where there is one)")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (torch's default)")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="measure for at least S seconds (10)")
    parser.add_argument("--repeats", type=positive, metavar="N", help="exactly N rounds, instead of --seconds")
    parser.add_argument("--tokens", metavar="SPEC", help="a token plugin for MODEL, e.g. tome:r=8")
    parser.add_argument(
        "--adapter", metavar="SPEC", help="an adapter for MODEL, e.g. lora:r=8, or a saved one's folder"
    )
    parser.add_argument("--fold", action="store_true", help="fold MODEL's batch norms and branches into its weights")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure peak memory too")
    parser.add_argument(
        "--sweep", metavar="size=A:B", help="draw time and memory of all MODELs over image sizes, e.g. size=224:1280"
    )
    parser.add_argument(
        "--out", metavar="DIR", default="sweep", help="where --sweep writes its picture and JSON (sweep)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    import torch

    from ..measure import Arm, Case

    if args.threads:
        torch.set_num_threads(args.threads)
    case = Case(
        args.batch, args.size, args.dtype, args.train, args.compile, str(choose_device(args.device)), args.threads
    )
    if args.sweep:
        return run_sweep(args, case)
    if len(args.model) > 1:
        raise ValueError(f"bench measures one model, or one --against another; got {', '.join(args.model)}")
    layout = "channels_last" if args.channels_last else None
    options = tuple((name, getattr(args, name)) for name in ("tokens", "adapter") if getattr(args, name) is not None)
    arms = [Arm(args.model[0], options, layout, args.fold)]
    if args.against:
        arms.append(Arm(args.against, (), layout))
    result = compare(arms, case, seconds=args.seconds, repeats=args.repeats, memory=args.memory)
    print(json.dumps(result, ensure_ascii=False) if args.json else report(result))
    return 0


def run_sweep(args: argparse.Namespace, case: "Case") -> int:
    from pathlib import Path

    from ..measure import Arm
    from .sweep import report, sizes_of, sweep, write

    for option in ("against", "tokens", "adapter", "size"):
        if getattr(args, option):
            raise ValueError(f"--{option} does not go with --sweep, which compares all models that are named")
    arms = [Arm(name, fold=args.fold) for name in args.model]
    result = sweep(arms, case, sizes_of(args.sweep), repeats=args.repeats or 5, memory=args.memory)
    data, drawn = write(result, Path(args.out))
    print(json.dumps(result, ensure_ascii=False) if args.json else f"{report(result)}\n\n{drawn}\n{data}")
    return 0


def compare(
    arms: list["Arm"], case: "Case", *, seconds: float = 10.0, repeats: int | None = None, memory: bool = True
) -> dict[str, Any]:
    """Measures one or two arms; the JSON object that `--json` prints."""
    from dataclasses import replace

    from ..measure import Spread, alternate, best_layout, build, circumstances, peak_memory_mb, step_of, warm

    rows, steps = [], []
    for arm in arms:
        model = build(arm, case)
        if case.size is None:
            case = replace(case, size=tuple(model.default_cfg["input_size"][1:]))
        row = {"model": arm.name, **dict(arm.options), **({"fold": True} if arm.fold else {}), **cost(model, case)}
        if arm.layout is None:
            step, layout = best_layout(model, case)
        else:
            step, layout = step_of(model, case, arm.layout), arm.layout
            warm(step, case.device)
        steps.append(step)
        rows.append((replace(arm, layout=layout), row))
    times = alternate(steps, case.device, seconds=seconds, repeats=repeats)
    results = []
    for (arm, row), column in zip(rows, zip(*times, strict=True), strict=True):
        speed = Spread.of([case.batch / t for t in column])
        peak = peak_memory_mb(arm, case) if memory else None
        results.append(
            {
                **row,
                "images_per_second": speed.median,
                "images_per_second_spread": [speed.low, speed.high],
                "peak_memory_mb": peak,
                "layout": arm.layout,
            }
        )
    result = {**results[0], **conditions(case, len(times)), "circumstances": circumstances(case)}
    if len(arms) == 2:
        result |= {"against": results[1], **verdict(times)}
    return result


def cost(model: "nn.Module", case: "Case") -> dict[str, int]:
    """Parameters, those that train, and the multiply-accumulates of one image in matrix products and convolutions."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from ...vision.count import macs, parameters

    channels, *own = model.default_cfg["input_size"]
    training = model.training
    with sdpa_kernel(SDPBackend.MATH):  # the counter sees the products of attention in its plain form only
        count = macs(model.eval(), (channels, *(case.size or own)))
    model.train(training)
    total, trainable = parameters(model)
    return {"parameters": total, "trainable": trainable, "macs": count}


def conditions(case: "Case", rounds: int) -> dict[str, Any]:
    return {
        "mode": "training step" if case.train else "inference",
        "batch": case.batch,
        "size": list(case.size or ()),
        "dtype": case.dtype,
        "precision": case.precision,
        "compile": case.compile,
        "rounds": rounds,
        "spread": "first and third quartile",
    }


def verdict(times: list[tuple[float, ...]]) -> dict[str, Any]:
    """The ratio of speeds, ours over theirs: the median over the rounds, and its quartiles."""
    from ..measure import Spread

    ratio = Spread.of([theirs / ours for ours, theirs in times])
    return {"ratio": ratio.median, "ratio_spread": [ratio.low, ratio.high]}


def report(result: dict[str, Any]) -> str:
    """The same for people."""
    arms = [result, *([result["against"]] if "against" in result else [])]
    names = [title(arm) for arm in arms]
    width = max(map(len, names))
    heads = f"{'images/s':>9}  {'quartiles':^19}  {'peak MiB':>8}  {'GMACs':>7}  {'M param.':>8}  layout"
    lines = [
        f"{'':{width}}  {heads}",
        *(f"{name:{width}}  {row(arm)}" for name, arm in zip(names, arms, strict=True)),
        "",
    ]
    if "ratio" in result:
        low, high = result["ratio_spread"]
        lines += [
            f"{names[0]} {words(low, high)} {names[1]}:",
            f"{result['ratio']:.3f} times its images/s (quartiles {low:.3f} … {high:.3f})",
            "",
        ]
    h, w = result["size"]
    precision = result["precision"] + (", compiled" if result["compile"] else "")
    at = result["circumstances"]
    lines += [
        f"{result['mode']}, batch {result['batch']}, {h}x{w}, {precision}, {result['rounds']} rounds",
        f"{at['processor']}, {at['threads']} threads on {at['cores']} cores, attention by {at['attention']}, "
        f"torch {at['torch']}, timm {at['timm']}",
    ]
    return "\n".join(lines)


def title(arm: dict[str, Any]) -> str:
    options = [f"--{key} {arm[key]}" for key in ("tokens", "adapter") if key in arm]
    return " ".join([arm["model"], *options, *(["--fold"] if "fold" in arm else [])])


def row(arm: dict[str, Any]) -> str:
    low, high = arm["images_per_second_spread"]
    peak = "-" if arm["peak_memory_mb"] is None else f"{arm['peak_memory_mb']:.0f}"
    return (
        f"{arm['images_per_second']:9.2f}  {low:8.2f} … {high:<8.2f}  {peak:>8}  "
        f"{arm['macs'] / 1e9:7.2f}  {arm['parameters'] / 1e6:8.2f}  {arm['layout']}"
    )


def words(low: float, high: float) -> str:
    """What the quartiles of a ratio allow to say."""
    if low > 1:
        return "is faster than"
    return "is slower than" if high < 1 else "cannot be told from"
