"""Adapters under other conditions: any size, maps, half precision, compiled, beside token plugins, a fresh process.

The default run tries each method in one kind of backbone, in turn, the slow list in all of them.
"""

import os
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import adapter_parts
import pytest
import torch
from adapter_parts import (
    METHODS,
    PLAIN,
    adapted,
    close,
    in_turn,
    names_the_place,
    nudged,
    own,
    pairs,
    saved,
    seen,
    usual,
)
from plugin_parts import METHODS as PLUGIN_METHODS
from plugin_parts import image, made, pyramid
from torch import nn

from patchloom.vision.adapters import AdapterError
from patchloom.vision.adapters.side_network import SideNetwork
from patchloom.vision.plugins import SeamError, attach


def fitted(method: str, model: nn.Module) -> bool:
    """Puts the adapter on; False where it refuses, as it should, by name."""
    try:
        adapted(model, method)
    except AdapterError as error:
        names_the_place(error, model)
        return False
    return True


@pytest.mark.parametrize(("method", "kind"), pairs(in_turn(7)))
@pytest.mark.parametrize("size", [(97, 131)], ids=str)
def test_any_size_one_image_and_maps(method: str, kind: str, size: tuple[int, int]) -> None:
    model, x = pyramid(kind), image(size, batch=1)
    with torch.inference_mode():
        plain = model(x)
    if not fitted(method, model):
        return
    nudged(model)
    model.train(len(own(model)) > 0)
    maps = model(x)
    grids = [tuple(p.shape[2:]) for p in plain]
    if isinstance(model.backbone, SideNetwork):  # which has maps of its own
        grids = [
            g for g, s in zip(model.backbone.grids(size), model.backbone.strides, strict=True) if s in model.strides
        ]
    assert [tuple(m.shape[2:]) for m in maps] == grids
    assert [m.shape[1] for m in maps] == model.channels
    assert all(m.isfinite().all() for m in maps)


@pytest.mark.parametrize(("method", "kind"), pairs(in_turn(11)))
def test_in_bfloat16(method: str, kind: str) -> None:
    """Close to float32 as weights, and a training step under autocast has finite gradients."""
    model = made(kind)
    if not fitted(method, model):
        return
    nudged(model)
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        METHODS[method].learn(model, image(batch=4))
    assert [n for n, p in own(model).items() if p.grad is not None and not p.grad.isfinite().all()] == []
    assert all(p.dtype == torch.float32 for p in own(model).values())
    half = made(kind).bfloat16()
    adapted(half, method)
    y = seen(half, image().bfloat16())
    assert y.dtype == torch.bfloat16
    assert y.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kind"), sorted(in_turn() | usual()))
def test_compiled_is_the_same(method: str, kind: str) -> None:
    model = made(kind)
    if not fitted(method, model):
        return
    nudged(model)
    want = seen(model, image())
    torch.compiler.reset()
    with torch.inference_mode():
        close(torch.compile(model, fullgraph=METHODS[method].one_graph, backend="aot_eager")(image()), want, 1e-4)


BESIDE = [
    pytest.param(m, p, marks=() if p == "tome" or (i + j) % len(PLUGIN_METHODS) == 0 else pytest.mark.slow)
    for i, m in enumerate(METHODS)
    for j, p in enumerate(PLUGIN_METHODS)
]


@pytest.mark.parametrize(("method", "plugin"), BESIDE)
def test_beside_a_token_plugin_or_refused(method: str, plugin: str) -> None:
    """Either first. The plugin's neutral setting changes nothing beside the adapter, both learn, or there is a refusal
    by name that leaves the model as it was."""
    model, tokens, other = made(PLAIN), PLUGIN_METHODS[plugin], made(PLAIN)
    if not fitted(method, model):
        return
    try:
        attach(other, tokens.acting)
    except SeamError:
        return  # tests/vision/plugins looks at that
    nudged(model)
    y, mine = seen(model, image()), set(own(model))
    for setting in (tokens.neutral, tokens.acting):
        try:
            detach = attach(model, setting)
        except SeamError as error:
            names_a_place(error)
            assert torch.equal(seen(model, image()), y)
            continue
        if setting == tokens.neutral and not tokens.in_training:
            close(seen(model, image()), y, 1e-5)
        copy = deepcopy(model).train()  # for batch norms of its own, which see the images
        METHODS[method].learn(copy, image(batch=4))
        assert [n for n in mine if (g := own(copy)[n].grad) is None or not g.isfinite().all()] == []
        detach()
        assert torch.equal(seen(model, image()), y)
    z = seen(other, image())
    try:
        remove = adapted(other, method)
    except AdapterError as error:
        names_a_place(error)
    else:
        assert torch.isfinite(seen(other, image())).all()
        remove()
    assert torch.equal(seen(other, image()), z)


def names_a_place(error: SeamError | AdapterError) -> None:
    named = r"[\w.]+: [A-Z]\w+ \S|seam \S+( of [\w.]+)? is taken|.+, of which [A-Z]\w+\(.* may leave fewer tokens"
    assert re.match(named, str(error)), error


def test_loaded_in_a_fresh_process(tmp_path: Path) -> None:
    for method in METHODS:
        saved(tmp_path, method, PLAIN)
    script = Path(adapter_parts.__file__)
    environment = {**os.environ, "PYTHONPATH": str(script.parent)}
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
