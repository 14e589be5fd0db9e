"""What every adapter keeps in every kind of backbone that takes it, and that the others refuse it by name.

Methods stand in adapter_parts.py and kinds in patchloom.train.catalogue.compat, a line each. The default run tries each
method in one kind, in turn, the slow list everything; docs/compatibility.md is compared as they go.
"""

import re
from copy import deepcopy
from functools import lru_cache
from itertools import product

import pytest
import torch
from adapter_parts import (
    FIRST,
    METHODS,
    Method,
    adapted,
    close,
    in_turn,
    names_the_place,
    nudged,
    own,
    pairs,
    plain,
    seen,
)
from plugin_parts import image, made, original
from torch import nn
from vision_tiny import without_effect

from patchloom.train.catalogue.compat import KINDS, PAGE
from patchloom.vision.adapters import (
    ADAPTERS,
    AdapterError,
    adapter,
    book,
    in_words,
    load_own_state,
    merge,
    own_state,
    switch,
)


def test_every_adapter_is_under_the_laws() -> None:
    assert {m.partition(":")[0] for m in METHODS} == set(ADAPTERS)
    assert [m for m in METHODS if adapter(in_words(adapter(m))) != adapter(m)] == []


@pytest.mark.parametrize(("method", "kind"), pairs(in_turn()))
def test_the_laws(method: str, kind: str) -> None:
    """One after another on one model: refusal, or start, learning, merging, saving, switching, and taking off."""
    model, before = made(kind), Before(original(kind))
    try:
        remove = adapted(model, method)
    except AdapterError as error:
        before.compare(model)
        names_the_place(error, model)
        compare_page(method, kind, False)
        return
    compare_page(method, kind, True)
    starts_as_it_should(model, METHODS[method], kind)
    learns(model, METHODS[method], kind, before)
    acts(model, kind)
    merges(model, before)
    loads(model, method, kind)
    is_switched(model, method, kind)
    is_copied(model)
    remove()
    before.compare(model)
    assert torch.equal(seen(model, image()), plain(kind))


class Before:
    """All that must be as it was when the adapter is off again."""

    def __init__(self, model: nn.Module):
        self.state = {n: v.clone() for n, v in model.state_dict().items()}
        self.modules = [n for n, _ in model.named_modules()]
        self.learning = {n: p.requires_grad for n, p in model.named_parameters()}
        self.variables = {n: set(vars(m)) for n, m in model.named_modules()}

    def compare(self, model: nn.Module) -> None:
        now = Before(model)
        assert list(now.state) == list(self.state)
        assert now.modules == self.modules
        assert now.learning == self.learning
        assert now.variables == self.variables
        assert all(torch.equal(v, self.state[n]) for n, v in now.state.items())
        assert book(model) is None
        model.train()
        assert all(m.training for m in model.modules())


@lru_cache
def page() -> dict[tuple[str, str], bool]:
    """(adapter, kind) -> whether docs/compatibility.md says that they go together."""
    text = PAGE.read_text().partition("## Adapters\n")[2].partition("\n## ")[0]
    everywhere = re.findall(r"`(\w+)[^`]*`", text.partition("In all of these kinds: ")[2].partition("\n")[0])
    header, _, *rows = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"]
    said = {(m, row[0]): mark == "yes" for row in rows for m, mark in zip(header[2:], row[2:], strict=True)}
    return said | dict.fromkeys(product(everywhere, KINDS), True)


def compare_page(method: str, kind: str, works: bool) -> None:
    name = method.partition(":")[0]
    if FIRST[name] == method:
        assert page()[name, kind] is works, (
            f"docs/compatibility.md is old: `patchloom compat --write`; {method}, {kind}"
        )


def starts_as_it_should(model: nn.Module, method: Method, kind: str) -> None:
    if method.neutral:
        close(seen(model, image()), plain(kind), 2e-6)
    assert torch.isfinite(seen(model, image())).all()


def learns(model: nn.Module, method: Method, kind: str, before: Before) -> None:
    """Two steps give every own parameter a gradient and the trunk none, whose statistics stay too; checkpointing gives
    the same gradients."""
    trunk = {id(m) for m in book(model).trunk}
    model.train()
    if model.head_patches is not None:  # which token labelling alone uses
        model.set_patch_training(True)
    assert [n for n, m in model.named_modules() if m.training == (id(m) in trunk) and n not in ("", "head_drop")] == []
    twin = deepcopy(model)
    twin.set_grad_checkpointing(True)
    grads = []
    for each in (model, twin):
        optimizer = torch.optim.SGD(own(each).values(), 0.01)
        torch.manual_seed(0)
        for _ in range(2):
            optimizer.zero_grad()
            loss = method.learn(each, image(batch=4))
            optimizer.step()
        assert torch.isfinite(loss)
        grads.append({n: p.grad for n, p in own(each).items()})
    still = [n for n, g in grads[0].items() if g is None or not g.any() or not g.isfinite().all()]
    assert [n for n in still if not without_effect(KINDS[kind], n)] == []
    assert [n for n, p in model.named_parameters() if not p.requires_grad and p.grad is not None] == []
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-5)
    model.patch_training = False
    switch(model, None)
    assert [n for n, v in model.state_dict().items() if not torch.equal(v, before.state[n])] == []
    switch(model, "default")


def acts(model: nn.Module, kind: str) -> None:
    """It changes the output once it has learned, and an image alone is what it is in a batch."""
    nudged(model)
    y = seen(model, image())
    assert not torch.allclose(y, plain(kind), rtol=1e-5, atol=1e-6 * float(y.abs().max()))
    close(seen(model, image()[:1]), y[:1], 1e-4)


def merges(model: nn.Module, before: Before) -> None:
    """Merged it computes the same with plain layers under their old names, or says that it cannot be."""
    y, names = seen(model, image()), list(model.state_dict())
    try:
        unmerge = merge(model)
    except AdapterError as error:
        says_that_it_cannot(error)
        assert torch.equal(seen(model, image()), y)
        return
    close(seen(model, image()), y, 1e-5)
    now = list(model.state_dict())
    assert [n for n in now if n in before.state or not n.endswith(".bias")] == list(before.state)  # new shifts may stay
    unmerge()
    assert list(model.state_dict()) == names
    assert torch.equal(seen(model, image()), y)


def says_that_it_cannot(error: AdapterError) -> None:
    assert "cannot be merged" in str(error), error


def loads(model: nn.Module, method: str, kind: str) -> None:
    """Its own tensors make another fresh one the same."""
    other = made(kind)
    adapted(other, method, seed=1)
    load_own_state(other, own_state(model))
    assert torch.equal(seen(other, image()), seen(model, image()))


def is_switched(model: nn.Module, method: str, kind: str) -> None:
    """Two on one trunk do not know of each other."""
    first = seen(model, image())
    remove = adapted(model, method, "second")
    nudged(model, seed=1)
    second = seen(model, image())
    assert not torch.equal(first, second)
    switch(model, None)
    assert torch.equal(seen(model, image()), plain(kind))
    switch(model, "default")
    assert torch.equal(seen(model, image()), first)
    switch(model, "second")
    assert torch.equal(seen(model, image()), second)
    remove()
    switch(model, "default")
    assert torch.equal(seen(model, image()), first)


def is_copied(model: nn.Module) -> None:
    """A copy has an adapter of its own, and a bare trunk below it."""
    y, copy = seen(model, image()), deepcopy(model)
    assert torch.equal(seen(copy, image()), y)
    nudged(copy)
    assert not torch.equal(seen(copy, image()), y)
    assert torch.equal(seen(model, image()), y)
    switch(copy, None)
    switch(model, None)
    assert torch.equal(seen(copy, image()), seen(model, image()))
    switch(model, "default")
