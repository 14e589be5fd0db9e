"""Deformable attention in plain torch against transformers': milliseconds of each on the maps of strides 32, 16 and 8
of an image, in turns, the best of several. In Markdown.

`python tests/benchmarks/deformable.py [--size 512] [--threads 2]`; transformers must be there.
"""

import argparse
import time

import torch
from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention

from patchloom.kernels.deformable import BACKENDS, deformable


def inputs(size: int, batch: int, training: bool) -> tuple[list[tuple[int, int]], list[torch.Tensor]]:
    shapes = [(size // s, size // s) for s in (32, 16, 8)]
    n, heads, width, points = sum(h * w for h, w in shapes), 8, 32, 4
    g = torch.Generator().manual_seed(0)
    value = torch.randn(batch, n, heads, width, generator=g)
    places = torch.rand(batch, n, heads, len(shapes), points, 2, generator=g) * 1.1 - 0.05
    weights = torch.rand(batch, n, heads, len(shapes), points, generator=g)
    return shapes, [t.requires_grad_(training) for t in (value, places, weights)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    forms = {name: lambda v, s, p, w, f=f: f(v, s, p, w) for name, f in BACKENDS.items() if name != "reference"}
    forms |= {"auto": deformable, "transformers": lambda v, s, p, w: multi_scale_deformable_attention(v, s, p, w)}
    print(f"| {given.size} px, batch {given.batch}, {given.threads} threads | forward, ms | forward and backward, ms |")
    print("|---|---|---|")
    best = {name: [float("inf")] * 2 for name in forms}
    for training in (False, True):
        shapes, (value, places, weights) = inputs(given.size, given.batch, training)
        for _ in range(given.rounds):
            for name, form in forms.items():
                start = time.perf_counter()
                y = form(value, shapes, places, weights)
                if training:
                    torch.autograd.grad(y.sum(), (value, places, weights))
                best[name][training] = min(best[name][training], time.perf_counter() - start)
    for name, (forward, both) in best.items():
        print(f"| {name} | {forward * 1e3:.1f} | {both * 1e3:.1f} |")


if __name__ == "__main__":
    main()
