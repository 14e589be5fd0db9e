"""How a branch joins the stream: plain, scaled, or left out at random."""

import torch
from torch import Tensor, nn

from ..kernels.sizes import always
from .layers import Mlp, unhooked


class Add(nn.Module):
    """x + droppath(y): y is left out for a whole image with probability `drop`, and scaled to make up for it
    (stochastic depth, https://arxiv.org/abs/1603.09382)."""

    def __init__(self, drop: float = 0.0):
        super().__init__()
        self.drop = drop

    def thinned(self, y: Tensor) -> Tensor:
        if not self.training or self.drop == 0:
            return y
        keep = y.new_empty((y.shape[0],) + (1,) * (y.ndim - 1)).bernoulli_(1 - self.drop)
        return y * keep.div_(1 - self.drop) if self.drop < 1 else y * keep

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + self.thinned(y)

    def extra_repr(self) -> str:
        return f"drop={self.drop:g}" if self.drop else ""


class AddScaled(Add):
    """x + gamma droppath(y), one gamma per channel (LayerScale, https://arxiv.org/abs/2103.17239)."""

    def __init__(self, dim: int, init: float, drop: float = 0.0):
        super().__init__(drop)
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.addcmul(x, self.thinned(y), self.gamma)


def add_mlp(add: Add, ffn: nn.Module, x: Tensor, normed: Tensor) -> Tensor:
    """add(x, ffn(normed)), with a LayerScale folded into the MLP where nothing stands between them and the weights are
    fewer than the activations."""
    thins = add.training and add.drop > 0
    if (
        type(add) is AddScaled and type(ffn) is Mlp and unhooked(add) and unhooked(ffn) and not thins and ffn.whole()
        and always(normed.numel() >= ffn.fc2.weight.numel())
    ):  # fmt: skip
        return x + ffn.at_once(normed, add.gamma)
    return add(x, ffn(normed))  # type: ignore[no-any-return]


class ScaledAdd(Add):
    """scale x + droppath(y), one scale per channel on the residual (https://arxiv.org/abs/2110.09456)."""

    def __init__(self, dim: int, drop: float = 0.0):
        super().__init__(drop)
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.addcmul(self.thinned(y), x, self.scale)


def join(dim: int, scale: float | None, scale_residual: bool, drop_path: float) -> Add:
    """The residual that these settings ask for."""
    if scale is not None and scale_residual:
        raise ValueError(f"scale={scale} and scale_residual=True exclude each other: scale the branch or the residual")
    if not 0 <= drop_path <= 1:
        raise ValueError(f"drop_path {drop_path} is no probability")
    if scale_residual:
        return ScaledAdd(dim, drop_path)
    return Add(drop_path) if scale is None else AddScaled(dim, scale, drop_path)
