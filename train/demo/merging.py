"""The token view: which patches each block keeps, merges or drops, and what that saves."""

import io
import time
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ...vision.adapters import host
from ...vision.plugins import attached, plugins_of
from ...vision.plugins.words import from_words, in_words, own_state
from ..patch_groups import picture, watch
from .classify import logits_of, prepared
from .limits import Clock, Limits, Refused, words
from .shelf import Shelf
from .uploads import Upload

SETTINGS = ("tome:r=8", "tome:r=4", "evit:keep=0.7", "zero_tprune", "random:keep=0.5")  # others can be written
SECONDS = 2.0  # for timing, of both together


@dataclass(frozen=True)
class View:
    drawn: Image.Image
    rows: list[list[Any]]  # block, tokens, patches, merged, dropped
    text: str


def view(shelf: Shelf, limits: Limits, upload: Upload, model: Any, tokens: Any) -> View:
    """`tokens`: a plugin's words, e.g. tome:r=8; it is taken out again."""
    plugin = from_words(words(tokens, "the setting", 200))
    clock = Clock(limits.seconds)
    with shelf.borrowed(model, clock, "classify") as judge:
        x = prepared(judge, upload)
        network = host(judge.model)
        if there := plugins_of(judge.model):
            raise Refused(f"this model was trained with {in_words(there[0])} in it: choose one without")
        with clock.watching(judge.model), torch.inference_mode():
            plain = logits_of(judge, x).softmax(-1)[0]
        with attached(network, plugin), clock.watching(judge.model):
            if own_state(network):
                raise Refused(f"{in_words(plugin)} has parameters of its own, and nobody trained them for this model")
            layers = watch(judge.model, x)
            with torch.inference_mode():
                reduced = logits_of(judge, x).softmax(-1)[0]
        if not layers:
            raise Refused("no block of this model leaves patches on a grid that could be drawn")
        before, after = alternating(judge.model, network, plugin, x, clock)
        data = picture(x[0].cpu(), judge.preprocessing, layers, in_words(plugin))
        names = [judge.classes[int(p.argmax())] for p in (plain, reduced)]
    summaries = [layer.summary() for layer in layers]
    rows = [[s[k] for k in ("block", "tokens", "patches", "merged", "dropped")] for s in summaries]
    text = (
        f"without: {names[0]} {float(plain.max()):.1%} in {1000 * before:.1f} ms; "
        f"with: {names[1]} {float(reduced.max()):.1%} in {1000 * after:.1f} ms, {before / after:.2f} times as fast; "
        f"{rows[-1][1]} tokens at the end"
    )
    return View(Image.open(io.BytesIO(data)).convert("RGB"), rows, "; ".join((text, *upload.notes)))


def alternating(model: nn.Module, network: nn.Module, plugin: Any, x: Tensor, clock: Clock) -> tuple[float, float]:
    """Median seconds of a forward pass without and with the plugin, in turn, after one of each to warm up."""
    times: tuple[list[float], list[float]] = ([], [])
    end = time.monotonic() + SECONDS
    while len(times[0]) < 4 or (time.monotonic() < end and len(times[0]) < 40):
        for kind in (0, 1):
            clock.check()
            with ExitStack() as stack, torch.inference_mode():
                if kind:
                    stack.enter_context(attached(network, plugin))
                times[kind].append(timed(model, x))
    return median(times[0][1:]), median(times[1][1:])


def timed(model: nn.Module, x: Tensor) -> float:
    begun = time.perf_counter()
    model(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - begun
