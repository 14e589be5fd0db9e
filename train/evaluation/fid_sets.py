"""The real and the generated pictures that `patchloom eval fid` is given, and how the latter were made."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cli import UsageError
from .fid_extract import Extractor
from .fid_images import (
    Features,
    FolderImages,
    MadeImages,
    Pictures,
    array_images,
    extract,
    file_digest,
    one_size,
    open_archive,
    read_statistics,
)
from .fid_protocol import read_statement, stated

COUNT = 50_000  # that a run generates, as FID-50K has it


class Real:
    """The real pictures: to be looked at, or statistics of them (and pictures beside, as ADM's files hold them)."""

    def __init__(self, name: str, digest: str, pictures: Pictures | None = None):
        self.name, self.digest, self.pictures = name, digest, pictures
        self.found: Features | None = None
        self.about: dict[str, Any] = {}
        self.notes: list[str] = []

    @classmethod
    def of(cls, args: argparse.Namespace, extractor: Extractor) -> "Real":
        path = Path(args.real)
        if path.suffix != ".npz":
            folder = FolderImages(path)
            return cls(args.real, folder.digest, folder)
        content = open_archive(path)
        if not {"mu", "sigma"} <= content.keys():
            if "arr_0" not in content:
                raise ValueError(
                    f"{path}: has neither mu and sigma nor arr_0; it has {', '.join(content) or 'nothing'}"
                )
            images = array_images(path, content["arr_0"])
            return cls(args.real, images.digest, images)
        found, about = read_statistics(path, content)
        real = cls(args.real, about.get("real", file_digest(path)))
        real.found, real.about = found, about
        real.check(extractor)
        if found.features is None and "arr_0" in content:
            real.pictures = array_images(path, content["arr_0"])
        return real

    def check(self, extractor: Extractor) -> None:
        """Raises where the statistics are not of this extractor."""
        assert self.found is not None
        if self.about:
            for key, mine in (("extractor", extractor.name), ("resize", extractor.resize)):
                if self.about.get(key) != mine:
                    raise ValueError(f"{self.name} holds statistics of {key} {self.about.get(key)!r}, not of {mine!r}")
        elif not extractor.whole:
            raise ValueError(
                f"{self.name} does not say whose features its statistics are of: such files are of the reference's "
                f"(--features inception), not of {extractor.name}"
            )
        elif self.found.moments.width != 2048:
            raise ValueError(f"{self.name} holds {self.found.moments.width} numbers a picture; the reference has 2048")
        else:
            self.notes.append(f"{self.name} does not say how its pictures were prepared; taken as the reference's")

    def size_words(self, made: Pictures | None, size: tuple[int, int] | None, extractor: Extractor) -> str:
        sets = [s for s in (None if self.found else self.pictures, made) if s is not None]
        words = one_size(sets, size, extractor) if sets else self.about.get("size", "")
        if self.about and self.about["size"] != words:
            raise ValueError(
                f"{self.name} holds statistics of pictures at {self.about['size']}, the others are {words}"
            )
        return words

    def can(self, wanted: Sequence[str]) -> list[str]:
        """Of the metrics those that this set allows: precision and recall want features."""
        if "pr" not in wanted or self.pictures is not None or (self.found and self.found.features is not None):
            return list(wanted)
        self.notes.append(f"{self.name} holds no features: no precision and recall")
        return [name for name in wanted if name != "pr"]

    def extract(self, extractor: Extractor, args: argparse.Namespace, wanted: Sequence[str]) -> None:
        """Fills `found`: moments, and features where pictures are at hand."""
        if self.pictures is None or (self.found is not None and "pr" not in wanted):
            return
        new = extract(
            extractor, self.pictures, args.size, batch=args.batch, workers=args.workers, on_error=args.on_error
        )
        self.found = new if self.found is None else Features(self.found.moments, new.features)

    def count(self) -> int | None:
        if self.found is not None:
            return self.found.moments.count or None
        return None if self.pictures is None else len(self.pictures)


@dataclass(frozen=True)
class Generated:
    """The generated pictures, and how they were made as far as that is known."""

    name: str
    pictures: Pictures
    how: dict[str, Any]

    def __len__(self) -> int:
        return len(self.pictures)

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Generated":
        path = Path(args.generated)
        given = {name: getattr(args, name) for name in ("sampler", "steps", "guidance", "seed", "decoder")}
        for name in ("adapter", "captions") if not is_run(path) else ():
            if there := getattr(args, name):
                raise UsageError(f"--{name} {there}: {path} holds pictures, and nothing is generated")
        if path.suffix == ".npz":
            content = open_archive(path)
            if "arr_0" not in content:
                raise ValueError(f"{path}: has no arr_0, the pictures; it has {', '.join(content) or 'nothing'}")
            return cls(args.generated, array_images(path, content["arr_0"], args.count), stated({}, given, str(path)))
        if not is_run(path):
            written = read_statement(path)
            return cls(args.generated, FolderImages(path, args.count), stated(written, given, f"{path}/protocol.json"))
        pictures, how = made_by(args)
        return cls(args.generated, pictures, how)


def is_run(path: Path) -> bool:
    """Whether it makes pictures, rather than holds them."""
    return path.suffix != ".npz" and (
        not path.is_dir() or any((path / name).is_file() for name in ("best.ckpt", "last.ckpt"))
    )


def made_by(args: argparse.Namespace) -> tuple[MadeImages, dict[str, Any]]:
    """What the run of --generated makes: labels evenly, or the captions of a file in turn."""
    from ..saved.load_maker import load_maker
    from ..saved.maker import MakeSettings

    maker = load_maker(args.generated, device=args.device, vae=args.decoder, adapter=args.adapter)
    count = args.count or COUNT
    given = {name: getattr(args, name) for name in ("sampler", "steps", "guidance", "seed")}
    if given["steps"] and given["steps"].isdecimal():
        given["steps"] = int(given["steps"])
    settings = MakeSettings(**{name: value for name, value in given.items() if value is not None})
    conditions: Any = count
    if maker.model.text is not None:
        conditions = in_turn(captions_of(args), count)
    elif args.captions:
        raise UsageError(f"--captions {args.captions}: {args.generated} is no text model")
    elif maker.model.num_classes is not None:
        conditions = in_turn(list(range(maker.model.num_classes)), count)
    maker.check(conditions, settings)  # now, not at the first batch
    images = maker.images(conditions, settings, batch=args.batch)
    how = stated(maker.protocol(settings), {}, args.generated)
    return MadeImages(args.generated, count, maker.size, images), how


def captions_of(args: argparse.Namespace) -> list[str]:
    if not args.captions:
        raise UsageError(f"{args.generated} is a text model: name its captions, one a line (--captions FILE)")
    lines = [line.strip() for line in Path(args.captions).read_text(encoding="utf-8").splitlines()]
    if not (found := [line for line in lines if line]):
        raise ValueError(f"--captions {args.captions}: the file holds no line of text")
    return found


def in_turn(items: list[Any], count: int) -> list[Any]:
    return [items[i % len(items)] for i in range(count)]
