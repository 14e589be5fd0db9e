"""DiT: the authors' numbers through the rules of their files, their parameters and multiply-adds, how it begins."""

import pytest
import torch
from golden import golden
from recorded import loaded

from patchloom.vision.generation.adaln import Modulation
from patchloom.vision.generation.dit import SIZES, DiT
from patchloom.vision.generation.gaussian import Gaussian
from patchloom.vision.generation.guidance import Guidance
from patchloom.vision.generation.guidance import guided as ask
from patchloom.vision.generation.position import plane
from patchloom.vision.generation.process import Level
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model, list_models, model_info

SLOW = {"dit_xl_2_256", "dit_b_4_256"}
RECORDS = [
    pytest.param(r, marks=pytest.mark.slow if r.split("/")[1] in SLOW else ())
    for r in golden.available() if r.startswith("dit/dit_")
]  # fmt: skip
PARAMETERS = {
    "s": (32_963_360, 32_945_024, 33_148_160), "b": (130_512_416, 130_475_648, 130_881_536),
    "l": (458_102_816, 458_053_760, 458_594_816), "xl": (675_129_632, 675_074_432, 675_683_072),
}  # fmt: skip
GIGA = {
    "s": (6.06, 1.41, 0.36), "b": (23.01, 5.56, 1.42), "l": (80.71, 19.70, 5.01), "xl": (118.64, 29.05, 7.39),
}  # fmt: skip


@pytest.mark.parametrize("path", RECORDS)
@torch.inference_mode()
def test_matches_the_original(path):
    record = golden.load(path)
    model, given = loaded(path.split("/")[1], record), record.input()
    x, t, y = given["x"], given["t"], given["y"]
    record.compare("output", model(x, t, y), 1e-5)
    both = torch.cat([x[:1], x[:1]])
    out = model(both, t, y)  # DiT's guidance: the first half's latents for both, three channels of four
    (cond, null), scale = out[:, :3].chunk(2), record.meta["config"]["cfg_scale"]
    guided = null + scale * (cond - null)
    record.compare("cfg", whole := torch.cat([torch.cat([guided, guided]), out[:, 3:]], 1), 1e-5)
    asked = ask(model, Gaussian(), y[:1], Guidance(scale, channels=3))(x[:1], Level(1.0, 0.0, float(t[0]), 0.0))
    torch.testing.assert_close(asked, whole[:1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("patch", [2, 4, 8])
def test_parameters_and_macs_are_the_published_ones(size, patch):
    info, column = model_info(f"dit_{size}_{patch}"), (2, 4, 8).index(patch)
    assert info.parameters == PARAMETERS[size][column]
    assert info.parameters - info.trainable == (32 // patch) ** 2 * SIZES[size][1]  # the table of places
    assert info.macs / 1e9 == pytest.approx(GIGA[size][column], rel=0.015)
    assert info.input == (4, 32, 32)


def test_the_large_one_at_512():
    info = model_info("dit_xl_2_512")
    assert info.parameters == 676_014_368
    assert info.macs / 1e9 == pytest.approx(524.6, rel=0.01)
    assert info.weights == ["in1k"]


def test_names():
    names = list_models("dit_*", kind="denoiser")
    assert len(names) == 4 * 3 * 2
    assert list_models("dit_*") == []
    assert list_models("dit_*", pretrained=True, kind="denoiser") == ["dit_xl_2_256.in1k", "dit_xl_2_512.in1k"]
    with pytest.raises(ValueError, match=r"no denoiser 'dit_xxl_2'; did you mean .*dit_xl_2"):
        create_model("dit_xxl_2")
    with pytest.raises(ValueError, match=r"drop_path_rate=0\.1 is for classifiers"):
        create_model("dit_s_8", drop_path_rate=0.1)
    with pytest.raises(TypeError, match="heads_"):
        create_model("dit_s_8", heads_=3)


def test_begins_as_published():
    model = DiT(2, 64, 4, 4, size=(16, 16), num_classes=10)
    x, t, y = torch.randn(2, 4, 16, 16), torch.tensor([5.0, 900.0]), torch.tensor([3, 10])
    assert torch.equal(model(x, t, y), torch.zeros(2, 8, 16, 16))
    for m in model.modules():
        if isinstance(m, Modulation):
            assert not m.linear.weight.any()
    block = model.backbone.stages[0].blocks[0]
    for layer in (block.mixer.qkv, block.ffn.fc1):
        bound = (6 / sum(layer.weight.shape)) ** 0.5  # Xavier's
        assert layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert not layer.bias.any()
    patches = model.backbone.stem.convolution.conv
    assert patches.weight.abs().max() <= (6 / (64 + 4 * 16)) ** 0.5
    for p in (model.labels.table.weight, model.time_embedding.fc1.weight, model.time_embedding.fc2.weight):
        assert p.std().item() == pytest.approx(0.02, rel=0.15)


def test_places_count_columns_first():
    table = plane((3, 5), 8)[0].unflatten(0, (3, 5))
    w = torch.tensor([1.0, 0.01])
    for row in range(3):
        for column in range(5):
            want = torch.cat([f(torch.tensor(a) * w) for a in (column, row) for f in (torch.sin, torch.cos)])
            torch.testing.assert_close(table[row, column], want)


def test_a_file_of_training_gives_its_average(tmp_path):
    made = {"depth": 1, "dim": 32, "heads": 2}
    record = golden.load("dit/dit_s_8_256")
    state = record.state_dict()
    torch.save({"model": {k: torch.zeros_like(v) for k, v in state.items()}, "ema": state}, tmp_path / "0400000.pt")
    model = create_model("dit_s_8_256", checkpoint_path=tmp_path / "0400000.pt")
    assert torch.equal(model.labels.table.weight, state["y_embedder.embedding_table.weight"])
    with pytest.raises(ValueError, match="these weights do not fit"):
        load_published(DiT(**made, patch=8), state)


def test_another_number_of_classes_leaves_the_labels_out():
    state = golden.load("dit/dit_s_8_256").state_dict()
    model = create_model("dit_s_8_256", num_classes=7)
    with pytest.raises(ValueError, match=r"labels.table.weight takes \(8, 384\)"):
        load_published(model, state)
    report = load_published(model, state, fresh_head=True)
    assert report.fresh == ["labels.table.weight"]


def test_another_size_computes_its_places():
    state = golden.load("dit/dit_s_8_256").state_dict()
    model = create_model("dit_s_8_512")
    assert load_published(model, state).resized == ["backbone.stem.position.table"]
    assert torch.equal(model.backbone.stem.position.table, plane((8, 8), 384))
