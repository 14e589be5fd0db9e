"""A convolution with a batch norm and an activation behind it, on maps (B C H W) or sequences (B C L)."""

from torch import Tensor, nn


class ConvNorm(nn.Module):
    """gelu(norm(conv(m))), without gelu unless asked for; the size stays, but for a stride. `flat`: a sequence."""

    def __init__(
        self, dim: int, out: int, kernel: int = 1, stride: int = 1, *, groups: int = 1, dilation: int = 1,
        bias: bool = False, gelu: bool = False, flat: bool = False, eps: float = 1e-5, momentum: float = 0.1,
    ):  # fmt: skip
        super().__init__()
        conv, norm = (nn.Conv1d, nn.BatchNorm1d) if flat else (nn.Conv2d, nn.BatchNorm2d)
        padding = dilation * (kernel // 2)
        self.conv: nn.Module = conv(dim, out, kernel, stride, padding, dilation, groups, bias)
        self.norm: nn.Module = norm(out, eps, momentum)
        self.act = nn.GELU() if gelu else nn.Identity()

    def forward(self, m: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(m)))  # type: ignore[no-any-return]
