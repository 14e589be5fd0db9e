"""SlimFit's layers and what of a model it may freeze, arXiv 2305.18513: fine-tuning that keeps little.

No adapter: all of the model learns, a small part of it at each step (train/callbacks/slimfit.py says which). Layers
that need their input for their own gradient alone keep none while they are frozen; the others keep theirs in few bits.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...kernels import kept
from ...kernels.attend import attend
from ..layers import Linear, Mlp, unhooked
from ..plugins import hosts_of
from ..tokens import Tokens
from . import HEADS, AdapterError, book, in_words


class KeptLinear(nn.Module):
    """The linear layer (with its very parameters), that keeps its input in 8 bits."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        return kept.linear(x, self.weight, self.bias)


class KeptNorm(nn.Module):
    """The layer norm (with its very parameters), that keeps a tenth of what it normalised while its scale is frozen."""

    def __init__(self, norm: nn.LayerNorm):
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.normalized_shape = norm.normalized_shape

    def forward(self, x: Tensor) -> Tensor:
        return kept.layer_norm(x, self.weight, self.bias, self.eps)


class KeptGelu(nn.Module):
    """The exact GELU, that keeps its input in 4 bits."""

    def __init__(self, act: nn.GELU):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return kept.gelu(x)


class KeptAttention(nn.Module):
    """Attention that keeps queries, keys, values and weights in 8 bits; it stands in the seam `attending`."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, t: Tokens) -> Tensor:  # B h N d
        form = kept.attend if kept.recording(q, k, v, bias) else attend
        return form(q, k, v, bias)


def keep_less(model: nn.Module) -> Callable[[], None]:
    """Puts layers that keep less in place of the layer norms and exact GELUs, of the last layer of each MLP and of
    attention with a seam; returns the way back. Forward pass, parameters and their names are the same.

    What has hooks, attention with dropout and what a plugin does in its place stay. Other linear layers do: frozen they
    keep nothing as they are. Raises ValueError where nothing would change.
    """
    check_whole(model)
    made: dict[nn.Module, nn.Module] = {}  # a layer that stands in several places stays one
    places: list[tuple[nn.Module, str, nn.Module | None, nn.Module]] = []
    for owner in model.modules():
        for name, layer in owner._modules.items():
            if layer is not None and layer not in made and (new := in_place_of(owner, name, layer)) is not None:
                made[layer] = new.train(layer.training)
            if layer in made:
                places.append((owner, name, layer, made[layer]))
        attends = "attending" in getattr(owner, "seams", ()) and not getattr(owner, "dropout", 0.0)
        if attends and getattr(owner, "attending", None) is None:
            places.append((owner, "attending", None, KeptAttention().train(owner.training)))
    if not places:
        raise ValueError(
            f"{type(model).__name__} has no layer norm, exact GELU, MLP or attention that could keep less; "
            "SlimFit takes layers=False to train it with the layers that it has"
        )
    for owner, name, _, new in places:
        setattr(owner, name, new)

    def back() -> None:
        for owner, name, old, new in places:
            if getattr(owner, name) is not new:
                continue  # a second call, or something came later
            if old is None:
                delattr(owner, name)  # out of the submodules, then back to the plain None it was
            else:
                old.train(new.training)
            setattr(owner, name, old)

    return back


def in_place_of(owner: nn.Module, name: str, layer: nn.Module) -> nn.Module | None:
    """What computes as `layer` does and keeps less; None where there is nothing."""
    if not unhooked(layer):
        return None
    if isinstance(owner, Mlp) and name == "fc2" and type(layer) in (Linear, nn.Linear):
        return KeptLinear(layer)  # type: ignore[arg-type]
    if type(layer) is nn.LayerNorm and layer.elementwise_affine and len(layer.normalized_shape) == 1:
        return KeptNorm(layer)
    return KeptGelu(layer) if type(layer) is nn.GELU and layer.approximate == "none" else None


def candidates(model: nn.Module) -> dict[str, nn.Parameter]:
    """What may be frozen for a step, by name: parameters that learn, of more than one dimension, and the scales of the
    layer norms in blocks; nothing of the classifier."""
    check_whole(model)
    head = [getattr(model, name, None) for name in HEADS]
    if hasattr(model, "get_classifier"):  # timm's contract; its models call the head otherwise
        found = cast(Callable[[], Any], model.get_classifier)()
        head += found if isinstance(found, tuple) else [found]
    spared = {p for part in head if isinstance(part, nn.Module) for p in part.parameters()}
    norms = [m for host in hosts_of(model) for m in host.block.modules() if isinstance(m, nn.LayerNorm | KeptNorm)]
    scales = {m.weight for m in norms}
    return {
        name: p
        for name, p in model.named_parameters()
        if p.requires_grad and p not in spared and (p.ndim > 1 or p in scales)
    }


def check_whole(model: nn.Module) -> None:
    """Raises AdapterError for a model with adapters, whose trunk does not learn."""
    if (there := book(model)) is not None:
        names = ", ".join(in_words(fitted.adapter) for fitted in there.fitted.values())
        raise AdapterError(f"SlimFit trains the whole of a model, and this one is frozen below {names}: take that off")


@torch.no_grad()
def distance(before: Tensor, after: Tensor) -> Tensor:
    """The update distance mean(|(before - after) / before|), a scalar in float32. Entries that were exactly 0 (padding,
    fresh tables) count as unmoved, where the formula would have them infinite and the parameter never frozen."""
    moved = (before.float() - after.float()) / before.float()
    return moved.abs().masked_fill_(before == 0, 0).mean()
