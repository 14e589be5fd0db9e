"""Vim, VMamba, VSSD, PlainMamba and ViR: the originals' numbers, the published counts, and what is peculiar to
scans."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from golden import golden
from recorded import captured, loaded
from torch import nn

from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.families import vim
from patchloom.vision.mixers.cross_scan import Cross
from patchloom.vision.mixers.mamba import CausalConv, Mamba
from patchloom.vision.mixers.retention import Retain
from patchloom.vision.mixers.scanned import Scanned, among
from patchloom.vision.mixers.window import Window
from patchloom.vision.orders import KINDS, Order, snakes
from patchloom.vision.tokens import Tokens
from patchloom.vision.zoo import create_model, model_info

BLOCK = "backbone.stages.0.blocks."
PARAMETERS = {
    "vim_tiny": 7_148_008, "vim_small": 25_796_584, "vim_base": 97_598_440, "vim_tiny_stride8": 7_250_344,
    "vim_small_stride8": 26_001_256,
    "vmamba_vanilla_tiny": 22_893_448, "vmamba_vanilla_small": 44_417_416, "vmamba_vanilla_base": 76_254_056,
    "vmamba_tiny_s2l5": 30_705_832, "vmamba_small_s2l15": 50_147_752, "vmamba_base_s2l15": 88_557_800,
    "vmamba_tiny_s1l8": 30_249_064, "vmamba_small_s1l20": 49_012_840, "vmamba_base_s1l20": 86_614_504,
    "vssd_micro": 13_512_964, "vssd_tiny": 24_270_724, "vssd_small": 40_075_650, "vssd_base": 88_823_151,
    "plainmamba_l1": 7_551_656, "plainmamba_l2": 26_145_832, "plainmamba_l3": 50_956_456,
    "vir_small_patch16_224": 22_059_496, "vir_base_patch16_224": 86_585_320,
}  # fmt: skip


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
@pytest.mark.slow
def test_parameters_are_the_published_ones(name, count):
    assert model_info(name).parameters == count


@pytest.mark.parametrize("name", ["vim_tiny", "vim_tiny_stride8", pytest.param("vim_base", marks=pytest.mark.slow)])
def test_vim_is_the_original(name):
    r = golden.load(f"vim/{name}")
    model, x = loaded(name, r), r.input()
    found = captured(model, x, {"layer0_hidden": BLOCK + "0.mixer", "layer0_residual": "backbone.stem"})
    with torch.inference_mode():
        found["features"] = model.forward_head(model.forward_features(x), pre_logits=True)
    for output in r.meta["outputs"]:
        r.compare(output, found[output], 1e-5)


@pytest.mark.parametrize("name", ["vanilla_tiny", "vmamba_tiny_s1l8"])
@torch.inference_mode()
def test_vmamba_is_the_original(name):
    r = golden.load(f"vmamba/{name}")
    r.compare("logits", loaded(name, r)(r.input()), 1e-5)
    for i, stage in enumerate(loaded(name, r, features_only=True)(r.input()), 1):
        r.compare(f"stage{i}", stage, 1e-5)


@pytest.mark.parametrize("name", ["vssd_micro", pytest.param("vssd_base", marks=pytest.mark.slow)])
def test_vssd_is_the_original(name):
    # The stream grows to 1e3 and beyond with the record's weights, and rounding with it: computed in float64, these
    # mixers are 2e-5 from the record too, which was computed in float32.
    r = golden.load(f"vssd/{name}")
    model, x = loaded(name, r), r.input()
    last = {i: len(s.blocks) - 1 for i, s in enumerate(model.backbone.stages)}
    places = {f"stage{i + 1}_mixer": f"backbone.stages.{i}.blocks.{j}.mixer" for i, j in last.items()}
    found = captured(model, x, places)
    for output in [*places, "logits"]:
        r.compare(output, found[output], 1e-5 if output == "logits" else 1e-4)
    pyramid = loaded(name, r, features_only=True)
    with torch.inference_mode():
        for i, stage in enumerate(pyramid(x), 1):
            r.compare(f"stage{i}", stage, 1e-4)


@pytest.mark.parametrize("name", ["plainmamba_l1", pytest.param("plainmamba_l3", marks=pytest.mark.slow)])
def test_plainmamba_is_the_original(name):
    r = golden.load(f"plainmamba/{name}")
    model = loaded(name, r)
    x, depth = r.input(), len(model.backbone.stages[0].blocks)
    places = {"layer0": "0", "layer0_mixer": "0.mixer", "layer1": "1", f"layer{depth - 1}": f"{depth - 1}"}
    found = captured(model, x, {k: BLOCK + v for k, v in places.items()})
    with torch.inference_mode():
        found["features"] = model.forward_features(x)
        model.backbone.stem.position = nn.Identity()
        found["patch_embed"] = model.backbone.stem(x).x
    deep = {"features", f"layer{depth - 1}"}  # behind so many scans float64 is 1.1e-5 from the float32 record too
    for output in r.meta["outputs"]:
        r.compare(output, found[output], 1e-4 if output in deep else 1e-5)


@pytest.mark.parametrize(
    ("form", "tokens"),
    [("chunked", "tokens_chunkwise"), ("recurrent", "tokens_recurrent"), ("parallel", None), ("softmax", None)],
)
@torch.inference_mode()
def test_vir_is_the_original_in_each_form(form, tokens):
    r = golden.load("vir/vir_small")
    model = loaded("vir_small", r)
    for block in model.backbone.stages[0].blocks:
        block.mixer.form, block.mixer.chunk = form, 16
    r.compare("logits_softmax" if form == "softmax" else "logits_retention", model(r.input()), 1e-5)
    if tokens:
        r.compare(tokens, model.forward_features(r.input()), 1e-5)


# -------------------------------------------------------------------------------------------------------------- orders


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 7)])
def test_a_walk_visits_every_place_once(kind, both, size):
    order = Order(kind, both, 2)
    paths = order.paths(*size)
    assert paths.shape == (order.count, size[0] * size[1])
    assert (np.sort(paths) == np.arange(size[0] * size[1])).all()


@pytest.mark.parametrize("size", [(4, 6), (5, 3), (14, 14)])
def test_a_snake_goes_to_a_neighbour(size):
    for path, codes in snakes(*size):
        y, x = path // size[1], path % size[1]
        assert (np.abs(np.diff(y)) + np.abs(np.diff(x)) == 1).all()
        assert codes[0] == 0
        assert (codes[1:] > 0).all()
    h, w = size
    first, second, third, fourth = (p for p, _ in snakes(h, w))
    assert first[0] == third[0] == 0
    assert second[0] == (h * w - 1 if h % 2 else (h - 1) * w)
    assert fourth[0] == (h * w - 1 if w % 2 else w - 1)


def test_special_tokens_stand_still_in_any_order():
    ahead, back = among(np.array([3, 1, 0, 2]), (2,), 5)
    assert ahead.tolist() == [4, 1, 2, 0, 3]
    assert ahead[back].tolist() == list(range(5))


@pytest.mark.parametrize("mixer", [Mamba(4, 1), Mamba(4, 1, both=False), Retain(2)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_any_sequence_mixer_takes_any_order(mixer, kind):
    backbone = Backbone((Stage(Scanned(mixer, Order(kind, True)), 16, 2),), patch=4)
    (t,) = backbone(torch.randn(2, 3, 20, 28))
    t.x.sum().backward()
    assert t.grid == (5, 7)


def test_raster_is_no_order_and_a_map_mixer_has_none():
    mixer, x = Mamba(4, 1), Tokens(torch.randn(2, 12, 16), (3, 4))
    scanned = Scanned(mixer).build(16, 0)
    torch.testing.assert_close(scanned(x), scanned.mixers[0](x))
    for bad in (Cross(), Window(2)):
        with pytest.raises(ValueError, match="has no scan order"):
            Scanned(bad).build(16, 0)
    with pytest.raises(ValueError, match=r"scan order 'spiral' is not known; there are raster"):
        Order("spiral")


# ------------------------------------------------------------------------------------------------------- peculiarities


def test_a_causal_convolution_sees_what_came_before():
    conv = CausalConv(6, 4)
    x = torch.randn(2, 9, 6)
    moved = x.clone()
    moved[:, 5] += 1
    assert torch.equal(conv(x)[:, :5], conv(moved)[:, :5])
    assert torch.equal(conv(x, reverse=True)[:, 6:], conv(moved, reverse=True)[:, 6:])
    torch.testing.assert_close(conv(x, reverse=True), conv(x.flip(1)).flip(1))


def test_vim_s_class_token_stays_in_the_middle_at_any_size():
    stage = replace(vim.VARIANTS["vim_tiny"].stages[0], dim=16, depth=2)
    network = replace(vim.VARIANTS["vim_tiny"], stages=(stage,))
    model = create_model("vim_tiny", device="meta")
    assert model.special == (98,)
    backbone = network.backbone(3, 0.0)
    t = backbone.last(torch.randn(1, 3, 96, 160))
    assert t.special == (30,)
    assert t.x.shape[1] == 61


def test_retention_goes_on_from_its_state_over_a_stream():
    mixer = Retain(2, chunk=4).build(16, 0)
    x = torch.randn(2, 11, 16)
    whole, state, parts = mixer(Tokens(x, None)), None, []
    for i in range(0, 11, 3):
        y, state = mixer.continued(x[:, i : i + 3], state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="form 'fast' of retention"):
        Retain(2, "fast").build(16, 0)
    with pytest.raises(ValueError, match="has no state"):
        Retain(2, "softmax").build(16, 0).continued(x, state)


def test_duality_has_no_order():
    model = create_model("vssd_micro").eval()
    mixer = model.backbone.stages[0].blocks[0].mixer
    mixer.conv.weight.data.zero_()
    mixer.conv.weight.data[:, :, 1, 1] = 1  # without it, a token does not know its neighbours
    x, order = torch.randn(1, 12, 48), torch.randperm(12)
    y = mixer(Tokens(x, (3, 4)))
    torch.testing.assert_close(mixer(Tokens(x[:, order], (3, 4))), y[:, order], rtol=1e-4, atol=1e-5)


def test_a_positive_decay_cannot_arise():
    """A is minus an exponential: no parameter makes it positive."""
    scan = Mamba(4).build(16, 0).ahead.scan
    assert (-scan.A_log.exp() < 0).all()
