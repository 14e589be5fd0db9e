"""Parameters and multiply-accumulates of a model."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def parameters(model: nn.Module) -> tuple[int, int]:
    """(all, trainable): what the original froze (RandFormer's matrices, sinusoids) is a buffer here, and counts."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    state = model.state_dict()
    frozen += sum(
        b.numel() for n, b in model.named_buffers()
        if n in state and not n.endswith(("running_mean", "running_var")) and not is_counter(b)
    )  # fmt: skip
    return trained + frozen, trained


def is_counter(value: torch.Tensor) -> bool:
    """A number of steps, such as batch norms keep."""
    return value.ndim == 0 and not value.is_floating_point()


def macs(model: nn.Module, size: Sequence[int], more: Sequence[torch.Tensor] = ()) -> int:
    """Multiply-accumulates of matrix products and convolutions, attention's two products included, for one image of
    `size` (C, H, W), with `more` arguments behind it. Elementwise work, norms and pooling are not counted. The model's
    weights are not read: pass one on the meta device to count without allocating."""
    device, dtype = next((p.device, p.dtype) for p in model.parameters())
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:  # torch's counter hooks onto gradients, which a module that returns its parameter does not have
        p.requires_grad_(False)
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, *size, device=device, dtype=dtype), *more)
    finally:
        for p in trained:
            p.requires_grad_(True)
    return int(counter.get_total_flops() // 2)
