"""Settings in words: `tome:r=8` for a plugin, `lora:r=8` for an adapter, and back."""

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from importlib import import_module
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin


def spelt(text: str, known: Mapping[str, tuple[str, str]], package: str, what: str) -> Any:
    """`"tome:r=8"` -> `Merge(r=8)`: a name of `known`, and options `key=value` between commas behind a colon; the parts
    of a tuple have + between them: `"tome:r=8+4"` -> `Merge(r=(8, 4))`. `known` gives module, in `package`, and
    dataclass of each name; `what` they are is for messages."""
    name, _, rest = text.partition(":")
    if name not in known:
        raise ValueError(f"{what} {name!r} in {text!r} is not known; {near(name, list(known))}")
    module, kind = known[name]
    make = getattr(import_module(f".{module}", package), kind)
    kinds = {f.name: f.type for f in fields(make) if f.init}
    options: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = (part.strip() for part in item.partition("="))
        if key not in kinds:
            hint = near(key, list(kinds)) if equals else "write KEY=VALUE, and a tuple with + between its parts"
            raise ValueError(f"option {key!r} of {what} {name!r} in {text!r} is not known; {hint}")
        if not equals or key in options:
            raise ValueError(f"option {item!r} of {what} {name!r} in {text!r}: write {key}=VALUE, once")
        options[key] = read(value, kinds[key], f"{key}={value} of {what} {name!r} in {text!r}")
    missing = {f.name for f in fields(make) if f.init and f.default is f.default_factory} - set(options)
    if missing:
        raise ValueError(f"{what} {text!r} lacks {', '.join(sorted(missing))}: write {name}:{sorted(missing)[0]}=VALUE")
    return make(**options)


def in_words(chosen: Any, known: Mapping[str, tuple[str, str]], package: str) -> str:
    """`Merge(r=8)` -> `"tome:r=8"`, without what is as by default; a kind without a spelling as Python shows it."""
    kind: Any = type(chosen)
    names = {(f"{package}.{module}", made): name for name, (module, made) in known.items()}
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


def read(value: str, kind: Any, where: str) -> Any:
    """The value as the first of bool, int, float, str, listed word and tuple that the annotation `kind` allows."""
    allowed = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
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
    words = [word for a in allowed if get_origin(a) is Literal for word in get_args(a)]
    if value in words:
        return value
    for several in allowed:
        if get_origin(several) is tuple:
            return read_tuple(value, get_args(several), where)
    raise ValueError(f"option {where}: {near(value, words) if words else 'a number is wanted'}")


def read_tuple(value: str, kinds: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    """`3+6+9` as a tuple[int, ...], whose arguments are `kinds`."""
    parts, open_end = [part.strip() for part in value.split("+")], kinds[-1] is Ellipsis
    if not all(parts) or not (open_end or len(parts) == len(kinds)):
        many = "one or more" if open_end else len(kinds)
        raise ValueError(f"option {where}: {many} with + between them (3+6+9) are wanted")
    each = kinds[:1] * len(parts) if open_end else kinds
    return tuple(read(part, k, where) for part, k in zip(parts, each, strict=True))


def near(name: str, known: list[str]) -> str:
    """`did you mean …`, or what there is."""
    found = get_close_matches(name, known, 3)
    return f"did you mean {' or '.join(found)}?" if found else f"there are {', '.join(known)}"
