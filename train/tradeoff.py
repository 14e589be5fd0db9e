"""Settings of token plugins on this machine: what each costs in time, and how far the model's answers move.

All settings are measured in the same alternating rounds as the plain model, and share its weights: each has modules of
its own around the same tensors.
"""

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..vision.plugins import PLUGINS, Plugin, SeamError, hosts_of, plugin, plugins_of
from ..vision.plugins.words import in_words, retoken
from ..vision.spelling import in_word, near
from .commands.bench import cost
from .measure import Case, Spread, alternate, best_layout, circumstances, step_of, warm


@dataclass(frozen=True)
class Shape:
    """What strengths depend on: tokens of the first block, and blocks of the model."""

    tokens: int
    blocks: int


Ladder = Callable[[Shape, int], list[dict[str, Any]]]


def even(low: float, high: float, n: int) -> list[float]:
    """n evenly spaced numbers from low to high, of two digits."""
    return [round(low + (high - low) * i / max(1, n - 1), 2) for i in range(n)]


def whole(high: float, n: int) -> list[int]:
    """At most n evenly spaced whole numbers up to high."""
    return sorted({max(1, round(high * (i + 1) / n)) for i in range(n)})


def keeping(low: float) -> Ladder:
    return lambda shape, n: [{"keep": k} for k in even(0.95, low, n)]


LADDERS: dict[str, Ladder] = {  # which options n settings of a method have, from weak to strong
    "tome": lambda shape, n: [{"r": r} for r in whole(shape.tokens / shape.blocks, n)],
    "evit": keeping(0.5),
    "zero_tprune": keeping(0.5),
    "clustering": lambda shape, n: [{"scale": s} for s in even(0.9, 0.4, n)],
    "scan_pruning": keeping(0.6),
    "window_merge": lambda shape, n: [{"share": s} for s in even(0.1, 0.5, n)],
    "dynamicvit": keeping(0.5),
    "ia_red": lambda shape, n: [{"threshold": t} for t in even(0.3, 0.7, n)],
}


@dataclass(frozen=True)
class Answers:
    """What the model says beside what it says without a plugin, over the images."""

    kl: float  # mean of sum_c p_c log(p_c / q_c), p without, q with the plugin
    change: float  # |logits - plain logits| / |plain logits|
    agreement: float  # images whose likeliest class stays, in percent
    acc1: float | None  # in percent, where labels are known

    @classmethod
    def of(cls, logits: Tensor, plain: Tensor, targets: Tensor | None) -> "Answers":
        p, q = plain.double().log_softmax(1), logits.double().log_softmax(1)
        kl = (p.exp() * (p - q)).sum(1).mean()
        hits = None if targets is None else 100 * float((logits.argmax(1) == targets).double().mean())
        change, same = (logits - plain).norm() / plain.norm(), (logits.argmax(1) == plain.argmax(1)).double().mean()
        return cls(float(kl), float(change), 100 * float(same), hits)


@dataclass(frozen=True)
class Point:
    """One setting."""

    method: str
    tokens: str  # how it is spelt
    left: int  # tokens behind the last block
    macs: int  # of one image
    seconds: Spread  # an image
    ratio: Spread  # of the plain model's time, round by round
    answers: Answers
    random: Answers | None  # of random pruning that leaves as many tokens behind each block; None: it cannot


@dataclass(frozen=True)
class Pictures:
    """Prepared images in batches (B 3 H W), their classes (N) where they are known, and the outputs that compete."""

    batches: Sequence[Tensor]
    targets: Tensor | None = None
    columns: Sequence[int] | None = None

    @torch.inference_mode()
    def logits(self, model: nn.Module, device: torch.device) -> Tensor:
        y = torch.cat([model(x.to(device)).float().cpu() for x in self.batches])
        return y if self.columns is None else y[:, list(self.columns)]


def twin(model: nn.Module, tokens: Any) -> nn.Module:
    """The same model around the same tensors, with the plugin `tokens` in place of those that it has. Raises ValueError
    where that has parameters which the model does not hold."""
    own = {id(t): t for t in (*model.parameters(), *model.buffers())}
    other = copy.deepcopy(model, own)
    if fresh := retoken(other, tokens):
        raise ValueError(f"{tokens}: the model holds no parameters for {fresh[0]}; name a checkpoint trained with it")
    return other


@torch.inference_mode()
def counts(model: nn.Module, image: Tensor) -> list[int]:
    """How many tokens each block leaves."""
    seen: list[int] = []
    hooks = [h.block.register_forward_hook(lambda _m, _i, t: seen.append(t.x.shape[1])) for h in hosts_of(model)]
    try:
        model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def settings(
    model: nn.Module, image: Tensor, methods: Sequence[str] | None, n: int
) -> tuple[list[tuple[str, nn.Module]], dict[str, str]]:
    """(spelling and model of each setting, why a method was left out). Of `methods` none is, what cannot be raises.
    None: all that the model takes, with parameters that it holds."""
    hosts = hosts_of(model)
    if not hosts:
        raise SeamError(f"{type(model).__name__} has no blocks with seams, so no token plugin can be put into it")
    shape = Shape(counts(twin(model, "none"), image)[0], len(hosts))
    found, left_out = [], {}
    for name in methods or [m for m in LADDERS if m in PLUGINS]:
        try:
            found += [(in_words(p), twin(model, p)) for p in variants(name, model, shape, n)]
        except ValueError as error:
            if methods:
                raise
            left_out[name] = str(error)
    if not found:
        raise SeamError("; ".join(f"{name}: {why}" for name, why in left_out.items()))
    return found, left_out


def check_method(name: str) -> None:
    if name not in PLUGINS:
        raise ValueError(f"--method {name} is not known; {near(name, list(PLUGINS))}")


def variants(name: str, model: nn.Module, shape: Shape, n: int) -> list[Plugin]:
    """n settings of a method; where the model has it attached, that plugin in n strengths, or as it is."""
    check_method(name)
    own = next((p for p in plugins_of(model) if in_words(p).partition(":")[0] == name), None)
    if name not in LADDERS:
        if own is None:
            raise ValueError(f"--method {name} has no strength to choose; those that have: {', '.join(LADDERS)}")
        return [own]
    options = LADDERS[name](shape, n)
    if own is not None and is_dataclass(own):
        return [replace(own, **o) for o in options]  # type: ignore[type-var]
    return [plugin(f"{name}:" + ",".join(f"{key}={value}" for key, value in o.items())) for o in options]


def equally(left: Sequence[int], plain: nn.Module, image: Tensor) -> nn.Module | None:
    """The plain model with random pruning that leaves as many tokens behind each block as `left` says; None where that
    cannot be, or where none are gone."""
    full, hosts = counts(plain, image), hosts_of(plain)
    if list(left) == full or len(full) != len(hosts):  # the latter where blocks run several times
        return None
    before = [left[i - 1] if h.index else full[i] for i, h in enumerate(hosts)]
    drops = tuple(b - n for b, n in zip(before, left, strict=True))
    if min(drops) < 0:
        return None
    try:
        pruned = twin(plain, f"random:r={in_word(drops)}")
    except SeamError:
        return None
    return pruned if counts(pruned, image) == list(left) else None


def measure(
    model: nn.Module, pictures: Pictures, methods: Sequence[str] | None, n: int, case: Case, *,
    seconds: float = 10.0, repeats: int | None = None,
) -> tuple[dict[str, Any], list[Point], dict[str, str]]:  # fmt: skip
    """(the plain model, a point for each setting, the methods left out and why). `model` is in evaluation mode."""
    device = torch.device(case.device)
    image = pictures.batches[0][:1].to(device)
    plain = twin(model, "none")
    found, left_out = settings(model, image, methods, n)
    before = pictures.logits(plain, device)

    def heard(other: nn.Module | None) -> Answers | None:
        return None if other is None else Answers.of(pictures.logits(other, device), before, pictures.targets)

    bar = tqdm(found, unit="setting", desc="answers", disable=None, file=sys.stderr)
    answers = [(heard(reduced), heard(equally(counts(reduced, image), plain, image))) for _, reduced in bar]
    first, layout = best_layout(plain, case)
    steps = [first, *(step_of(reduced, case, layout) for _, reduced in found)]
    for step in steps[1:]:
        warm(step, case.device)
    rounds = alternate(steps, case.device, seconds=seconds, repeats=repeats)
    times = [[t / case.batch for t in column] for column in zip(*rounds, strict=True)]
    points = [
        Point(
            tokens.partition(":")[0], tokens, counts(reduced, image)[-1], cost(reduced, case)["macs"], Spread.of(time),
            Spread.of([a / b for a, b in zip(time, times[0], strict=True)]), said, random,
        )
        for (tokens, reduced), (said, random), time in zip(found, answers, times[1:], strict=True)
        if said is not None
    ]  # fmt: skip
    return {
        "left": counts(plain, image)[-1], "macs": cost(plain, case)["macs"], "seconds": asdict(Spread.of(times[0])),
        "acc1": Answers.of(before, before, pictures.targets).acc1, "layout": layout, "rounds": len(rounds),
        "circumstances": circumstances(case),
    }, points, left_out  # fmt: skip
