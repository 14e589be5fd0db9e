"""Mixing on a grid of cells, and the loss of image and patches."""

from typing import get_type_hints

import pytest
import torch
from classify_parts import Colours, trainer
from jsonargparse import ArgumentParser
from torch.nn import functional as F

from patchloom.train.classify import Classify
from patchloom.train.objectives.mixing import Mixing
from patchloom.train.objectives.patches import PatchCrossEntropy, PatchMixing
from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.mixers.pool import Pool
from patchloom.vision.model import Classifier, Head


def batch(b=6, size=(8, 12), classes=5):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(b, 3, *size, generator=generator), torch.randint(classes, (b,), generator=generator)


@pytest.mark.parametrize("seed", range(8))
def test_boxes_and_blends_have_the_labels_of_their_cells(seed):
    image, target = batch()
    mixed, labels = PatchMixing(cell=4).build(5, False)(image, target, (seed, 0))
    assert labels.shape == (6, 1 + 2 * 3, 5)
    torch.testing.assert_close(labels.sum(-1), torch.ones(6, 7))
    torch.testing.assert_close(labels[:, 0], labels[:, 1:].mean(1))
    other, own = image.flip(0), F.one_hot(target, 5).float()
    for i in range(6):
        for n in range(6):
            y, x = 4 * (n // 3), 4 * (n % 3)
            cell, a, b = (m[i, :, y : y + 4, x : x + 4] for m in (mixed, image, other))
            share = float(((cell - a) * (b - a)).sum() / (b - a).square().sum())
            assert i >= 3 or min(abs(share), abs(share - 1)) < 1e-5
            torch.testing.assert_close(cell, a + share * (b - a))
            torch.testing.assert_close(labels[i, 1 + n], own[i] * (1 - share) + own.flip(0)[i] * share)
    assert (labels[3:, 1:] - labels[3:, :1]).abs().max() < 1e-6  # blended as a whole


def test_a_draw_comes_back_and_boxes_differ():
    mixer, (image, target) = PatchMixing(cell=2).build(5, False), batch()
    again = [mixer(image, target, (1, 2, n))[1] for n in (0, 0, 1)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])
    boxes = {float(mixer.shares(2, 4, 4, (n,))[0].sum()) for n in range(50)}
    assert {0.0, 1.0, 4.0, 9.0, 16.0} >= boxes
    assert len(boxes) >= 4


def test_the_loss_is_that_of_the_image_and_that_of_its_patches():
    logits, patches = torch.randn(4, 5), torch.randn(4, 6, 5)
    target = torch.randn(4, 7, 5).softmax(-1)
    loss = PatchCrossEntropy(smoothing=0.1)
    want = F.cross_entropy(logits, target[:, 0], label_smoothing=0.1)
    want = want + F.cross_entropy(patches.mT, target[:, 1:].mT, label_smoothing=0.1)
    torch.testing.assert_close(loss((logits, patches), target), want)
    hard = torch.tensor([0, 4, 2, 2])
    one = F.cross_entropy(patches.mT, hard[:, None].expand(-1, 6), label_smoothing=0.1)
    torch.testing.assert_close(loss((logits, patches), hard), F.cross_entropy(logits, hard, label_smoothing=0.1) + one)
    torch.testing.assert_close(loss(logits, hard), F.cross_entropy(logits, hard, label_smoothing=0.1))


def test_what_does_not_fit_is_named():
    image, target = batch()
    with pytest.raises(ValueError, match=r"8x12 do not divide into cells of 5x5"):
        PatchMixing(cell=5).build(5, False)(image, target, (0,))
    with pytest.raises(ValueError, match="mixup and box must be above 0"):
        PatchMixing(cell=4, box=0).build(5, False)
    with pytest.raises(ValueError, match="labels are for 6 cells, the model has 3 patches"):
        PatchCrossEntropy()((torch.randn(2, 5), torch.randn(2, 3, 5)), torch.rand(2, 7, 5))
    with pytest.raises(ValueError, match="no head_patches"):
        PatchCrossEntropy()(torch.randn(2, 5), torch.rand(2, 7, 5))


def test_classify_trains_the_head_of_the_patches(tmp_path):
    torch.manual_seed(0)
    model = Classifier(Backbone([Stage(Pool(), 16, 1)]), 8, Head(patches=0.0))
    before = model.head_patches.weight.clone()
    adamw = lambda p: torch.optim.AdamW(p, lr=0.01)  # noqa: E731
    module = Classify(model, PatchCrossEntropy(), adamw, mixing=PatchMixing(cell=4, off_epoch=4))
    t = trainer(tmp_path, max_epochs=8)
    t.fit(module, Colours())
    assert t.callback_metrics["val/top1"] > 0.9
    assert not torch.allclose(model.head_patches.weight, before)


@pytest.mark.parametrize(
    ("given", "want"), [({"cell": 56}, PatchMixing(56)), ({"mixup": 0.2, "cutmix": 0.0}, Mixing(0.2, 0.0))]
)
def test_a_recipe_says_which_mixing_by_its_settings(given, want):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--mixing", type=get_type_hints(Classify.__init__)["mixing"])
    config = parser.parse_object({"mixing": given})
    assert parser.instantiate(config).mixing == want
