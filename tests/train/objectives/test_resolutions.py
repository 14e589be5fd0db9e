"""Training on several sizes at once: the loss by its formula, views varied by themselves, what is refused."""

import numpy as np
import pytest
import torch
from classify_parts import trainer
from torch import nn
from torch.nn import functional as F

from patchloom.data.modules import ShapesData
from patchloom.data.transforms import Jostle, Recrop
from patchloom.data.views import Views
from patchloom.train.classify import Classify
from patchloom.train.objectives.losses import CrossEntropy, Distil
from patchloom.train.objectives.mixing import Mixing
from patchloom.train.objectives.resolutions import MultiResolution
from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.mixers.local_position import LocalPosition
from patchloom.vision.mixers.pool import Pool
from patchloom.vision.model import Classifier, Head
from patchloom.vision.stems.resformer import SinePatchify


def network(size: int = 32) -> Classifier:
    backbone = Backbone([Stage(LocalPosition(2), 16, 1)], SinePatchify(8))
    return Classifier(backbone, 10, Head(pool="token"), img_size=size)


def views(*sizes: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    target = torch.randint(10, (4,), generator=g)
    return [(torch.randn(4, 3, s, s, generator=g), target) for s in sizes]


def whitened(x: torch.Tensor) -> torch.Tensor:
    x = x.detach()
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()


def far(kind: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    gap = (a - b).abs()
    if kind == "cosine":
        return (1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).mean()
    return gap.square().mean() if kind == "l2" else torch.where(gap < 1, gap.square() / 2, gap - 0.5).mean()


@pytest.mark.parametrize("distance", ["smooth_l1", "l2", "cosine"])
@pytest.mark.parametrize("on", ["class", "logits", "patches"])
def test_the_loss_is_its_formula_in_value_and_gradient(distance, on):
    torch.manual_seed(0)
    model, batch = network(), views(32, 24, 16)
    loss = MultiResolution(CrossEntropy(0.1), 0.7, distance, on)(model, batch)
    got = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    tokens = [model.features(image) for image, _ in batch]
    logits = [model.head(t.x[:, 0]) for t in tokens]
    seen = {"class": [t.x[:, 0] for t in tokens], "logits": logits, "patches": [t.x[:, 1:].mean(1) for t in tokens]}[on]
    want = sum(F.cross_entropy(y, target, label_smoothing=0.1) for y, (_, target) in zip(logits, batch, strict=True))
    want = want + 0.7 * sum(far(distance, a, whitened(b)) for a, b in zip(seen[1:], seen[:-1], strict=True))
    torch.testing.assert_close(loss, want / 3)
    for a, b in zip(got, torch.autograd.grad(want / 3, list(model.parameters()), allow_unused=True), strict=True):
        torch.testing.assert_close(a, b)


def test_windows_of_sizes_take_turns():
    loss, batch = MultiResolution(window=2), views(32, 24, 16)
    assert [[image.shape[-1] for image, _ in loss.chosen(batch, step)] for step in range(3)] == [
        [32, 24], [24, 16], [32, 24]
    ]  # fmt: skip
    assert MultiResolution().chosen(batch, 5) is batch


def test_a_model_with_maps_serves_as_well():
    model = Classifier(Backbone([Stage(Pool(), 16, 1)]), 10)
    of_class, of_patches = (MultiResolution(on=on)(model, views(32, 24)) for on in ("class", "patches"))
    torch.testing.assert_close(of_class, of_patches)  # its class feature is the mean


@pytest.mark.parametrize("augment", [Jostle(padding=4), Recrop()])
def test_each_view_is_varied_by_itself(augment):
    def batch(views_of: Views | Jostle | Recrop) -> torch.Tensor | tuple[torch.Tensor, ...]:
        cfg = {"input_size": (3, 48, 48), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
        data = ShapesData(8, 2, 2, batch_size=4, workers=0, augment=views_of, preprocessing=cfg)
        data.setup("fit")
        return next(iter(data.train_dataloader()))[0]

    seen = batch(Views((48, 48, 32), augment))
    assert [tuple(v.shape) for v in seen] == [(4, 3, 48, 48), (4, 3, 48, 48), (4, 3, 32, 32)]
    assert not torch.equal(seen[0], seen[1])
    for a, b in zip(seen, batch(Views((48, 48, 32), augment)), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(seen[0], batch(augment))  # the first is what a training at one size sees


@pytest.mark.parametrize("shared", [True, False])
def test_sizes_of_a_picture_are_mixed_alike(shared):
    module = Classify(network(), MultiResolution(shared_mixing=shared), mixing=Mixing(mixup=1.0, cutmix=0.0))
    module.adopt([str(i) for i in range(10)])
    seen = {}
    module.loss.forward = lambda model, views, step: seen.update(views=views, step=step) or torch.zeros(())
    module.log = lambda *a, **k: None
    module._trainer = type("T", (), {"num_training_batches": 5, "current_epoch": 2, "global_rank": 0})()
    image, target = torch.randn(4, 3, 16, 16), torch.arange(4)
    module.training_step(((image, image, image), target), 3)
    first, *others = seen["views"]
    assert seen["step"] == 13
    assert all(torch.equal(first[0], v[0]) and torch.equal(first[1], v[1]) for v in others) == shared


def test_it_trains_and_is_judged_at_one_size(tmp_path):
    torch.manual_seed(0)
    cfg = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
    data = ShapesData(16, 8, 8, batch_size=8, workers=0, augment=Views((32, 24), Jostle(2)), preprocessing=cfg)
    t = trainer(tmp_path)
    t.fit(Classify(network(), MultiResolution(), mixing=Mixing()), data)
    assert np.isfinite(float(t.callback_metrics["train/loss"]))
    assert {"val/loss", "val/top1"} <= set(t.callback_metrics)


def test_what_does_not_fit_is_refused(tmp_path):
    cfg = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
    one, many = (
        ShapesData(8, 2, 2, batch_size=4, workers=0, augment=a, preprocessing=cfg)
        for a in (None, Views((32, 24), Jostle(2)))
    )
    with pytest.raises(ValueError, match=r"got images of one: set data\.augment to patchloom\.data\.views\.Views"):
        trainer(tmp_path).fit(Classify(network(), MultiResolution()), one)
    with pytest.raises(ValueError, match=r"2 views of each image and CrossEntropy takes one: set model\.loss"):
        trainer(tmp_path).fit(Classify(network()), many)
    with pytest.raises(ValueError, match=r"sizes = \(32,\): two or more"):
        Views((32,))
    with pytest.raises(ValueError, match="Distil wants images"):
        MultiResolution(Distil(nn.Identity()))
    with pytest.raises(ValueError, match="distance 'l1' is not known; there are smooth_l1"):
        MultiResolution(distance="l1")
    with pytest.raises(ValueError, match="window 0: at least 1"):
        MultiResolution(window=0)
