"""FMViT's block, https://arxiv.org/abs/2311.05707: mixer and an MLP whose layers are trained as sums of group
convolutions ("Convolutional Multi-group Reparameterization"), each with a residual."""

from dataclasses import dataclass

from torch import Tensor, nn

from ..block import BlockSpec
from ..mixers.frequency import pointwise
from ..residual import join
from .convolutional import ConvBlock


class GroupMlp(nn.Module):
    """fc2(fc1(m)) on a map B H W C with an activation behind fc1; both fold into one linear layer."""

    def __init__(self, dim: int, hidden: int, groups: tuple[int, ...], act: str):
        super().__init__()
        self.fc1, self.fc2 = pointwise(dim, hidden, groups, act), pointwise(hidden, dim, groups)

    def forward(self, m: Tensor) -> Tensor:
        return self.fc2(self.fc1(m))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class MultiGroup(BlockSpec):
    """`groups` are the group counts of the branches of the MLP's layers."""

    groups: tuple[int, ...] = (1, 2, 4)
    act: str = "relu"

    def build(self, dim: int, index: int, mixer: nn.Module, ratio: float, scale: float | None,
              drop_path: float) -> nn.Module:  # fmt: skip
        ffn = GroupMlp(dim, int(dim * ratio), self.groups, self.act)
        return ConvBlock(mixer, ffn, (join(dim, scale, False, drop_path), join(dim, scale, False, drop_path)))
