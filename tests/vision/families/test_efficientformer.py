"""EfficientFormer and EfficientFormerV2: the authors' numbers and timm's, two heads, the detection form, any size."""

import pytest
import timm
import torch
import torch.nn.functional as F
from golden import golden
from recorded import agree, captured

from patchloom.vision.mixers.distance import DistanceAttention, DistanceBias
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model, list_models, model_info

COSTS = {  # parameters, GMACs
    "efficientformer_l1": (12_289_928, 1.29),
    "efficientformer_l3": (31_406_000, 3.91),
    "efficientformer_l7": (82_229_328, 10.12),
    "efficientformerv2_s0": (3_600_256, 0.40),
    "efficientformerv2_s1": (6_185_560, 0.65),
    "efficientformerv2_s2": (12_710_112, 1.25),
    "efficientformerv2_l": (26_322_288, 2.55),
}
PLACES = {"head": "head", "dist_head": "head_dist", "mixer4": "backbone.stages.3.blocks.{}.mixer"}
MAPS = {"mixer3": "backbone.stages.2.blocks.5.mixer"}  # a map in the record, tokens here


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def as_map(tokens):
    side = round(tokens.shape[1] ** 0.5)
    return tokens.unflatten(1, (side, side)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    "name", ["efficientformer_l1", "efficientformerv2_s0", pytest.param("efficientformer_l7", marks=pytest.mark.slow)]
)
@torch.inference_mode()
def test_matches_the_original(name):
    record = golden.load(f"efficientformer/{name}")
    state, x, v2 = record.state_dict(), record.input(), "v2" in name
    model, pyramid = create_model(name).eval(), create_model(name, features_only=True).eval()
    for m in (model, pyramid):
        report = load_published(m, state)
        assert not report.fresh
        assert not report.resized
    depth = len(model.backbone.stages[3].blocks)
    found = captured(model, x, {k: p.format(depth - 1) for k, p in (PLACES | (MAPS if v2 else {})).items()})
    if v2:
        down, before = model.backbone.stages[3].down, pyramid(x)[2]
        found |= {"mixer3": as_map(found["mixer3"]), "mixer4": as_map(found["mixer4"])}
        found["down4"] = down.attended(before.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    found |= {f"stage{i}": f for i, f in enumerate(pyramid(x), 1)}
    agree(record, found)
    record.compare("logits", model.fold()(x), 1e-5)


@pytest.mark.parametrize("name", COSTS)
def test_parameters_and_macs_are_those_of_the_papers(name):
    info = model_info(name)
    assert info.parameters == info.trainable == COSTS[name][0]
    assert info.macs / 1e9 == pytest.approx(COSTS[name][1], rel=0.01, abs=0.005)  # given with two digits


@pytest.mark.parametrize(
    "name",
    [
        "efficientformer_l1",
        "efficientformerv2_s0",
        pytest.param("efficientformer_l3", marks=pytest.mark.slow),
        pytest.param("efficientformerv2_s2", marks=pytest.mark.slow),
    ],
)
def test_timms_weights_give_timms_numbers(name):
    torch.manual_seed(0)
    theirs = timm.create_model(name).train()
    with torch.no_grad():
        for n, p in theirs.named_parameters():
            p.add_(torch.randn_like(p), alpha=0.1 if "gamma" in n or "biases" in n else 0.01)
        theirs(images(2, 3, 224, 224))  # statistics that are not 0 and 1
        theirs.eval()
        ours = create_model(name).eval()
        assert not load_published(ours, theirs.state_dict(), source="timm").fresh
        x = images(2, 3, 224, 224, seed=1)
        want, got = theirs(x), ours(x)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


def test_timms_module_names_find_the_family():
    assert "efficientformerv2_l" in list_models(module="efficientformer_v2")
    assert "efficientformer_l1" in list_models(module="efficientformer")


@pytest.mark.parametrize("name", [n for n in COSTS if n != "efficientformer_l7"])
def test_the_flattening_occupies_a_number(name):
    """Every published name has a place in every depth; what stands behind the flattening goes one down."""
    record = golden.load("efficientformer/efficientformer_l1")
    assert "network.6.4.token_mixer.qkv.weight" in record.state_dict()
    blocks = create_model(name, device="meta").backbone.stages[3].blocks
    if "v2" not in name:
        kinds = [isinstance(b.mixer, DistanceAttention) for b in blocks]
        assert kinds == sorted(kinds)
        assert sum(kinds) == {"efficientformer_l1": 1, "efficientformer_l3": 4}[name]


def test_two_heads_train_apart_and_answer_together():
    model = create_model("efficientformer_l1")
    model.set_distilled_training()
    model.train()
    first, second = model(images(2, 3, 64, 64))
    assert first.shape == second.shape == (2, 1000)
    model.eval()
    with torch.inference_mode():
        x = images(1, 3, 64, 64)
        features = model.forward_head(model.forward_features(x), pre_logits=True)
        torch.testing.assert_close(model(x), (model.head(features) + model.head_dist(features)) / 2)


def test_the_detection_form_interpolates_the_spread_table():
    pyramid = create_model("efficientformer_l1", features_only=True, dense=True).eval()
    bias = pyramid.backbone.stages[3].blocks[-1].mixer.bias
    assert bias.grid == (25, 25)
    torch.nn.init.normal_(bias.table)
    with torch.inference_mode():
        whole = DistanceBias(8, (25, 25))
        whole.table.data = bias.table.data
        want = F.interpolate(whole((25, 25))[None], (6, 6), mode="bicubic", align_corners=False)[0]
        torch.testing.assert_close(bias((2, 3)), want)
        maps = pyramid(images(1, 3, 64, 96))
    assert [m.shape[1:] for m in maps] == [(48, 16, 24), (96, 8, 12), (224, 4, 6), (448, 2, 3)]
    segmentation = create_model("efficientformer_l1", features_only=True, dense=True, img_size=512, device="meta")
    assert segmentation.backbone.stages[3].blocks[-1].mixer.bias.grid == (16, 16)


def test_files_of_both_kinds_load_into_the_detection_form():
    state = golden.load("efficientformer/efficientformer_l1").state_dict()
    pyramid = create_model("efficientformer_l1", features_only=True, dense=True)
    report = load_published(pyramid, state)
    assert {n.split(".")[0] for n in report.fresh} == {"norms"}
    assert len(report.resized) == 1
    seg = images(8, 625)
    own = {k: v for k, v in state.items() if not k.startswith(("norm.", "head.", "dist_head."))}
    own["network.6.4.token_mixer.attention_biases_seg"] = seg
    for i, dim in enumerate((48, 96, 224, 448)):
        own |= {f"norm{2 * i}.weight": torch.full((dim,), 2.0), f"norm{2 * i}.bias": torch.zeros(dim)}
    report = load_published(pyramid, own)
    assert not report.fresh
    assert not report.resized
    torch.testing.assert_close(pyramid.backbone.stages[3].blocks[-1].mixer.bias.table.data, seg)


@pytest.mark.parametrize("name", ["efficientformer_l1", "efficientformerv2_s0"])
@pytest.mark.parametrize("size", [(97, 131), (160, 288), (64, 64)])
@torch.inference_mode()
def test_any_size(name, size):
    model, x = create_model(name).eval(), images(2, 3, *size)
    y = model(x)
    assert y.isfinite().all()
    torch.testing.assert_close(model(x[:1]), y[:1], rtol=1e-4, atol=1e-5)


def test_tables_are_made_for_the_size_that_is_asked_for():
    model = create_model("efficientformerv2_s0", img_size=(256, 320))
    grids = [m.grid for m in model.modules() if isinstance(m, DistanceBias)]
    assert grids == [(8, 10), (8, 10), (16, 20), (8, 10), (8, 10)]
    report = load_published(model, golden.load("efficientformer/efficientformerv2_s0").state_dict())
    assert len(report.resized) == 5
    assert not report.fresh
