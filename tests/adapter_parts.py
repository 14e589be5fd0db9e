"""Every adapter with settings for tiny networks, and what the laws do with it.

A method is a line of METHODS: its spelling, and what is special about it. `python adapter_parts.py FOLDER` is the fresh
process that loads what `saved` wrote there.
"""

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from plugin_parts import by_energy, image, made
from torch import Tensor, nn

from patchloom.train.catalogue.compat import KINDS
from patchloom.vision.adapters import AdapterError, adapt, load_own_state, own_state
from patchloom.vision.adapters import adapter as spelt
from patchloom.vision.adapters.tasks import tasks_of, working_on


@dataclass(frozen=True)
class Method:
    """What is special about an adapter: whether a fresh one leaves the output as it was; how gradients are made;
    whether it compiles to one graph."""

    neutral: bool = True
    learn: Callable[[nn.Module, Tensor], Tensor] = by_energy
    one_graph: bool = True


def by_tasks(model: nn.Module, x: Tensor) -> Tensor:
    """Each task in its turn."""
    losses = []
    for task in tasks_of(model):
        with working_on(model, task):
            losses.append(by_energy(model, x))
    return torch.stack(losses).sum()


METHODS = {
    "probe": Method(),
    "lora:r=2": Method(),
    "lora:r=2,targets=all": Method(),
    "rslora:r=2": Method(),
    "dora:r=2": Method(one_graph=False),  # peft asks a parameter for its class's module, which breaks it
    "pissa:r=2": Method(),
    "olora:r=2": Method(),
    "corda:r=2": Method(),
    "eva:r=2": Method(),
    "adalora:r=2,start=3": Method(),
    "vera:r=4": Method(),
    "ia3": Method(),
    "oft:block=4": Method(),
    "boft:block=4": Method(),
    "loha:r=2": Method(),
    "lokr:r=2": Method(),
    "hra:r=2": Method(),
    "ln_tuning": Method(),
    "fourierft:n=50": Method(),
    "delora:r=2": Method(),
    "road:group=4": Method(),
    "miss:r=4": Method(),
    "vpt:n=2": Method(neutral=False),
    "vpt:n=2,deep=false": Method(neutral=False),
    "vpt:n=2,project=4": Method(neutral=False),
    "prefix:n=2": Method(neutral=False),
    "ntk": Method(),
    "houlsby": Method(),
    "pfeiffer:norms=true": Method(),
    "parallel:reduction=2": Method(),
    "adaptformer:width=4": Method(),
    "conformer:reduction=4": Method(),
    "convpass:width=4": Method(),
    "soft_moa": Method(),
    "dense_moa": Method(),
    "mole:experts=2,r=4,dropout=0.0,dense=true": Method(),  # of the sparse one what no token takes does not learn
    "compacter:reduction=4": Method(),
    "low_rank:reduction=4": Method(),
    "hyperformer:tasks=a+b": Method(learn=by_tasks),
    "polyhistor:tasks=a+b": Method(learn=by_tasks),
    "polyhistor_lite:tasks=a+b": Method(learn=by_tasks),
    "vl_adapter:tasks=a+b": Method(learn=by_tasks),
    "vl_lora:tasks=a+b": Method(learn=by_tasks),
    "hst:depth=2,dims=8+8+16+16,heads=1+2+2+4": Method(neutral=False),
    "hst:meta=0,fixed=true,depth=1,dims=8+8+16+16,heads=1+2+2+4": Method(neutral=False),
    "diffscaler:r=8": Method(),
    "ssf": Method(),
    "bias": Method(),
    "norm": Method(),
    "s2ft": Method(),
}
PLAIN = next(iter(KINDS))  # the kind that takes all of them
FIRST = {m.partition(":")[0]: m for m in reversed(METHODS)}  # name -> its first setting here, which the page is about


def adapted(model: nn.Module, method: str, name: str = "default", seed: int = 0) -> Callable[[], None]:
    """`adapt`, with the same draws each time."""
    torch.manual_seed(seed)
    return adapt(model, spelt(method), name)


def own(model: nn.Module) -> dict[str, nn.Parameter]:
    """What learns."""
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def nudged(model: nn.Module, seed: int = 0) -> nn.Module:
    """With other own parameters, so that nothing is hidden by a zero."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in own(model).values():
            p.add_(torch.randn(p.shape, generator=draw).to(p) * 0.05)
    return model


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance * float(want.abs().max()))


@lru_cache
def plain(kind: str) -> Tensor:
    return seen(made(kind), image())


@torch.inference_mode()
def seen(model: nn.Module, x: Tensor) -> Tensor:
    """The logits in evaluation mode, which the model is left in."""
    return model.eval()(x)


def saved(folder: Path, method: str, kind: str) -> None:
    """Writes the method's own tensors in a network of this kind, and what that makes of an image."""
    model = made(kind)
    adapted(model, method)
    nudged(model)
    place = folder / f"{len(list(folder.glob('*.pt')))}.pt"
    torch.save({"method": method, "kind": kind, "own": own_state(model), "output": seen(model, image())}, place)


def loaded(folder: Path) -> Iterator[str]:
    """Loads all of them; gives those that come out as something else."""
    for place in sorted(folder.glob("*.pt")):
        content = torch.load(place, weights_only=True)
        model = made(content["kind"])
        adapted(model, content["method"], seed=1)
        load_own_state(model, content["own"])
        if not torch.equal(seen(model, image()), content["output"]):
            yield f"{content['method']} in {content['kind']}"


def in_turn(step: int = 5) -> set[tuple[str, str]]:
    """A kind for each method, `step` behind that of the method before it."""
    kinds = list(KINDS)
    return {(m, kinds[step * i % len(kinds)]) for i, m in enumerate(METHODS)}


def usual() -> set[tuple[str, str]]:
    """LoRA in all kinds."""
    return {(FIRST["lora"], kind) for kind in KINDS}


def pairs(default: set[tuple[str, str]]) -> list[Any]:
    """All methods in all kinds, as parameters of a test, the others than these marked slow."""
    return [
        pytest.param(m, k, marks=() if (m, k) in default else pytest.mark.slow, id=f"{m}-{KINDS[k]}")
        for m in METHODS
        for k in KINDS
    ]


def names_the_place(error: AdapterError, model: nn.Module) -> None:
    """`path: Type …`, or what the whole model lacks."""
    found = re.match(r"([\w.]+):? (\w+) \S", str(error))
    assert found, error
    if found[1] == type(model).__name__:
        return
    assert found[1] in dict(model.named_modules()), error
    assert found[2] in {type(m).__name__ for m in model.get_submodule(found[1]).modules()}, error


if __name__ == "__main__":
    wrong = list(loaded(Path(sys.argv[1])))
    print("\n".join(wrong))
    sys.exit(bool(wrong))
