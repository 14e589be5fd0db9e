"""A point cloud as tokens, as Point-PN makes them (https://arxiv.org/abs/2303.08134) in Any2Point."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..vision.layers import Linear
from ..vision.norm import BatchNorm
from ..vision.tokens import rows
from .points import farthest, gathered, nearest

ALPHA, BETA = 1000.0, 100.0  # of the sines: the longest period over the shortest, and how fast that is
HOLLOW = 1e-3**0.5


class Squeeze(nn.Module):
    """relu(x + norm2(fc2(relu(norm1(fc1(x)))))), C -> hidden -> C."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.norm1 = Linear(dim, hidden), BatchNorm(hidden)
        self.fc2, self.norm2 = Linear(hidden, dim), BatchNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.fc2(F.relu(self.norm1(self.fc1(x))))))


def waves(place: Tensor, dim: int) -> Tensor:
    """(… 3) -> (… dim): for each coordinate its sines, then its cosines, of dim / 6 frequencies."""
    n = dim // 6
    angle = BETA * place[..., None] / ALPHA ** (torch.arange(n, device=place.device) / n)
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)


class PointTokens(nn.Module):
    """points (B M 3) -> (tokens (B n C), centres (B n 3)).

    Each of three stages halves the points and doubles the channels: to each point that is chosen come its `k` nearest,
    seen from it and scaled to the farthest on each axis, with what is known of both and the waves of where they lie;
    bottlenecks, then the greatest of the k. `last`: the hidden width of the last bottleneck; the others' is half.
    """

    def __init__(self, dim: int = 96, k: int = 64, last: int = 32, depths: Sequence[int] = (2, 1, 1)):
        super().__init__()
        if dim % 3:
            raise ValueError(f"dim={dim}: three coordinates share the channels")
        self.k, self.dim = k, dim * 2 ** len(depths)
        self.enter, self.norm = Linear(3, dim, bias=False), BatchNorm(dim)
        widths = [dim * 2 ** (i + 1) for i in range(len(depths))]
        hidden = [*(w // 2 for w in widths[:-1]), last]
        self.stages = nn.ModuleList(
            nn.Sequential(*(Squeeze(w, h) for _ in range(n))) for n, w, h in zip(depths, widths, hidden, strict=True)
        )

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        if points.ndim != 3 or points.shape[-1] != 3 or points.shape[1] < self.k * 2 ** (len(self.stages) - 1):
            least = self.k * 2 ** (len(self.stages) - 1)
            raise ValueError(f"points of shape {tuple(points.shape)}: (B, M, 3) with M of at least {least} is wanted")
        x = F.relu(self.norm(self.enter(points)))
        for stage in self.stages:
            at = farthest(points.float(), points.shape[1] // 2, HOLLOW)
            centres, own = rows(points, at), rows(x, at)
            near = nearest(points.float(), centres.float(), self.k)
            place = gathered(points, near) - centres[:, :, None]
            place = place / place.abs().amax(2, keepdim=True).clamp(min=torch.finfo(place.dtype).tiny)
            y = torch.cat([gathered(x, near), own[:, :, None].expand(-1, -1, self.k, -1)], -1)
            x, points = stage(y + waves(place, y.shape[-1]).to(y.dtype)).amax(2), centres
        return x, points
