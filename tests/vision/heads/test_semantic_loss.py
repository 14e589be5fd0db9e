"""Losses of maps of classes."""

import pytest
import torch
import torch.nn.functional as F
from semantic_parts import CLASSES

from patchloom.vision.heads.semantic import SemanticLogits
from patchloom.vision.heads.semantic_loss import SemanticLosses


def test_losses_are_means_over_what_is_judged():
    torch.manual_seed(0)
    logits = torch.randn(2, CLASSES, 6, 7, requires_grad=True)
    y = torch.randint(0, CLASSES, (2, 6, 7))
    y[0, :3] = 255
    losses = SemanticLosses(auxiliary=0.3)(SemanticLogits(logits, 2 * logits), y)
    torch.testing.assert_close(losses["main"], F.cross_entropy(logits, y, ignore_index=255))
    torch.testing.assert_close(losses["auxiliary"], 0.3 * F.cross_entropy(2 * logits, y, ignore_index=255))
    nothing = SemanticLosses()(SemanticLogits(logits, None), torch.full_like(y, 255))["main"]
    nothing.backward()
    assert nothing == 0
    assert not logits.grad.any()


def test_wrong_labels_are_named():
    logits, y = SemanticLogits(torch.zeros(2, CLASSES, 6, 7), None), torch.zeros(2, 6, 7, dtype=torch.long)
    for wrong, words in (
        (y[:, :5], r"label maps of \(2, 5, 7\) for logits of \(2, 6, 7\)"),
        (y.float(), r"whole numbers; got torch\.float32"),
        (y + 5, "label 5: the model knows the classes 0 to 4, and 255 is ignored"),
        (y - 1, "label -1"),
    ):
        with pytest.raises(ValueError, match=words):
            SemanticLosses()(logits, wrong)


def test_weights_are_of_classes():
    torch.manual_seed(0)
    logits = torch.randn(2, CLASSES, 6, 7, requires_grad=True)
    y = torch.randint(0, CLASSES, (2, 6, 7))
    y[0, :3] = 255
    weights = [float(i + 1) for i in range(CLASSES)]
    weighted = SemanticLosses(weights=weights)
    found = weighted(SemanticLogits(logits, None), y)["main"]
    torch.testing.assert_close(found, F.cross_entropy(logits, y, torch.tensor(weights), ignore_index=255))
    alike = SemanticLosses(weights=[3.0] * CLASSES)(SemanticLogits(logits, None), y)
    torch.testing.assert_close(alike, SemanticLosses()(SemanticLogits(logits, None), y))
    nothing = weighted(SemanticLogits(logits, None), torch.full_like(y, 255))["main"]
    nothing.backward()
    assert nothing == 0
    assert not logits.grad.any()
    with pytest.raises(ValueError, match=f"2 weights; the model knows {CLASSES} classes"):
        SemanticLosses(weights=[1.0, 2.0])(SemanticLogits(logits, None), y)
    for wrong in ([1.0, 0.0], []):
        with pytest.raises(ValueError, match="above 0 for each class"):
            SemanticLosses(weights=wrong)
