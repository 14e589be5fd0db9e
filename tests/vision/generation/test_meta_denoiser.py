"""Any stage list as a denoiser: sizes, gradients, precision, checkpointing, compile, YAML; and what it refuses."""

import copy

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from torch import nn

from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.block import PreNorm
from patchloom.vision.description import describe, rebuild
from patchloom.vision.generation.adaln import AdaLNZero
from patchloom.vision.generation.denoiser import Denoiser
from patchloom.vision.generation.dit import DiT
from patchloom.vision.generation.meta_denoiser import MetaDenoiser
from patchloom.vision.mixers.attention import Global
from patchloom.vision.mixers.cross_scan import Cross
from patchloom.vision.mixers.pool import Pool
from patchloom.vision.mixers.window import Window
from patchloom.vision.stem import Merge2x2

BLOCK = AdaLNZero()
STAGES = {
    "global": [Stage(Global(2), 16, 2, block=BLOCK)],
    "window": [Stage(Window(2, 4), 16, 2, block=BLOCK)],
    "scan": [Stage(Cross(states=1), 16, 1, block=BLOCK), Stage(Pool(3), 24, 1, block=BLOCK)],
    "pyramid": [Stage(Window(2, 4), 16, 2, block=BLOCK), Stage(Global(2), 32, 2, block=BLOCK, down=Merge2x2())],
}


def made(kind: str, **options) -> MetaDenoiser:
    """With what begins at zero filled, as after training."""
    torch.manual_seed(0)
    model = MetaDenoiser(STAGES[kind], 2, 3, (16, 16), **{"num_classes": 5, "learn_variance": True} | options)
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(std=0.05)
    return model.eval()


def batch(n=2, size=(16, 16), classes=5):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 3, *size, generator=g)
    return x, torch.rand(n, generator=g) * 999, torch.randint(classes, (n,), generator=g)


@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize("size", [(16, 16), (9, 14), (2, 31)])
@torch.inference_mode()
def test_any_size_and_one_alone(kind, size):
    model, (x, t, y) = made(kind), batch(3, size)
    out = model(x, t, y)
    assert out.shape == (3, 6, *size)
    assert out.std() > 1e-3
    torch.testing.assert_close(model(x[1:2], t[1:2], y[1:2]), out[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", STAGES)
@torch.inference_mode()
def test_time_and_class_matter(kind):
    model, (x, t, y) = made(kind), batch()
    out = model(x, t, y)
    assert (model(x, t + 50, y) - out).abs().max() > 1e-4
    assert (model(x, t, (y + 1) % 5) - out).abs().max() > 1e-4
    assert (model(x, t, model.null(y)) - out).abs().max() > 1e-4


@pytest.mark.parametrize("kind", STAGES)
def test_every_parameter_learns_and_checkpointing_changes_nothing(kind):
    model, (x, t, y) = made(kind, dropout=0.0).train(), batch()
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    for m in (model, other):
        m(x, t, y).square().mean().backward()
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert p.grad is not None, name
        assert p.grad.abs().max() > 0, name
        torch.testing.assert_close(q.grad, p.grad, msg=name)


@pytest.mark.parametrize("kind", STAGES)
@torch.inference_mode()
def test_bfloat16(kind):
    model, (x, t, y) = made(kind), batch()
    want = model(x, t, y)
    with torch.autocast("cpu", torch.bfloat16):
        auto = model(x, t, y)
    half = model.to(torch.bfloat16)(x.bfloat16(), t, y)
    for got in (auto, half):
        assert (got.float() - want).norm() / want.norm() < 0.03


@torch.inference_mode()
def test_a_time_is_not_rounded_in_bfloat16():
    """999 and 998 are one number in bfloat16."""
    model = made("global").to(torch.bfloat16)
    a, b = (model.time_embedding(torch.tensor([s]), torch.bfloat16) for s in (999.0, 998.0))
    assert not torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["global", "pyramid"])
@torch.inference_mode()
def test_compiles_whole(kind):
    model, given = made(kind), batch()
    want = model(*given)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(*given), want, rtol=1e-4, atol=1e-5)


YAML = """
class_path: patchloom.vision.generation.meta_denoiser.MetaDenoiser
init_args:
  patch: 2
  in_channels: 1
  size: [28, 28]
  num_classes: 10
  stages:
  - dim: 16
    depth: 2
    mixer: {class_path: patchloom.vision.mixers.window.Window, init_args: {heads: 2, size: 7}}
    block: {class_path: patchloom.vision.generation.adaln.AdaLNZero}
  - dim: 32
    depth: 1
    mixer: {class_path: patchloom.vision.mixers.cross_scan.Cross}
    block: {class_path: patchloom.vision.generation.adaln.AdaLNZero}
    down: {class_path: patchloom.vision.stem.Merge2x2}
"""


def test_from_yaml_and_back_from_what_a_checkpoint_says():
    parser = ArgumentParser()
    parser.add_argument("--model", type=Denoiser)
    model = parser.instantiate(parser.parse_object({"model": yaml.safe_load(YAML)})).model
    assert isinstance(model, MetaDenoiser)
    assert model.up is not None
    again = rebuild(describe(model))
    again.load_state_dict(model.state_dict())
    x, t, y = torch.randn(2, 1, 28, 28), torch.tensor([3.0, 700.0]), torch.tensor([0, 10])
    with torch.no_grad():
        for m in (model, again):
            m.eval().final.linear.weight.fill_(0.01)
    assert torch.equal(model(x, t, y), again(x, t, y))


@pytest.mark.parametrize("what", [{"num_classes": 7}, {"num_classes": None, "text": (6, 8)}, {"num_classes": None}])
def test_a_dit_is_described_whole(what):
    model = DiT(1, 32, 2, 4, 3, (16, 24), learn_variance=False, dropout=0.2, ratio=2.0, **what)
    again = rebuild(describe(model))
    assert type(again) is DiT
    assert again.arguments() == model.arguments()
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_captions():
    torch.manual_seed(0)
    model = DiT(2, 32, 2, 4, 3, (16, 16), num_classes=None, text=(6, 8))
    x, t, _ = batch()
    y = torch.randn(2, 6, 8)
    model.final.linear.weight.data.normal_(std=0.1)
    model.train().dropout = 0.0
    for block in model.backbone.stages[0].blocks:
        block.modulation.linear.weight.data.normal_(std=0.1)
        block.cross.proj.weight.data.normal_(std=0.1)
    model(x, t, y).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    assert (model(x, t, y.flip(1)) - model(x, t, y)).abs().max() < 1e-5  # a set of tokens: their order is in them
    assert (model(x, t, y + torch.randn(8)) - model(x, t, y)).abs().max() > 1e-5
    assert torch.equal(model.null(y), torch.zeros(2, 6, 8))
    with pytest.raises(ValueError, match=r"captions of shape \(2, 6, 8\); got shape \(2, 5, 8\)"):
        model(x, t, y[:, :5])


def test_conditions_are_dropped_in_training_alone():
    model = made("global", dropout=0.25)
    y = torch.full((4000,), 3)
    assert torch.equal(model.thinned(y), y)
    gone = (model.train().thinned(y) == 5).float().mean()
    assert gone.item() == pytest.approx(0.25, abs=0.03)
    model.dropout = 0.0
    assert torch.equal(model.thinned(y), y)
    assert model.has_null


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": torch.tensor([0, 6])}, "class 6 is out of range: MetaDenoiser has 0 .. 4, and 5 for none"),
        ({"y": torch.tensor([-1, 0])}, "class -1 is out of range"),
        ({"y": torch.tensor([0.0, 1.0])}, "labels are integers"),
        ({"y": None}, r"takes labels of shape \(2,\); got none"),
        ({"y": torch.tensor([1])}, r"labels of shape \(2,\); got shape \(1,\)"),
        ({"t": torch.tensor(3.0)}, r"t of shape \(2,\)"),
        ({"x": torch.zeros(2, 4, 16, 16)}, r"x of shape \(B, 3, H, W\) is wanted; got \(2, 4, 16, 16\)"),
    ],
)
def test_refuses_what_does_not_fit(change, message):
    given = dict(zip("xty", batch(), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        made("global")(**given)


def test_refuses_to_be_made_wrong():
    with pytest.raises(ValueError, match="give them block=AdaLNZero"):
        MetaDenoiser([Stage(Global(2), 16, 1, block=PreNorm())])
    with pytest.raises(ValueError, match="exclude each other"):
        MetaDenoiser(STAGES["global"], num_classes=3, text=(4, 8))
    with pytest.raises(ValueError, match="at least one stage"):
        MetaDenoiser([])
    with pytest.raises(ValueError, match=r"cross_heads=2: .* of which this denoiser has none"):
        MetaDenoiser([Stage(Global(2), 16, 1, block=AdaLNZero(cross_heads=2))], num_classes=3)
    with pytest.raises(ValueError, match="gates of AdaLNZero"):
        MetaDenoiser([Stage(Global(2), 16, 1, scale=0.1, block=BLOCK)])
    with pytest.raises(ValueError, match="guidance needs a null class, and MetaDenoiser was trained without"):
        made("global", dropout=0.0).null(torch.tensor([1]))
    with pytest.raises(ValueError, match="was not made to be trained on some of its patches"):
        made("global").masked(*batch(), 0.5)
    backbone = Backbone([Stage(Global(2), 16, 1, block=AdaLNZero(condition=8))])
    with pytest.raises(ValueError, match="the tokens have none: it is for denoisers"):
        backbone(torch.zeros(1, 3, 16, 16))


def test_an_unconditional_one():
    model, (x, t, y) = made("global", num_classes=None), batch()
    assert model(x, t).shape == (2, 6, 16, 16)
    with pytest.raises(ValueError, match="unconditional, and got a condition"):
        model(x, t, y)
    with pytest.raises(ValueError, match="has no labels"):
        model.reset_classifier(3)
    assert isinstance(model.predictions(x, t), list)


def test_no_weight_decay_names_no_layer():
    model = made("pyramid")
    layers = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert not {n.rpartition(".")[0] for n in model.no_weight_decay()} & layers
