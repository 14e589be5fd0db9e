"""SLAB: the authors' numbers, and what folding makes of its norms."""

from dataclasses import replace

import pytest
import torch
from golden import golden
from plain import slab as plain
from recorded import captured
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from vision_tiny import tiny_classifier

from patchloom.kernels.linear_attention import linear_attention, reference
from patchloom.vision.affine import Affine
from patchloom.vision.families.swin import computed
from patchloom.vision.mixers.simplified_linear import SimplifiedLinear
from patchloom.vision.model import Classifier
from patchloom.vision.prepbn import ProgressiveNorm, RepBN
from patchloom.vision.tokens import Tokens
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import VARIANTS, create_model, list_models, model_info

FACTS = {  # parameters; swin_tiny_prepbn: nobody states them, these are Swin's and those of its 29 norms
    "deit_tiny_prepbn": 5_717_441, "deit_small_prepbn": 22_069_889, "slab_deit_tiny": 6_198_401,
    "slab_deit_small": 22_992_641, "slab_swin_tiny": 29_216_605, "slab_swin_small": 50_552_965,
    "slab_swin_base": 89_029_373, "slab_pvt_tiny": 12_157_692, "swin_tiny_prepbn": 28_313_151,
}  # fmt: skip
STAGES = {f"stage{i + 1}": f"backbone.stages.{i}.blocks.{n - 1}" for i, n in enumerate((2, 2, 6, 2))}
PLACES = {
    "slab_deit_tiny": {
        "block0_attention": "backbone.stages.0.blocks.0.mixer",
        "block0": "backbone.stages.0.blocks.0",
        "block11": "backbone.stages.0.blocks.11",
    },
    "slab_swin_tiny": {**STAGES, "stage2_attention": "backbone.stages.1.blocks.1.mixer"},
    "slab_pvt_tiny": {
        **{f"stage{i + 1}": f"backbone.stages.{i}.blocks.1" for i in range(4)},
        "stage1_attention": "backbone.stages.0.blocks.0.mixer",
    },
}


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def judge(record, model, places, tolerance=1e-5):
    dtype = next(model.parameters()).dtype
    found = captured(model.eval(), record.input().to(dtype), places)
    assert set(found) == set(record.meta["outputs"])
    for name, value in found.items():
        b, _, *rest = record.meta["outputs"][name]["shape"]
        if len(rest) == 2:  # a map B C H W
            value = value.mT.reshape(b, -1, *rest)
        record.compare(name, value, tolerance)


@pytest.mark.parametrize("name", PLACES)
def test_matches_the_original(name):
    record, model = golden.load(f"slab/{name}"), create_model(name)
    report = load_published(model, record.state_dict())
    assert not report.fresh
    assert not report.resized
    assert report.dropped == (["cls_token"] if "deit" in name else [])
    judge(record, model, PLACES[name])
    # In float64: attention divides by sums of products that are nearly all 0, and these weights grow to 1e9 behind it
    judge(record, model.double().fold(), PLACES[name])


def test_two_blocks_of_deit_match_the_original():
    record, network = golden.load("slab/deit_tiny_prepbn_2_blocks"), VARIANTS["deit_tiny_prepbn"]
    network = replace(network, stages=(replace(network.stages[0], depth=2),))
    model = Classifier(network.backbone(3, 0.0), 1000, network.head)
    model.family = "slab"
    assert not load_published(model, record.state_dict()).fresh
    first = "backbone.stages.0.blocks.0"
    places = {"block0_attention": f"{first}.mixer", "block0": first, "block1": "backbone.stages.0.blocks.1"}
    judge(record, model, places, 3e-5)  # the record's own float32 is 1.7e-5 from what float64 gives


@pytest.mark.parametrize("name", ["slab_deit_tiny", "slab_swin_tiny", "slab_pvt_tiny"])
def test_a_whole_file_loads_with_its_counters(name):
    """Counters, swin's computed tables and all; a pyramid leaves head and last norm out."""
    record = golden.load(f"slab/{name}")
    state = record.state_dict()
    for n, e in record.meta["state"].items():
        if n.endswith((".warm", ".iter", ".num_batches_tracked")):
            state[n] = torch.tensor(0)
        elif n.endswith(".total_step"):
            state[n] = torch.tensor(1234)
        elif n.endswith(("relative_position_index", "attn_mask")):
            state[n] = computed(n, torch.zeros(e["shape"]), create_model("swin_tiny", device="meta"))
    assert set(state) == set(record.meta["state"])
    model = create_model(name)
    report = load_published(model, state)
    assert not report.fresh
    norms = [m for m in model.modules() if isinstance(m, ProgressiveNorm)]
    assert {int(m.total_step) for m in norms} == {1234}
    assert {int(m.iter) for m in norms} == {0}
    pyramid = create_model(name, features_only=True)
    assert not load_published(pyramid, state).fresh


@pytest.mark.parametrize("name", FACTS)
def test_parameters_are_as_stated(name):
    assert model_info(name).parameters == FACTS[name]


def test_every_variant_is_there():
    assert {n for n, v in VARIANTS.items() if v.family == "slab"} == set(FACTS) == set(list_models(module="slab"))


# ----------------------------------------------------------------------------------------------------------- folding


def statistics(model, seed=0):
    """Gives every batch norm and alpha numbers as training would."""
    torch.manual_seed(seed)
    for m in model.modules():
        if isinstance(m, RepBN):
            nn.init.normal_(m.bn.running_mean)
            nn.init.uniform_(m.bn.running_var, 0.5, 2)
            nn.init.normal_(m.bn.weight, 1, 0.2)
            nn.init.normal_(m.bn.bias, 0, 0.2)
            nn.init.normal_(m.alpha, 0.3, 0.1)
    return model.eval()


@pytest.mark.parametrize("name", FACTS)
@pytest.mark.parametrize("size", [(64, 64), (97, 131)])
@torch.inference_mode()
def test_folding_leaves_no_norm_and_the_same_numbers(name, size):
    model, x = statistics(tiny_classifier(name)), numbers(2, 3, *size)
    folded, want = model.fold(), model(x)
    kinds = (nn.LayerNorm, RepBN, ProgressiveNorm, Affine)
    assert not [n for n, m in folded.named_modules() if isinstance(m, kinds)]
    torch.testing.assert_close(folded(x), want, rtol=0, atol=1e-5 * float(want.abs().max()))
    torch.testing.assert_close(model(x), want, rtol=0, atol=0)


@torch.inference_mode()
def test_a_merging_without_bias_gains_one():
    down = tiny_classifier("slab_swin_tiny").fold().backbone.stages[1].down
    assert down.reduction.bias is not None


@torch.inference_mode()
def test_folding_without_a_head_keeps_the_last_norm_as_an_affine():
    model, x = statistics(tiny_classifier("slab_deit_tiny", classes=0)), numbers(2, 3, 64, 64)
    folded = model.fold()
    assert isinstance(folded.norm, Affine)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize(("n", "d"), [(1, 1), (17, 63), (63, 4), (49, 64), (196, 16)])
def test_linear_attention_takes_the_cheaper_order(n, d):
    q, k, v = (numbers(2, 3, n, d, seed=s).relu().double().requires_grad_() for s in range(3))
    got, want = linear_attention(q, k, v, 1e-6), reference(q, k, v, 1e-6)
    torch.testing.assert_close(got, want)
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (got, want)), strict=True):
        torch.testing.assert_close(a, b)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        linear_attention(q, k, v, 1e-6)
    assert counter.get_total_flops() <= 2 * 6 * (min(2 * n * n * d, 2 * n * d * d) + n * d)


def test_attention_is_its_formula():
    torch.manual_seed(0)
    mixer, x = SimplifiedLinear(2, (3, 5)).build(8, 0), numbers(2, 15, 8)
    nn.init.normal_(mixer.table)
    nn.init.normal_(mixer.qkv.weight)
    q, k, v = mixer.qkv(x).chunk(3, -1)
    want = torch.empty(2, 15, 8)
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        a = q[..., part].relu() @ (k + mixer.table)[..., part].relu().mT
        m = v[..., part].mT.reshape(2, 4, 3, 5)
        want[..., part] = a @ v[..., part] / (a.sum(-1, keepdim=True) + 1e-6) + mixer.dwc(m).flatten(2).mT
    torch.testing.assert_close(mixer(Tokens(x, (3, 5))), mixer.proj(want))


@torch.inference_mode()
def test_dead_queries_and_large_values_stay_finite():
    mixer = SimplifiedLinear(2, (3, 5)).build(8, 0).eval()
    nn.init.constant_(mixer.qkv.bias, -5)  # every q and k is 0
    assert mixer(Tokens(numbers(2, 15, 8), (3, 5))).isfinite().all()
    q, k = torch.full((1, 1, 4096, 8), 100.0).half(), torch.full((1, 1, 4096, 8), 100.0).half()
    assert torch.equal(linear_attention(q, k, q), q)  # sums of half precision would be infinite


@pytest.mark.parametrize("name", ["slab_deit_tiny", "slab_swin_tiny", "slab_pvt_tiny"])
@pytest.mark.parametrize("size", [(97, 131), (160, 288), (64, 64), (16, 16)])
@torch.inference_mode()
def test_any_size(name, size):
    model = tiny_classifier(name).eval()
    assert model(numbers(1, 3, *size)).isfinite().all()


def test_tables_are_made_for_the_size_that_is_asked_for_and_resampled_from_files():
    model = create_model("slab_swin_tiny", img_size=192)
    table = model.backbone.stages[1].blocks[0].mixer.table
    assert table.shape == (1, 24 * 24, 192)
    record = golden.load("slab/slab_swin_tiny")
    report = load_published(model, record.state_dict())
    assert len(report.resized) == 4
    assert not report.fresh
    pvt = create_model("slab_pvt_tiny", img_size=(96, 160), device="meta")
    assert [s.down.position.table.shape[1] for s in pvt.backbone.stages[1:]] == [12 * 20, 6 * 10, 3 * 5]


def test_tables_and_positions_take_no_weight_decay():
    spared = create_model("slab_pvt_tiny", device="meta").no_weight_decay()
    assert {"backbone.stages.0.blocks.0.mixer.table", "backbone.stages.1.down.position.table"} <= spared


# ------------------------------------------------------------------------------------------------------- plain form


def plain_name(ours: str) -> str:
    for old, new in (
        ("backbone.stages.0.", ""), ("backbone.stem.position.table", "place"), ("mixer.table", "attn.place"),
        ("backbone.stem.convolution.conv", "patches"), ("mixer.", "attn."), ("ffn.fc1", "mlp.0"), ("ffn.fc2", "mlp.2"),
        ("norm2.bn.", "bn."), ("norm2.alpha", "alpha"), (".iter", ".left"),
    ):  # fmt: skip
        ours = ours.replace(old, new)
    return ours


@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_the_plain_form_computes_the_same(training):
    ours, theirs = statistics(create_model("slab_deit_tiny")), plain.build("slab_deit_tiny")
    for m in ours.modules():
        if isinstance(m, ProgressiveNorm):
            m.iter.fill_(20_000)
    state = {plain_name(n): v for n, v in ours.state_dict().items() if not n.endswith((".warm", ".total_step"))}
    theirs.load_state_dict(state)
    x = numbers(2, 3, 224, 224)
    want = theirs.train(training)(x)
    torch.testing.assert_close(ours.train(training)(x), want, rtol=0, atol=1e-5 * float(want.abs().max()))
