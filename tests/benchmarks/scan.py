"""The selective scan's forms against a yardstick: the exponentials alone (`torch.exp` over B L D N numbers), or the
well-written recurrence. Width 384, 16 states.

`python tests/benchmarks/scan.py --batch 1 8 --length 196 1024 4096`. In Markdown: milliseconds, and times the
yardstick (`--yardstick exp` or `recurrence`).
`--memory`: MiB that forward and backward add to their inputs at most, each form in a process of its own.
`--exponent`: p of time ~ length^p, fitted over 196 ... 16384; the goal is 1.05.
`--device cuda --forms triton chunked`: the same on a GPU (`--memory` is a CPU's).
"""

import argparse
import json
from math import log
from statistics import linear_regression

import torch
from torch import Tensor

from patchloom.kernels.selective_scan import Scan, chunked, native, reference, triton
from patchloom.train.measure import Case, Spread, Step, alternate, in_child, load_libraries, resident_mb, warm

FORMS = {"native": native, "chunked": chunked, "recurrence": reference, "triton": triton}
LENGTHS, LONG = (196, 1024, 4096), (196, 512, 1024, 2048, 4096, 8192, 16384)
GOAL = 1.05


def inputs(batch: int, length: int, dim: int = 384, states: int = 16) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    u, d = (torch.randn(batch, length, dim, generator=g) for _ in range(2))
    b, c = (torch.randn(batch, length, 1, states, generator=g) for _ in range(2))
    return [u, torch.nn.functional.softplus(d), -torch.rand(dim, states, generator=g) * 4 - 0.1, b, c]


def steps(name: str, batch: int, length: int, device: str = "cpu") -> tuple[Step, Step]:
    """The form's forward pass, and that with its backward pass."""
    form, given = FORMS[name], [t.to(device) for t in inputs(batch, length)]
    leaves = [t.clone().requires_grad_() for t in given]
    dy = torch.randn_like(given[0])

    def forward() -> object:
        with torch.no_grad():
            return form(Scan(*given, None, False))

    def both() -> object:
        return torch.autograd.grad(form(Scan(*leaves, None, False))[0], leaves, dy)

    return forward, both


def exponentials(batch: int, length: int, device: str = "cpu") -> tuple[Step, Step]:
    big = torch.randn(batch, length, 384, 16, device=device)
    return (lambda: torch.exp(big),) * 2


def medians(measured: list[Step], seconds: float, device: str) -> list[float]:
    for step in measured:
        warm(step, device)
    return [Spread.of(column).median for column in zip(*alternate(measured, device, seconds=seconds), strict=True)]


def times(args: argparse.Namespace) -> None:
    heads = [f"{f}, {what}" for f in (args.yardstick, *args.forms) for what in ("forward", "with backward")]
    print(f"| B, L | {' | '.join(heads)} |\n{'|---' * (1 + len(heads))}|")
    for batch in args.batch:
        for length in args.length or LENGTHS:
            size = batch, length, args.device
            yard = exponentials(*size) if args.yardstick == "exp" else steps("recurrence", *size)
            found = medians([s for pair in (yard, *(steps(f, *size) for f in args.forms)) for s in pair],
                            args.seconds, args.device)  # fmt: skip
            cells = [f"{t * 1e3:.2f} ({t / found[i % 2]:.2f}x)" for i, t in enumerate(found)]
            print(f"| {batch}, {length} | {' | '.join(cells)} |", flush=True)


def memory(args: argparse.Namespace) -> None:
    print(f"| B, L | {' | '.join(args.forms)} |\n{'|---' * (1 + len(args.forms))}|")
    for batch in args.batch:
        for length in args.length or LENGTHS:
            own = [__file__, "--batch", str(batch), "--length", str(length), "--child", "--forms"]
            cells = [f"{in_child(f'{form} at {batch}, {length}', *own, form):.1f}" for form in args.forms]
            print(f"| {batch}, {length} | {' | '.join(cells)} |", flush=True)


def child(form: str, batch: int, length: int) -> float:
    """MiB that one form adds to this process, which is `--memory`'s own."""
    both = steps(form, batch, length)[1]
    steps(form, 1, 8)[1]()  # what is compiled and tried on first use is no part of it
    load_libraries(Case())
    before = resident_mb(peak=False)
    for _ in range(3):
        both()
    return resident_mb(peak=True) - before


def exponent(args: argparse.Namespace) -> None:
    lengths = args.length or LONG
    print("| B, form | forward | with backward | goal |\n|---|---|---|---|")
    for batch in args.batch:
        for form in args.forms:
            pairs = [steps(form, batch, n, args.device) for n in lengths]
            found = medians([s for pair in pairs for s in pair], args.seconds, args.device)
            fitted = [slope(lengths, found[i::2]) for i in range(2)]
            verdict = "met" if max(fitted) <= GOAL else "missed"
            print(f"| {batch}, {form} | {fitted[0]:.3f} | {fitted[1]:.3f} | {verdict} |", flush=True)


def slope(lengths: list[int], seconds: list[float]) -> float:
    """p of seconds ~ length^p, by least squares of the logarithms."""
    return linear_regression([log(n) for n in lengths], [log(t) for t in seconds]).slope


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--length", type=int, nargs="+")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["native", "chunked"])
    parser.add_argument("--yardstick", choices=("exp", "recurrence"), default="exp")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--memory", action="store_true")
    what.add_argument("--exponent", action="store_true")
    what.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.memory and args.device != "cpu":
        parser.error("--memory reads a process's resident memory, which says nothing of a GPU's")
    if args.child:
        print(json.dumps({"peak_memory_mb": child(args.forms[0], args.batch[0], args.length[0])}))
    else:
        (memory if args.memory else exponent if args.exponent else times)(args)


if __name__ == "__main__":
    main()
