"""The tab that lets two models look at one picture: what they say, how long it takes, how much memory."""

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..evaluation.dense_input import FitPicture
from ..saved.judge import Judge
from .classify import classify, logits_of, prepared
from .find import find
from .limits import Clock, Limits
from .shelf import Shelf
from .uploads import Upload

KINDS = ("classify", "detect", "segment")
SECONDS = 2.0


@dataclass(frozen=True)
class Side:
    """What one of the two has to say."""

    drawn: Image.Image
    top: dict[str, float]
    rows: list[tuple[str, str]]  # what was measured


def compare(shelf: Shelf, limits: Limits, upload: Upload, first: Any, second: Any) -> tuple[Side, Side]:
    clock = Clock(limits.seconds)
    return look(shelf, limits, upload, first, clock), look(shelf, limits, upload, second, clock)


def look(shelf: Shelf, limits: Limits, upload: Upload, model: Any, clock: Clock) -> Side:
    entry = shelf.entry(model, *KINDS)
    if entry.kind == "classify":
        answer = classify(shelf, limits, upload, model, "gradient", clock=clock)
        drawn, top, said = answer.seen, answer.top, next(iter(answer.top))
    else:
        found = find(shelf, limits, upload, model, clock=clock)
        drawn, said = found.drawn, found.text
        top = {} if entry.kind == "detect" else {row[0]: row[1] for row in found.rows[:5]}
        for row in found.rows if entry.kind == "detect" else ():
            top.setdefault(row[0], row[1])
    with shelf.borrowed(model, clock, entry.kind) as judge:
        step, size = forward(judge, entry.kind, upload)
        with torch.inference_mode(), clock.watching(judge.model):
            most = peak(step, judge.device)
            seconds, rounds = speed(step, judge.device)
        weights = sum(p.numel() * p.element_size() for p in [*judge.model.parameters(), *judge.model.buffers()])
        count = sum(p.numel() for p in judge.model.parameters())
    rows = [
        ("answer", said),
        ("time", f"{1000 * seconds:.1f} ms a picture (median of {rounds})"),
        ("memory", f"{weights / 2**20:.1f} MiB of weights, up to {most / 2**20:.1f} MiB more for one picture"),
        ("parameters", f"{count / 1e6:.2f} million"),
        ("input", " x ".join(map(str, size))),
    ]
    return Side(drawn, dict(list(top.items())[:5]), rows)


def forward(judge: Judge, kind: str, upload: Upload) -> tuple[Callable[[], Any], tuple[int, ...]]:
    """(one forward pass on the picture, which is prepared once; (H, W) of what goes in)."""
    if kind == "classify":
        x = prepared(judge, upload)
        return lambda: logits_of(judge, x), tuple(x.shape[2:])
    image = FitPicture.of(judge.preprocessing)(upload.picture).image.to(judge.device)
    network: nn.Module = judge.model
    given = [image] if kind == "detect" else image[None]
    return lambda: network(given), tuple(image.shape[1:])


def speed(step: Callable[[], Any], device: torch.device) -> tuple[float, int]:
    """(median seconds, of how many), after the pass that `peak` took."""
    times: list[float] = []
    end = time.monotonic() + SECONDS
    while len(times) < 3 or (time.monotonic() < end and len(times) < 30):
        begun = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return median(times), len(times)


def peak(step: Callable[[], Any], device: torch.device) -> int:
    """Bytes of tensors that are alive at a time during one pass, at most, beyond those before it; on a GPU as torch's
    allocator counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return int(torch.cuda.max_memory_allocated(device) - before)
    with Living() as living:
        step()
    return living.most


class Living(TorchDispatchMode):
    """Counts the bytes of tensors' memory that comes to life while it is on; `most` at a time. What an operation needs
    inside itself, and gives back, it does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                self.see(leaf, before)
        return out

    def see(self, tensor: Tensor, before: set[int]) -> None:
        storage = tensor.untyped_storage()
        at, size = storage.data_ptr(), storage.nbytes()
        if not size or at in before or at in self.known:
            return
        self.now += size
        self.most = max(self.most, self.now)
        self.known[at] = weakref.finalize(storage, self.gone, at, size)

    def gone(self, at: int, size: int) -> None:
        if self.known.pop(at, None) is not None:
            self.now -= size
