"""The models that the page offers: what lies in the runs folder, and what was named."""

import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..running import checkpoint
from ..saved.judge import load as load_judge
from .limits import Clock, Refused, choice

KINDS = ("classify", "detect", "segment", "generate", "chat")
FRESH = 2.0  # seconds for which the list of the folder is not made anew


@dataclass(frozen=True)
class Entry:
    """A model by the name that the page has for it; `spec` is what the other commands call it."""

    name: str
    spec: str
    kind: str


@dataclass
class Slot:
    """A model that is loaded, or about to be; whoever holds the lock uses it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    content: Any = None


class Shelf:
    """`runs`: the folder that `patchloom fit` writes into. `given`: names, checkpoints, run folders, or folders of
    vision-language models beside them. `kept`: how many models stay loaded."""

    def __init__(self, runs: str | Path = "runs", given: Sequence[str] = (), *, device: str = "auto", kept: int = 4):
        self.runs, self.device, self.kept = Path(runs), device, kept
        self.given = [Entry(called(spec), spec, kind_of_spec(spec)) for spec in given]
        self.slots: OrderedDict[tuple[str, float], Slot] = OrderedDict()
        self.guard = threading.Lock()
        self.kinds: dict[tuple[str, float], str | None] = {}  # of checkpoint files that have been looked into
        self.listed, self.at = list[Entry](), -FRESH

    def entries(self) -> list[Entry]:
        """What was named first, then the runs, the latest first."""
        with self.guard:
            if time.monotonic() - self.at >= FRESH:
                self.listed, self.at = [*self.given, *self.found()], time.monotonic()
            return list(self.listed)

    def found(self) -> Iterator[Entry]:
        folders = {path.parent for path in self.runs.rglob("*.ckpt") if path.name in ("best.ckpt", "last.ckpt")}
        for folder in sorted(folders, key=lambda f: f.stat().st_mtime, reverse=True):
            file = next(folder / name for name in ("best.ckpt", "last.ckpt") if (folder / name).is_file())
            stamp = (str(file), file.stat().st_mtime)
            if stamp not in self.kinds:
                self.kinds[stamp] = kind_of(file)
            if kind := self.kinds[stamp]:
                yield Entry(folder.relative_to(self.runs).as_posix(), str(folder), kind)

    def names(self, *kinds: str) -> list[str]:
        return [entry.name for entry in self.entries() if entry.kind in kinds]

    def entry(self, name: Any, *kinds: str) -> Entry:
        known = {e.name: e for e in reversed(self.entries()) if e.kind in kinds}
        if not known:
            raise Refused("there is no such model here yet: train a small one under Models, or start with --checkpoint")
        if name is None:
            raise Refused("choose a model first")
        return known[choice(name, "the model", list(known))]

    @contextmanager
    def borrowed(self, name: Any, clock: Clock, *kinds: str) -> Iterator[Any]:
        """What the entry's kind is loaded as, for this request alone; the time spent waiting counts."""
        entry = self.entry(name, *kinds)
        slot = self.slot(entry)
        if not slot.lock.acquire(timeout=clock.left):
            raise Refused(f"{entry.name} is busy with other visitors: try again in a while")
        try:
            if slot.content is None:
                slot.content = load(entry, self.device)
            clock.check()
            yield slot.content
        finally:
            slot.lock.release()

    def slot(self, entry: Entry) -> Slot:
        """Those used longest ago are forgotten; who uses one of them keeps it until the end of the request."""
        path = None if "=" in entry.spec else Path(entry.spec)
        newest = max((f.stat().st_mtime for f in path.glob("*.ckpt")), default=0.0) if path and path.is_dir() else 0.0
        with self.guard:
            slot = self.slots.setdefault((entry.spec, newest), Slot())
            self.slots.move_to_end((entry.spec, newest))
            while len(self.slots) > self.kept:
                self.slots.popitem(last=False)
            return slot


def load(entry: Entry, device: str) -> Any:
    if entry.kind == "generate":
        from ..saved.load_maker import load_maker

        return load_maker(entry.spec, device=device)
    if entry.kind == "chat":
        from ..saved.talker import load_talker

        return load_talker(entry.spec, device=device)
    judge = load_judge(entry.spec, device=device)
    judge.model.eval()
    return judge


def called(spec: str) -> str:
    """A name for the page: without the folders that a path goes through, but for the last two of a run."""
    if "=" in spec:
        return f"{spec.partition('=')[0]} ({Path(spec.partition('=')[2]).name})"
    path = Path(spec)
    if not path.exists():
        return spec
    if path.is_file() and path.stem in ("best", "last"):
        path = path.parent
    parts = path.resolve().parts
    return "/".join(parts[-2:]) if path.is_dir() and len(parts) > 2 else path.name


# ---- what a file holds


def kind_of_spec(spec: str) -> str:
    """The kind of what --checkpoint names. Raises ValueError where no tab takes it, FileNotFoundError where it is
    nothing."""
    from ...vision.generation.create import is_denoiser

    if Path(spec).is_dir() and (Path(spec) / "config.json").is_file():
        return "chat"  # as transformers saves LLaVA
    path = None if "=" in spec else checkpoint.find(spec)
    if path is None or path.is_dir():
        return "generate" if is_denoiser(spec.partition("=")[0]) else "classify"
    kind = kind_of(path)
    if kind is None:
        raise ValueError(f"{path} holds no model that the page has a tab for: {', '.join(KINDS)}")
    return kind


def kind_of(file: Path) -> str | None:
    """What a checkpoint's model does; None where the file says nothing of it, or something that no tab shows."""
    try:
        if file.suffix == ".safetensors":
            content = checkpoint.read(file)
        else:  # the tensors stay on the disk
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, *checkpoint.UNREADABLE) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"note: {file} is left out: {reason}", file=sys.stderr)
        return None
    head = content.get("patchloom") if isinstance(content, dict) else None
    if not isinstance(head, dict) or not isinstance(head.get("model"), dict):
        return None
    return "generate" if "process" in head else kind_of_network(head["model"])


def kind_of_network(description: dict[str, Any]) -> str | None:
    from ...vision.heads.mask_tasks import PanopticSegmenter, SemanticSegmenter
    from ...vision.heads.semantic import Segmenter
    from ...vision.model import Classifier
    from ...vision.parts import class_at

    if "class_path" not in description:
        return "classify"
    if description["class_path"].partition(".multimodal.")[1]:
        return "chat" if description["class_path"].endswith(".VisionLanguage") else None
    try:
        network = class_at(description["class_path"])
    except (ValueError, ImportError):  # somebody's own class, which nobody has imported
        return None
    if issubclass(network, Classifier):
        return "classify"
    if issubclass(network, Segmenter | SemanticSegmenter):
        return "segment"
    if issubclass(network, PanopticSegmenter):
        return None
    return "detect" if ".heads." in description["class_path"] else None
