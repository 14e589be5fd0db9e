"""Plugins in words, as recipes, checkpoints and command lines have them, and putting another one into a model."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import nn

from . import PLUGINS, Plugin, attach, hosts_of, plugged, plugin

NONE = "none"  # the word for no plugin


def from_words(tokens: Any) -> Plugin:
    """The plugin that is meant: itself, its spelling (`tome:r=8`), or class_path and init_args, as YAML has it."""
    if isinstance(tokens, str):
        return plugin(tokens)
    if isinstance(tokens, Mapping):
        from ..parts import unplain

        return unplain(tokens)  # type: ignore[no-any-return]
    return tokens  # type: ignore[no-any-return]


def in_words(chosen: Plugin) -> str:
    """`Merge(r=8)` -> `"tome:r=8"`, without what is as by default; a kind without a spelling as Python shows it."""
    kind: Any = type(chosen)
    names = {(f"{attach.__module__}.{module}", made): name for name, (module, made) in PLUGINS.items()}
    name = names.get((kind.__module__, kind.__qualname__))
    if name is None:
        return repr(chosen)
    values = [(f.name, getattr(chosen, f.name), f.default) for f in fields(kind) if f.init]
    options = ",".join(f"{key}={in_word(value)}" for key, value, default in values if value != default)
    return f"{name}:{options}" if options else name


def in_word(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(map(in_word, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def strip(model: nn.Module) -> None:
    """Takes out every plugin that is attached to the model."""
    for module in model.modules():
        for seam in getattr(module, "seams", ()):
            if getattr(module, seam) is not None:
                delattr(module, seam)  # out of the submodules, then back to the plain None it was
                setattr(module, seam, None)
        if getattr(module, "plugins", ()):
            module.plugins = ()  # type: ignore[assignment]


def retoken(model: nn.Module, tokens: Any) -> list[str]:
    """Puts the plugin `tokens`, or none, in place of those that are attached. Its own parameters are those of the old
    ones, where names and shapes are the same; returns the names of the others, which are fresh."""
    if tokens == NONE:
        strip(model)
        return []
    chosen = from_words(tokens)
    if hosts := hosts_of(model):
        chosen.place(hosts)  # refuses before anything is taken out
    old = own_state(model)
    strip(model)
    attach(model, chosen)
    new = own_state(model)
    kept = {name: old[name] for name in new if name in old and old[name].shape == new[name].shape}
    model.load_state_dict({**model.state_dict(), **kept})
    return [name for name in new if name not in kept]


def own_state(model: nn.Module) -> dict[str, Any]:
    """The part of the model's state that belongs to plugins."""
    there = plugged(model)
    return {name: value for name, value in model.state_dict().items() if there and name.startswith(there)}
