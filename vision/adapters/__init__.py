"""Adapters train a few parameters of their own on a frozen model; taken off, they leave it as it was.

An adapter says what it wants where (`Adapter.place`); `adapt` looks at all of it, freezes the model and puts it in. A
model may have several adapters, of which at most one is on: changing between them moves references, not weights. Each
has the classifier's head, or the norms of a pyramid, for its own.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .named import ADAPTERS as ADAPTERS
from .named import adapter as adapter
from .named import from_words as from_words
from .named import in_words as in_words

# what a model has behind its trunk (a denoiser: of its data's classes), and each adapter for itself
HEADS = ("head", "head_dist", "head_patches", "norms", "labels")


class AdapterError(ValueError):
    """An adapter cannot be put where it was asked to go."""


@dataclass(frozen=True)
class Put:
    """What stands at attribute `name` of the module at path `owner` ("" is the model) while an adapter is on: a layer
    in an empty seam, a layer around the one that was there, a parameter in place of the trunk's, or a plain value."""

    owner: str
    name: str
    what: Any


class Adapter(Protocol):
    """A frozen dataclass of settings."""

    def place(self, model: nn.Module) -> list[Put]:
        """What goes where in this model, which is left as it is. Raises AdapterError, with the layer's name, where it
        cannot work, and ValueError for settings that fit no model. Parameters of its own that shall not learn have
        `requires_grad` unset; the model's are frozen by `adapt`."""


@runtime_checkable
class Mergeable(Protocol):
    """An adapter whose layers can be folded into the weights that they stand around."""

    def merged(self, layer: nn.Module) -> nn.Module:
        """The plain layer that computes what this one of the adapter's computes; `layer` is left as it is."""


@dataclass
class Place:
    """One attribute of one module, and what the adapter has there while it is off (the trunk's while it is on)."""

    owner: nn.Module
    name: str
    other: Any
    slot: bool = False  # whether the trunk has a module there, which is to come back between the same neighbours

    def swap(self) -> None:
        old = getattr(self.owner, self.name)
        if isinstance(old, nn.Module) and not isinstance(self.other, nn.Module) and not self.slot:
            delattr(self.owner, self.name)  # out of the submodules, then back to the plain value it was
        setattr(self.owner, self.name, self.other)
        self.other = old

    def move(self, like: Tensor) -> None:
        """What is off goes to the device and type of `like`: `model.to` has not seen it."""
        if isinstance(self.other, nn.Module):
            self.other.to(device=like.device, dtype=like.dtype)
        elif isinstance(self.other, nn.Parameter):
            self.other.data = self.other.data.to(like)


@dataclass
class Fitted:
    """An adapter as it was made for one model."""

    adapter: Adapter
    places: list[Place]


@dataclass
class Book:
    """The adapters of one model, by name; which is on; what the trunk is, and what of it learned before."""

    trunk: list[nn.Module]
    learned: list[nn.Parameter]
    fitted: dict[str, Fitted] = field(default_factory=dict)
    on: str | None = None
    merged: bool = False


def host(model: nn.Module) -> nn.Module:
    """What of a model takes adapters: the backbone below a dense head (`pyramid` or `backbone`), the language model of
    a vision-language one (`decoder`), else itself."""
    for name in () if hasattr(model, "adapters") else ("pyramid", "backbone", "decoder", "language"):
        below = getattr(model, name, None)
        if isinstance(below, nn.Module) and hasattr(found := host(below), "adapters"):
            return found
    return model


def book(model: nn.Module) -> Book | None:
    """What the model remembers of its adapters, or of those of the backbone in it; None where it has none."""
    return getattr(host(model), "adapters", None)


def adapter_of(model: nn.Module) -> Adapter | None:
    """The adapter that is on."""
    there = book(model)
    return None if there is None or there.on is None else there.fitted[there.on].adapter


def adapt(model: nn.Module, adapter: Adapter, name: str = "default") -> Callable[[], None]:
    """Freezes the model, puts the adapter in and turns it on; returns the function that takes it off for good.

    Everything is built and every place looked at before one is filled, so a refusal leaves the model as it was. The
    trunk stays in evaluation mode while the adapter learns. `name` tells several adapters of a model apart.
    """
    if not hasattr(model, "adapters"):
        raise AdapterError(
            f"{type(model).__name__} is no model of this suite: adapters go into a Classifier, Pyramid or Denoiser"
        )
    if (there := book(model)) is not None and name in there.fitted:
        taken = in_words(there.fitted[name].adapter)
        raise AdapterError(f"the model has an adapter {name!r} already ({taken}): take another name")
    with unadapted(model):
        there = there or Book(list(model.modules()), [p for p in model.parameters() if p.requires_grad])
        puts = adapter.place(model)
        brought = {put.name for put in puts if put.owner == ""}  # a head of its own, say
        puts = [*puts, *(put for put in heads(model) if put.name not in brought)]
        places = [looked_at(model, adapter, put) for put in puts]
    for p in there.learned:
        p.requires_grad_(False)
    model.adapters = there  # type: ignore[assignment]
    there.fitted[name] = Fitted(adapter, places)
    switch(model, name)

    def remove() -> None:
        now = book(model)
        if now is None or now.fitted.get(name) is None or now.fitted[name].places is not places:
            return  # a second call takes off nothing that came later
        if now.on == name:
            switch(model, None)
        del now.fitted[name]
        if not now.fitted:
            release(model, now)

    return remove


def release(model: nn.Module, there: Book) -> None:
    """The model without adapters learns what it did before."""
    for p in there.learned:
        p.requires_grad_(True)
    mode = model.training
    model.adapters = None  # type: ignore[assignment]
    model.train(mode)


def heads(model: nn.Module) -> list[Put]:
    """A copy of the model's heads, and how many classes they tell apart."""
    there = [(name, getattr(model, name, None)) for name in HEADS]
    puts = [Put("", name, deepcopy(m).requires_grad_(True)) for name, m in there if isinstance(m, nn.Module)]
    return [*puts, *(Put("", n, getattr(model, n)) for n in ("num_classes", "default_cfg") if hasattr(model, n))]


def looked_at(model: nn.Module, adapter: Adapter, put: Put) -> Place:
    owner, where = model.get_submodule(put.owner), f"{put.owner}.{put.name}".lstrip(".")
    if not hasattr(owner, put.name):
        raise AdapterError(f"{put.owner}: {type(owner).__name__} has no {put.name!r}, which {in_words(adapter)} fills")
    there = getattr(owner, put.name)
    if put.name in getattr(owner, "seams", ()) and there is not None:
        wanted = f"and {in_words(adapter)} wants it; detach that first"
        raise AdapterError(f"seam {where} is taken by {type(there).__name__}, {wanted}")
    return Place(owner, put.name, put.what, isinstance(there, nn.Module) and put.what is None)


def switch(model: nn.Module, name: str | None) -> None:
    """Turns the adapter `name` on in place of the one that is; None: the bare model, frozen as it is."""
    there = book(model)
    if name is not None and (there is None or name not in there.fitted):
        known = ", ".join(there.fitted) if there is not None else "none"
        raise AdapterError(f"the model has no adapter {name!r}; it has {known}")
    if there is None or name == there.on:
        return
    if there.merged:
        raise AdapterError(f"adapter {there.on!r} is merged into the weights: first call what merge() returned")
    like = next(model.parameters())  # whose device and type may have changed meanwhile, as the mode may
    if there.on is not None:
        for place in reversed(there.fitted[there.on].places):
            place.move(like)
            place.swap()
    if name is not None:
        for place in there.fitted[name].places:
            place.move(like)
            if isinstance(place.other, nn.Module):
                place.other.train(model.training)
            place.swap()
    there.on = name
    settle(model)


def settle(model: nn.Module) -> None:
    """Puts the frozen trunk into evaluation mode, whatever mode the model is in; what is before the head acts on."""
    if (there := book(model)) is None:
        return
    model = host(model)
    kept = (model, getattr(model, "head_drop", None))
    for module in there.trunk:
        if not any(module is k for k in kept):
            module.training = False


@contextmanager
def unadapted(model: nn.Module) -> Iterator[nn.Module]:
    """The model with its adapter off, for as long as the block lasts."""
    there = book(model)
    on = None if there is None else there.on
    switch(model, None)
    try:
        yield model
    finally:
        switch(model, on)


def merge(model: nn.Module) -> Callable[[], None]:
    """Folds the adapter that is on into the weights of the layers that it stands around, so that the model computes
    the same at 1e-5 with plain layers under their old names, and costs what it did without. Returns the way back.
    Raises AdapterError for an adapter that is more than other weights."""
    there = book(model)
    if there is None or there.on is None:
        raise AdapterError("no adapter is on, so there is none to merge")
    if there.merged:
        raise AdapterError(f"adapter {there.on!r} is merged already, so there is none to merge")
    fitted = there.fitted[there.on]
    merged = [Place(p.owner, p.name, as_weight(fitted.adapter, p)) for p in fitted.places]
    swaps = [place for place in merged if place.other is not None]
    for place in swaps:
        place.swap()
    there.merged = True
    settle(model)
    folded = True

    def unmerge() -> None:
        nonlocal folded
        now = book(model)
        if folded and now is not None:
            for place in swaps:
                place.swap()
            now.merged = False
            settle(model)
        folded = False

    return unmerge


def as_weight(adapter: Adapter, place: Place) -> nn.Module | None:
    """The plain layer that equals what the adapter has in this place; None where it is plain already."""
    layer = getattr(place.owner, place.name)
    if not isinstance(layer, nn.Module) or type(layer) is type(place.other):
        return None
    if not isinstance(adapter, Mergeable):
        raise AdapterError(f"{in_words(adapter)} cannot be merged: its {type(layer).__name__} is more than a weight")
    return adapter.merged(layer)


def own_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the adapter that is on, its head's among them, by their names in the model."""
    with unadapted(model):
        trunk = {id(t) for t in (*model.parameters(), *model.buffers())}
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    mine = {name for name, t in named if id(t) not in trunk}
    return {name: t for name, t in model.state_dict().items() if name in mine}


def load_own_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """The inverse of `own_state`; raises AdapterError with the first name or shape that does not fit."""
    own = own_state(model)
    for name in {**own, **state}:
        if name not in state or name not in own:
            what = "lacks" if name not in state else "has, and the adapter here has not,"
            raise AdapterError(f"the adapter's file {what} {name}")
        if state[name].shape != own[name].shape:
            shapes = f"{tuple(state[name].shape)}, where it is {tuple(own[name].shape)} here"
            raise AdapterError(f"{name} of the adapter's file has shape {shapes}")
        if state[name].is_floating_point() != own[name].is_floating_point():
            raise AdapterError(
                f"{name} of the adapter's file is {state[name].dtype}, where it is {own[name].dtype} here"
            )
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)


def counts(model: nn.Module) -> tuple[int, int]:
    """(parameters that learn, all parameters)."""
    every = list(model.parameters())
    return sum(p.numel() for p in every if p.requires_grad), sum(p.numel() for p in every)
