"""Networks as plain values, enough to make them anew with fresh weights: what a checkpoint says of its model."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from .adapters import adapt, adapter_of, unadapted
from .model import Classifier
from .parts import class_at, path_of, plain, unplain
from .plugins import attach
from .pyramid import Pyramid


def describe(model: nn.Module) -> dict[str, Any]:
    """The model as plain values, enough for `rebuild`: {"name", "arguments"} of a published one, {"class_path",
    "init_args"} of one that was put together by hand; with "tokens", the plugins that are attached, if any are, and
    "adapter", the one that is on, if one is.

    Of other networks than Classifier and Pyramid (heads on a pyramid, denoisers) those are known that have a method
    `arguments()` that gives what their constructor takes: plain values, specs, and modules that are known themselves;
    or `name` and a dict `arguments` that `create_model` takes. Raises ValueError for others.
    """
    adapter = adapter_of(model) if hasattr(model, "adapters") else None
    attached = [plain(p) for p in getattr(model, "plugins", ())]  # those of a backbone below are described with it
    on = {"tokens": attached, "adapter": None if adapter is None else plain(adapter)}
    return bare(model) | {key: value for key, value in on.items() if value}


def bare(model: nn.Module) -> dict[str, Any]:
    """The same without what is attached."""
    if isinstance(model, Classifier):
        return bare_classifier(model)
    if isinstance(model, Pyramid):
        return bare_pyramid(model)
    made: Any = getattr(model, "arguments", None)
    if callable(made):
        return {"class_path": path_of(type(model)), "init_args": {k: value_of(v) for k, v in made().items()}}
    if isinstance(made, dict) and isinstance(name := getattr(model, "name", None), str):
        return named(name, made)
    raise ValueError(
        f"{type(model).__name__} cannot be described: it is neither a Classifier nor a timm model, and no arguments() "
        "say what it was made of"
    )


def named(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "arguments": {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()}}


def value_of(value: Any) -> Any:
    """A module as `describe` has it, anything else as `plain` has it."""
    return describe(value) if isinstance(value, nn.Module) else plain(value)


def bare_classifier(model: Classifier) -> dict[str, Any]:
    now = {"num_classes": model.num_classes, "img_size": list(model.default_cfg["input_size"][1:])}
    if model.family:
        return named(str(model.name), {**model.arguments, **now})
    with unadapted(model):  # an adapter may stand in place of them
        made = {"backbone": bare(model.backbone), "head": plain(model.spec)}
    return {"class_path": path_of(Classifier), "init_args": {**made, "drop_rate": model.drop_rate, **now}}


def bare_pyramid(model: Pyramid) -> dict[str, Any]:
    taken = list(model.feature_info.out_indices)
    if model.family and model.name:
        form = {"features_only": True, "out_indices": taken} | ({"dense": True} if model.dense else {})
        return named(model.name, {**model.arguments, **form})
    with unadapted(model):
        arguments = {"backbone": bare(model.backbone), "out_indices": taken, "norm": plain(model.norm_spec)}
    return {"class_path": path_of(Pyramid), "init_args": arguments}


def rebuild(description: Mapping[str, Any]) -> nn.Module:
    """The model that `describe` described, with fresh weights."""
    if "name" in description:
        from .zoo import create_model  # which stands above this

        given = description["arguments"].items()
        arguments: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in given}
        model = create_model(description["name"], **arguments)
    else:
        kind = class_at(description["class_path"])
        if not issubclass(kind, nn.Module) or not (
            issubclass(kind, Classifier | Pyramid) or hasattr(kind, "arguments")
        ):
            raise ValueError(f"{description['class_path']} is no network that a checkpoint can describe")
        model = kind(**{key: restored(value) for key, value in description["init_args"].items()})
    for each in description.get("tokens", ()):
        attach(model, unplain(each))
    if "adapter" in description:
        adapt(model, unplain(description["adapter"]))
    return model


def restored(value: Any) -> Any:
    """What `value_of` made plain."""
    if isinstance(value, Mapping) and ("name" in value or issubclass(class_at(value["class_path"]), nn.Module)):
        return rebuild(value)
    return unplain(value)


def adapter_within(description: Mapping[str, Any]) -> Any:
    """The adapter of what `describe` described, or of the backbone in it; None where there is none."""
    if "adapter" in description:
        return description["adapter"]
    inner = description.get("init_args", {}).values()
    found = (adapter_within(v) for v in inner if isinstance(v, Mapping) and ("name" in v or "class_path" in v))
    return next((adapter for adapter in found if adapter is not None), None)
