"""Shards in WebDataset's layout: tar files whose samples are files of one name: `name.jpg` and `name.cls`."""

from __future__ import annotations

import fcntl
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from .read import EXTENSIONS, UnreadableImage

INDEX = "shards.json"
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ShardIndex:
    """shards.json: the classes that the numbers in `.cls` mean, and the shards of each split, in order, with the number
    of pictures in each. `names`: what to show for each class."""

    classes: list[str]
    splits: dict[str, list[tuple[str, int]]]
    names: list[str] | None = None

    def text(self) -> str:
        splits = {
            split: [{"url": url, "nsamples": count} for url, count in shards] for split, shards in self.splits.items()
        }
        return json.dumps({"classes": self.classes, "names": self.names, "splits": splits}, indent=1)

    @classmethod
    def of(cls, text: str, origin: str) -> ShardIndex:
        """Read from its text; ValueError where it is none."""
        try:
            content = json.loads(text)
            splits = {
                split: [(str(shard["url"]), int(shard["nsamples"])) for shard in content["splits"][split]]
                for split in content["splits"]
            }
            names = content.get("names")
            made = cls([str(c) for c in content["classes"]], splits, None if names is None else [str(n) for n in names])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{origin}: no index of shards ({error!r}): classes, and splits with url and nsamples of each shard, "
                "are needed; patchloom shards --index DIR writes it"
            ) from error
        if odd := sorted(set(splits) - set(SPLITS)):
            raise ValueError(f"{origin}: a split {odd[0]}: {', '.join(SPLITS)} are known")
        if empty := [url for shards in splits.values() for url, count in shards if count < 1]:
            raise ValueError(f"{origin}: {empty[0]} has no pictures: leave it out")
        return made


@dataclass(frozen=True)
class Entry:
    """A picture in a shard: its file's name, and where its bytes and those of its class number are."""

    name: str
    offset: int
    size: int
    cls: tuple[int, int]


class Shard:
    """An open tar file on this disk; read by place, by several processes at a time."""

    def __init__(self, path: str | Path, url: str = "") -> None:
        self.url = url or str(path)
        self.entries = scan(path)
        self.file = os.open(path, os.O_RDONLY)

    def __len__(self) -> int:
        return len(self.entries)

    def __del__(self) -> None:
        if hasattr(self, "file"):
            os.close(self.file)

    def read(self, place: int) -> tuple[bytes, str, int]:
        """The bytes of a picture, its name for errors, and its class number."""
        entry = self.entries[place]
        name = f"{self.url}:{entry.name}"
        data, written = self._bytes(entry.offset, entry.size), self._bytes(*entry.cls)
        if len(data) < entry.size:
            raise UnreadableImage(name, "the shard is cut short")
        try:
            return data, name, int(written)
        except ValueError:
            raise UnreadableImage(name, f"its class is {written[:20]!r}: a number is needed") from None

    def _bytes(self, offset: int, size: int) -> bytes:
        return os.pread(self.file, size, offset)


def scan(path: str | Path) -> list[Entry]:
    """What a shard holds. Raises ValueError where it is no tar file, ends early, or holds pictures without a class."""
    pictures: dict[str, tuple[str, int, int]] = {}
    classes: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile():
                    folder, _, file = member.name.rpartition("/")
                    stem, _, extension = file.partition(".")
                    key, extension = f"{folder}/{stem}", extension.lower()
                    if f".{extension}" in EXTENSIONS:
                        pictures[key] = member.name, member.offset_data, member.size
                    elif extension == "cls":
                        classes[key] = member.offset_data, member.size
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"no tar file, or one that is cut short ({error}): fetch or write it again") from error
    if lacking := [name for key, (name, _, _) in pictures.items() if key not in classes]:
        raise ValueError(f"{lacking[0]} and {len(lacking) - 1} more have no .cls beside them: a class number is needed")
    return [Entry(name, offset, size, classes[key]) for key, (name, offset, size) in pictures.items()]


def is_address(place: str) -> bool:
    """Whether it is no path: https://…, s3://…, gs://…, hf://…, pipe:…"""
    return "://" in place or place.startswith("pipe:")


def fetched(url: str, folder: Path, limit: int) -> Path:
    """A shard from elsewhere as a file of `folder`: whole or not at all, by one process at a time, and the longest
    unused ones leave when there are more than `limit` bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / url.rpartition("/")[2]
    with (folder / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_file():
            copy(url, target)
            make_room(folder, limit, target)
    os.utime(target)
    return target


def copy(url: str, target: Path) -> None:
    part = target.with_name(f".{target.name}.part")
    try:
        with opened(url) as stream, part.open("wb") as file:
            while block := stream.read(1 << 20):
                file.write(block)
    except (OSError, ValueError, EOFError) as error:  # urllib's are OSError, a failed command's too
        part.unlink(missing_ok=True)
        raise ConnectionError(f"cannot fetch {url}: {' '.join(str(error).split())}") from error
    os.replace(part, target)


def opened(url: str) -> Any:
    """A stream of what lies at an address; webdataset knows those that are not https."""
    if url.startswith(("http://", "https://")):
        return urlopen(url, timeout=60)
    from webdataset import gopen

    return gopen(url)


def make_room(folder: Path, limit: int, keep: Path) -> None:
    """A file that others still read stays readable for them after it has left."""
    files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in folder.glob("*.tar"))
    total = sum(size for _, size, _ in files)
    for _, size, path in files:
        if total <= limit:
            return
        if path != keep:
            path.unlink(missing_ok=True)
            total -= size
