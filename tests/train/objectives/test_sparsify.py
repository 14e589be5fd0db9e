"""DynamicViT's training: the loss by hand, two steps in Lightning, the rates, and the checkpoint that they leave."""

from copy import deepcopy

import pytest
import torch
from classify_parts import Colours, trainer
from torch import nn
from torch.nn import functional as F

from patchloom.train.classify import Classify
from patchloom.train.objectives.losses import CrossEntropy
from patchloom.train.objectives.sparsify import Sparsify
from patchloom.train.optim import parameter_groups
from patchloom.train.running import checkpoint
from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.block import Inverted
from patchloom.vision.mixers.attention import Global
from patchloom.vision.mixers.convolution import Depthwise
from patchloom.vision.model import Classifier, Head
from patchloom.vision.plugins import attach, noting, plugins_of
from patchloom.vision.plugins.dynamic_vit import DynamicViT
from patchloom.vision.position import Position
from patchloom.vision.stem import Patchify


def plain() -> Classifier:
    """Eight by eight pixels: 16 patches and a class token."""
    stem = Patchify(2, None, position=Position((4, 4), special=1))
    return Classifier(Backbone([Stage(Global(2), 16, 4)], stem), 8, Head(pool="token"), img_size=8)


def hierarchical() -> Classifier:
    """Eight by eight pixels and three stages, the third of 2 x 2."""
    stages = [Stage(Depthwise(3), 8 * 2**i, n, scale=0.5, block=Inverted()) for i, n in enumerate((1, 1, 4))]
    return Classifier(Backbone(stages, patch=1), 8, img_size=8)


def taught(make, **options) -> tuple[Classifier, Sparsify]:
    torch.manual_seed(0)
    model = make()
    loss = Sparsify(deepcopy(model), **options)
    attach(model, DynamicViT())
    return model, loss


@pytest.mark.parametrize("make", [plain, hierarchical])
def test_the_loss_is_its_formula_in_value_and_gradient(make):
    model, loss = taught(make, base=CrossEntropy(), ratio=3.0, distil=0.7)
    with torch.no_grad():  # a teacher that is not the student
        for p in loss.teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))
    image, target = torch.randn(4, 3, 8, 8), torch.randint(8, (4,))
    model.train()
    torch.manual_seed(1)
    got = loss(model, [(image, target)])
    grads = torch.autograd.grad(got, list(model.parameters()), allow_unused=True)

    torch.manual_seed(1)
    with noting() as notes:
        t = model.features(image)
    logits, told = model.logits(t), loss.teacher.features(image)
    p, q = loss.teacher.logits(told).softmax(1), logits.softmax(1)
    want = F.cross_entropy(logits, target) + 0.7 * (p * (p / q).log()).sum() / 4
    kept = [v for n, v in notes if n == "decision"]
    shares = [0.7, 0.49, 0.343] if make is plain else [0.7, 0.5, 0.3]
    assert len(kept) == 3
    want = want + 3.0 / 3 * sum(((d.sum(1) / d.shape[1] - s) ** 2).sum() / 4 for d, s in zip(kept, shares, strict=True))
    square = (t.x - told.x) ** 2
    want = want + 0.7 * (square[:, 1:][kept[-1] > 0.5] if make is plain else square).mean()
    torch.testing.assert_close(got, want)
    for a, b in zip(grads, torch.autograd.grad(want, list(model.parameters()), allow_unused=True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", [plain, hierarchical])
def test_two_steps_train_predictors_and_fast_paths_and_the_checkpoint_opens(make, tmp_path):
    model, loss = taught(make)
    before = {n: p.clone() for n, p in model.named_parameters()}
    told = {n: p.clone() for n, p in loss.teacher.named_parameters()}
    module = Classify(model, loss, lr_scales={"*.before_block.*": 1.0, "*.around_ffn.*": 1.0, "*": 0.01})
    if make is plain:
        module = Classify(model, loss, lr_scales={"*.before_block.*": 1.0, "*": 0.01})
    t = trainer(tmp_path, max_steps=2)
    t.fit(module, Colours(length=32))
    own = [n for n in before if "before_block" in n or "around_ffn" in n]
    assert len(own) > 30 - 1
    assert not [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
    assert all(torch.equal(p, told[n]) for n, p in loss.teacher.named_parameters())
    assert not loss.teacher.training
    assert not [n for n in module.state_dict() if "teacher" in n]

    t.save_checkpoint(tmp_path / "last.ckpt")
    again, classes, _ = checkpoint.load_model(str(tmp_path / "last.ckpt"))
    assert plugins_of(again) == [DynamicViT()]
    assert len(classes) == 8
    image = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        assert torch.equal(again(image), model.eval()(image))


def test_the_backbone_learns_more_slowly():
    model, _ = taught(plain)
    names = {id(p): n for n, p in model.named_parameters()}
    scale = {
        names[id(p)]: g["lr_scale"]
        for g in parameter_groups(model, 0.5, {"*.before_block.*": 1.0, "backbone.*": 0.01})
        for p in g["params"]
    }
    predictor = "backbone.stages.0.blocks.2.before_block.predictor.enter.1.weight"
    assert scale["head.weight"] == 1.0
    assert scale[predictor] == 100 * scale[predictor.replace("before_block.predictor.enter.1", "mixer.qkv")] == 0.5**1
    with pytest.raises(ValueError, match=r"lr_scales: '\*\.beforeblock\.\*' fits no name"):
        parameter_groups(model, None, {"*.beforeblock.*": 1.0, "*": 0.01})


def test_what_does_not_fit_is_refused():
    model, loss = taught(plain)
    batch = [(torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))]
    with pytest.raises(ValueError, match="3 predictors: train a model"):
        loss(model.eval(), batch)
    with pytest.raises(ValueError, match="0 decisions of 0 predictors"):
        loss(plain(), batch)
    with pytest.raises(ValueError, match="2 of each"):
        loss(model, batch * 2)
    other = Classifier(Backbone([Stage(Global(2), 8, 1)], Patchify(2, None)), 8, img_size=8)
    with pytest.raises(ValueError, match="the teacher is the same network"):
        Sparsify(other)(model.train(), batch)
    assert isinstance(loss.base, nn.Module)
