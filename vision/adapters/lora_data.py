"""LoRA that begins as images have it: CorDA (https://arxiv.org/abs/2406.05223) and EVA
(https://arxiv.org/abs/2410.07170).

A layer's inputs X (rows, in) over some batches decide where A and B begin. EVA's ranks stay the same in every layer
here, and X is not centred.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import AdapterError, adapter_of, in_words
from .lora import BY_DATA, Lora, restart
from .lora_house import NAME
from .lora_split import Split
from .peft_special import layers_of


def needs_data(model: nn.Module) -> bool:
    """Whether the adapter that is on begins as images have it."""
    adapter = adapter_of(model)
    return isinstance(adapter, Lora) and adapter.init in BY_DATA


@torch.no_grad()
def prepare(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Lets the adapter that is on begin as these batches (B …) have it; does nothing for one that needs no images."""
    adapter = adapter_of(model)
    if not (isinstance(adapter, Lora) and adapter.init in BY_DATA):
        return
    layers = {f"{p}.{part}".rstrip("."): m for p, layer in layers_of(model).items() for part, m in wrapped(layer)}
    products = {
        path: layer.weight.new_zeros(layer.in_features, layer.in_features).float() for path, layer in layers.items()
    }
    calls = dict.fromkeys(layers, 0)
    with listening(layers, products, calls, adapter.init == "corda"):
        training = model.training
        model.eval()
        for batch in batches:
            model(batch)
        model.train(training)
    if silent := [path for path, n in calls.items() if n == 0]:
        raise AdapterError(f"{silent[0]}: no batch reached it, so {in_words(adapter)} cannot begin there")
    for path, layer in layers.items():
        c = products[path] / calls[path]
        if adapter.init == "eva":
            directions = torch.linalg.eigh(c.double())[1].flip(1)[:, : adapter.r].T  # of the largest values
            layer.lora_A[NAME].weight.copy_(directions)
        else:
            oriented(layer, c, adapter)


def wrapped(layer: Any) -> Iterator[tuple[str, Any]]:
    """peft's layers in one of ours, by part."""
    inner = [(p, getattr(layer, p)) for p in layer.rows] if isinstance(layer, Split) else [("", layer)]
    yield from ((part, m) for part, m in inner if hasattr(m, "lora_A"))


@contextmanager
def listening(
    layers: dict[str, Any], products: dict[str, Tensor], calls: dict[str, int], scaled: bool
) -> Iterator[None]:
    """Adds X'X of what goes into each layer while the block lasts; `scaled`: of X over its largest number."""

    def hear(_: nn.Module, inputs: tuple[Tensor, ...], path: str) -> None:
        x = inputs[0].detach().flatten(0, -2).float()
        x = x / x.max().abs() if scaled else x
        products[path] += x.T @ x
        calls[path] += 1

    hooks = [layer.register_forward_pre_hook(partial(hear, path=path)) for path, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def oriented(layer: Any, c: Tensor, adapter: Lora) -> None:
    """A and B of CorDA: U S V' = svd(W C), V' <- V' C^-1 with C (in, in) damped until its inverse is good to 0.05."""
    w = layer.get_base_layer().weight.float()
    damp, one = 0.01, torch.eye(len(c), device=c.device)
    while True:
        damped = c + damp * c.diagonal().mean() * one
        inverse = torch.linalg.inv(damped)
        if torch.dist(damped @ inverse, one) < 0.05:
            break
        damp *= 2
    u, s, vt = torch.linalg.svd(w @ damped, full_matrices=False)
    vt = vt @ inverse
    r = adapter.r
    part = slice(-r, None) if getattr(adapter, "mode", "ipm") == "kpm" else slice(r)
    root = s[part].sqrt()
    scale = layer.scaling[NAME]
    layer.lora_A[NAME].weight.copy_(root[:, None] * vt[part] / scale**0.5)
    layer.lora_B[NAME].weight.copy_(u[:, part] * root / scale**0.5)
    restart(layer)
