"""Muon: its directions, its groups, its state, and what it refuses."""

import copy

import pytest
import torch
from torch import nn

from patchloom.train.muon import Muon, orthogonal
from patchloom.train.optim import build_optimizer


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 64, 200), (1, 200, 64)])
def test_directions_are_orthogonal(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonal(x)
    assert found.shape == x.shape
    values = torch.linalg.svdvals(found)
    assert values.max() < 1.25
    assert values.median() > 0.65
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(found.flatten(1), (u @ v).flatten(1)).min() > 0.95
    assert orthogonal(torch.zeros(1, 64, 64)).eq(0).all()


@pytest.mark.parametrize("shape", [(2, 64, 300), (2, 300, 64), (2, 80, 64)])
def test_long_matrices_take_the_same_turns(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wide = x / x.flatten(1).norm(dim=1)[:, None, None]
    for _ in range(3):
        square = wide.mT @ wide
        wide = 3.4445 * wide - 4.775 * wide @ square + 2.0315 * wide @ square @ square
    torch.testing.assert_close(orthogonal(x, 3), wide)
    torch.testing.assert_close(orthogonal(x.float(), 3), wide.float(), rtol=1e-4, atol=1e-6)


def learner() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64), nn.GELU(), nn.Linear(64, 10))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(128, 64, generator=generator)
    loss = nn.functional.cross_entropy(model(x), x[:, :10].argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def test_matrices_take_a_step_of_known_size_and_the_rest_adamw_s():
    model, twin = learner(), learner()
    optimizer = Muon(model.parameters(), lr=1e-2, weight_decay=0.1, rest=0.5)
    before = copy.deepcopy(model)
    step(model, optimizer, 0)
    for at in (0, 2):
        moved = model[at].weight - before[at].weight * (1 - 1e-2 * 0.1)
        assert float(moved.detach().square().mean().sqrt()) == pytest.approx(1e-2 * 0.2, rel=0.3)  # as AdamW's
        assert set(optimizer.state[model[at].weight]) == {"momentum"}
    step(twin, torch.optim.AdamW(twin.parameters(), lr=0.5e-2, betas=(0.9, 0.98), weight_decay=0.1), 0)
    for at in (0, 2, 4):
        torch.testing.assert_close(model[at].bias, twin[at].bias)
    torch.testing.assert_close(model[4].weight, twin[4].weight)  # ten rows: no matrix
    assert not torch.allclose(model[0].weight, twin[0].weight)


def test_a_group_can_go_by_adamw_alone():
    model, twin = learner(), learner()
    step(model, Muon([{"params": model.parameters(), "matrices": False}], lr=1e-2), 0)
    step(twin, torch.optim.AdamW(twin.parameters(), lr=1e-2, betas=(0.9, 0.98), weight_decay=0.01), 0)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_it_learns_and_goes_on_from_its_state():
    model = learner()
    optimizer = build_optimizer(lambda groups: Muon(groups, lr=1e-2), model, None)
    losses = [step(model, optimizer, s) for s in range(80)]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    again = copy.deepcopy(model)
    resumed = build_optimizer(lambda groups: Muon(groups, lr=1e-2), again, None)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in (200, 201):
        assert step(model, optimizer, seed) == step(again, resumed, seed)
    assert all(p.equal(q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


def test_what_has_no_gradient_stays():
    model = learner()
    optimizer = Muon(model.parameters(), lr=1e-2)
    before = copy.deepcopy(model[0].weight)
    model[2].weight.grad = torch.ones_like(model[2].weight)
    optimizer.step()
    assert model[0].weight.equal(before)


@pytest.mark.parametrize(("options", "message"), [
    ({"lr": -1}, "lr=-1"), ({"momentum": 1.0}, r"momentum=1.0.*in \[0, 1\)"), ({"rest": 0}, "rest=0"),
    ({"iterations": 0}, "iterations=0"),
])  # fmt: skip
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Muon(learner().parameters(), **options)


def test_a_parameter_in_pieces_is_refused():
    p = nn.Parameter(torch.zeros(64, 64))
    p.full_tensor = lambda: p  # as a DTensor has it
    with pytest.raises(ValueError, match=r"\(64, 64\) is cut over several processes"):
        Muon([p])
