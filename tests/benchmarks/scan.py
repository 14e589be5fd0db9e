"""The selective scan's forms against the exponentials alone: `torch.exp` over B L D N numbers. Width 384, 16 states.

`python tests/benchmarks/scan.py --batch 1 8 --length 196 1024 4096`. In Markdown: milliseconds, and times the floor.
"""

import argparse

import torch
from torch import Tensor

from patchloom.kernels.selective_scan import Scan, chunked, native, reference
from patchloom.train.measure import Spread, alternate, warm

FORMS = {"native": native, "chunked": chunked, "recurrence": reference}


def inputs(batch: int, length: int, dim: int = 384, states: int = 16) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    u, d = (torch.randn(batch, length, dim, generator=g) for _ in range(2))
    b, c = (torch.randn(batch, length, 1, states, generator=g) for _ in range(2))
    return [u, torch.nn.functional.softplus(d), -torch.rand(dim, states, generator=g) * 4 - 0.1, b, c]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--length", type=int, nargs="+", default=[196, 1024, 4096])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["native", "chunked"])
    parser.add_argument("--seconds", type=float, default=2.0)
    args = parser.parse_args()
    print("| B, L | floor, ms | " + " | ".join(f"{f}, forward | {f}, with backward" for f in args.forms) + " |")
    print("|---" * (2 + 2 * len(args.forms)) + "|")
    for batch in args.batch:
        for length in args.length:
            given = inputs(batch, length)
            leaves = [t.clone().requires_grad_() for t in given]
            dy, big = torch.randn_like(given[0]), torch.randn(batch, length, 384, 16)
            steps = [lambda big=big: torch.exp(big)]
            for name in args.forms:

                def forward(form=FORMS[name], given=given):
                    with torch.no_grad():
                        return form(Scan(*given, None, False))

                def both(form=FORMS[name], leaves=leaves, dy=dy):
                    return torch.autograd.grad(form(Scan(*leaves, None, False))[0], leaves, dy)

                steps += [forward, both]
            for step in steps:
                warm(step, "cpu")
            rounds = alternate(steps, seconds=args.seconds)
            times = [Spread.of(column).median for column in zip(*rounds, strict=True)]
            cells = [f"{t * 1e3:.2f} ({t / times[0]:.2f}x)" for t in times[1:]]
            print(f"| {batch}, {length} | {times[0] * 1e3:.2f} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
