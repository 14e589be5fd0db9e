"""Convolutions on maps B H W C: with a batch norm and an activation behind them, or as a squeeze and excitation."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ..kernels.convolution import Act, convolution
from ..kernels.linear import eager_float32, product
from ..kernels.mlp import mlp, slices
from .layers import ACTIVATIONS, Linear, is_plain, unhooked
from .mixers.convolution import convolve
from .norm import BatchNorm, scale_and_shift

FEW = 1 << 16  # activations, over which a batch norm takes less time than it takes to prepare weights with it


class ConvNorm(nn.Module):
    """act(norm(conv(m))) on a map B H W C -> B H' W' C'; padding of kernel // 2 unless told otherwise."""

    projections = ("conv",)

    def __init__(self, dim: int, out: int, kernel: int = 1, stride: int = 1, *, groups: int = 1, bias: bool = False,
                 padding: int | None = None, act: str | None = None, eps: float = 1e-5):  # fmt: skip
        super().__init__()
        padding = kernel // 2 if padding is None else padding
        self.conv = nn.Conv2d(dim, out, kernel, stride, padding, groups=groups, bias=bias)
        self.norm: nn.Module = nn.BatchNorm2d(out, eps=eps)
        self.act = nn.Identity() if act is None else ACTIVATIONS[act]()

    def forward(self, m: Tensor) -> Tensor:
        if self.plain() and still(self) and short(m, self.conv.weight) and self.pays(m):
            return self.at_once(m)
        return self.act(self.norm(self.conv(m.permute(0, 3, 1, 2))).permute(0, 2, 3, 1))  # type: ignore[no-any-return]

    def plain(self) -> bool:
        """Whether nobody looks at its parts, and its norm is a constant: then they may be one kernel."""
        return type(self.conv) is nn.Conv2d and unhooked(self.conv) and constant(self.norm)

    def pays(self, m: Tensor) -> bool:
        return worth(self.norm, self.conv.weight, m.numel() // m.shape[-1] // self.conv.stride[0] ** 2)

    def at_once(self, m: Tensor) -> Tensor:
        """`forward` without a graph, the norm put into the weights on the way."""
        c, act = self.conv, fused(self.act)
        weight, bias = absorbing(c.weight, c.bias, self.norm)
        x = m.permute(0, 3, 1, 2)
        y = convolution(x, weight, bias, c.stride[0], int(c.padding[0]), c.groups, act or "none").permute(0, 2, 3, 1)
        return y if act else self.act(y)

    def fold_(self) -> None:
        if isinstance(self.norm, nn.BatchNorm2d) and type(self.conv) is nn.Conv2d:
            self.conv = absorbed(self.conv, self.norm)
            self.norm = nn.Identity()


def constant(norm: nn.Module) -> bool:
    """Whether `norm` is a fixed scale and shift of the channels, seen by nobody: it evaluates, or was folded away."""
    kind = type(norm)
    return (kind is nn.Identity or (kind in (BatchNorm, nn.BatchNorm2d) and not norm.training)) and unhooked(norm)


def worth(norm: nn.Module, weight: Tensor, rows: int) -> bool:
    """Whether putting the norm into the layer's weights, anew at every call, costs less than applying it to what comes
    out (rows C): no where that is little."""
    return type(norm) is nn.Identity or rows * weight.shape[0] >= max(weight.numel(), FEW)


def still(module: nn.Module) -> bool:
    """Whether nothing of the module learns: an adapter may train a norm or a bias of frozen weights."""
    return not (torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters()))


def short(*tensors: Tensor) -> bool:
    """Whether these are eager float32 numbers on a CPU of which no gradient is wanted."""
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)) and eager_float32(*tensors)


def absorbing(weight: Tensor, bias: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight (O …) and bias (O) of norm(layer(x)) for a layer with these."""
    if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
        return weight, bias
    assert norm.running_mean is not None
    assert norm.running_var is not None
    a = torch.rsqrt(norm.running_var + norm.eps) * norm.weight
    mean = norm.running_mean if bias is None else norm.running_mean - bias
    return weight * a.view(-1, *(1,) * (weight.ndim - 1)), torch.addcmul(norm.bias, mean, a, value=-1)


def fused(act: nn.Module) -> Act | None:
    """The activation by the name under which kernels take it; None where they do not."""
    if not unhooked(act):
        return None
    if type(act) is nn.GELU:
        return "gelu" if act.approximate == "none" else None
    kinds: dict[type, Act] = {nn.Identity: "none", nn.ReLU: "relu", nn.SiLU: "silu"}
    return kinds.get(type(act))


def absorbed(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """norm(conv(x)) as one convolution with a bias."""
    a, b = scale_and_shift(norm)
    padding = (int(conv.padding[0]), int(conv.padding[1]))
    made = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, padding, groups=conv.groups)  # type: ignore[arg-type]
    made.to(conv.weight)
    with torch.no_grad():
        made.weight.copy_(conv.weight * a[:, None, None, None].to(conv.weight.dtype))
        made.bias.copy_(b if conv.bias is None else conv.bias * a + b)  # type: ignore[union-attr]
    return made


class LinearNorm(nn.Module):
    """act(norm(linear(x))): a 1x1 convolution with its batch norm, on tokens or maps whose channels come last."""

    projections = ("linear",)

    def __init__(self, dim: int, out: int, *, bias: bool = False, act: str | None = None, eps: float = 1e-5):
        super().__init__()
        self.linear = Linear(dim, out, bias)
        self.norm: nn.Module = BatchNorm(out, eps=eps)
        self.act = nn.Identity() if act is None else ACTIVATIONS[act]()

    def forward(self, x: Tensor) -> Tensor:
        if self.plain() and still(self) and short(x, self.linear.weight) and x.numel() and self.pays(x):
            return self.at_once(x)
        return self.act(self.norm(self.linear(x)))  # type: ignore[no-any-return]

    def plain(self) -> bool:
        """As `ConvNorm.plain`."""
        return is_plain(self.linear) and constant(self.norm)

    def pays(self, x: Tensor) -> bool:
        return worth(self.norm, self.linear.weight, x.numel() // x.shape[-1])

    def at_once(self, x: Tensor) -> Tensor:
        """As `ConvNorm.at_once`."""
        gelu = fused(self.act) == "gelu"
        y = product(x, *self.layer(), gelu=gelu)
        return y if gelu else self.act(y)

    def layer(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of norm(linear(x)), while the norm is a constant."""
        return absorbing(self.linear.weight, self.linear.bias, self.norm)

    def fold_(self) -> None:
        if isinstance(self.norm, BatchNorm) and isinstance(self.linear, Linear):
            a, b = scale_and_shift(self.norm)
            old = self.linear
            self.linear = Linear(old.in_features, old.out_features).to(old.weight)
            with torch.no_grad():
                self.linear.weight.copy_(old.weight * a[:, None].to(old.weight.dtype))
                self.linear.bias.copy_(b if old.bias is None else old.bias * a + b)
            self.norm = nn.Identity()


class InvertedBottleneck(nn.Module):
    """fc2(mid(fc1(m))) on a map B H W C: 1x1 to `hidden`, depthwise 3x3 by `stride`, 1x1 to `out`, each with a batch
    norm behind it and a GELU between them (MobileNetV2, https://arxiv.org/abs/1801.04381). `stride` None: without the
    one in the middle."""

    def __init__(self, dim: int, hidden: int, out: int, stride: int | None = 1, bias: bool = False):
        super().__init__()
        self.fc1 = LinearNorm(dim, hidden, bias=bias, act="gelu")
        self.mid: nn.Module = nn.Identity()
        if stride is not None:
            self.mid = ConvNorm(hidden, hidden, 3, stride, groups=hidden, bias=bias, act="gelu")
        self.fc2 = LinearNorm(hidden, out, bias=bias)

    def forward(self, m: Tensor) -> Tensor:
        fc1, mid, fc2 = self.fc1, self.mid, self.fc2
        quick = self.plain() and still(self) and short(m, fc1.linear.weight, fc2.linear.weight)
        if not (quick and m.numel() and fc1.pays(m)):
            return fc2(mid(fc1(m)))  # type: ignore[no-any-return]
        if not isinstance(mid, ConvNorm):
            return mlp(m, fc1.layer(), fc2.layer())
        parts = [fc2.at_once(mid.at_once(fc1.at_once(m[a]))) for a in self.images(m)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def plain(self) -> bool:
        """As `ConvNorm.plain`."""
        if type(self.mid) not in (nn.Identity, ConvNorm) or not (self.fc1.plain() and self.fc2.plain()):
            return False
        if isinstance(self.mid, ConvNorm) and not self.mid.plain():
            return False
        acts = fused(self.fc1.act), fused(self.fc2.act)
        return acts == ("gelu", "none") and all(unhooked(m) for m in (self.fc1, self.mid, self.fc2))

    def images(self, m: Tensor) -> Iterator[slice]:
        """Slices of the batch whose hidden activations stay in memory that is at hand (see kernels/mlp.py)."""
        each = m.shape[1] * m.shape[2] * self.fc1.linear.out_features
        return slices(m.shape[0], each)


class SqueezeExcite(nn.Module):
    """m * sigmoid(fc2(act(fc1(mean of the map)))), https://arxiv.org/abs/1709.01507; on a map B H W C."""

    projections = ("fc1", "fc2")

    def __init__(self, dim: int, hidden: int, act: Callable[[], nn.Module] = nn.SiLU):
        super().__init__()
        self.fc1, self.act, self.fc2 = Linear(dim, hidden), act(), Linear(hidden, dim)

    def forward(self, m: Tensor) -> Tensor:
        return m * self.fc2(self.act(self.fc1(m.mean((1, 2), keepdim=True)))).sigmoid()  # type: ignore[no-any-return]


__all__ = ["ConvNorm", "InvertedBottleneck", "LinearNorm", "SqueezeExcite", "absorbed", "convolve"]
