"""Stops at the first loss or gradient that is not a finite number, and says where it arose."""

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.optim import Optimizer


class NonFinite(ValueError):
    """A loss or gradient became nan or infinite; the message names step, layer or parameter, and what to try."""


class Guard(L.Callback):
    """Looks at the loss and the total gradient norm of every optimiser step; one number leaves the device.

    Only when that number is bad are the layers gone through: the same batch forward again, up to the first layer that
    gives a bad number of good ones; then the gradients, from the output back. Under 16-mixed the scaler skips steps
    with infinite gradients, as it should, so there only the loss is looked at.
    """

    def __init__(self, enabled: bool = True):
        self.enabled = enabled
        self.loss: Tensor | None = None
        self.batch: Any = None
        self.scaled = False

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        plugin = trainer.precision_plugin
        self.scaled = isinstance(plugin, MixedPrecision) and plugin.scaler is not None

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self.batch = batch

    def on_before_backward(self, trainer, module, loss: Tensor) -> None:
        self.loss = (
            loss.detach() if self.loss is None else self.loss + loss.detach()
        )  # a sum is finite where all parts are

    def on_before_optimizer_step(self, trainer, module, optimizer: Optimizer) -> None:
        loss, self.loss = self.loss, None
        if not self.enabled or loss is None:
            return
        total = loss if self.scaled else loss + gradient_norm(optimizer)
        if not torch.isfinite(total):
            step = f"step {trainer.global_step + 1} (epoch {trainer.current_epoch}, batch {trainer.fit_loop.batch_idx})"
            raise NonFinite(
                f"{self._where(module, loss)} at {step}; lower the learning rate or warm it up longer, set "
                "--trainer.gradient_clip_val 1, or check that image and target; the last checkpoint is intact"
            )

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.batch = None

    def on_exception(self, trainer, module, exception) -> None:
        self.batch = self.loss = None

    def _where(self, module: L.LightningModule, loss: Tensor) -> str:
        bad = next((f"parameter {name} is {kind(p)}" for name, p in module.named_parameters() if not finite(p)), None)
        if bad:
            return bad
        if not finite(loss):
            return f"the loss is {kind(loss)}: {first_bad_layer(module, self.batch)}"
        bad = [name for name, p in module.named_parameters() if p.grad is not None and not finite(p.grad)]
        if not bad:
            return "the total norm of the gradients overflows, though each is finite,"
        grad = module.get_parameter(bad[-1]).grad
        return f"the gradient of {bad[-1]} is {kind(grad)}" + (
            f" (and of {len(bad) - 1} parameters before it)" if len(bad) > 1 else ""
        )


def gradient_norm(optimizer: Optimizer) -> Tensor:
    """The norm of all gradients, in float32, over all processes; nan or infinite where one of them is."""
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    grads = [g.coalesce().values() if g.is_sparse else g for g in grads]
    parts = [g for g in grads if hasattr(g, "full_tensor")]  # FSDP's
    whole = [g for g in grads if not hasattr(g, "full_tensor")]
    norms = [torch.stack([n.float() for n in torch._foreach_norm(some)]).norm() for some in (whole, parts) if some]
    norms = [n.full_tensor() if hasattr(n, "full_tensor") else n for n in norms]
    return torch.stack(norms).norm() if norms else torch.zeros(())


def finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x).all())


def kind(x: Tensor) -> str:
    return "nan" if bool(torch.isnan(x).any()) else "infinite"


def tensors(value: Any) -> Iterator[Tensor]:
    """The floating tensors in a (nested) tuple, list, dict or dataclass-like value such as Tokens."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
    elif hasattr(value, "__dataclass_fields__"):
        yield from tensors([getattr(value, name) for name in value.__dataclass_fields__])


def first_of(batch: Any) -> Any:
    """The images of a batch, of several views the first."""
    while isinstance(batch, (tuple, list)):
        batch = batch[0]
    return batch


def first_bad_layer(module: L.LightningModule, batch: Any) -> str:
    """Goes forward once more with a hook on every layer. Random parts (dropout, mixing) draw anew, so nothing may be
    found.
    """
    if any(not finite(x) for x in tensors(batch)):
        return "the batch holds bad numbers already"
    network = getattr(module, "model", module)
    found: list[str] = []

    def look(name: str, layer: nn.Module):
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            if not found and all(map(finite, tensors(inputs))) and not all(map(finite, tensors(output))):
                bad = next(x for x in tensors(output) if not finite(x))
                found.append(f"{name} ({type(layer).__name__}) gives {kind(bad)} values of finite ones")

        return layer.register_forward_hook(hook)

    hooks = [look(name, layer) for name, layer in network.named_modules() if name and not any(layer.children())]
    try:
        with torch.no_grad():
            again = getattr(module, "run_again", None)  # of a module whose network takes more than images
            output = network(first_of(batch)) if again is None else again(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if found:
        return found[0]
    if all(map(finite, tensors(output))):
        return "every layer's output is finite, so it arises in the loss function itself"
    return f"{type(network).__name__} gives bad values, between its layers"
