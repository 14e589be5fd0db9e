"""How a checkpoint is written: plain values only, whole or not at all, durable once `save` returns."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PLAIN = (str, int, float, bool, bytes, type(None), Tensor, torch.dtype, torch.device, torch.Size)


def check_plain(value: Any, place: str = "checkpoint") -> None:
    """Raises TypeError with the place of the first value that `weights_only=True` would not load."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_plain(key, f"{place} key")
            check_plain(item, f"{place}[{key!r}]")
    elif type(value) in (list, tuple, set):
        for i, item in enumerate(value):
            check_plain(item, f"{place}[{i}]")
    elif not isinstance(value, PLAIN):
        raise TypeError(
            f"{place} is a {type(value).__module__}.{type(value).__qualname__}; a checkpoint holds tensors "
            "and plain values only: turn it into numbers, strings, lists or dicts in state_dict()"
        )


def save(content: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Writes `content` beside `path`, syncs it to the disk, then renames: `path` is the old file or the new one, never
    half.
    """
    check_plain(content)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with _Recorded(os.fdopen(handle, "wb")) as file:
            file.write_with(lambda: torch.save(content, file))
            file.sync()
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except OSError as error:
        had = "the previous one is intact" if path.exists() else "nothing was written"
        raise OSError(
            f"cannot save checkpoint {path}: {error.strerror or error}; {had}; free space or choose another "
            "disk with --trainer.default_root_dir, then go on with --resume"
        ) from error
    finally:
        Path(name).unlink(missing_ok=True)
    _sync_folder(path.parent)


class _Recorded:
    """A binary file that remembers its first OSError: torch's writer wraps or drops what `write` raises."""

    def __init__(self, file):
        self.file, self.error = file, None

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        self.file.close()

    def write(self, data) -> int:
        if self.error is None:
            try:
                return self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)  # a write after the failed one: swallowed, the file is thrown away

    def flush(self) -> None:
        if self.error is None:
            try:
                self.file.flush()
            except OSError as error:
                self.error = error

    def write_with(self, action) -> None:
        action()
        self.flush()
        if self.error is not None:
            raise self.error

    def sync(self) -> None:
        os.fsync(self.file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
