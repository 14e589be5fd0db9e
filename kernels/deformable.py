"""Multi-scale deformable attention, https://arxiv.org/abs/2010.04159: a few bilinear samples of each level, weighed.

Shapes: B images, N places of all levels together, Q queries, h heads, d head width, L levels, P samples of each level.

A sample at (x, y) of a map H x W lies at the pixel (x W - 1/2, y H - 1/2), so that 0 and 1 are the outer edges of the
first and last pixel; outside of the map all is 0.

What `auto` takes: on a CPU `gather`, which reads the rows of `value` where they lie, and on a GPU, or where operators
are recorded (compile, export), `sampled`. bfloat16 and float16 are computed in float32 by all forms.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .linear import unwatched

Shapes = Sequence[tuple[int, int]]


def reference(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """value (B N h d), levels one behind the other as `shapes` says, (H, W) each; locations (B Q h L P 2), (x, y) in
    0..1; weights (B Q h L P) -> (B Q h*d), sum over levels and samples of weight · value at the location.

    Defines the operation, corner by corner; inside in float32, float64 for float64."""
    check(value, shapes, locations, weights)
    (b, _, h, d), q = value.shape, locations.shape[1]
    wide = torch.float64 if value.dtype == torch.float64 else torch.float32
    values = torch.split(value.to(wide), [y * x for y, x in shapes], 1)
    total = torch.zeros(b, q, h, d, dtype=wide, device=value.device)
    for level, (high, long) in enumerate(shapes):
        at = locations[:, :, :, level].to(wide) * torch.tensor([long, high], device=value.device) - 0.5  # B Q h P 2
        low = at.detach().floor()
        part, m = at - low, values[level].transpose(1, 2)  # B h HW d
        for dy in (0, 1):
            for dx in (0, 1):
                x, y = low[..., 0] + dx, low[..., 1] + dy
                share = (part[..., 0] if dx else 1 - part[..., 0]) * (
                    part[..., 1] if dy else 1 - part[..., 1]
                )  # B Q h P
                inside = (x >= 0) & (x < long) & (y >= 0) & (y < high)
                row = torch.where(inside, y * long + x, 0).long()
                rows = row.transpose(1, 2).flatten(2)[..., None].expand(-1, -1, -1, d)  # B h QP d
                taken = m.gather(2, rows).view(b, h, q, -1, d).transpose(1, 2)  # B Q h P d
                share = share * inside * weights[:, :, :, level].to(wide)
                total = total + (taken * share[..., None]).sum(3)
    return total.flatten(2).to(value.dtype)


def sampled(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """`reference` by torch's grid_sample, a level at a time."""
    check(value, shapes, locations, weights)
    (b, _, h, d), q, p = value.shape, locations.shape[1], locations.shape[4]
    wide = torch.float64 if value.dtype == torch.float64 else torch.float32
    rows = value.to(wide).permute(0, 2, 3, 1).flatten(0, 1)
    maps = torch.split(rows, [y * x for y, x in shapes], 2)  # B*h d HW
    grids = (2 * locations.to(wide) - 1).transpose(1, 2).flatten(0, 1)  # B*h Q L P 2
    share = weights.to(wide).transpose(1, 2).flatten(0, 1)  # B*h Q L P
    total = torch.zeros(b * h, d, q, dtype=wide, device=value.device)
    for level, (high, long) in enumerate(shapes):
        m = maps[level].reshape(b * h, d, high, long)
        taken = F.grid_sample(
            m, grids[:, :, level].contiguous(), padding_mode="zeros", align_corners=False
        )  # B*h d Q P
        total = total + (taken.view(b * h, d, q, p) * share[:, None, :, level]).sum(-1)
    return total.view(b, h * d, q).transpose(1, 2).to(value.dtype)


def gather(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """`reference` as one weighted sum of rows for each query and head: all levels, samples and corners together are one
    bag of an embedding whose table is `value` as it lies. Its backward is such a sum too, over what each row gave to;
    it has no second one."""
    check(value, shapes, locations, weights)
    if value.numel() // value.shape[-1] >= 1 << 31:
        raise ValueError(f"value {tuple(value.shape)} has more rows than 32 bits count; backend 'sampled' takes it")
    wide = torch.float64 if value.dtype == torch.float64 else torch.float32
    y: Tensor = _Gather.apply(value.to(wide), tuple(shapes), locations.to(wide), weights.to(wide))
    return y.to(value.dtype)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        (b, n, h, d), q = value.shape, locations.shape[1]
        x, y = Axis(locations, shapes, 0), Axis(locations, shapes, 1)
        rows, parts = rows_of(x, y, shapes, (b, q, h, n)), parts_of(x, y, weights)
        ctx.save_for_backward(value, locations, weights, rows, parts)
        ctx.shapes = shapes
        return F.embedding_bag(
            rows.flatten(1), value.reshape(b * n * h, d), mode="sum", per_sample_weights=parts.flatten(1)
        ).view(b, q, h * d)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        value, locations, weights, rows, parts = ctx.saved_tensors
        (b, n, h, d), q = value.shape, locations.shape[1]
        dy, table = dy.reshape(b * q * h, d), value.reshape(b * n * h, d)
        d_value = d_locations = d_weights = None
        if ctx.needs_input_grad[0]:
            order = rows.flatten().sort(stable=True)
            starts = torch.searchsorted(order.values, torch.arange(b * n * h, dtype=rows.dtype))
            givers = order.indices.div(rows[0].numel(), rounding_mode="floor")
            d_value = F.embedding_bag(givers, dy, starts, mode="sum", per_sample_weights=parts.flatten()[order.indices])
            d_value = d_value.view_as(value)
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            x, y = (Axis(locations, ctx.shapes, i) for i in (0, 1))
            k = rows.shape[-1]
            offsets = torch.arange(0, rows.numel() + 1, 4 * k, dtype=torch.int32)
            bag = torch.arange(b * q * h, dtype=torch.int32).repeat_interleave(4 * k)
            g = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                dy, table, rows.flatten(), offsets, bag, 0, -1
            )
            g00, g01, g10, g11 = g.view(-1, 4, k).unbind(1)  # dy · value at the corner (y, x)
            left, right = y.first * g00 + y.second * g10, y.first * g01 + y.second * g11
            if ctx.needs_input_grad[3]:
                d_weights = (x.first * left + x.second * right).view_as(weights)
            if ctx.needs_input_grad[2]:
                above, below = x.first * g00 + x.second * g01, x.first * g10 + x.second * g11
                slopes = [right * x.in_second - left * x.in_first, below * y.in_second - above * y.in_first]
                share = weights.reshape(b * q * h, -1)
                slopes = [s * share * a.size for s, a in zip(slopes, (x, y), strict=True)]
                d_locations = torch.stack(slopes, -1).view_as(locations)
        return d_value, None, d_locations, d_weights


class Axis:
    """One coordinate of all samples, (BQh LP): the shares of the pixels before and behind, 0 where those are outside of
    the map, whether they are inside, and the first one's place or 0; `size` of the map on that axis, (LP)."""

    def __init__(self, locations: Tensor, shapes: Shapes, axis: int):
        levels, samples = locations.shape[3:5]
        sizes = [float(s[1 - axis]) for s in shapes for _ in range(samples)]
        self.size = torch.tensor(sizes, dtype=locations.dtype)
        at = (locations[..., axis].reshape(-1, levels * samples) * self.size).sub_(0.5)
        self.low = at.floor()
        at -= self.low
        self.in_first = (self.low >= 0) & (self.low < self.size)
        self.in_second = (self.low >= -1) & (self.low < self.size - 1)
        self.first, self.second = (1 - at) * self.in_first, at * self.in_second

    def places(self) -> tuple[Tensor, Tensor]:
        """The two pixels, 0 where one is outside."""
        low = self.low
        zero = torch.zeros((), dtype=low.dtype)
        return torch.where(self.in_first, low, zero).int(), torch.where(self.in_second, low + 1, zero).int()


def rows_of(x: Axis, y: Axis, shapes: Shapes, size: tuple[int, int, int, int]) -> Tensor:
    """(BQh 4 LP): the rows, in a table (B N h) of `size` (B, Q, h, N), of the four pixels around each sample; the
    corners in the order (y, x) = 00, 01, 10, 11."""
    (b, q, h, n), k = size, len(x.size)
    samples = k // len(shapes)
    starts = [sum(high * long for high, long in shapes[:i]) * h for i in range(len(shapes)) for _ in range(samples)]
    across = torch.tensor([long * h for _, long in shapes for _ in range(samples)], dtype=torch.int32)
    image = torch.arange(b, dtype=torch.int32)[:, None, None] * (n * h)
    base = (image + torch.arange(h, dtype=torch.int32)).expand(b, q, h).reshape(-1, 1)
    level = torch.tensor(starts, dtype=torch.int32)
    columns = [(p * h).add_(base) for p in x.places()]
    lines = [(p * across).add_(level) for p in y.places()]
    rows = torch.empty(len(base), 4, k, dtype=torch.int32)
    for i in range(4):
        torch.add(lines[i // 2], columns[i % 2], out=rows[:, i])
    return rows


def parts_of(x: Axis, y: Axis, weights: Tensor) -> Tensor:
    """(BQh 4 LP): what each of those pixels counts."""
    share = weights.reshape(x.first.shape)
    lines = [y.first * share, y.second * share]
    parts = share.new_empty(len(share), 4, share.shape[1])
    for i in range(4):
        torch.mul(lines[i // 2], (x.first, x.second)[i % 2], out=parts[:, i])
    return parts


Form = Callable[[Tensor, Shapes, Tensor, Tensor], Tensor]
BACKENDS: dict[str, Form] = {"reference": reference, "sampled": sampled, "gather": gather}


def deformable(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor, *, backend: str = "auto") -> Tensor:
    """`reference` by the form that suits the device, or the one named."""
    if backend == "auto":
        backend = "gather" if value.is_cpu and unwatched() else "sampled"
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not known; there are auto, {', '.join(BACKENDS)}")
    return BACKENDS[backend](value, shapes, locations, weights)


def check(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> None:
    b, n, h = value.shape[:3]
    if n != sum(y * x for y, x in shapes):
        raise ValueError(f"value has {n} places, but levels of {', '.join(f'{y}x{x}' for y, x in shapes)} have others")
    like = (b, locations.shape[1], h, len(shapes))
    if locations.ndim != 6 or locations.shape[:4] != like or locations.shape[-1] != 2:
        raise ValueError(f"locations {tuple(locations.shape)}: {(*like, 'P', 2)} are wanted")
    if weights.shape != locations.shape[:-1]:
        raise ValueError(f"weights {tuple(weights.shape)}: one for each location, {tuple(locations.shape[:-1])}")
