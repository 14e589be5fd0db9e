"""What every plugin keeps in every kind of backbone that takes it, and that the others refuse it by name.

Methods and kinds stand in plugin_parts.py, a line each. Which of them go together is found by attaching, and the page
about it is compared.
"""

import re
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from plugin_parts import METHODS, image, made, original, pyramid
from torch import nn

from patchloom.train.catalogue.compat import KINDS, PAGE
from patchloom.vision.plugins import PLUGINS, SeamError, attach, attached, hosts_of

SIZES = [(97, 131), (160, 288)]


# ------------------------------------------------------------------------------------------------- who goes with whom


def taken(method: str, kind: str) -> bool:
    try:
        attach(original(kind), METHODS[method].acting)()
    except SeamError:
        return False
    return True


PAIRS = {(method, kind): taken(method, kind) for method in METHODS for kind in KINDS}
WORKING, REFUSED = ([pair for pair, works in PAIRS.items() if works is wanted] for wanted in (True, False))
working = pytest.mark.parametrize(("method", "kind"), WORKING)


def covering() -> Iterator[tuple[str, str]]:
    """A method for each kind that takes one, in turn, and a kind for each method that was left."""
    uses: Counter[str] = Counter()
    for kind in KINDS:
        if able := [m for m, k in WORKING if k == kind]:
            method = min(able, key=lambda m: (uses[m], list(METHODS).index(m)))
            uses[method] += 1
            yield method, kind
    yield from ((m, next(k for n, k in WORKING if n == m)) for m in METHODS if not uses[m])


def seams_of(model: nn.Module) -> list[object]:
    """What stands in every seam of every block and mixer."""
    return [getattr(m, s) for m in model.modules() for s in getattr(m, "seams", ()) if hasattr(m, s)]


# ----------------------------------------------------------------------------------------------------------- the laws


def test_every_plugin_is_under_the_laws():
    assert set(METHODS) == set(PLUGINS)
    assert {m for m, _ in WORKING} == set(METHODS)


def test_the_page_says_the_same():
    page = PAGE.read_text().partition("\n## ")[0]
    header, _, *rows = [[c.strip() for c in line.split("|")[1:-1]] for line in page.splitlines() if line[:1] == "|"]
    said = {(m, row[0]): mark == "yes" for row in rows for m, mark in zip(header[2:], row[2:], strict=True)}
    assert {pair: (said[pair], works) for pair, works in PAIRS.items() if said[pair] != works} == {}


@working
@torch.inference_mode()
def test_the_neutral_setting_changes_nothing_and_the_other_does(method, kind):
    model, x = made(kind), image()
    plain = model(x)
    with attached(model, METHODS[method].neutral):
        torch.testing.assert_close(model(x), plain, rtol=2e-6, atol=2e-6 * float(plain.abs().max()))
    with attached(model.train(METHODS[method].in_training), METHODS[method].acting):
        assert not torch.allclose(model(x), plain, rtol=1e-5, atol=1e-6 * float(plain.abs().max()))


@working
@torch.inference_mode()
def test_detaching_restores_everything(method, kind):
    model, x = made(kind), image()
    names, modules, plain = list(model.state_dict()), [n for n, _ in model.named_modules()], model(x)
    variables = [set(vars(h.block)) for h in hosts_of(model)]
    detach = attach(model, METHODS[method].acting)
    model(x)
    detach()
    assert torch.equal(model(x), plain)
    assert list(model.state_dict()) == names
    assert [n for n, _ in model.named_modules()] == modules
    assert [set(vars(h.block)) for h in hosts_of(model)] == variables


@working
def test_two_training_steps_reach_every_parameter_of_its_own(method, kind):
    model = made(kind).train()
    before = set(model.parameters())
    attach(model, METHODS[method].acting)
    own = {n: p for n, p in model.named_parameters() if p not in before}
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        loss = METHODS[method].learn(model, image(batch=4))
        optimizer.step()
    assert torch.isfinite(loss)
    assert [n for n, p in own.items() if p.grad is None or not p.grad.any()] == []
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@working
def test_checkpointing_gives_the_same_gradients(method, kind):
    losses, grads = [], []
    for on in (False, True):
        model = made(kind).train()
        model.set_grad_checkpointing(on)
        torch.manual_seed(0)
        attach(model, METHODS[method].acting)
        losses.append(METHODS[method].learn(model, image()))
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*grads)


@working
@torch.inference_mode()
def test_an_image_alone_is_what_it_is_in_a_batch(method, kind):
    model, x = made(kind).double(), image(batch=3).double()  # in which rounding does not choose among like tokens
    with attached(model, METHODS[method].acting):
        torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-4, atol=1e-5)


@working
@pytest.mark.parametrize("size", SIZES, ids=str)
@torch.inference_mode()
def test_any_size_and_the_whole_map_comes_back(method, kind, size):
    model, x = pyramid(kind), image(size, batch=1)
    plain = model(x)
    with attached(model, METHODS[method].neutral):
        for m, p in zip(model(x), plain, strict=True):
            torch.testing.assert_close(m, p, rtol=1e-5, atol=2e-6 * float(p.abs().max()))
    with attached(model.train(METHODS[method].in_training), METHODS[method].acting):
        reduced = model(x)
    assert [m.shape for m in reduced] == [p.shape for p in plain]
    assert all(m.isfinite().all() for m in reduced)
    assert not all(torch.equal(m, p) for m, p in zip(reduced, plain, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kind"), list(covering()))
@torch.inference_mode()
def test_compiled_is_the_same(method, kind):
    model, x = made(kind), image()
    with attached(model, METHODS[method].acting):
        want = model(x)
        torch.compiler.reset()
        got = torch.compile(model, fullgraph=True)(x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("method", "kind"), REFUSED)
def test_others_refuse_by_name_and_are_left_as_they_were(method, kind):
    model = original(kind)
    names = [h.name for h in hosts_of(model)]
    for settings in (METHODS[method].acting, METHODS[method].neutral):
        with pytest.raises(SeamError) as error:
            attach(model, settings)
        block, _, why = str(error.value).partition(": ")
        assert block in names
        assert re.match(r"[A-Z]\w+ \S+", why)
    assert not any(seams_of(model))
