"""ECO-M2F: every exit feeds the decoder, the gate learns the best of them, and an image takes the layers it says."""

import pytest
import torch
from vision_tiny import tiny_pyramid

from patchloom.vision.heads.early_exit import EcoMask2Former, best_exits, every_exit, exit_losses, qualities, rising
from patchloom.vision.heads.mask2former import Mask2Former
from patchloom.vision.heads.mask_losses import MaskLosses
from patchloom.vision.heads.segments import Segments

X = torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))
MASKS = torch.zeros(1, 64, 96, dtype=torch.bool)
MASKS[0, 10:40, 20:70] = True
TARGETS = [Segments(torch.tensor([i]), MASKS) for i in range(3)]


def small():
    torch.manual_seed(0)
    return Mask2Former(tiny_pyramid("swin_tiny"), 3, 5, 32, 4, 3, 3)


@torch.no_grad()
def test_an_exit_is_the_network_with_fewer_layers():
    model = small().eval()
    exits = every_exit(model, X)
    assert len(exits) == 3
    for depth, predictions in enumerate(exits, 1):
        torch.testing.assert_close(predictions.last.masks, model(X, depth).last.masks)
    assert torch.equal(exits[-1].last.classes, model(X).last.classes)
    assert not torch.equal(exits[0].last.classes, exits[1].last.classes)


def test_the_parent_s_loss_is_the_weighted_sum_over_exits():
    model, losses = small().train(), MaskLosses(points=64)
    torch.manual_seed(1)
    total = exit_losses(model, losses, X, TARGETS, [0.0, 0.25, 1.0])
    torch.manual_seed(1)
    by_exit = [losses(p, TARGETS) for p in every_exit(model, X)]
    for name, value in total.items():
        torch.testing.assert_close(value, 0.25 * by_exit[1][name] + by_exit[2][name])
    sum(total.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert rising(3) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    with pytest.raises(ValueError, match="2 weights for the 3 exits"):
        exit_losses(model, losses, X, TARGETS, [1.0, 1.0])


def test_a_larger_beta_is_cheaper():
    quality = torch.tensor([[0.30, 0.45, 0.50], [0.20, 0.21, 0.6]])
    assert best_exits(quality, 0).tolist() == [2, 2]
    assert best_exits(quality, 0.1).tolist() == [1, 2]
    assert best_exits(quality, 1).tolist() == [0, 0]
    found = qualities(small().eval(), X, lambda p: p.last.masks.mean((1, 2, 3)).tolist())
    assert found.shape == (3, 3)


@torch.no_grad()
def test_each_image_takes_the_layers_that_the_gate_says():
    model = small().eval()
    eco = EcoMask2Former(model).eval()
    eco.gate.forward = lambda m: torch.eye(3)[[2, 0, 2]]
    found = eco(X)
    assert found.depths == [3, 1, 3]
    for i, depth in enumerate(found.depths):
        torch.testing.assert_close(found.last.masks[i], model(X[i : i + 1], depth).last.masks[0], rtol=1e-4, atol=1e-4)


def test_the_gate_alone_learns():
    eco, exits = EcoMask2Former(small()), torch.tensor([0, 2, 1])
    optimiser = torch.optim.Adam(eco.gate.parameters(), 0.1)
    for _ in range(60):
        optimiser.zero_grad()
        loss = eco.gate_loss(X, exits)
        loss.backward()
        optimiser.step()
    assert all(p.grad is None for p in eco.model.parameters())
    assert eco.eval()(X).depths == [1, 3, 2]
