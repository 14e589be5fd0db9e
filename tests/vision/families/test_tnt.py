"""TNT: the authors' numbers, timm's networks, and what becomes of words at other sizes."""

from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from golden import golden
from recorded import captured

from patchloom.vision.plugins import SeamError, attach
from patchloom.vision.plugins.merge import Merge
from patchloom.vision.position import resize
from patchloom.vision.tokens import Tokens
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model, list_models, model_info

BLOCK = "backbone.stages.0.blocks."
FACTS = {"tnt_s_patch16_224": (23_843_848, 75_264, 5.22), "tnt_b_patch16_224": (65_554_120, 125_440, 14.05)}


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_matches_the_original():
    record = golden.load("tnt/tnt_s")
    model = create_model("tnt_s").eval()
    report = load_published(model, record.state_dict())
    assert not report.fresh
    assert report.dropped == ["outer_tokens"]
    places = {
        "words": "backbone.stem.conv", "sentences0": "backbone.stem", "inner1": BLOCK + "0.inner",
        "outer1": BLOCK + "0", "inner": BLOCK + "11.inner", "outer": BLOCK + "11",
    }  # fmt: skip
    found = captured(model, record.input(), places)
    found["words"] = found["words"].flatten(2).mT
    assert set(found) == set(record.meta["outputs"])
    for place, value in found.items():
        record.compare(place, value, 1e-5)


@pytest.mark.parametrize("name", FACTS)
def test_parameters_and_macs_are_as_stated(name):
    info = model_info(name)
    assert info.parameters == FACTS[name][0]
    assert info.parameters - info.trainable == FACTS[name][1]
    assert info.macs / 1e9 == pytest.approx(FACTS[name][2], rel=0.01)


def test_the_smallest_is_as_the_paper_says():
    info = model_info("tnt_ti_patch16_224")
    assert round(info.parameters / 1e6, 1) == 6.1
    assert info.macs / 1e9 == pytest.approx(1.4, rel=0.01)


def test_names():
    assert create_model("tnt_b", device="meta").name == "tnt_b_patch16_224"
    assert create_model("tnt_s_384", device="meta").default_cfg["input_size"] == (3, 384, 384)
    assert list_models("tnt_*") == ["tnt_b_patch16_224", "tnt_s_patch16_224", "tnt_ti_patch16_224"]
    assert list_models(module="tnt") == list_models("tnt_*")


@torch.inference_mode()
def test_timms_network_of_the_same_name_is_this_one():
    torch.manual_seed(0)
    theirs, ours = timm.create_model("tnt_s_patch16_224").eval(), create_model("tnt_s_patch16_224").eval()
    torch.nn.init.normal_(theirs.pixel_pos)  # a map there; ours is a sequence
    report = load_published(ours, theirs.state_dict())
    assert report.source == "timm"
    assert not report.fresh
    x = numbers(2, 3, 224, 224)
    want = theirs(x)
    torch.testing.assert_close(ours(x), want, rtol=0, atol=1e-5 * float(want.abs().max()))
    pyramid = create_model("tnt_s", features_only=True)
    assert not load_published(pyramid, theirs.state_dict()).fresh


def test_timms_legacy_network_is_another_and_is_refused():
    with pytest.raises(ValueError, match="tnt_s"):
        load_published(create_model("tnt_s"), timm.create_model("tnt_s_legacy_patch16_224").state_dict())


@torch.inference_mode()
@pytest.mark.parametrize("size", [(224, 224), (97, 131)])
def test_every_patch_is_seen_alone(size):
    stem = create_model("tnt_ti").eval().backbone.stem
    image = numbers(2, 3, *size)
    t = stem(image)
    h, w = -(-size[0] // 16), -(-size[1] // 16)
    assert t.grid == (h, w)
    assert t.inner.shape == (2 * h * w, 16, 12)
    padded = F.pad(image, (0, 16 * w - size[1], 0, 16 * h - size[0]))
    patch = padded[1:, :, 16:32, -16:]  # second row, last column, second image
    want = stem.conv(patch).flatten(2).mT + stem.table
    torch.testing.assert_close(t.inner[h * w + 2 * w - 1 : h * w + 2 * w], want)


@torch.inference_mode()
def test_positions_of_sentences_are_resized():
    stem = create_model("tnt_ti").eval().backbone.stem
    torch.nn.init.normal_(stem.position.table)
    t = stem(numbers(1, 3, 160, 288))
    place = t.x[:, 1:] - stem.sentence(t.inner)[None]
    torch.testing.assert_close(place, resize(stem.position.table[:, 1:], (14, 14), (10, 18)), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_a_file_for_another_size_loads():
    small, large = create_model("tnt_ti"), create_model("tnt_ti", img_size=384)
    report = load_published(large, small.state_dict(), source="ours")
    assert report.resized == ["backbone.stem.position.table"]


@torch.inference_mode()
def test_the_class_token_hears_no_words():
    block = create_model("tnt_ti").eval().backbone.stages[0].blocks[0]
    seen = []
    block.norm1.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    t = Tokens(numbers(1, 5, 192), (2, 2), (0,), inner=numbers(4, 16, 12, seed=1))
    block(t)
    assert torch.equal(seen[0][:, 0], t.x[:, 0])
    torch.testing.assert_close(seen[0][:, 1:], t.x[:, 1:] + block.join(block.inner(t.inner))[None])


def test_tokens_with_words_cannot_be_merged():
    with pytest.raises(SeamError, match="needs a full grid"):
        attach(create_model("tnt_ti"), Merge(8))
    block = create_model("tnt_ti").backbone.stages[0].blocks[0]
    t = Tokens(numbers(1, 5, 192), (2, 2), (0,), inner=numbers(4, 16, 12))
    with pytest.raises(ValueError, match="merged or dropped"):
        block(replace(t, grid=None))


def test_stochastic_depth_is_shared_by_both_sides_and_leaves_out_single_patches():
    model = create_model("tnt_ti", drop_path_rate=0.5)
    block = model.backbone.stages[0].blocks[-1]
    assert {block.add1.drop, block.add2.drop, block.inner.add1.drop, block.inner.add2.drop} == {0.5}
    torch.manual_seed(0)
    words = numbers(64, 16, 12)
    same = (block.inner.train()(words) == words).flatten(1).all(1)
    assert 4 < int(same.sum()) < 32  # a quarter: neither branch


def test_positions_and_tokens_are_spared_weight_decay():
    stem = "backbone.stem."
    assert create_model("tnt_ti").no_weight_decay() == {
        stem + "table",
        stem + "position.table",
        stem + "position.tokens.0",
    }
