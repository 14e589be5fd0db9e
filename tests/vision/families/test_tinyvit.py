"""TinyViT: the authors' numbers and timm's, sizes and costs as published, windows that pad before the norm."""

import pytest
import timm
import torch
from golden import golden
from recorded import agree

from patchloom.vision.mixers.distance import DistanceBias, WindowDistance
from patchloom.vision.tokens import Tokens
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model, list_models, model_info

COSTS = {  # parameters, GMACs
    "tiny_vit_5m": (5_392_764, 1.26),
    "tiny_vit_11m": (10_996_972, 2.02),
    "tiny_vit_21m": (21_198_568, 4.25),
    "tiny_vit_21m_384": (21_230_488, 13.70),
    "tiny_vit_21m_512": (21_268_120, 26.88),
}
WIDTHS = {"5m": 320, "11m": 448, "21m": 576}


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["tiny_vit_5m", "tiny_vit_5m_256", "tiny_vit_21m_384"])
@torch.inference_mode()
def test_matches_the_original(name):
    record = golden.load(f"tinyvit/{name}")
    state, x = record.state_dict(), record.input()
    model, pyramid = create_model(name).eval(), create_model(name, features_only=True).eval()
    for m in (model, pyramid):
        report = load_published(m, state)
        assert not report.fresh
        assert not report.resized
    found = {"logits": model(x)} | {f"stage{i}": f for i, f in enumerate(pyramid(x), 1)}
    agree(record, found)
    record.compare("logits", model.fold()(x), 1e-5)


@pytest.mark.parametrize("name", COSTS)
def test_parameters_and_macs_are_those_of_the_paper(name):
    info = model_info(name)
    assert info.parameters == info.trainable == COSTS[name][0]
    assert info.macs / 1e9 == pytest.approx(COSTS[name][1], rel=0.01)


@pytest.mark.parametrize("size", WIDTHS)
def test_a_22k_head_adds_its_classes(size):
    plain, large = model_info(f"tiny_vit_{size}"), model_info(f"tiny_vit_{size}_22k")
    assert large.parameters - plain.parameters == 20841 * (WIDTHS[size] + 1)


@pytest.mark.parametrize("name", ["tiny_vit_5m_224", "tiny_vit_11m_224"])
def test_timms_weights_give_timms_numbers(name):
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=1000).train()
    with torch.no_grad():
        for n, p in theirs.named_parameters():
            if n.endswith("attention_biases") or p.ndim == 1:
                p.add_(torch.randn_like(p), alpha=0.1)
        theirs(images(2, 3, 224, 224))  # statistics that are not 0 and 1
        theirs.eval()
        ours = create_model(name).eval()
        report = load_published(ours, theirs.state_dict(), source="timm")
        assert not report.fresh
        x = images(2, 3, 224, 224, seed=1)
        want, got = theirs(x), ours(x)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


def test_timms_module_name_finds_the_family():
    assert "tiny_vit_21m_512" in list_models(module="tiny_vit")


def test_padding_comes_before_the_norm():
    torch.manual_seed(0)
    mixer = WindowDistance(2, 7).build(16, 0)
    torch.nn.init.normal_(mixer.norm.bias)
    torch.nn.init.normal_(mixer.bias.table)
    x = images(1, 5 * 6, 16)
    got = mixer(Tokens(x, (5, 6)))
    padded = torch.zeros(1, 7, 7, 16)
    padded[:, :5, :6] = x.unflatten(1, (5, 6))
    want = mixer(Tokens(padded.flatten(1, 2), (7, 7))).unflatten(1, (7, 7))[:, :5, :6].flatten(1, 2)
    torch.testing.assert_close(got, want)


def test_a_table_of_another_window_is_resampled_as_an_image():
    small, large = create_model("tiny_vit_21m"), create_model("tiny_vit_21m_384")
    mixer = small.backbone.stages[2].blocks[1].mixer
    torch.nn.init.normal_(mixer.bias.table)
    record = golden.load("tinyvit/tiny_vit_21m_384")
    state = record.state_dict()
    report = load_published(small, state)
    assert len(report.resized) == 10
    assert not report.fresh
    key = "layers.2.blocks.1.attn.attention_biases"
    want = torch.nn.functional.interpolate(state[key].view(1, 12, 24, 24), (14, 14), mode="bicubic").view(12, 196)
    torch.testing.assert_close(mixer.bias.table.data, want)
    assert not load_published(large, state).resized


def test_the_bias_is_looked_up_by_distance():
    bias = DistanceBias(1, (3, 4))
    bias.table.data = torch.arange(12.0)[None]
    found = bias((3, 4))
    assert found.shape == (1, 12, 12)
    assert found[0, 0, 11] == found[0, 11, 0] == found[0, 3, 8] == 2 * 4 + 3
    assert found[0, 5, 6] == 1


@pytest.mark.parametrize("size", [(97, 131), (160, 288), (64, 64)])
@torch.inference_mode()
def test_any_size(size):
    model = create_model("tiny_vit_5m").eval()
    x = images(2, 3, *size)
    y = model(x)
    assert y.isfinite().all()
    torch.testing.assert_close(model(x[:1]), y[:1], rtol=1e-4, atol=1e-5)


def test_bottlenecks_with_a_residual_begin_at_nothing():
    model = create_model("tiny_vit_5m")
    blocks = model.backbone.stages[0].blocks
    assert not any(b.mixer.branch.fc2.norm.weight.any() for b in blocks)
    assert model.backbone.stages[1].down.convolution.fc2.norm.weight.all()
    assert blocks[0].mixer.branch.fc1.linear.weight.std() > 0.05  # torch's start of a convolution
