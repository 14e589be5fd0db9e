"""Astroformer: the authors' numbers; tables of relative positions on other maps."""

import pytest
import torch
from golden import golden
from plain import astroformer as plain
from recorded import agree, sizes_are

from patchloom.vision.mixers.relative import RelativeAttention, offsets
from patchloom.vision.stems.coatnet import halved
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model

FACTS = {  # parameters, GMACs
    "astroformer_0": (23_533_592, 3.99), "astroformer_1": (38_149_448, 6.81), "astroformer_2": (67_381_864, 13.34),
    "astroformer_3": (150_408_616, 29.88), "astroformer_4": (242_604_904, 48.54),
    "astroformer_5": (595_579_688, 108.24),
}  # fmt: skip


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "classes"), [("astroformer_0_224", 1000), ("astroformer_1_64", 200)])
@torch.inference_mode()
def test_matches_the_original(name, classes):
    record = golden.load(f"astroformer/{name}")
    model, x, found = create_model(name, num_classes=classes).eval(), record.input(), {}
    assert sum(p.numel() for p in model.parameters()) == record.meta["parameters"]
    report = load_published(model, record.state_dict())
    assert not report.fresh
    assert not report.resized
    hook = model.backbone.stem.conv2.register_forward_hook(lambda *seen: found.update(stem=seen[2]))
    found["logits"] = model(x)
    hook.remove()
    found |= {f"stage{i}": m for i, m in enumerate(model.forward_intermediates(x)[1], 1)}
    agree(record, found)
    record.compare("logits", model.fold()(x), 1e-5)


@pytest.mark.slow
def test_parameters_and_macs_are_those_of_the_paper():
    sizes_are(FACTS)


@torch.inference_mode()
def test_equals_timms_parts_with_these_settings():
    torch.manual_seed(0)
    theirs, ours, x = plain.build(size=64).eval(), create_model("astroformer_0_64").eval(), numbers(2, 3, 64, 64)
    state = theirs.state_dict()
    report = load_published(ours, state)
    assert set(report.matched) | set(report.dropped) == set(state)
    want = theirs(x)
    torch.testing.assert_close(ours(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def test_tables_of_another_size_are_resampled():
    report = load_published(create_model("astroformer_0"), plain.build(size=64).state_dict())
    assert len(report.resized) == 2
    assert all(name.endswith("mixer.table") for name in report.resized)
    mixer = RelativeAttention(8, 8, 4, (3, 5))
    assert mixer.resample("table", numbers(15, 2)) is None
    assert mixer.resample("table", numbers(25, 3)) is None
    assert mixer.resample("table", numbers(25, 2)).shape == (5 * 9, 2)


def test_bias_is_that_of_query_minus_key():
    mixer = RelativeAttention(8, 8, 4, (2, 3))
    bias, table = mixer.bias((2, 3)), mixer.table
    assert bias.shape == (1, 2, 6, 6)
    torch.testing.assert_close(bias[0, :, 5, 0], table[(1 + 1) * 5 + 2 + 2])  # from (1, 2) to (0, 0)
    torch.testing.assert_close(bias[0, :, 0, 5], table[0])
    assert offsets(1, 1).tolist() == [[0]]
    assert mixer.bias((4, 7)).shape == (1, 2, 28, 28)


def test_the_first_blocks_share_in_stochastic_depth():
    model = create_model("astroformer_0", drop_path_rate=0.11)
    stem, stages = model.backbone.stem, model.backbone.stages
    assert [stem.step.add.drop, *(b.add.drop for b in stages[0].blocks)] == pytest.approx([0, 0.01])
    assert [stages[1].down.add.drop, *(b.add.drop for b in stages[1].blocks)] == pytest.approx([0.02, 0.03, 0.04])
    assert stages[3].down.add1.drop == stages[3].down.add2.drop == pytest.approx(0.1)
    assert stages[3].blocks[0].add2.drop == pytest.approx(0.11)


@pytest.mark.parametrize("size", [(97, 131), (160, 288), (64, 64)])
@torch.inference_mode()
def test_any_size_goes(size):
    assert create_model("astroformer_0").eval()(numbers(1, 3, *size)).isfinite().all()


def test_at_odd_sides_a_mean_is_of_what_is_there():
    m = torch.arange(15.0).view(1, 3, 5, 1)
    assert halved(m)[0, :, :, 0].tolist() == [[3, 5, 6.5], [10.5, 12.5, 14]]
