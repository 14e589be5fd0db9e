"""T2T-ViT: the authors' numbers, and what its stem does at other sizes."""

import pytest
import torch
import torch.nn.functional as F
from golden import golden
from plain import t2t as plain
from recorded import captured, loaded

from patchloom.kernels.linear_attention import exponential_features, linear_attention, reference
from patchloom.vision.position import sinusoid
from patchloom.vision.stems.t2t import SPLITS, soft_split
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model, list_models, model_info

PLACES = {"tokens1": "backbone.stem.layer1", "tokens2": "backbone.stem.layer2", "tokens": "backbone.stem.project"}
FACTS = {  # parameters, GMACs
    "t2t_vit_7": (4_310_222, 1.15), "t2t_vit_10": (5_889_230, 1.52), "t2t_vit_12": (6_941_902, 1.76),
    "t2t_vit_14": (21_545_550, 4.78), "t2t_vit_14_384": (21_691_470, 16.37), "t2t_vit_19": (39_177_422, 8.48),
    "t2t_vit_24": (64_105_934, 13.66), "t2t_vit_t_14": (21_541_070, 6.09), "t2t_vit_t_19": (39_172_942, 9.78),
    "t2t_vit_t_24": (64_101_454, 14.97), "t2t_vit_14_resnext": (21_545_550, 4.78),
    "t2t_vit_14_wide": (25_156_302, 5.23),
}  # fmt: skip


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", [
    "t2t_vit_7", "t2t_vit_7_narrow_tokens", "t2t_vit_t_14", pytest.param("t2t_vit_14_384", marks=pytest.mark.slow),
])  # fmt: skip
def test_matches_the_original(name):
    record = golden.load(f"t2t/{name}")
    model = loaded(name, record)
    last = f"backbone.stages.0.blocks.{model.backbone.specs[0].depth - 1}"
    found = captured(model, record.input(), {**PLACES, "sequence": last})
    assert set(found) == set(record.meta["outputs"])
    for place, value in found.items():
        record.compare(place, value, 1e-5)


def test_names_of_parallel_training_load():
    state = {f"module.{n}": v for n, v in golden.load("t2t/t2t_vit_7").state_dict().items()}
    assert not load_published(create_model("t2t_vit_7"), state).fresh
    load_published(create_model("t2t_vit_7", features_only=True), state)


def test_frozen_tensors_come_from_the_file_and_take_no_gradient():
    record = golden.load("t2t/t2t_vit_7")
    model, state = create_model("t2t_vit_7"), record.state_dict()
    load_published(model, state)
    assert torch.equal(model.backbone.stem.layer1.attention.w, state["tokens_to_token.attention1.w"])
    assert torch.equal(model.backbone.stem.position.table, state["pos_embed"])
    assert not {n for n, _ in model.named_parameters() if n.endswith((".w", "table"))}
    del state["tokens_to_token.attention1.w"]
    with pytest.raises(ValueError, match=r"nothing fills backbone\.stem\.layer1\.attention\.w"):
        load_published(create_model("t2t_vit_7"), state)


@pytest.mark.parametrize("name", FACTS)
def test_parameters_and_macs_are_as_stated(name):
    info = model_info(name)
    assert info.parameters == FACTS[name][0]
    assert info.macs / 1e9 == pytest.approx(FACTS[name][1], rel=0.01)


def test_every_published_variant_is_there():
    assert set(list_models("t2t*")) == set(FACTS)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("size", [(56, 56), (97, 131), (16, 9), (3, 3)])
def test_a_split_is_torchs_unfold(split, size):
    m = numbers(2, 5, *size)
    kernel, stride, padding = split
    want = F.unfold(m, kernel, stride=stride, padding=padding).transpose(1, 2)
    got = soft_split(m.permute(0, 2, 3, 1), *split)
    assert got.shape[1] == (size[0] + 2 * padding - kernel) // stride + 1
    assert torch.equal(got.flatten(1, 2), want)


def test_positions_begin_with_the_class_token():
    table = create_model("t2t_vit_7").backbone.stem.position.table
    assert table.shape == (1, 197, 256)
    assert torch.equal(table[0, 0], torch.tensor([0.0, 1.0]).repeat(128))
    assert float(table[0, 3, 7]) == pytest.approx(float(torch.tensor(3 / 10000 ** (6 / 256)).cos()))


@torch.inference_mode()
@pytest.mark.parametrize("size", [(97, 131), (160, 288), (64, 64), (17, 40), (1, 2)])
def test_positions_are_computed_anew_at_another_size(size):
    model = create_model("t2t_vit_7").eval()
    t = model.backbone.stem(torch.zeros(1, 3, *size))
    h, w = t.grid
    bare = model.backbone.stem.project(torch.zeros(576))  # of shape only
    assert t.x.shape == (1, 1 + h * w, bare.shape[0])
    assert torch.equal(model.backbone.stem.position.resized((h, w)), sinusoid(1 + h * w, 256))
    assert model(torch.zeros(1, 3, *size)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_attention_is_its_reference(dtype):
    for n, m in ((1, 1), (17, 63), (63, 17)):
        q, k = (numbers(2, 3, c, 8, seed=c).abs().to(dtype).requires_grad_() for c in (n, m))
        v = numbers(2, 3, m, 5, seed=9).to(dtype).requires_grad_()
        got, want = linear_attention(q, k, v, 1e-8), reference(q, k, v, 1e-8)
        torch.testing.assert_close(got, want)
        for a, b in zip(*(torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (got, want)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_sums_of_half_precision_are_float32():
    x, w = numbers(1, 40, 8).bfloat16(), numbers(4, 8, seed=1)
    phi = exponential_features(x, w)
    assert phi.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(exponential_features(x, w), phi)
        assert torch.equal(linear_attention(phi, phi, x), linear_attention(phi, phi, x.float()).bfloat16())


def test_random_features_estimate_the_softmax_kernel():
    q, k = numbers(8).mul(0.3), numbers(8, seed=1).mul(0.3)
    w = numbers(20000, 8, seed=2)
    got = exponential_features(q, w) @ exponential_features(k, w)
    assert float(got) == pytest.approx(float((q @ k).exp()), rel=0.05)


def test_the_random_matrix_is_orthogonal():
    w = create_model("t2t_vit_7").backbone.stem.layer2.attention.w
    torch.testing.assert_close(w @ w.T, 32 * torch.eye(32), rtol=0, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_t_14"])
def test_the_plain_form_computes_the_same(name):
    torch.manual_seed(0)
    ours, theirs = create_model(name).eval(), plain.build(name).eval()
    theirs.load_state_dict({plain_name(n): v for n, v in ours.state_dict().items()})
    x = numbers(2, 3, 224, 224)
    want = theirs(x)
    torch.testing.assert_close(ours(x), want, rtol=0, atol=1e-5 * float(want.abs().max()))


def plain_name(ours: str) -> str:
    for old, new in (
        ("backbone.stages.0.", ""), ("backbone.stem.position.table", "place"),
        ("backbone.stem.position.tokens.0", "token"),
        ("backbone.stem.", ""), ("mixer.", ""), ("attention.", ""), ("ffn.", "mlp."), ("fc1.", "0."), ("fc2.", "2."),
    ):  # fmt: skip
        ours = ours.replace(old, new)
    return ours
