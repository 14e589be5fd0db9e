"""What every variant keeps, in a tiny form: shapes and strides, gradients, batches, checkpointing, saving, any size."""

import copy
from collections import Counter

import pytest
import torch
from torch import nn
from vision_tiny import distinct, tiny_classifier, tiny_pyramid, without_effect

from patchloom.vision.zoo import VARIANTS, create_model, describe, list_models, rebuild

NAMES = distinct()
FEW = 2  # structures of a family that the default run tries; the rest is slow
SIZES = [(64, 64), (96, 160), (97, 131)]


def ranked(names, few=FEW):
    """Every name, those behind the first few of their family marked slow."""
    seen = Counter()
    for name in names:
        family = VARIANTS[name].family
        seen[family] += 1
        yield pytest.param(name, marks=pytest.mark.slow if seen[family] > few else ())


MOST = list(ranked(NAMES))


def image(size=(64, 64), batch=2, seed=0):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def test_every_structure_is_tried():
    assert 20 <= len(NAMES) < len(VARIANTS)


@pytest.mark.parametrize("name", MOST)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_maps_have_the_declared_channels_and_strides(name, size):
    pyramid = tiny_pyramid(name).eval()
    maps = pyramid(image(size))
    assert len(maps) == len(pyramid.channels) >= 2
    for m, c, s in zip(maps, pyramid.channels, pyramid.strides, strict=True):
        assert m.shape[:2] == (2, c)
        for side, full in zip(m.shape[2:], size, strict=True):
            assert full // s <= side <= -(-full // s) or (
                s > 1 and abs(side - full / s) < 1.5
            )  # overlapping patches lose more


@pytest.mark.parametrize("name", MOST)
def test_every_parameter_gets_a_gradient(name):
    torch.manual_seed(0)
    model = tiny_classifier(name).train()
    if model.head_patches is not None:
        model.set_patch_training()
    with torch.no_grad():
        model(image((96, 160)))  # progressive norms are layer norms alone in their first step
    out = model(image((96, 160)))
    sum(y.square().mean() for y in (out if isinstance(out, tuple) else (out,))).backward()
    dead = [
        n for n, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any()) and not without_effect(name, n)
    ]  # fmt: skip
    assert not dead


@pytest.mark.parametrize("name", MOST)
@torch.inference_mode()
def test_an_image_alone_is_what_it_is_in_a_batch(name):
    model, x = tiny_classifier(name).eval(), image((96, 64), batch=3)
    torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", MOST)
def test_checkpointing_changes_nothing(name):
    model, x = tiny_classifier(name).eval(), image((97, 131))
    want = model(x)
    want.square().mean().backward()
    grads = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}  # None: trains only
    model.zero_grad()
    model.set_grad_checkpointing()
    got = model(x)
    got.square().mean().backward()
    torch.testing.assert_close(got, want)
    for n, p in model.named_parameters():
        assert (p.grad is None) == (grads[n] is None), n
        if p.grad is not None:
            torch.testing.assert_close(p.grad, grads[n], msg=n)


@pytest.mark.parametrize("name", MOST)
@torch.inference_mode()
def test_features_head_and_intermediates_agree_with_forward(name):
    model, x = tiny_classifier(name).eval(), image()
    logits = model(x)
    features, taken = model.forward_intermediates(x)
    torch.testing.assert_close(model.forward_head(model.forward_features(x)), logits)
    torch.testing.assert_close(model.forward_features(x), features)
    assert [t.shape[1] for t in taken] == model.feature_info.channels()
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), model.forward_head(features, pre_logits=True))


@pytest.mark.parametrize("name", MOST)
@torch.inference_mode()
def test_bfloat16_stays_close(name):
    torch.manual_seed(0)
    model, x = tiny_classifier(name).eval(), image()
    want, got = model(x), copy.deepcopy(model).bfloat16()(x.bfloat16())
    assert got.dtype == torch.bfloat16
    assert (got - want).norm() <= 0.05 * want.norm()


@pytest.mark.parametrize("name", MOST)
@torch.inference_mode()
def test_autocast_gives_finite_numbers_in_half_precision(name):
    with torch.autocast("cpu", torch.bfloat16):
        out = tiny_classifier(name).eval()(image())
    assert out.isfinite().all()


@pytest.mark.parametrize("name", MOST)
def test_folding_changes_no_number(name):
    torch.manual_seed(0)
    model, x = tiny_classifier(name).train(), image()
    with torch.no_grad():
        model(x)  # statistics that are not 0 and 1
        model.eval()
        folded, want = model.fold(), model(x)
        torch.testing.assert_close(folded(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
        torch.testing.assert_close(model(x), want, rtol=0, atol=0)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in folded.modules())


@pytest.mark.parametrize("name", MOST)
def test_saved_weights_come_back_through_a_description(name):
    model = tiny_classifier(name).eval()
    model.family = None  # described by its parts
    again = rebuild(describe(model)).eval()
    again.load_state_dict(model.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(again(image()), model(image()), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["swin_tiny", "caformer_s18", "convnext_tiny", "cct_7_3x1_32", "vit_tiny_patch16_224"])
@pytest.mark.slow
def test_compiled_is_the_same(name):
    model, x = tiny_classifier(name).eval(), image()
    with torch.inference_mode():
        torch.testing.assert_close(torch.compile(model)(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in NAMES if VARIANTS[n].dense is not None])
@torch.inference_mode()
def test_the_detection_form_takes_any_size(name):
    for f in tiny_pyramid(name, dense=True).eval()(image((67, 90))):
        assert f.isfinite().all()


@pytest.mark.parametrize("name", ranked(list_models(), 4))
def test_names_build_without_memory(name):
    model = create_model(name, device="meta")
    assert model.num_classes == VARIANTS[name].classes
    assert model.default_cfg["input_size"] == (3, *VARIANTS[name].size)
    assert all(p.device.type == "meta" for p in model.parameters())


@pytest.mark.parametrize(("name", "rate"), [("swin_tiny", 0.4), ("cct_7_3x1_32", 0.3)])
def test_drop_path_rises_linearly(name, rate):
    model = create_model(name, drop_path_rate=rate, device="meta")
    drops = [m.drop for n, m in model.named_modules() if n.endswith("add2")]
    assert drops[0] == 0
    assert drops[-1] == pytest.approx(rate)
    assert drops == sorted(drops)
    assert drops[1] == pytest.approx(rate / (len(drops) - 1))
