"""patchloom shards DATA OUT: pictures in class folders as a few large files, in WebDataset's layout; resumable."""

import argparse
import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..saved.judge import positive
from ..tables import write_whole

if TYPE_CHECKING:
    from ...data.folders import Folder
    from ...data.shard_files import ShardIndex

EXAMPLES = """examples:
  patchloom shards imagenet/ imagenet-shards/                      train/ and val/ of class folders
  patchloom shards --index wds/ --classes classes.txt              shards that are there: train-*.tar, val-*.tar
The files stay as they are, in an order of their own that mixes the classes. Stopped, it goes on where it was when it is
called again. To train on them: data.class_path patchloom.data.shards.ShardsData, data.root OUT."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument(
        "data", metavar="DATA", nargs="?", help="train/, val/, test/ of class folders, or class folders"
    )
    parser.add_argument("out", metavar="OUT", nargs="?", help="the folder to write; made where it is missing")
    parser.add_argument("--index", metavar="DIR", help="write the index of shards that others made, instead")
    parser.add_argument("--classes", metavar="FILE", help="with --index: a class a line, in the order of their numbers")
    parser.add_argument("--shard", type=positive, default=1024, metavar="N", help="pictures a file (1024)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from ...data.shard_files import INDEX, ShardIndex
    from ..cli import UsageError

    if args.index is not None:
        if args.data is not None:
            raise UsageError("--index DIR lists the shards of DIR: give no DATA and OUT beside it")
        out, index = Path(args.index), listed(Path(args.index), args.classes)
    elif args.classes is not None:
        raise UsageError(f"--classes {args.classes} goes with --index DIR; of DATA the folders name them")
    elif args.data is None or args.out is None:
        raise UsageError("DATA and OUT are needed, or --index DIR; see patchloom shards --help")
    else:
        out = Path(args.out)
        folders, names = sources(args.data)
        out.mkdir(parents=True, exist_ok=True)
        splits = {split: packed(split, folder, out, args.shard) for split, folder in folders.items()}
        index = ShardIndex(next(iter(folders.values())).classes, splits, names)
    write_whole(out / INDEX, index.text())
    counts = {split: sum(count for _, count in shards) for split, shards in index.splits.items()}
    files = sum(map(len, index.splits.values()))
    if args.json:
        print(json.dumps({"out": str(out), "shards": files, "classes": len(index.classes), "pictures": counts}))
    else:
        each = ", ".join(f"{count:,} for {split}" for split, count in counts.items())
        print(f"{out}: {files} shards, {len(index.classes)} classes, {each}")
    return 0


def sources(data: str) -> tuple[dict[str, "Folder"], list[str] | None]:
    """The class folders of each split; ImageNet's classes keep their numbers and have names."""
    from ...data.folders import Folder, class_folders, existing
    from ...data.splits import same_classes, split_folders
    from ...data.synsets import human_names, imagenet_synsets

    root = existing(data)
    there = split_folders(root) or {"train": root}
    synsets = imagenet_synsets()
    if set(class_folders(next(iter(there.values())))) <= set(synsets):
        return {split: Folder(place, synsets) for split, place in there.items()}, human_names(root, synsets)
    found = {split: Folder(place) for split, place in there.items()}
    for other in found.values():
        same_classes(next(iter(found.values())), other)
    return found, None


def packed(split: str, folder: "Folder", out: Path, size: int) -> list[tuple[str, int]]:
    """The shards of a split, written where they are not there yet: (file, pictures)."""
    from tqdm import tqdm

    rows = sorted(
        (hashlib.sha256(name.encode()).hexdigest()[:16], file, target)
        for name, (file, target) in zip(folder.names(), folder.samples, strict=True)
    )
    made = []
    with tqdm(total=len(rows), unit="img", desc=split, disable=None, file=sys.stderr) as bar:
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            path = out / f"{split}-{start // size:06d}.tar"
            if not holds(path, [key for key, _, _ in some]):
                pack(path, some)
            made.append((path.name, len(some)))
            bar.update(len(some))
    return made


def holds(path: Path, keys: list[str]) -> bool:
    """Whether a shard is there, with these pictures; a damaged one is not."""
    from ...data.shard_files import scan

    try:
        return path.is_file() and [entry.name.partition(".")[0] for entry in scan(path)] == keys
    except ValueError:
        return False


def pack(path: Path, rows: Iterable[tuple[str, str, int]]) -> None:
    """Writes a shard beside its place, then renames it: whole or not at all, and the same bytes from the same files."""
    part = path.with_name(f".{path.name}.part")
    try:
        with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, file, target in rows:
                add(tar, f"{key}{Path(file).suffix.lower()}", Path(file).read_bytes())
                add(tar, f"{key}.cls", str(target).encode())
        os.replace(part, path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}; what is done stays, call it again") from error
    finally:
        part.unlink(missing_ok=True)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def listed(folder: Path, classes: str | None) -> "ShardIndex":
    """The index of shards whose names say their split: train-*.tar, imagenet-val-*.tar; without one it is train."""
    from ...data.folders import existing
    from ...data.shard_files import Shard, ShardIndex
    from ...data.splits import SPLIT_NAMES

    files = sorted(existing(folder).glob("*.tar"))
    if not files:
        raise FileNotFoundError(f"no .tar files in {folder}")
    splits: dict[str, list[tuple[str, int]]] = {}
    most = 0
    for file in files:
        words = file.stem.lower().replace("_", "-").replace(".", "-").split("-")
        split = next((s for s, names in SPLIT_NAMES.items() if any(name in words for name in names)), "train")
        shard = Shard(file)
        if len(shard):
            splits.setdefault(split, []).append((file.name, len(shard)))
            most = max(most, *(shard.read(place)[2] for place in range(len(shard))))
    given = Path(classes).read_text().split("\n") if classes else [str(number) for number in range(most + 1)]
    named = [line.strip() for line in given if line.strip()]
    if len(named) <= most:
        raise ValueError(f"{classes} names {len(named)} classes, the shards have numbers up to {most}")
    return ShardIndex(named, splits)
