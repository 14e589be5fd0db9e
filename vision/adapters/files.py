"""Adapters as folders of two files, `adapter_model.safetensors` and `adapter_config.json`.

The tensors are the adapter's own, its head's among them. Those of the trunk are not there, but their digest is: an
adapter goes onto the weights that it was trained on and no others. What peft knows is written as peft writes it.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from math import prod
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from . import (
    ADAPTERS,
    HEADS,
    Adapter,
    AdapterError,
    adapt,
    adapter_of,
    book,
    from_words,
    in_words,
    load_own_state,
    own_state,
    switch,
)
from .lora_house import House
from .peft_names import PREFIX, from_peft, take_up, to_peft, usable
from .peft_raw import Peft
from .trunk import digest, name_of

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class Card:
    """What the files of an adapter say of it. Those that peft saved tell neither weights nor classes."""

    adapter: dict[str, Any]  # class_path and init_args
    words: str  # the same as one spells it
    backbone: str
    trunk: str = ""  # the digest of its weights
    arguments: dict[str, Any] = field(default_factory=dict)  # what the zoo made it with
    num_classes: int | None = None
    classes: list[str] = field(default_factory=list)
    preprocessing: dict[str, Any] = field(default_factory=dict)
    parameters: int = 0  # numbers in the file
    peft: bool = False  # whether the files are peft's
    format: int = FORMAT

    def settings(self) -> Adapter:
        from ..parts import unplain

        try:
            return unplain(self.adapter)  # type: ignore[no-any-return]
        except (KeyError, TypeError) as error:
            raise AdapterError(f"adapter {self.words}: its settings cannot be read ({error})") from error


def save_adapter(model: nn.Module, folder: str | os.PathLike[str], *, classes: Sequence[str] = (),
                 preprocessing: Mapping[str, Any] | None = None, trunk: str | None = None) -> Path:  # fmt: skip
    """Writes the adapter that is on: its settings and tensors, the backbone's name and digest (`trunk`, where its
    weights are no longer as they were given: rounded, say), the names of the classes and how images are prepared. Each
    file is whole or not there."""
    from ..parts import plain

    adapter, folder = adapter_of(model), Path(folder)
    if adapter is None:
        raise AdapterError(f"no adapter of the model is on, so there is none to save in {folder}")
    theirs, made = as_peft(model, adapter), getattr(model, "arguments", {})
    made = {key: plain(value) for key, value in (made() if callable(made) else made).items()}
    tensors = own_state(model) if theirs is None else theirs[1]
    card = Card(
        plain(adapter), in_words(adapter), name_of(model), trunk or digest(model),
        made, getattr(model, "num_classes", None), list(classes),
        dict(preprocessing or {}), sum(t.numel() for t in tensors.values()), theirs is not None,
    )  # fmt: skip
    config = asdict(card) if theirs is None else theirs[0]
    text = json.dumps(asdict(card), ensure_ascii=False)
    folder.mkdir(parents=True, exist_ok=True)
    apart = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}  # names may share memory
    write(folder / TENSORS, save(apart, {"format": "pt", "patchloom": text}))
    write(folder / CONFIG, (json.dumps(config, indent=1, ensure_ascii=False) + "\n").encode())
    return folder


def as_peft(model: nn.Module, adapter: Adapter) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """peft's settings and tensors of the adapter that is on; None where its format has no place for them."""
    if not isinstance(adapter, House):
        return None
    try:
        return to_peft(model)
    except AdapterError:  # an OFT of a part of a fused layer, say
        return None


def write(path: Path, content: bytes) -> None:
    """The file is the old one or the new one, never half."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def is_adapter(folder: str | os.PathLike[str]) -> bool:
    return (Path(folder) / CONFIG).is_file()


def find_adapter(spec: str | os.PathLike[str]) -> Path:
    """The folder that `spec` is, or the one in the run that it is."""
    folders = Path(spec), Path(spec) / "adapter"
    found = next(filter(is_adapter, folders), None)
    if found is None:
        what = "no such folder" if not folders[0].is_dir() else f"it has no {CONFIG}, nor has its adapter/"
        raise FileNotFoundError(f"no adapter in {spec}: {what}")
    return found


def chosen(adapter: Any) -> Adapter | Path:
    """What a recipe or a command line means by `adapter`: a spelling, a dataclass or its class_path and init_args, or
    the folder of a saved one."""
    if isinstance(adapter, os.PathLike):
        return find_adapter(adapter)
    if isinstance(adapter, str) and adapter.partition(":")[0] not in ADAPTERS and Path(adapter).exists():
        return find_adapter(adapter)
    return from_words(adapter)


def settings_of(adapter: Any) -> Adapter:
    """The settings that are meant, without a saved one's tensors."""
    found = chosen(adapter)
    return read_card(found).settings() if isinstance(found, Path) else found


def put_on(model: nn.Module, adapter: Any) -> Card | None:
    """The adapter that is meant (see `chosen`), put into the model; the card of a saved one, which comes as it was
    trained."""
    found = chosen(adapter)
    if not hasattr(model, "adapters"):
        raise AdapterError(f"{type(model).__name__} is no model of this suite, and takes no adapter")
    if isinstance(found, Path):
        return load_adapter(model, found)
    adapt(model, found)
    return None


def read_card(folder: str | os.PathLike[str]) -> Card:
    """What the folder says of its adapter, without its tensors."""
    path, config = tensors_of(folder), read_config(folder)
    with opened(path) as file:
        text = (file.metadata() or {}).get("patchloom")
        numbers = sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    if text is None and "peft_type" in config:
        return card_of_peft(config, numbers)
    if text is None:
        raise AdapterError(f"{path}: does not say of which backbone and weights it is, so it was not saved here")
    content = json.loads(text)
    if content.get("format") != FORMAT:
        raise AdapterError(f"{path}: is of format {content.get('format')!r}, this patchloom reads {FORMAT}")
    known, needed = (
        {f.name for f in fields(Card) if every or f.default is f.default_factory} for every in (True, False)
    )
    if wrong := sorted(needed - set(content) or set(content) - known):
        raise AdapterError(f"{path}: its card {'lacks' if needed - set(content) else 'has an unknown'} {wrong[0]!r}")
    return Card(**content)


def card_of_peft(config: Mapping[str, Any], numbers: int) -> Card:
    """What can be said of an adapter that peft saved."""
    from ..parts import plain

    settings = Peft(json.dumps(usable(config), sort_keys=True))
    name = config.get("base_model_name_or_path") or "a backbone that peft was not told"
    return Card(plain(settings), f"{config['peft_type']} of peft", name, parameters=numbers, peft=True)


def tensors_of(folder: str | os.PathLike[str]) -> Path:
    folder = Path(folder)
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no adapter in {folder}: it has no {name}")
    return folder / TENSORS


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise AdapterError(f"{path}: is no file of tensors, or a damaged one ({error}); use another copy") from error


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    path = Path(folder) / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AdapterError(f"{path}: no JSON: {error}") from error
    if not isinstance(content, dict):
        raise AdapterError(f"{path}: holds a {type(content).__name__}, not settings by name")
    return content


def read_tensors(folder: str | os.PathLike[str]) -> dict[str, Tensor]:
    with opened(tensors_of(folder)) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def load_adapter(model: nn.Module, folder: str | os.PathLike[str], name: str = "default", *,
                 other_weights: bool = False) -> Card:  # fmt: skip
    """Puts the saved adapter into the model under `name`, with its head, and turns it on. Raises AdapterError where the
    trunk is not the one that it was trained on (`other_weights`: only where it does not fit); then the model is as it
    was. What peft saved says nothing of the weights."""
    card, tensors = read_card(folder), read_tensors(folder)
    if card.trunk and not other_weights:
        check_trunk(model, card, folder)
    try:
        if card.peft:
            settings = cast(House, card.settings()) if card.trunk else None
            from_peft(model, read_config(folder), tensors, name, adapter=settings)
        else:
            load_own(model, card, tensors, name)
    except AdapterError as error:
        raise AdapterError(f"{folder}: {error}") from error
    return replace(card, num_classes=getattr(model, "num_classes", None))


def load_own(model: nn.Module, card: Card, tensors: Mapping[str, Tensor], name: str) -> None:
    there = book(model)
    before = None if there is None else there.on
    remove = adapt(model, card.settings(), name)
    try:
        if card.num_classes is not None and card.num_classes != model.num_classes:
            model.reset_classifier(card.num_classes)  # type: ignore[operator]
        load_own_state(model, tensors)
    except AdapterError:
        remove()
        switch(model, before)
        raise


def check_trunk(model: nn.Module, card: Card, folder: str | os.PathLike[str]) -> None:
    if (here := digest(model)) == card.trunk:
        return
    made = {k: v for k, v in card.arguments.items() if k != "num_classes"}
    with_what = f" made with {', '.join(f'{k}={v}' for k, v in made.items())}" if made else ""
    if (name := name_of(model)) != card.backbone:
        raise AdapterError(f"{folder}: is an adapter of {card.backbone}{with_what}, and this model is {name}")
    raise AdapterError(
        f"{folder}: was trained on other weights of {name}{with_what} (their digest is {card.trunk[:12]}, here it is "
        f"{here[:12]}): load those first"
    )


def start_from(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """The adapter that is on takes up what another of the same settings learnt, but for the head: prompts pretrained on
    another task, say (PVP). The trunk must be the same."""
    adapter, card = adapter_of(model), read_card(folder)
    if adapter != card.settings():
        on = "none" if adapter is None else in_words(adapter)
        raise AdapterError(f"{folder}: holds {card.words}, and the adapter that is on is {on}")
    check_trunk(model, card, folder)
    heads = tuple(f"{head}." for head in HEADS)
    body = {n: t for n, t in read_tensors(folder).items() if not n.removeprefix(PREFIX).startswith(heads)}
    if card.peft:
        take_up(model, read_config(folder), body)
    else:
        load_own_state(model, body | {n: t for n, t in own_state(model).items() if n.startswith(heads)})
