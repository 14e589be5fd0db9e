"""Where a misspelt key of a recipe stands: jsonargparse refuses it, this finds file, line, place and near names."""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from ..cli import near

ANY = (inspect.Parameter.VAR_KEYWORD,)


def find_fault(files: list[Path], overrides: list[tuple[str, str | None]], top: Mapping[str, Any]) -> str | None:
    """One line for the first key that nobody knows; None where all are known. `top`: the keys of a recipe with their
    types.

    `overrides`: options and their values, (data.batch_size, 8), with or without init_args; (data, a.b.Class) changes
    the class.
    """
    merged: dict[str, Any] = {}
    for file in files:
        settings = read_yaml(file)
        node = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        for place, line, why in faults(node, top, ""):
            return f"{file}:{line}: {place}: {why}"
        merge(merged, settings)
    for name, value in overrides:
        if name in top and value and "." in value and isinstance(merged.get(name, {}), Mapping):
            merged[name] = {"class_path": value}
        if why := fault_of_option(name, top, merged):
            return f"--{name}: {why}"
    return None


def read_yaml(file: Path) -> dict[str, Any]:
    """The settings of a recipe; an error names file and line."""
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        raise ValueError(
            f"{file}{f':{mark.line + 1}' if mark else ''}: no YAML: {getattr(error, 'problem', None) or error}"
        ) from error
    if not isinstance(settings, dict):
        raise ValueError(f"{file}: holds no keys; a recipe has model, data and trainer")
    return settings


def tidy(message: str) -> str:
    """jsonargparse's report of a wrong value, or of an error in a constructor, without what only repeats it."""
    lines = [line.strip() for line in re.split("Given value( type)?:", message)[0].splitlines()]
    skip = ("Does not validate against any", "Subtypes:", "Errors:", "- Expected a <class 'NoneType'>")
    text = " ".join(line.removeprefix("- ") for line in lines if line and not line.startswith(skip)) or message
    place = ".".join(re.findall(r'Parser key "([^"]+)":', text))
    text = re.sub(r'Parser key "[^"]+": *', "", text)
    text = re.sub(
        r"Expected a <class '(?:builtins\.)?([\w.]+)'>",
        r"expected \1",
        re.sub(r"Expected a typing\.Literal", "expected one of ", text),
    )
    return f"{place}: {text}" if place else text


def merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if (
            isinstance(value, Mapping)
            and isinstance(into.get(key), dict)
            and value.get("class_path", into[key].get("class_path")) == into[key].get("class_path")
        ):
            merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


# ---- what a callable takes


def resolve(path: str) -> Any:
    """The object of a dotted path; raises ValueError with near names."""
    module, _, name = path.rpartition(".")
    try:
        found = import_module(module)
    except ImportError as error:
        raise ValueError(f"no module {module} ({error})") from error
    if not hasattr(found, name):
        raise ValueError(f"{module} has no {name}{near(name, [n for n in dir(found) if not n.startswith('_')])}")
    return getattr(found, name)


def parameters(maker: Callable[..., Any]) -> dict[str, Any] | None:
    """Name -> type of what it takes, where a class has **settings its parent's too; None where it takes any name."""
    found: dict[str, Any] = {}
    for function in initialisers(maker) if isinstance(maker, type) else [maker]:
        signature, hints = inspect.signature(function).parameters, typing.get_type_hints(function)
        named = [name for name, p in signature.items() if name != "self" and p.kind not in ANY]
        found = {name: hints.get(name, Any) for name in named} | found
        if len(named) == len(signature) - ("self" in signature):
            return found
    return None


def initialisers(kind: type) -> list[Callable[..., Any]]:
    """Its own, and those behind it, but for Python's."""
    return [vars(k)["__init__"] for k in kind.__mro__ if k is not object and "__init__" in vars(k)]


def makers(hint: Any) -> Iterator[type]:
    """The classes that a type admits: of `Ema | None` it is Ema."""
    if isinstance(hint, type) and not isinstance(hint, types.GenericAlias):
        if hint.__module__ != "builtins":
            yield hint
    elif typing.get_origin(hint) in (typing.Union, types.UnionType):
        for option in typing.get_args(hint):
            yield from makers(option)


def items(hint: Any) -> Any:
    """The type of the items of list[X], tuple[X, ...] or Sequence[X] | None."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next((found for option in typing.get_args(hint) if (found := items(option)) is not Any), Any)
    arguments = typing.get_args(hint)
    return arguments[0] if arguments and typing.get_origin(hint) is not dict else Any


# ---- walking a file


def faults(node: yaml.Node, hint: Any, place: str) -> Iterator[tuple[str, int, str]]:
    """(place, line, why) of each key below `node` that the class there does not take."""
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield from faults(item, items(hint), f"{place}[{i}]")
    elif isinstance(node, yaml.MappingNode):
        pairs = {key.value: (key, value) for key, value in node.value}
        if isinstance(hint, Mapping):
            yield from known_only(pairs, hint, place)
        elif "class_path" in pairs:
            yield from faults_of_class(pairs, place)
        else:
            options = [
                p for maker in makers(hint) if dataclasses.is_dataclass(maker) and (p := parameters(maker)) is not None
            ]
            fitting = next((p for p in options if set(pairs) <= set(p)), options[0] if options else None)
            if fitting is not None:
                yield from known_only(pairs, fitting, place)


def faults_of_class(pairs: dict[str, Any], place: str) -> Iterator[tuple[str, int, str]]:
    yield from known_only(
        {k: v for k, v in pairs.items() if k != "init_args"},
        {"class_path": Any, "init_args": Any, "dict_kwargs": Any},
        place,
    )
    key, value = pairs["class_path"]
    if "." not in value.value:  # a short name, which jsonargparse looks up among the classes that it knows
        return
    try:
        taken = parameters(resolve(value.value))
    except ValueError as error:
        yield f"{place}.class_path", key.start_mark.line + 1, str(error)
        return
    if taken is not None and "init_args" in pairs and isinstance(pairs["init_args"][1], yaml.MappingNode):
        yield from known_only({k.value: (k, v) for k, v in pairs["init_args"][1].value}, taken, f"{place}.init_args")


def known_only(pairs: dict[str, Any], taken: Mapping[str, Any], place: str) -> Iterator[tuple[str, int, str]]:
    for name, (key, value) in pairs.items():
        where = f"{place}.{name}" if place else name
        if name not in taken:
            yield (
                where,
                key.start_mark.line + 1,
                f"no such key{near(name, taken) or '; there are ' + ', '.join(list(taken)[:12])}",
            )
        else:
            yield from faults(value, taken[name], where)


def fault_of_option(name: str, top: Mapping[str, Any], merged: Mapping[str, Any]) -> str | None:
    """Follows data.batch_size through the classes that the files name."""
    taken: Mapping[str, Any] | None = top
    value: Any = merged
    for part in name.split("."):
        if part in ("init_args", "class_path", "dict_kwargs", "help"):
            if part != "init_args":
                return None
            continue
        if taken is None:
            return None
        if part.rstrip("+") not in taken:
            return f"no such key {part!r}{near(part, taken) or '; there are ' + ', '.join(list(taken)[:12])}"
        hint = taken[part.rstrip("+")]
        value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(hint, Mapping):
            taken = hint
        elif isinstance(value, Mapping) and "class_path" in value:
            taken = parameters(resolve(value["class_path"])) if "." in value["class_path"] else None
            value = value.get("init_args")
        else:
            taken = next(
                (
                    p
                    for maker in makers(hint)
                    if dataclasses.is_dataclass(maker) and (p := parameters(maker)) is not None
                ),
                None,
            )
    return None
