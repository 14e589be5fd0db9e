"""Plugins in words, as recipes, checkpoints and command lines have them, and putting another one into a model."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..adapters import unadapted
from ..spelling import in_words as spelt_in
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
    return spelt_in(chosen, PLUGINS, attach.__module__)


def strip(model: nn.Module) -> None:
    """Takes out every plugin that is attached to the model; adapters stay."""
    with unadapted(model):
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
    with unadapted(model):
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
