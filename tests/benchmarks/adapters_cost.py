"""What a training step with an adapter costs against full fine-tuning: parameters, time and peak memory.

`python tests/benchmarks/adapters_cost.py --out adapters_cost.jsonl` measures every adapter on six backbones, and what
was promised of some on ViT-B; it goes on where the file ends. `--report` prints the tables of what is in it.
Steps alternate in one process; memory is what building the model and three steps add to a process of their own. A step
is forward, cross-entropy, backward and AdamW (`--optimizer sgd`: without state), on fresh weights with 100 classes.
"""

import argparse
import gc
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from patchloom.train.catalogue.compat import spelling
from patchloom.train.measure import (
    LAYOUTS,
    Case,
    Spread,
    Step,
    alternate,
    best_layout,
    circumstances,
    in_child,
    inputs,
    load_libraries,
    resident_mb,
    warm,
)
from patchloom.train.saved.judge import image_size, positive
from patchloom.train.tables import short
from patchloom.vision.adapters import ADAPTERS, AdapterError, adapt, adapter, counts
from patchloom.vision.zoo import create_model

MODELS = ("deit_small_patch16_224", "swin_tiny", "cvt_13", "convformer_s18", "vim_tiny", "vmamba_tiny_s1l8")
CLASSES = 100
FULL, PEFT = "full", "peft:"  # all parameters learn; timm's network with peft's LoRA of this rank
FORMS = ("hst:meta=0", "hst:fixed=true", "hst:meta=0,fixed=true", "vpt:deep=false")  # measured beside the defaults
OPTIMIZERS = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
BASE = "vit_base_patch16_224"


@dataclass(frozen=True)
class Goal:
    """What was promised: at most so much of the other's peak memory, and of its time."""

    model: str
    method: str
    memory: float | None = None
    time: float | None = None
    against: str = FULL


GOALS = (
    Goal(BASE, "lora:r=8", memory=0.6, time=1.0),
    Goal(BASE, "lora:r=8", time=1.0, against=f"{PEFT}8"),
    Goal(BASE, "hst"),
    Goal(BASE, "hst:fixed=true", memory=0.5),
)


# ------------------------------------------------------------------------------------------------------------- a step


@dataclass(frozen=True)
class Setup:
    """One side of a comparison, and how it is run."""

    model: str
    method: str
    case: Case
    layout: str = "contiguous"
    optimizer: str = "adamw"


def built(setup: Setup) -> nn.Module:
    torch.manual_seed(0)
    if setup.method.startswith(PEFT):
        return foreign(setup)
    model = create_model(setup.model, num_classes=CLASSES, img_size=setup.case.size)
    if setup.method != FULL:
        adapt(model, adapter(setup.method))
    return model.train()


def foreign(setup: Setup) -> nn.Module:
    """LoRA on timm's network through peft alone, on the layers that our preset wraps."""
    from peft import LoraConfig, get_peft_model

    model = create_model(f"timm:{setup.model}", num_classes=CLASSES, img_size=setup.case.size)
    rank = int(setup.method.removeprefix(PEFT))
    wanted = LoraConfig(r=rank, lora_alpha=rank, target_modules=r".*attn\.(qkv|proj)", modules_to_save=["head"])
    cfg, tuned = model.default_cfg, get_peft_model(model, wanted)
    tuned.default_cfg, tuned.num_classes = cfg, CLASSES
    return tuned.train()


def step_of(setup: Setup, model: nn.Module) -> Step:
    model.to(memory_format=LAYOUTS[setup.layout])
    x, y = inputs(model, setup.case, setup.layout)
    optimizer = OPTIMIZERS[setup.optimizer]([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def peak(setup: Setup) -> float:
    """MiB, in a process of its own."""
    return in_child(f"{setup.method} on {setup.model}", __file__, "--child", json.dumps(asdict(setup)))


def child(spec: dict[str, Any]) -> float:
    size = tuple(spec["case"]["size"])
    setup = Setup(**{**spec, "case": replace(Case(**spec["case"]), size=size)})
    if setup.case.threads:
        torch.set_num_threads(setup.case.threads)
    if setup.method != FULL:  # with what it imports, which is none of the step's memory
        small = replace(setup, model="vit_tiny_patch16_224", case=replace(setup.case, batch=1, size=(32, 32)))
        step_of(small, built(small))()
        gc.collect()
    load_libraries(setup.case)
    before = resident_mb(peak=False)
    step = step_of(setup, built(setup))
    for _ in range(3):
        step()
    return resident_mb(peak=True) - before


# -------------------------------------------------------------------------------------------------------- what is done


def compared(setups: list[Setup], rounds: int) -> Iterator[dict[str, Any]]:
    """A record of each of `setups` against the first, which is full fine-tuning or another's: refusals at once."""
    models: dict[str, nn.Module] = {}
    for setup in setups:
        try:
            models[setup.method] = built(setup)
        except AdapterError as error:
            yield {**names(setup), "refused": str(error)}
    taken = [s for s in setups if s.method in models]
    steps = [step_of(s, models[s.method]) for s in taken]
    if len(steps) < 2:
        return
    for step in steps:
        warm(step, "cpu")
    times = alternate(steps, repeats=rounds)
    yardstick = peak(taken[0])
    for i, setup in enumerate(taken[1:], 1):
        learning, total = counts(models[setup.method])
        head = sum(p.numel() for n, p in models[setup.method].named_parameters() if "head" in n and p.requires_grad)
        yield {
            **names(setup), "against": taken[0].method, "trainable": learning, "head": head, "total": total,
            "seconds": Spread.of([row[i] for row in times]).median,
            "against_seconds": Spread.of([row[0] for row in times]).median,
            "time": asdict(Spread.of([row[i] / row[0] for row in times])),
            "peak_mb": peak(setup), "against_peak_mb": yardstick, "rounds": len(times),
        }  # fmt: skip


def names(setup: Setup) -> dict[str, Any]:
    case = setup.case
    return {
        "model": setup.model, "method": setup.method, "optimizer": setup.optimizer, "layout": setup.layout,
        "batch": case.batch, "size": list(case.size or ()),
    }  # fmt: skip


def layout_of(name: str, case: Case) -> str:
    """The faster one for full fine-tuning, which both sides then have."""
    model = create_model(name, num_classes=CLASSES, img_size=case.size).train()
    return best_layout(model, case)[1]


def key(record: dict[str, Any]) -> tuple[Any, ...]:
    return (record["model"], record["method"], record.get("against", FULL), record["optimizer"])


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def measure(args: argparse.Namespace) -> None:
    """Appends what is missing in the file."""
    case = Case(args.batch, args.size, train=True, threads=args.threads)
    there = read(args.out)
    done = {key(r) for r in there} | {(r["model"], r["method"], a, r["optimizer"])
                                      for r in there if "refused" in r for a in (FULL, f"{PEFT}8")}  # fmt: skip
    with args.out.open("a") as file:

        def write(records: Iterable[dict[str, Any]]) -> None:
            for record in records:
                record["circumstances"] = circumstances(case)
                print(json.dumps(record), file=file, flush=True)
                print(line(record), file=sys.stderr, flush=True)

        for goal in GOALS if args.goals else ():
            for optimizer in OPTIMIZERS:
                if (goal.model, goal.method, goal.against, optimizer) not in done:
                    first, second = (
                        Setup(goal.model, m, case, optimizer=optimizer) for m in (goal.against, goal.method)
                    )
                    write(compared([first, second], args.rounds))
        for model in args.models:
            methods = [m for m in args.methods if (model, m, FULL, args.optimizer) not in done]
            layout = layout_of(model, case) if methods else ""
            for first in range(0, len(methods), args.together):
                some = [FULL, *methods[first : first + args.together]]
                write(compared([Setup(model, m, case, layout, args.optimizer) for m in some], args.rounds))
                gc.collect()


# ------------------------------------------------------------------------------------------------------ what is shown


def spread(s: dict[str, float]) -> str:
    return f"{s['median']:.2f} ({s['low']:.2f} … {s['high']:.2f})"


def line(r: dict[str, Any]) -> str:
    who = f"{r['method']} on {r['model']}"
    if "refused" in r:
        return f"{who}: {r['refused']}"
    memory = f"{r['peak_mb']:.0f} MiB = {r['peak_mb'] / r['against_peak_mb']:.2f}"
    return f"{who}, {r['optimizer']}: {own(r)}, time {spread(r['time'])}, memory {memory} of {r['against']}"


def own(r: dict[str, Any]) -> str:
    """Parameters that learn, without the head's."""
    return short(r["trainable"] - r["head"])


def grid(records: list[dict[str, Any]], cell: Callable[[dict[str, Any]], str], title: str) -> str:
    """Adapters down, backbones across."""
    found = {(r["method"], r["model"]): r for r in records if r["model"] != BASE and r.get("against", FULL) == FULL}
    models = list(dict.fromkeys(model for _, model in found))
    lines = [f"| {title} | " + " | ".join(models) + " |", "|---" * (len(models) + 1) + "|"]
    for method in dict.fromkeys(m for m, _ in found):
        row = [found.get((method, m)) for m in models]
        cells = ["" if r is None else "–" if "refused" in r else cell(r) for r in row]
        lines.append(f"| `{method}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdicts(records: list[dict[str, Any]]) -> str:
    lines = ["| ViT-B | against | optimiser | time | goal | peak MiB | goal |", "|---" * 7 + "|"]
    for goal in GOALS:
        wanted = (goal.model, goal.method, goal.against)
        for r in (r for r in records if "refused" not in r and (r["model"], r["method"], r["against"]) == wanted):
            share = r["peak_mb"] / r["against_peak_mb"]
            met = (judged(r["time"]["median"], goal.time), judged(share, goal.memory))
            memory = f"{r['peak_mb']:.0f} / {r['against_peak_mb']:.0f} = {share:.2f}"
            cells = [f"`{r['method']}`", r["against"], r["optimizer"], spread(r["time"]), met[0], memory, met[1]]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def judged(value: float, goal: float | None) -> str:
    return "" if goal is None else f"{goal:g}, {'met' if value <= goal else 'missed'}"


def report(records: list[dict[str, Any]]) -> str:
    parts = [
        grid(records, own, "parameters that learn, without the head"),
        grid(records, lambda r: spread(r["time"]), "time of a step over full fine-tuning (quartiles)"),
        grid(records, lambda r: f"{r['peak_mb'] / r['against_peak_mb']:.2f}", "peak memory over full fine-tuning"),
        verdicts(records),
    ]
    rows = {r["model"]: r for r in records if "seconds" in r and r["against"] == FULL}
    full = [f"{m} {r['against_seconds']:.2f} s, {r['against_peak_mb']:.0f} MiB" for m, r in rows.items()]
    where = [r["circumstances"] for r in records if "circumstances" in r]
    how = ", ".join(f"{k} {v}" for k, v in where[-1].items()) if where else ""
    return "\n\n".join([*parts, f"full fine-tuning: {'; '.join(full)}", how])


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("adapters_cost.jsonl"), help="JSON lines, appended")
    parser.add_argument("--report", action="store_true", help="print the tables, measure nothing")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--methods", nargs="+", default=[*map(spelling, ADAPTERS), *FORMS], metavar="SPEC")
    parser.add_argument("--goals", action=argparse.BooleanOptionalAction, default=True, help="ViT-B too, first")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw")
    parser.add_argument("--batch", type=positive, default=8)
    parser.add_argument("--size", type=image_size, default=(224, 224))
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--together", type=positive, default=8, help="adapters beside one full fine-tuning")
    parser.add_argument("--threads", type=positive)
    parser.add_argument("--child", metavar="JSON", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parsed()
    if args.child:
        print(json.dumps({"peak_memory_mb": child(json.loads(args.child))}))
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    if not args.report:
        measure(args)
    print(report(read(args.out)))


if __name__ == "__main__":
    main()
