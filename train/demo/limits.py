"""What a visitor may ask for, how it is refused, and for how long a request may run."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn


class Refused(ValueError):
    """Something that was asked for and cannot be had; the text is for the page."""


@dataclass(frozen=True)
class Limits:
    upload: int = 12 << 20  # bytes of a file
    pixels: int = 32_000_000  # of a picture; nothing larger is decoded
    side: int = 1600  # what is larger is made smaller before a model sees it
    seconds: float = 90.0  # of one request, waiting for its model included
    queue: int = 40  # requests that wait
    images: int = 16  # made at a time
    steps: int = 250
    text: int = 400  # characters of a question or caption
    turns: int = 8  # of a conversation
    words: int = 96  # of an answer


class Clock:
    """The time of one request. `check` raises Refused once it is over."""

    def __init__(self, seconds: float):
        self.seconds, self.end = seconds, time.monotonic() + seconds

    @property
    def left(self) -> float:
        return max(0.0, self.end - time.monotonic())

    def check(self) -> None:
        if not self.left:
            raise Refused(f"this took longer than {self.seconds:g} seconds and was stopped: ask for less")

    @contextmanager
    def watching(self, model: nn.Module, told: Callable[[], None] | None = None) -> Iterator[None]:
        """Looks at the time before every module of the model runs; `told` is called before each run of the whole."""
        hooks = [m.register_forward_pre_hook(lambda *_: self.check()) for m in model.modules()]
        if told is not None:
            hooks.append(model.register_forward_pre_hook(lambda *_: told()))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


PATH = re.compile(r"(?<![\w:/.])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\:'\",;]+[/\\])+(?=[^\s/\\])")  # /a/b/ of /a/b/c


def without_paths(text: str) -> str:
    """The text with each absolute path cut to its last name: where things lie here is nobody's business."""
    return PATH.sub("", text)


# ---- what comes from the page is anything at all


def number(value: Any, name: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise Refused(f"{name} is {shown(value)}: a number from {low:g} to {high:g} is wanted")
    return float(value)


def whole(value: Any, name: str, low: int, high: int) -> int:
    found = number(value, name, low, high)
    if found != int(found):
        raise Refused(f"{name} is {shown(value)}: a whole number from {low} to {high} is wanted")
    return int(found)


def words(value: Any, name: str, most: int) -> str:
    """Text with something in it, without control characters."""
    if not isinstance(value, str):
        raise Refused(f"{name} is {shown(value)}: text is wanted")
    text = "".join(c for c in value if c.isprintable() or c == "\n").strip()
    if not text:
        raise Refused(f"{name} is empty: write something first")
    if len(text) > most:
        raise Refused(f"{name} has {len(text)} characters: at most {most} are taken")
    return text


def choice(value: Any, name: str, known: Sequence[str]) -> str:
    if value not in known:
        raise Refused(f"{name} is {shown(value)}: choose one of the list")
    return str(value)


def choices(value: Any, name: str, known: Sequence[str]) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise Refused(f"{name} is {shown(value)}: a list is wanted")
    return [choice(each, name, known) for each in value]


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "…"
