"""What a checkpoint holds, how it is written and read: tensors and plain values only, whole or not at all.

patchloom   {format, model: describe(model), classes: [...], preprocessing: {...}, recipe}, and where an adapter is on
            trunk: what it covers of the model
state_dict  of the LightningModule: `model.…`, and `ema.…` where an average of the weights is kept
rng         states of Python's, NumPy's and torch's generators
and Lightning's own: loops (with the loader's state), optimizer_states, lr_schedulers, callbacks, epoch, global_step
"""

import contextlib
import errno
import json
import os
import pickle
import pickletools
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...vision import zoo
from ...vision.adapters import adapter_of, host
from ...vision.adapters.files import is_adapter
from ...vision.adapters.trunk import covered, uncover
from .saving import check_plain as check_plain
from .saving import save as save

FORMAT = 1
TRUNK = "trunk:"  # before the names of what an adapter covers, in a .safetensors file, whose header has no tensors
EMA_PREFIXES = ("ema.module.", "ema.")
UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
    ImportError,
)  # what torch.load raises for foreign or damaged bytes


class CheckpointError(ValueError):
    """A file that is no checkpoint, or one whose content does not fit; the message names the file and the tensor."""


# ---- writing


def header(model: nn.Module, classes: list[str], preprocessing: Mapping[str, Any], recipe: str = "") -> dict[str, Any]:
    """What rebuilds `model` without the code or YAML that made it."""
    plain = json.loads(json.dumps(dict(preprocessing)))
    below = {} if adapter_of(model) is None else {"trunk": covered(model)}
    return {
        "format": FORMAT,
        "model": zoo.describe(model),
        "classes": list(classes),
        "preprocessing": plain,
        "recipe": recipe,
        **below,
    }


# ---- reading


def read(path: str | os.PathLike, *, device: str | torch.device = "cpu") -> dict[str, Any]:
    """The content of a .ckpt/.pth (no code is run: `weights_only`) or .safetensors file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}" + ("; it is a folder" if path.is_dir() else ""))
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "protocol 4": such a file fails all the same
            content = torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what torch's reader makes of a zip file whose end is gone
            raise
        raise CheckpointError(f"{path}: {_why_unreadable(path, error)}") from error
    except UNREADABLE as error:
        raise CheckpointError(f"{path}: {_why_unreadable(path, error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dict of tensors; it is no checkpoint")
    return content


def _why_unreadable(path: Path, error: Exception) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    code = named[1] if named else next(_names_in_pickle(path), None)
    if code:
        return (
            f"holds code or objects ({code}), not only tensors and plain values, so it was not loaded; ask for a "
            ".safetensors or a file that torch.load(weights_only=True) reads"
        )
    return f"is no checkpoint, or a damaged one ({path.stat().st_size:,} bytes); use another copy"


def _names_in_pickle(path: Path) -> Iterator[str]:
    """What a bare pickle would import, found without running it (protocol 4 names it by two strings)."""
    strings: list[str] = []
    with path.open("rb") as file, contextlib.suppress(ValueError, UnicodeDecodeError):
        for operation, argument, _ in pickletools.genops(file):
            if operation.name == "GLOBAL":
                yield argument.replace(" ", ".")
            elif operation.name == "STACK_GLOBAL":
                yield ".".join(strings[-2:])
            elif isinstance(argument, str):
                strings.append(argument)


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            state = {name: t for name, t in tensors.items() if not name.startswith(TRUNK)}
            content: dict[str, Any] = {"state_dict": state}
            if "patchloom" in (file.metadata() or {}):
                content["patchloom"] = head = json.loads(file.metadata()["patchloom"])
                if "trunk" in head:
                    head["trunk"]["state"] = {n.removeprefix(TRUNK): t for n, t in tensors.items() if n not in state}
    except (SafetensorError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: {_why_unreadable(path, error)}") from error
    return content


def check_state(own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str | os.PathLike) -> None:
    """Raises one line that names the first tensor of each kind that is missing, extra or of another shape."""
    shaped = [
        f"{name} has shape {tuple(state[name].shape)} where the model has {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    missing = [name for name in own if name not in state]
    extra = [name for name in state if name not in own]
    faults = [_count(shaped, "wrongly shaped"), _count(missing, "missing"), _count(extra, "unknown to the model")]
    if any(faults):
        raise CheckpointError(
            f"{source}: {'; '.join(filter(None, faults))}; use a checkpoint of this very model, or the "
            "settings that it was trained with"
        )


def _count(names: list[str], what: str) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"tensor{'s' if len(names) > 1 else ''} {what}: {', '.join(names[:2])}{more}" if names else ""


# ---- models


def find(spec: str | os.PathLike) -> Path | None:
    """The checkpoint file that `spec` means: a file, or best.ckpt, else last.ckpt, of a run folder, model.safetensors
    of one that patchloom pull made, or the folder of a saved adapter; None for a model's name.
    """
    path = Path(spec)
    if path.is_dir():
        for name in ("best.ckpt", "last.ckpt", "model.safetensors"):
            if (path / name).is_file():
                return path / name
        if is_adapter(path):
            return path
        runs = sorted(path.glob("*/*.ckpt"))
        hint = f"; did you mean {runs[-1].parent}?" if runs else "; train first: patchloom fit -c RECIPE"
        raise FileNotFoundError(f"no best.ckpt or last.ckpt in folder {path}{hint}")
    if path.is_file():
        return path
    if path.suffix in (".ckpt", ".pth", ".pt", ".safetensors", ".bin") or "/" in str(spec).removeprefix("timm:"):
        raise FileNotFoundError(f"no file or run folder {path}")
    return None


def model_state(content: Mapping[str, Any], *, ema: bool = True) -> dict[str, Tensor]:
    """The network's tensors under its own names: the averaged ones where the checkpoint has them and `ema` asks for
    them.
    """
    state = content["state_dict"]
    for prefix in EMA_PREFIXES if ema else ():
        found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if found:
            return found
    found = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    return found or dict(state)


def load_model(spec: str, *, ema: bool = True) -> tuple[nn.Module, list[str], dict[str, Any]]:
    """(model in evaluation mode, class names, preprocessing) of `spec`: a name, name.tag, timm:…, a file, a run folder,
    or that of an adapter whose backbone has published weights.

    A bare weights file says nothing of its model: NAME=FILE, e.g. swin_tiny=swin_tiny_patch4_window7_224.pth.
    """
    name, _, file = str(spec).partition("=")
    path = None if file else find(spec)
    if path is None:
        model = zoo.create_model(name, checkpoint_path=file) if file else zoo.create_model(name, pretrained=True)
        return model.eval(), published_classes(model.num_classes), preprocessing_of(model)
    if path.is_dir():
        from ..saved.adapted import load_adapted  # which builds on this

        return load_adapted(None, path)
    content = read(path)
    if "patchloom" not in content:
        raise CheckpointError(
            f"{path}: holds weights but does not say of which model; write NAME={path}, with NAME one of "
            "patchloom models"
        )
    head = content["patchloom"]
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is of format {dict(head).get('format')!r}, this patchloom reads {FORMAT}")
    model = zoo.rebuild(head["model"])
    for averaged in {ema, False}:  # both halves must be whole, whichever is taken
        check_state(model.state_dict(), model_state(content, ema=averaged), path)
    model.load_state_dict(model_state(content, ema=ema))
    if "trunk" in head:
        uncover(model, head["trunk"])
    return model.eval(), list(head["classes"]), dict(head["preprocessing"])


def preprocessing_of(model: nn.Module) -> dict[str, Any]:
    """What `default_cfg`, of the model or of the backbone below its head, says of how an image becomes its input: in
    timm's words, and `shortest` and `longest` of a detector. Empty where neither says anything."""
    cfg = getattr(model, "default_cfg", None) or getattr(host(model), "default_cfg", {})
    keys = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode", "shortest", "longest")
    return {key: cfg[key] for key in keys if key in cfg}


def published_classes(count: int | None) -> list[str]:
    """ImageNet's names, in the order of the logits, for 1,000, 11,821, 21,841 or 21,843 classes; numbers for others.
    None (of what takes captions, or nothing): no names."""
    subsets = {1000: "imagenet-1k", 11821: "imagenet-12k", 21841: "imagenet-22k", 21843: "imagenet-21k-goog"}
    subset = subsets.get(count or 0)
    if subset is None:
        return [str(i) for i in range(count or 0)]
    from timm.data import ImageNetInfo

    info = ImageNetInfo(subset)
    return [info.index_to_description(i) for i in range(count)]
