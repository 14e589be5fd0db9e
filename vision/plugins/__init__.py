"""Plugins reach a model through the seams that its modules declare, and nowhere else."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Protocol, get_args

from torch import nn

PLUGINS = {"tome": ("merge", "Merge")}  # spelling -> module and dataclass


class SeamError(ValueError):
    """A plugin cannot be put where it was asked to go."""


class Plugin(Protocol):
    """What may be attached: a frozen dataclass of settings."""

    @property
    def seams(self) -> tuple[str, ...]:
        """The seams it fills in every host; hosts are the modules that declare all of them."""

    def check(self, name: str, host: nn.Module) -> None:
        """Raises SeamError, with the host's name, where it cannot work."""

    def layer(self, seam: str, index: int, count: int) -> nn.Module:
        """What goes into `seam` of host `index` of `count`."""


def attach(model: nn.Module, plugin: Plugin) -> Callable[[], None]:
    """Fills the plugin's seams in every module that declares them; returns the function that takes it out again.

    Every host is checked and every layer built before one is touched, so a refusal leaves the model as it was. The
    layers come in the model's mode (training or evaluation).
    """
    seams = plugin.seams
    hosts = [(n, m) for n, m in model.named_modules() if set(seams) <= set(getattr(m, "seams", ()))]
    if not hosts:
        raise SeamError(f"no module of {type(model).__name__} declares the seams {', '.join(seams)} of {plugin}")
    for name, host in hosts:
        for seam in seams:
            if (there := getattr(host, seam)) is not None:
                raise SeamError(f"seam {seam!r} of {name} is taken by {type(there).__name__}; detach that first")
        plugin.check(name, host)
    layers = [(host, seam, plugin.layer(seam, i, len(hosts))) for i, (_, host) in enumerate(hosts) for seam in seams]
    for host, seam, layer in layers:
        setattr(host, seam, layer.train(host.training))

    def detach() -> None:
        for host, seam, layer in layers:
            if getattr(host, seam) is layer:  # a second call takes out nothing that came later
                delattr(host, seam)  # out of the submodules, then back to the plain None it was
                setattr(host, seam, None)

    return detach


@contextmanager
def attached(model: nn.Module, plugin: Plugin) -> Iterator[nn.Module]:
    """The model with the plugin in it, for as long as the block lasts."""
    detach = attach(model, plugin)
    try:
        yield model
    finally:
        detach()


def plugin(text: str) -> Plugin:
    """`"tome:r=8"` -> `Merge(r=8)`: a name, and options `key=value` between commas behind a colon."""
    name, _, rest = text.partition(":")
    if name not in PLUGINS:
        raise ValueError(f"plugin {name!r} in {text!r} is not known; {near(name, list(PLUGINS))}")
    module, kind = PLUGINS[name]
    make = getattr(import_module(f".{module}", __name__), kind)
    known = {f.name: f.type for f in fields(make) if f.init}
    options: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = (part.strip() for part in item.partition("="))
        if key not in known:
            raise ValueError(f"option {key!r} of plugin {name!r} in {text!r} is not known; {near(key, list(known))}")
        if not equals or key in options:
            raise ValueError(f"option {item!r} of plugin {name!r} in {text!r}: write {key}=VALUE, once")
        options[key] = read(value, known[key], f"{key}={value} of plugin {name!r} in {text!r}")
    missing = {f.name for f in fields(make) if f.init and f.default is f.default_factory} - set(options)
    if missing:
        raise ValueError(f"plugin {text!r} lacks {', '.join(sorted(missing))}: write {name}:{sorted(missing)[0]}=VALUE")
    return make(**options)  # type: ignore[no-any-return]


def read(value: str, kind: Any, where: str) -> bool | int | float | str:
    """The value as the first of bool, int, float and str that the option's annotation allows."""
    allowed = get_args(kind) or (kind,)
    if bool in allowed:
        if value.lower() in ("true", "false"):
            return value.lower() == "true"
        raise ValueError(f"option {where}: write true or false")
    for number in (int, float):
        if number in allowed:
            try:
                return number(value)
            except ValueError:
                continue
    if str in allowed:
        return value
    raise ValueError(f"option {where}: a number is wanted")


def near(name: str, known: list[str]) -> str:
    """`did you mean …`, or what there is."""
    found = get_close_matches(name, known, 3)
    return f"did you mean {' or '.join(found)}?" if found else f"there are {', '.join(known)}"
