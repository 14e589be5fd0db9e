"""RMT: the authors' numbers, its sizes, attention in rows and columns, and its detection form."""

import pytest
import torch
from golden import golden
from plain import rmt as plain
from recorded import captured, loaded, sizes_are

from patchloom.vision.mixers.manhattan import ManhattanAttention, angles, decays, turns_of
from patchloom.vision.tokens import Tokens
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import VARIANTS, create_model, list_models

# Parameters, and GMACs at 224 as we count them. The authors report 2.5, 4.5, 9.7 and 18.2: less, by the depthwise
# convolutions and the products of attention that their counter does not see.
FACTS = {
    "rmt_tiny": (14_334_216, 2.64),
    "rmt_small": (26_967_240, 4.78),
    "rmt_base": (54_154_896, 10.37),
    "rmt_large": (95_464_864, 19.49),
    "rmt_small_token_label": (27_992_240, 4.83),
    "rmt_base_token_label": (54_667_896, 10.40),
    "rmt_large_token_label": (96_105_864, 19.52),
}
RECORDS = ["rmt_tiny", "rmt_base", pytest.param("rmt_large_token_label", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", RECORDS)
def test_matches_the_original(name):
    record = golden.load(f"rmt/{name}")
    model = loaded(name, record)
    places = {}
    for i, stage in enumerate(VARIANTS[name].stages):
        last = f"backbone.stages.{i}.blocks.{stage.depth - 1}"
        places |= {f"stage{i + 1}_first": f"backbone.stages.{i}.blocks.0", f"stage{i + 1}": last}
        places |= {f"stage{i + 1}_mixer": f"{last}.mixer", f"stage{i + 1}_mlp": f"{last}.ffn"}
    found = captured(model, record.input(), places)
    assert set(found) == set(record.meta["outputs"])
    for output, value in found.items():
        if output != "logits":
            value = value.unflatten(1, (56 >> int(output[5]) - 1,) * 2)
            value = value if output.endswith(("mixer", "mlp")) else value.permute(0, 3, 1, 2)
        record.compare(output, value, 1e-5)


@pytest.mark.slow
def test_sizes_are_the_papers():
    assert set(list_models("rmt*")) == set(FACTS)
    sizes_are(FACTS)


@torch.inference_mode()
def test_is_the_plain_network():
    torch.manual_seed(0)
    theirs, ours = plain.build().eval(), create_model(plain.VARIANT).eval()
    report = load_published(ours, theirs.state_dict())
    assert not report.fresh
    assert len(report.dropped) == 8  # angle and decay of four stages, compared with ours
    x = torch.randn(2, 3, 97, 131)
    want = theirs(x)
    torch.testing.assert_close(ours(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def test_another_stages_decay_is_refused():
    model = create_model("rmt_tiny")
    state = plain.build().state_dict()
    state["layers.3.Relpos.decay"] = state["layers.3.Relpos.decay"] * 2
    with pytest.raises(ValueError, match=r"Relpos\.decay is not the table"):
        load_published(model, state)


@torch.inference_mode()
def test_the_detection_form_has_a_norm_behind_each_stage():
    state, x = plain.build().eval().state_dict(), torch.randn(1, 3, 96, 128)
    bare = {n: v for n, v in state.items() if n.split(".")[0] not in ("proj", "norm", "head")}
    norms = {
        f"extra_norms.{i}.{k}": torch.rand(d) for i, d in enumerate((64, 128, 256, 512)) for k in ("weight", "bias")
    }
    dense = create_model("rmt_tiny", features_only=True, dense=True).eval()
    report = load_published(dense, bare | norms)
    assert not report.fresh
    plain_maps = create_model("rmt_tiny", features_only=True).eval()
    assert set(load_published(plain_maps, state).dropped) >= {"proj.weight", "norm.weight", "head.weight"}
    for i, (got, m) in enumerate(zip(dense(x), plain_maps(x), strict=True)):
        weight, bias = norms[f"extra_norms.{i}.weight"], norms[f"extra_norms.{i}.bias"]
        want = torch.nn.functional.layer_norm(m.permute(0, 2, 3, 1), weight.shape, weight, bias)
        torch.testing.assert_close(got, want.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-5)


def test_only_the_last_stages_of_base_and_large_are_scaled():
    for name, network in VARIANTS.items():
        if network.family == "rmt":
            scaled = [s.scale for s in network.stages]
            assert scaled == [None, None, *(1e-6 if "base" in name or "large" in name else None,) * 2]


def test_decomposed_attention_in_a_single_row_is_attention():
    torch.manual_seed(0)
    whole, parts = ManhattanAttention(16, 2, 4), ManhattanAttention(16, 2, 4, decomposed=True)
    for p in whole.parameters():
        torch.nn.init.normal_(p, std=0.5)
    parts.load_state_dict(whole.state_dict())
    t = Tokens(torch.randn(2, 9, 16), (1, 9))
    torch.testing.assert_close(whole(t), parts(t))
    t = Tokens(t.x, (9, 1))
    torch.testing.assert_close(whole(t), parts(t))
    t = Tokens(t.x, (3, 3))
    assert not torch.allclose(whole(t), parts(t), atol=1e-4)


def test_tables_are_the_published_formulas():
    torch.testing.assert_close(torch.from_numpy(angles(32)), 1.0 / 10000 ** torch.linspace(0, 1, 16), rtol=1e-6, atol=0)
    want = torch.log(1 - 2 ** -(2 + 6 * torch.arange(8) / 8))
    torch.testing.assert_close(torch.from_numpy(decays(8, 2, 6)), want)
    turns = torch.from_numpy(turns_of(50, 8))
    torch.testing.assert_close(turns[49, 0], torch.tensor([0.3006, -0.9538]), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_token_labels_count_half_and_serve_training():
    model = create_model("rmt_tiny").eval()
    assert model.head_patches is None
    for name, width in (("rmt_base_token_label", 512), ("rmt_small_token_label", 1024)):
        model = create_model(name, num_classes=5, device="meta")
        assert model.head_patches.in_features == width
    model = create_model("rmt_small_token_label", num_classes=5).eval()
    x = torch.randn(1, 3, 64, 64)
    tokens = model.widen(model.features(x).x)
    want = model.head(tokens.mean(1)) + 0.5 * model.head_patches(tokens).amax(1)
    torch.testing.assert_close(model(x), want)
    model.train().set_patch_training()
    logits, each = model(torch.cat([x, x]))
    assert logits.shape == (2, 5)
    assert each.shape == (2, 4, 5)


@torch.inference_mode()
def test_folding_changes_nothing_and_leaves_no_branch():
    model, x = create_model("rmt_tiny").eval(), torch.randn(1, 3, 97, 131)
    load_published(model, golden.load("rmt/rmt_tiny").state_dict())
    folded, want = model.fold(), model(x)
    torch.testing.assert_close(folded(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
    assert not any(getattr(m, "residual", False) for m in folded.modules())
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in folded.modules())
