"""How a number of generated images came about: stored beside it, and equal in all numbers that stand side by side."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

TOLD = ("sampler", "steps", "guidance", "decoder")  # how images were generated: what every maker of them knows
MADE = (*TOLD, "eta", "guidance_channels", "guidance_power", "guidance_interval", "precision")


@dataclass(frozen=True)
class Protocol:
    """What two numbers must share to be compared. None is what nobody stated."""

    extractor: str  # its name and the first digits of its weights' digest
    resize: str  # how a picture becomes the extractor's input
    size: str  # of the pictures before that, "32x32", and how they came to it
    real: str  # the digest of the set (its files' names and sizes), or of the file of statistics
    real_count: int | None
    count: int
    sampler: str | None = None
    steps: str | None = None
    guidance: float | None = None
    decoder: str | None = None  # the VAE that made pictures of latents, "none" for pixels
    eta: float | None = None
    guidance_channels: int | None = None
    guidance_power: float | None = None
    guidance_interval: str | None = None
    precision: str | None = None
    inception_splits: int | None = None
    neighbours: int | None = None

    def unstated(self) -> list[str]:
        return [name for name in TOLD if getattr(self, name) is None]

    def differences(self, other: "Protocol") -> list[str]:
        """'steps 50, not 250', one for each that differs."""
        mine, theirs = asdict(self), asdict(other)
        return [f"{name} {said(theirs[name])}, not {said(mine[name])}" for name in mine if mine[name] != theirs[name]]


def said(value: Any) -> str:
    return "not stated" if value is None else str(value)


@dataclass(frozen=True)
class Numbers:
    """A result of `patchloom eval fid`."""

    what: str  # that was judged: a folder, or the run that generated
    protocol: Protocol
    frechet: float
    inception: tuple[float, float] | None = None
    precision: float | None = None
    recall: float | None = None
    seed: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """FID is the distance on the reference's features only."""
        return "fid" if self.protocol.extractor.startswith("inception.") else "frechet_distance"

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"what": self.what, self.label: self.frechet}
        if self.inception is not None:
            found["inception_score"], found["inception_score_deviation"] = self.inception
        if self.precision is not None:
            found["precision"], found["recall"] = self.precision, self.recall
        return found | {"protocol": asdict(self.protocol), "seed": self.seed, "notes": list(self.notes)}


def read_numbers(path: str | os.PathLike[str]) -> Numbers:
    """The result in a file that `--out` wrote; ValueError for any other."""
    path = Path(path)
    try:
        content = json.loads(path.read_text())
        score = content.get("inception_score")
        return Numbers(
            content["what"],
            Protocol(**content["protocol"]),
            float(content["fid"] if "fid" in content else content["frechet_distance"]),
            None if score is None else (score, content["inception_score_deviation"]),
            content.get("precision"),
            content.get("recall"),
            content["seed"],
        )
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: is no result that patchloom eval fid --out wrote ({error})") from error


def expect_same(numbers: Sequence[Numbers]) -> None:
    """Raises, with what differs, where two numbers do not share a protocol."""
    for other in numbers[1:]:
        if faults := numbers[0].protocol.differences(other.protocol):
            raise ValueError(
                f"the numbers of {numbers[0].what} and {other.what} cannot be compared: the latter has "
                f"{'; '.join(faults)}"
            )


def read_statement(folder: Path) -> dict[str, Any]:
    """How the images of a folder were generated, where `patchloom generate` left it beside them (protocol.json)."""
    path = folder / "protocol.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is no JSON ({error}); remove it, or generate anew") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not an object with sampler, steps, …")
    return content


def stated(written: Mapping[str, Any], given: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The fields MADE and the seed of what was written, completed by what the line says; a contradiction raises."""
    found = {}
    for name in (*MADE, "seed"):
        here, there = one_form(name, given.get(name)), one_form(name, written.get(name))
        if None not in (here, there) and here != there:
            raise ValueError(f"--{name} {here}, but {origin} says that its images were made with {there}")
        found[name] = there if here is None else here
    return found


def one_form(name: str, value: Any) -> Any:
    """Numbers and words that mean the same in one form: steps "250" and 250, guidance 4 and 4.0."""
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        return " to ".join(f"{float(v):g}" for v in value)
    return str(value) if name == "steps" else float(value) if name in ("guidance", "eta", "guidance_power") else value


assert {f.name for f in fields(Protocol)} >= set(MADE)
