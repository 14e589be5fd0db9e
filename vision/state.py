"""A file of weights -> the dict of its tensors; nothing in it is run: safetensors, or torch.load(weights_only=True)."""

import argparse
import io
import pickle
import pickletools
import re
import tarfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .tables import find_file

WRAPPERS = (
    "model",
    "state_dict",
    "model_state_dict",
    "model_state",
    "module",
    "model_ema",
    "state_dict_ema",
    "ema",
    "teacher",
)
PREFIXES = ("module.", "_orig_mod.", "model.")  # what DDP, compile and a LightningModule put before every name
# values without behaviour that trainers leave beside the tensors (options, numpy numbers); nothing else is let in
_SCALAR = np.float64(0).__reduce__()[0]  # its module is numpy.core in old files, numpy._core in new ones
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *{type(np.dtype(kind)) for kind in ("bool", "int32", "int64", "float32", "float64")},
]


def read_state(path: str | Path, wrapper: str | None = None, prefix: str = "") -> dict[str, Tensor]:
    """The tensors under key `wrapper` of the file (None: all of it) whose names begin with `prefix`, without it."""
    path = Path(path)
    content = _content(path)
    if wrapper is not None:
        if not isinstance(content.get(wrapper), Mapping):
            raise ValueError(f"{path}: holds no dict under the key {wrapper!r}; its keys are {_some(content)}")
        content = content[wrapper]
    state = _tensors(
        path, {name.removeprefix(prefix): value for name, value in content.items() if name.startswith(prefix)}
    )
    if not state:
        raise ValueError(f"{path}: no name begins with {prefix!r}; the first are {_some(content)}")
    return state


def read_local(path: str | Path, prefer: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file by hand: one that has a published file's name as declared in the table; of another, an
    obvious wrapper and prefixes common to all names come off. Of several sets of weights that of the key `prefer`."""
    path = Path(path)
    content = _content(path)
    if "patchloom" in content:
        raise ValueError(
            f"{path}: is a checkpoint of a patchloom run, not bare weights; give it where a model is asked for"
        )
    known = find_file(path)
    if known is not None and isinstance(content.get(known[1].wrapper or ""), Mapping):
        return read_state(path, known[1].wrapper, known[1].prefix)
    if not all(isinstance(value, Tensor) for value in content.values()):
        found = [
            key
            for key in WRAPPERS
            if isinstance(content.get(key), Mapping)
            and any(isinstance(value, Tensor) for value in content[key].values())
        ]
        if prefer in found:
            found = [prefer]
        if len(found) > 1:
            raise ValueError(
                f"{path}: holds several sets of weights ({', '.join(found)}); say which with --wrapper "
                "(wrapper= of read_state)"
            )
        content = content[found[0]] if found else content
    state = _tensors(path, content)
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _tensors(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{path}: {name!r} is of type {type(value).__name__}, not a tensor; its names are {_some(content)}"
            )
    return dict(content)


def _some(content: Mapping[str, Any]) -> str:
    names = [str(name) for name in content]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "none"


def _content(path: Path) -> dict[str, Any]:
    """The dict in the file, whatever its format."""
    if not path.is_file():
        raise FileNotFoundError(f"no file of weights {path}" + ("; it is a folder" if path.is_dir() else ""))
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError(f"{path}: is empty; fetch it again")
    if head.lstrip()[:1] == b"<":
        raise ValueError(f"{path}: is a web page, not weights; fetch it again")
    if path.suffix == ".safetensors" or head[8:10] == b'{"':
        return _safetensors(path)
    if tarfile.is_tarfile(path):
        raise ValueError(
            f"{path}: is of torch's old tar format, which runs code on loading; load it where it is trusted "
            "and save its state dict anew with torch.save or safetensors"
        )
    content = _pickled(path)
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a dict of named tensors")
    return dict(content)


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path}: is no safetensors file, or a damaged one ({_line(error)}); fetch it again"
        ) from error


def _pickled(path: Path) -> Any:
    """torch.load of the file, or of the only file of weights in a zip archive."""
    source: Path | io.BytesIO = path
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
            inner = [name for name in names if name.endswith((".pth", ".pt", ".bin", ".ckpt", ".pth.tar"))]
            if not any(name.endswith("data.pkl") for name in names):
                if len(inner) != 1:
                    raise ValueError(
                        f"{path}: is a zip archive with {len(inner)} files of weights, not one; unpack it first"
                    )
                source = io.BytesIO(archive.read(inner[0]))
    try:
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # of a pickle protocol that it may not read: then it fails, below
            return torch.load(source, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        LookupError,
        EOFError,
        ValueError,
        AttributeError,
        TypeError,
    ) as error:
        if isinstance(error, pickle.UnpicklingError) and (code := _code(source, str(error))):
            raise ValueError(
                f"{path}: holds Python objects ({code}), not only tensors, and loading them could run code; load it "
                "where it is trusted and save its state dict with torch.save or safetensors"
            ) from error
        raise ValueError(f"{path}: is no file of weights, or a damaged one ({_line(error)}); fetch it again") from error


def _code(source: Path | io.BytesIO, message: str) -> str | None:
    """What a pickle would import: torch names it, but not that of a newer pickle protocol; found without running it."""
    if named := re.search(r"GLOBAL ([\w.]+)", message):
        return named[1]
    content = source.read_bytes() if isinstance(source, Path) else source.getvalue()
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            content = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    file = io.BytesIO(content)
    with suppress(ValueError, LookupError):  # the end, or what is no pickle
        while True:
            for module, name in _imports(file):
                if module.partition(".")[0] not in ("torch", "collections"):
                    return f"{module}.{name}"
    return None


def _imports(file: io.BytesIO) -> Iterator[tuple[str, str]]:
    """(module, name) of what the next pickle of the file imports by two strings, directly or from its memo."""
    words: list[str] = []
    memo: dict[Any, Any] = {}
    last = None
    for operation, argument, _ in pickletools.genops(file):
        if operation.name == "STACK_GLOBAL":
            yield words[-2], words[-1]
        if operation.name == "MEMOIZE":
            memo[len(memo)] = last
            continue
        last = memo.get(argument) if operation.name in ("BINGET", "LONG_BINGET") else argument
        if isinstance(last, str):
            words.append(last)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
