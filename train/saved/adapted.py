"""Models below and with saved adapters: a backbone found by name or checkpoint, and what an adapter makes of it."""

import os
from pathlib import Path
from typing import Any

from torch import nn

from ...vision import zoo
from ...vision.adapters import AdapterError, book
from ...vision.adapters.files import Card, find_adapter, load_adapter, read_card
from ..running.checkpoint import find, load_model, preprocessing_of, published_classes, read


def load_adapted(spec: str | None, folder: str | os.PathLike) -> tuple[nn.Module, list[str], dict[str, Any]]:
    """(model in evaluation mode, class names, preprocessing) of what `spec` names (None: the published weights that the
    adapter was trained on) with the saved adapter of `folder`; classes and preprocessing are the adapter's."""
    folder = find_adapter(folder)
    card = read_card(folder)
    model = trunk_of(spec, card, folder)
    load_adapter(model, folder, "default" if book(model) is None else str(folder))
    classes = card.classes or published_classes(model.num_classes)
    return model.eval(), classes, card.preprocessing or preprocessing_of(model)


def trunk_of(spec: str | None, card: Card, folder: Path) -> nn.Module:
    """The backbone for the adapter, made for images as it was trained on."""
    name, _, file = (card.backbone if spec is None else spec).partition("=")
    if not file and spec is not None and (spec.startswith("timm:") or find(spec) is not None):
        return load_model(spec)[0]
    theirs, own = variant(card.backbone), variant(name)
    give = f"give the adapter to what it was trained on: MODEL --adapter {folder}"
    if spec is None and own is None:
        raise AdapterError(f"{folder}: is an adapter of {card.backbone}, which is no published variant; {give}")
    if theirs != own and own is not None:  # said before weights are fetched
        raise AdapterError(f"{folder}: is an adapter of {card.backbone}, and not of {name}; {give}")
    if not file and zoo.resolve(name).default is None:
        raise AdapterError(f"{folder}: nobody published weights of {name}; {give}, a checkpoint or NAME=FILE")
    made = {key: tuple(v) if isinstance(v, list) else v for key, v in card.arguments.items() if key != "num_classes"}
    return zoo.create_model(name, **({"checkpoint_path": file} if file else {"pretrained": True}), **made)


def variant(name: str) -> str | None:
    """The variant that a name of the zoo is of; None for what is no name of it."""
    try:
        return zoo.resolve(name).name
    except ValueError:
        return None


def trained(spec: str) -> nn.Module:
    """What a recipe can build on: the network of a run, a checkpoint or a published name, with its weights; as
    `class_names` what its classes are called, and of a denoiser as `learned_under` the process in plain words."""
    model, classes, _ = load_model(spec)
    model.class_names = classes
    if (path := find(spec)) is not None and path.is_file():
        model.learned_under = read(path)["patchloom"].get("process")
    return model.train()
