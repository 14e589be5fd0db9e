"""LEGO-Diffusion: a chain of bricks, each a small DiT on pieces of the image, https://arxiv.org/abs/2310.06389.

Shapes: B samples, C channels of the image or latent, D the condition's width, H W the image.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from math import log
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Linear
from ..network import Rules
from ..published import Weights
from .adaln import FinalLayer, Modulation
from .conditioning import Labels, TimeEmbedding
from .denoiser import Denoiser, Variant
from .lego_bricks import Brick, BrickNet
from .lego_file import read


@dataclass(frozen=True)
class Skip:
    """`bricks` (from 0) are left out where the noise sigma lies between `above` and `below`: what they would refine is
    a prediction already. The first brick cannot be: all others take what it gives."""

    bricks: tuple[int, ...]
    above: float = 0.0
    below: float = float("inf")

    def holds(self, c_noise: float) -> bool:
        """For a network's time ln(sigma) / 4."""
        low = log(self.above) / 4 if self.above > 0 else float("-inf")
        return low < c_noise < (log(self.below) / 4 if self.below > 0 else float("-inf"))


class ClassVector(Labels):
    """(B) -> (B D): a vector for each class beside a bias, which alone stands for none; shares of classes
    (B num_classes) are mixed."""

    def __init__(self, num_classes: int, dim: int):
        super().__init__()
        self.linear = Linear(num_classes, dim)

    def forward(self, y: Tensor) -> Tensor:
        if not y.is_floating_point():
            n = self.linear.in_features
            y = F.one_hot(y, n + 1)[:, :n]
        return self.linear(y.to(self.linear.weight.dtype))  # type: ignore[no-any-return]

    def resized(self, num_classes: int) -> "ClassVector":
        """The same for other classes, each of which begins as no class does."""
        new = ClassVector(num_classes, self.linear.out_features).to(self.linear.weight)
        with torch.no_grad():
            new.linear.weight.zero_()
            new.linear.bias.copy_(self.linear.bias)
        return new.train(self.training)


class Lego(Denoiser):
    """The first brick takes the image and the coordinates of its pixels, each other one also what the brick before it
    gave. As all of them predict the whole image (F of EDM's form), all are trained (`predictions`), and bricks may be
    left out when images are sampled (`skipping`). Pieces know nothing of each other within a brick, so that any larger
    image works.

    Labels are classes, or shares of them (B num_classes) in floating point; `num_classes` None or 0: no labels.
    """

    family = "lego"

    def __init__(self, bricks: Sequence[Brick], dim: int, heads: int, in_channels: int = 3,
                 size: Sequence[int] = (64, 64), *, num_classes: int | None = None, dropout: float = 0.1):  # fmt: skip
        high, wide = (int(n) for n in size)
        super().__init__(in_channels, in_channels, (high, wide), num_classes=num_classes or None, time="c_noise",
                         dropout=dropout)  # fmt: skip
        if not bricks:
            raise ValueError("bricks: at least one is wanted; got none")
        self.specs, self.dim, self.heads, self.skips = tuple(bricks), dim, heads, cast(tuple[Skip, ...], ())
        self.time_embedding = TimeEmbedding(dim)
        self.labels = ClassVector(num_classes, dim) if num_classes else None
        inner = [in_channels + 2, *[2 * in_channels + 2] * (len(bricks) - 1)]
        self.bricks = nn.ModuleList(
            BrickNet(b, dim, heads, (n, in_channels)) for b, n in zip(bricks, inner, strict=True)
        )
        initialise(self)

    def arguments(self) -> dict[str, Any]:
        return {"bricks": self.specs, "dim": self.dim, "heads": self.heads, "in_channels": self.in_channels,
                "size": self.size, "num_classes": self.num_classes, "dropout": self.made_with_dropout}  # fmt: skip

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None) -> list[Tensor]:
        c = self.time_embedding(t, x.dtype)
        if self.labels is not None:
            c = c + self.labels(y)
        h, w = x.shape[-2:]
        x = F.pad(x, (0, self.fitting(w) - w, 0, self.fitting(h) - h))
        x = torch.cat([x, coordinates(x)], 1)
        if not self.skips or self.training:
            return [out[..., :h, :w] for out in self.chain(x, c, ())]
        out = self.sparing(x, t, c)
        return [out[..., :h, :w]]

    def chain(self, x: Tensor, c: Tensor, gone: Collection[int]) -> list[Tensor]:
        """What every brick gives that is not `gone`; x (B C+2 H W) has its coordinates with it."""
        found: list[Tensor] = []
        for i, brick in enumerate(self.bricks):
            if i not in gone:
                found.append(brick(torch.cat([found[-1], x], 1) if found else x, c))
        return found

    def sparing(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """The last prediction, with the bricks left out that are to be at the time of each sample."""
        gone = [frozenset(b for s in self.skips if s.holds(time) for b in s.bricks) for time in t.tolist()]
        if len(kinds := set(gone)) == 1:
            return self.chain(x, c, gone[0])[-1]
        out = x.new_empty(x.shape[0], self.out_channels, *x.shape[2:])
        for kind in kinds:
            rows = torch.tensor([g == kind for g in gone], device=x.device)
            out[rows] = self.chain(x[rows], c[rows], kind)[-1].to(out.dtype)
        return out

    @contextmanager
    def skipping(self, *skips: Skip) -> Iterator["Lego"]:
        """Within it, bricks are left out where these say so, in evaluation mode."""
        last = len(self.bricks) - 1
        for b in (b for s in skips for b in s.bricks):
            if not 1 <= b <= last:
                why = "the others take what it gives" if b == 0 else f"there are 0 .. {last}"
                raise ValueError(f"brick {b} cannot be skipped: {why}")
        before, self.skips = self.skips, skips
        try:
            yield self
        finally:
            self.skips = before

    def fitting(self, side: int) -> int:
        """The first side from this one on that every brick takes."""
        return next(n for n in count(side) if all(b.takes(n) for b in self.specs))

    def check(self, x: Tensor, t: Tensor, y: Tensor | None) -> None:
        shares = y is not None and y.is_floating_point() and y.ndim == 2
        if not shares or self.num_classes is None:
            return super().check(x, t, y)
        assert y is not None
        if y.shape != (x.shape[0], self.num_classes):
            want = (x.shape[0], self.num_classes)
            raise ValueError(f"shares of classes of shape {want} are wanted; got {tuple(y.shape)}")
        super().check(x, t, y.new_zeros(len(y), dtype=torch.int64))

    def null(self, y: Tensor | None) -> Tensor:
        found = super().null(y)
        return torch.zeros_like(found) if found.is_floating_point() else found

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for brick in self.bricks:
            assert isinstance(brick, BrickNet)
            brick.grad_checkpointing = enable


def coordinates(x: Tensor) -> Tensor:
    """(B C H W) -> (B 2 H W): row and column of each pixel, from -1 to 1."""
    b, _, h, w = x.shape
    rows, columns = (torch.linspace(-1, 1, n, device=x.device, dtype=torch.float32) for n in (h, w))
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij")).to(x.dtype).expand(b, -1, -1, -1)


@torch.no_grad()
def initialise(model: Lego) -> None:
    """As DiT: Xavier for linear layers and patches, normal 0.02 for the conditions, zero for what modulates or comes
    last."""
    for m in model.modules():
        if isinstance(m, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(m.weight.flatten(1))
            if m.bias is not None:
                nn.init.zeros_(m.bias)
    given = [model.time_embedding.fc1, model.time_embedding.fc2]
    for layer in [*given, *([model.labels.linear] if isinstance(model.labels, ClassVector) else [])]:
        nn.init.normal_(layer.weight, std=0.02)
    for m in model.modules():
        if isinstance(m, Modulation | FinalLayer):
            m.reset_parameters()


__all__ = ["RULES", "VARIANTS", "WEIGHTS", "Brick", "Lego", "Skip", "read"]

WIDTHS = {"s": (384, 6), "l": (1024, 16), "xl": (1152, 16)}  # channels, heads
DEPTHS = {  # of the bricks for pieces of 4 and 16 pixels and for the whole image, by width and arrangement
    "s": {"pg_64": (2, 4, 6), "pr_64": (2, 4, 6), "u_32": (2, 4, 6), "u_64": (2, 4, 6)},
    "l": {"pg_32": (4, 8, 12), "pg_64": (6, 8, 12), "pr_32": (4, 8, 12), "pr_64": (6, 8, 12), "u_32": (6, 8, 12),
          "u_64": (6, 8, 12), "pg_64_old": (6, 6, 12), "pr_64_old": (6, 6, 12)},
    "xl": {"pg_32": (4, 12, 14), "pg_64": (4, 12, 14), "pr_32": (4, 12, 14), "pr_64": (4, 12, 14),
           "u_32": (4, 10, 14), "u_64": (4, 12, 14)},
}  # fmt: skip


def variant(width: str, kind: str, depths: tuple[int, int, int]) -> Variant:
    """Growth (pg): small pieces first; refinement (pr): the whole image first; u: refinement, then growth. At 64 the
    small widths were made for pixels (S of faces, without classes), all others for latents."""
    (dim, heads), size = WIDTHS[width], int(kind.split("_")[1])
    grown = tuple(Brick(*each) for each in zip((4, 16, size), (2, 8, 2), depths, strict=True))
    chain = {"pg": grown, "pr": grown[::-1], "u": (*grown[::-1], *grown[1:])}[kind.partition("_")[0]]
    pixels = size == 64 and width != "xl"
    return Variant("lego", Lego, {
        "bricks": chain, "dim": dim, "heads": heads, "size": (size, size), "in_channels": 3 if pixels else 4,
        "num_classes": None if pixels and width == "s" else 1000,
    })  # fmt: skip


VARIANTS = {
    f"lego_{width}_{kind}": variant(width, kind, depths)
    for width, kinds in DEPTHS.items() for kind, depths in kinds.items()
}  # fmt: skip

ENDS, BRICK = r"(weight|bias)", r"model\.model\.(\d+)\."
RULES = {
    "published": Rules((
        (r"model\.t_embedder\.mlp\.0\." + ENDS, r"time_embedding.fc1.\1"),
        (r"model\.t_embedder\.mlp\.2\." + ENDS, r"time_embedding.fc2.\1"),
        (r"model\.y_embedder\.embedding_table\." + ENDS, r"labels.linear.\1"),
        (BRICK + "pos_embed", r"bricks.\1.position.table"),
        (BRICK + r"x_embedder\.proj\." + ENDS, r"bricks.\1.embed.\2"),
        (BRICK + r"blocks\.(\d+)\.attn\.(qkv|proj)\." + ENDS, r"bricks.\1.blocks.\2.mixer.\3.\4"),
        (BRICK + r"blocks\.(\d+)\.mlp\.(fc[12])\." + ENDS, r"bricks.\1.blocks.\2.ffn.\3.\4"),
        (BRICK + r"blocks\.(\d+)\.adaLN_modulation\.1\." + ENDS, r"bricks.\1.blocks.\2.modulation.linear.\3"),
        (BRICK + r"final_layer\.linear\." + ENDS, r"bricks.\1.final.linear.\2"),
        (BRICK + r"final_layer\.adaLN_modulation\.1\." + ENDS, r"bricks.\1.final.modulation.linear.\2"),
    )),
}  # fmt: skip


def row(file: str, size: int, channels: int, **metrics: float) -> Weights:
    return Weights("in1k", f"hf-hub:hjzheng/LEGO-Diffusion/{file}", "mit", input_size=(channels, size, size),
                   mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0, metrics=metrics, form="denoiser")  # fmt: skip


WEIGHTS = {  # the files for 64 have the older depths, by the number of parameters that their authors state
    "lego_l_pg_64_old": (row("LEGO-L-PG-64.pkl", 64, 3, fid=2.16, inception_score=78.66),),
    "lego_l_pr_64_old": (row("LEGO-L-PR-64.pkl", 64, 3, fid=2.29, inception_score=78.66),),
    "lego_xl_u_32": (row("LEGO-XL-U-256.pkl", 32, 4, fid=2.59, inception_score=338.08),),
}
