"""The trunk below a model's adapters: what tells it from others, and what of it the adapter that is on covers."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..plugins import plugged
from . import HEADS, book, unadapted


def trunk_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the bare model, without heads and token plugins: what an adapter was trained on."""
    with unadapted(model):
        others = (*(f"{head}." for head in HEADS), *plugged(model))
        return {name: t for name, t in model.state_dict().items() if not name.startswith(others)}


def digest(model: nn.Module) -> str:
    """sha256 of the trunk: names, types, shapes and bytes."""
    sha = hashlib.sha256()
    for name, t in sorted(trunk_state(model).items()):
        sha.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        sha.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def name_of(model: nn.Module) -> str:
    """The name of a published variant; of a model put together by hand, its stages."""
    if name := getattr(model, "name", None):
        return str(name)
    with unadapted(model):
        stages = getattr(getattr(model, "backbone", None), "specs", None)
        if stages is None:
            return type(model).__name__
        return ", ".join(f"{s.depth} x {type(s.mixer).__name__} of {s.dim}" for s in stages)


def covered(model: nn.Module) -> dict[str, Any]:
    """What the model is without its adapter and `state_dict` does not hold while that is on: the trunk's own heads, the
    layers and parameters that others stand in place of, and how many classes it tells apart."""
    on = {id(t) for t in (*model.parameters(), *model.buffers())}
    with unadapted(model):
        named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
        off = {name for name, t in named if id(t) not in on}
        state = {name: t for name, t in model.state_dict().items() if name in off}
        return {"num_classes": getattr(model, "num_classes", None), "state": state}


def uncover(model: nn.Module, there: Mapping[str, Any]) -> None:
    """Puts back what `covered` gave, below the adapter that is on. Raises ValueError where it does not fit."""
    with unadapted(model):
        if there["num_classes"] != getattr(model, "num_classes", None):
            model.reset_classifier(there["num_classes"])  # type: ignore[operator]
            freeze_heads(model)
        own = model.state_dict()
        for name, value in there["state"].items():
            if name not in own or own[name].shape != value.shape:
                here = tuple(own[name].shape) if name in own else "nothing of this name"
                raise ValueError(f"{name} of the trunk has shape {tuple(value.shape)} in the file; there is {here}")
        model.load_state_dict({**own, **there["state"]})


def freeze_heads(model: nn.Module) -> None:
    """A fresh head of the trunk is as frozen as the old one was, until the last adapter is taken off."""
    now = book(model)
    assert now is not None
    for name in HEADS:
        for p in m.parameters() if isinstance(m := getattr(model, name, None), nn.Module) else ():
            if all(p is not q for q in now.learned):
                p.requires_grad_(False)
                now.learned.append(p)
