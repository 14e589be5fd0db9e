"""The parts of a hand-made model as plain values, as a YAML file spells them: {"class_path", "init_args"}, and back."""

import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any

from .backbone import Backbone
from .model import Classifier


def path_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {
            "class_path": path_of(type(value)),
            "init_args": {f.name: plain(getattr(value, f.name)) for f in fields(value)},
        }
    return [plain(v) for v in value] if isinstance(value, tuple | list) else value


def unplain(value: Any) -> Any:
    """The inverse of `plain`."""
    if isinstance(value, list):
        return tuple(unplain(v) for v in value)
    if not isinstance(value, Mapping):
        return value
    found = class_at(value["class_path"])
    if not (is_dataclass(found) or issubclass(found, (Backbone, Classifier))):
        raise ValueError(f"{value['class_path']} is no part of a model")
    return found(**{k: unplain(v) for k, v in value["init_args"].items()})


def class_at(path: str) -> type:
    """The class of a dotted path, of this package or of a module that is imported already: a checkpoint cannot make us
    import anything else."""
    module, _, name = path.rpartition(".")
    package = __name__.partition(".")[0]
    if module not in sys.modules and not module.startswith(package + "."):
        raise ValueError(f"the model is made of {path}: import {module} before you load it")
    found = getattr(import_module(module), name, None)
    if not isinstance(found, type):
        raise ValueError(f"{path} is no part of a model")
    return found
