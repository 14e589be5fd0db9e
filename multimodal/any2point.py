"""Any2Point, https://arxiv.org/abs/2404.07989: a frozen vision transformer reads point clouds.

Tokens stand for 128 points of a cloud (point_tokens.py). Seen from six sides, each lies somewhere on an image: the
model's own embeddings of those places, averaged, tell where it is, in 3-D, in the model's words (`virtual`, `placed`).
Behind each frozen block stands a small adapter, and tokens that lie near each other on a side exchange what they know,
as far as that agrees with what lies near in space (`Guided`).

The variant of the record, a ViT on images, is built; those for text (1-D) and audio are not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.attend import attend
from ..vision.backbone import Backbone
from ..vision.block import Block
from ..vision.layers import Linear, QuickGELU
from ..vision.model import Classifier
from ..vision.norm import BatchNorm
from ..vision.position import Embedding
from ..vision.tokens import Tokens
from .llava import load
from .point_tokens import PointTokens

VIEWS = 6
NARROW, HEADS = 12, 6  # of the attention between neighbours
P, B, G = r"patch_embed\.EncP\.", r"blocks\.(\d+)\.", r"backbone.stages.0.blocks.\1."
NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
NAMES = (  # the authors' names -> ours
    (P + r"raw_point_embed\.net\.0\.weight", "tokens.enter.weight"),
    (P + r"raw_point_embed\.net\.1\." + NORM, r"tokens.norm.\1"),
    *(
        (P + rf"LGA_list\.(\d)\.linear2\.(\d)\.net{i}\.0\.(weight|bias)", rf"tokens.stages.\1.\2.fc{i}.\3")
        for i in (1, 2)
    ),
    *((P + rf"LGA_list\.(\d)\.linear2\.(\d)\.net{i}\.1\.{NORM}", rf"tokens.stages.\1.\2.norm{i}.\3") for i in (1, 2)),
    (r"cls_token", "first"),
    (r"cls_pos", "first_place"),
    (B + r"(norm[12])\.(weight|bias)", G + r"\2.\3"),
    (B + r"attn\.(qkv|proj)\.(weight|bias)", G + r"mixer.\2.\3"),
    (B + r"mlp\.(fc[12])\.(weight|bias)", G + r"ffn.\2.\3"),
    (B + r"ls([12])\.gamma", G + r"add\2.gamma"),
    (B + r"adapter\.ln([12])\.(weight|bias)", r"guided.\1.fc\2.\3"),
    (B + r"out_transform_3d\.0\." + NORM, r"guided.\1.norm3d.\2"),
    (B + r"out_transform_2d\.(\d)\.0\." + NORM, r"guided.\1.norms.\2.\3"),
    (r"attn1\.(\d)\.(qkv|proj)\.(weight|bias)", r"near.\1.\2.\3"),
    (r"norm3\.(\d)\.(weight|bias)", r"near.\1.norm.\2"),
    (r"norm\.(weight|bias)", r"norm.\1"),
)


@dataclass(frozen=True)
class Sight:
    """away: how far the camera stands from the cloud, whose points are at most 1 from its middle. cell: the side of the
    cells of a view, in pixels; voxel: of those in space. share: how much of what neighbours say is taken. scale: of the
    adapters, `adapter` wide. k: neighbours of a point in the tokeniser.
    scrambled: the embeddings of places are read channel by channel as if they lay token by token, as in the authors'
    code and so in their weights; False reads them rightly.
    """

    away: float = 1.8
    cell: float = 26.0
    voxel: float = 0.16
    share: float = 0.7
    scale: float = 0.3
    adapter: int = 8
    k: int = 64
    last: int = 32
    scrambled: bool = True


SIGHTS = {"scanobjectnn": Sight(), "modelnet40": Sight(1.4, share=0.1, scale=1.0, k=81)}


def turned() -> Tensor:
    """(6 3 3): the cloud as seen from four sides, from above and from below; x' = x M."""
    angles = [(i * pi / 2, 0.0) for i in range(4)] + [(0.0, -pi / 2), (0.0, pi / 2)]
    found = []
    for a, b in angles:
        x, y, z = (torch.tensor(v) for v in (a, b, pi / 2))
        o, i = torch.tensor(0.0), torch.tensor(1.0)
        turn_x = torch.stack([i, o, o, o, x.cos(), -x.sin(), o, x.sin(), x.cos()]).view(3, 3)
        turn_y = torch.stack([y.cos(), o, y.sin(), o, i, o, -y.sin(), o, y.cos()]).view(3, 3)
        turn_z = torch.stack([z.cos(), -z.sin(), o, z.sin(), z.cos(), o, o, o, i]).view(3, 3)
        found.append((turn_x @ turn_y @ turn_z).T)
    return torch.stack(found)


def virtual(centres: Tensor, away: float, size: tuple[int, int]) -> Tensor:
    """(B n 3) -> (B 6 n 2): where each point lies on an image of `size` (H, W), in pixels (x, y), from each side."""
    p = torch.einsum("bnc,vcd->bvnd", centres, turned().to(centres))
    depth = p[..., 2:] + away
    sides = torch.tensor([size[1], size[0]], device=p.device, dtype=p.dtype)
    return ((p[..., :2] / depth + 1) * sides - 1) / 2 % sides


def placed(pixels: Tensor, table: Tensor, size: tuple[int, int], scrambled: bool) -> Tensor:
    """pixels (B 6 n 2), embeddings of places `table` (1 C h w) -> (B n C), mean over the views."""
    b, views, n, _ = pixels.shape
    sides = torch.tensor([size[1] - 1, size[0] - 1], device=pixels.device, dtype=pixels.dtype)
    at = (pixels / sides * 2 - 1).flatten(1, 2)[:, None]  # B 1 6n 2
    y = F.grid_sample(table.to(at.dtype).expand(b, -1, -1, -1), at, mode="bilinear", align_corners=True)
    y = y[:, :, 0].unflatten(2, (views, n)).transpose(1, 2)  # B 6 C n
    y = y.reshape(b, views, n, -1) if scrambled else y.mT
    return y.mean(1)


def together(cells: Tensor) -> Tensor:
    """(B n d) whole numbers -> (B n n): which share all of them."""
    return (cells[:, :, None] == cells[:, None]).all(-1)


def mean_of(x: Tensor, same: Tensor) -> Tensor:
    """(B n C): the mean of all with which each is together."""
    w = same.to(x.dtype)
    return w @ x / w.sum(-1, keepdim=True)


class Near(nn.Module):
    """x + attention, 12 channels wide, between those that are together, of norm(x)."""

    projections = ("qkv", "proj")

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.qkv, self.proj = Linear(dim, 3 * NARROW), Linear(NARROW, dim)

    def forward(self, x: Tensor, same: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = attend(q, k, v, same[:, None], scale=NARROW**-0.5)  # the authors' scale, of all heads together
        return x + self.proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Guided(nn.Module):
    """What stands behind a frozen block: u -> fc2(quick_gelu(fc1(u))) for what its MLP says, and for the points' tokens
    t + share sum_i w_i m_i: m_i the mean in a cell of view i, w_i how like it is to the same in space."""

    def __init__(self, dim: int, sight: Sight):
        super().__init__()
        self.fc1, self.act, self.fc2 = Linear(dim, sight.adapter), QuickGELU(), Linear(sight.adapter, dim)
        self.drop = nn.Dropout(0.1)
        self.norm3d, self.norms = BatchNorm(dim), nn.ModuleList(BatchNorm(dim) for _ in range(VIEWS))
        self.sight = sight
        nn.init.zeros_(self.fc2.weight)

    def adapted(self, u: Tensor) -> Tensor:
        return u + self.sight.scale * self.fc2(self.drop(self.act(self.fc1(u))))  # type: ignore[no-any-return]

    def forward(self, t: Tensor, near: nn.ModuleList, views: Tensor, space: Tensor) -> Tensor:
        """views (B 6 n n) and space (B n n): which are together."""
        most = t[:, None].masked_fill(~space[..., None], -torch.inf).amax(2)
        there = F.gelu(self.norm3d(mean_of(t, space) + most))
        said = torch.stack([
            F.gelu(norm(mean_of(layer(t, same), same)))
            for layer, norm, same in zip(near, self.norms, views.unbind(1), strict=True)
        ])  # fmt: skip
        alike = (F.cosine_similarity(said, there[None], dim=-1) + 1) / 2  # 6 B n
        return t + self.sight.share * (said * (alike / alike.sum(0))[..., None]).sum(0)  # type: ignore[no-any-return]


class Any2Point(nn.Module):
    """points (B M 3), at most 1 from their middle -> logits (B classes); `features` the tokens before that.

    model: a ViT with a class token and a learned table of places (DINOv2's ViT-B/14 as published); its blocks, norm,
    class token and table are frozen. Raises ValueError where it has other blocks, or another width than the tokens.
    """

    def __init__(self, model: Classifier, classes: int, sight: Sight | None = None):
        super().__init__()
        self.sight = s = Sight() if sight is None else sight
        backbone, position = model.backbone, getattr(model.backbone.stem, "position", None)
        blocks = [b for stage in backbone.stages for b in stage.blocks]  # type: ignore[attr-defined]
        if len(backbone.specs) > 1 or not all(isinstance(b, Block) for b in blocks):
            raise ValueError("Any2Point takes a ViT: one stage of blocks with a mixer and an MLP")
        if not isinstance(position, Embedding) or len(position.tokens) != 1:
            raise ValueError("Any2Point takes a ViT with one class token and a learned table of places")
        dim = backbone.channels[0]
        if dim % 24:
            raise ValueError(f"{dim} channels: points become tokens of 8 times a multiple of 3")
        self.tokens = PointTokens(dim // 8, s.k, s.last)
        self.backbone, self.norm = Blocks(backbone), model.norm
        self.grid = position.spec.grid
        self.size = (self.grid[0] * backbone.strides[0], self.grid[1] * backbone.strides[0])
        self.first = nn.Parameter(position.tokens[0].detach().clone().view(1, 1, dim), False)
        table = position.table.detach()
        self.first_place = nn.Parameter(table[:, :1].clone())
        self.table = nn.Parameter(table[:, -self.grid[0] * self.grid[1] :].clone(), False)
        self.near = nn.ModuleList(Near(dim) for _ in range(VIEWS))
        self.guided = nn.ModuleList(Guided(dim, s) for _ in blocks)
        self.head = nn.Sequential(
            Linear(2 * dim, 256), BatchNorm(256), nn.ReLU(), nn.Dropout(0.5), Linear(256, 256), BatchNorm(256),
            nn.ReLU(), nn.Dropout(0.5), Linear(256, classes),
        )  # fmt: skip
        for part in (self.backbone, self.norm):
            part.requires_grad_(False)

    def features(self, points: Tensor) -> Tensor:
        """(B 1+n C), behind the norm; the class token first."""
        x, centres = self.tokens(points)
        pixels = virtual(centres.float(), self.sight.away, self.size)
        table = self.table.unflatten(1, self.grid).permute(0, 3, 1, 2)
        where = placed(pixels, table, self.size, self.sight.scrambled).to(x.dtype)
        where = torch.cat([self.first_place.expand(len(x), -1, -1), where], 1)
        x = torch.cat([self.first.expand(len(x), -1, -1).to(x.dtype), x], 1)
        views = torch.stack([together(v) for v in (pixels / self.sight.cell).floor().unbind(1)], 1)
        low = centres.amin(1, keepdim=True)
        space = together(((centres - low) / self.sight.voxel).floor())
        for block, guided in zip(self.backbone.blocks, self.guided, strict=True):
            x = self.step(block, guided, x + where)
            x = torch.cat([x[:, :1], guided(x[:, 1:], self.near, views, space)], 1)
        return self.norm(x)  # type: ignore[no-any-return]

    def step(self, block: nn.Module, guided: nn.Module, x: Tensor) -> Tensor:
        """A frozen block with the adapter behind what its MLP says."""
        assert isinstance(block, Block)
        assert isinstance(guided, Guided)
        t = Tokens(x, None, (0,))
        y = block.add1(x, block.mixer(replace(t, x=block.norm1(x))))
        return y + guided.adapted(block.add2(torch.zeros_like(y), block.ffn(block.norm2(y))))  # type: ignore[no-any-return]

    def forward(self, points: Tensor) -> Tensor:
        y = self.features(points)
        return self.head(torch.cat([y[:, 1:].amax(1), y[:, 0]], -1))  # type: ignore[no-any-return]


class Blocks(nn.Module):
    """The blocks of a backbone under the names that they have there."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.stages = backbone.stages

    @property
    def blocks(self) -> nn.ModuleList:
        return self.stages[0].blocks  # type: ignore[return-value]


def load_any2point(model: Any2Point, state: Mapping[str, Tensor], left_out: tuple[str, ...] = ()) -> None:
    """The authors' weights; the head and the frozen table of places, which their files may lack, stay as they are.
    Raises ValueError where a name has no place, or a place no name."""
    flat = {n: v.flatten(1) if v.ndim > 2 and n.startswith("patch_embed") else v for n, v in state.items()}
    load(model, flat, NAMES, left_out, ("table", r"head\..*", r".*\.num_batches_tracked"))
