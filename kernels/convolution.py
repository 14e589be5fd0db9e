"""activation(convolution(x)) without a gradient: an activation while the result is in cache costs next to nothing,
behind it a pass over memory, and for the exact GELU many times what a depthwise convolution takes."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear import eager_float32

Act = Literal["none", "gelu", "relu", "silu"]
ACTS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}
ONEDNN = {"none": ("none", ""), "gelu": ("gelu", "none"), "relu": ("relu", ""), "silu": ("swish", "")}


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, groups: int,
              act: Act = "none") -> Tensor:  # fmt: skip
    """x (B C H W), weight (O C/groups k k), bias (O) or None -> (B O H' W'); defines the operation."""
    y = F.conv2d(x, weight, bias, stride, padding, groups=groups)
    return y if act == "none" else ACTS[act](y)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, groups: int,
                act: Act = "none") -> Tensor:  # fmt: skip
    """`reference`; eager float32 tensors on a CPU that need no gradient go through oneDNN, activation included, and
    come out in channels_last memory."""
    tensors = [t for t in (x, weight, bias) if t is not None]
    graph = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if graph or not eager_float32(*tensors) or not x.numel() or not _available():
        return reference(x, weight, bias, stride, padding, groups, act)
    return _onednn(x.contiguous(memory_format=torch.channels_last), weight, bias, stride, padding, groups, act)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, groups: int, act: Act) -> Tensor:
    name, how = ONEDNN[act]
    twice = [padding] * 2, [stride] * 2, [1, 1]
    return torch.ops.mkldnn._convolution_pointwise.default(x, weight, bias, *twice, groups, name, [], how)  # type: ignore[no-any-return]


_probed: list[bool] = []


def _available() -> bool:
    """Whether this torch has the operator and it computes what `reference` does (probed once, at first use)."""
    if not torch.backends.mkldnn.enabled:
        return False
    if not _probed:
        _probed.append(False)
        if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise"):  # type: ignore[no-untyped-call]
            with torch.inference_mode(False), torch.no_grad():
                x, w, b = (torch.linspace(-2, 2, n).sin() for n in (2 * 4 * 5 * 6, 4 * 9, 4))
                given = x.view(2, 4, 5, 6), w.view(4, 1, 3, 3), b, 2, 1, 4
                acts: tuple[Act, ...] = ("none", "gelu", "relu", "silu")
                _probed[0] = all(
                    torch.allclose(_onednn(*given, act), reference(*given, act), atol=1e-5) for act in acts
                )
    return _probed[0]
