"""SVT: the authors' numbers, its sizes, gates of other grids, and its token labels."""

import pytest
import torch
from golden import golden
from plain import svt as plain
from recorded import agree, captured, sizes_are

from patchloom.kernels.dtcwt import analyse, synthesise
from patchloom.vision.mixers.scattering import Scattering
from patchloom.vision.plugins import SeamError
from patchloom.vision.tokens import Tokens
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model, list_models

FACTS = {  # parameters, GMACs at 224 with the wavelet filters as convolutions
    "svt_s": (22_052_592, 5.13),
    "svt_b": (32_878_544, 7.68),
    "svt_l": (54_594_000, 15.75),
}


@pytest.mark.parametrize("name", ["svt_s", "svt_l"])
@torch.inference_mode()
def test_matches_the_original(name):
    record = golden.load(f"svt/{name}")
    state, x = record.state_dict(), record.input()
    model, pyramid = create_model(name).eval(), create_model(name, features_only=True).eval()
    report = load_published(model, state)
    assert not report.fresh
    assert not load_published(pyramid, state).fresh
    found = captured(model, x, {"block1.0.attn": "backbone.stages.0.blocks.0.mixer"})
    found |= {f"stage{i}": y for i, y in enumerate(pyramid(x), 1)}
    agree(record, found)
    record.compare("logits", model.fold()(x), 1e-5)


def test_filters_in_a_file_are_dropped():
    record = golden.load("svt/svt_s")
    filters = {k: torch.zeros(e["shape"]) for k, e in record.meta["state"].items() if ".xfm." in k or ".ifm." in k}
    assert len(filters) == 36
    report = load_published(create_model("svt_s"), record.state_dict() | filters)
    assert report.dropped == list(filters)


def test_sizes_are_the_papers():
    assert set(list_models("svt*")) == set(FACTS)
    sizes_are(FACTS)


@torch.inference_mode()
def test_is_the_plain_network():
    torch.manual_seed(0)
    theirs, ours = plain.build().eval(), create_model(plain.VARIANT).eval()
    assert not load_published(ours, theirs.state_dict()).fresh
    x = torch.randn(2, 3, 224, 224)
    want = theirs(x)
    torch.testing.assert_close(ours(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


@torch.inference_mode()
def test_without_token_labels():
    with_head, without = create_model("svt_s").eval(), create_model("svt_s_no_token_label").eval()
    state = golden.load("svt/svt_s").state_dict()
    load_published(with_head, state)
    load_published(without, {k: v for k, v in state.items() if not k.startswith("aux_head")})
    x = torch.randn(1, 3, 64, 64)
    t = with_head.features(x)
    assert t.special == (0,)
    torch.testing.assert_close(without(x), with_head.head(t.x[:, 0]))
    torch.testing.assert_close(with_head(x), without(x) + 0.5 * with_head.head_patches(t.x[:, 1:]).amax(1))


@pytest.mark.parametrize("grid", [(8, 12), (7, 9), (1, 1), (3, 130)])
def test_the_mixer_is_its_formula_on_any_grid(grid):
    torch.manual_seed(0)
    mixer, x = Scattering(16, grid).double(), torch.randn(2, grid[0] * grid[1], 16).double()
    for p in mixer.parameters():
        torch.nn.init.normal_(p)
    low, high = analyse(x.unflatten(1, grid))
    z = torch.complex(high[:, 0], high[:, 1]).unflatten(-1, (4, 4))
    for weight, bias, act in ((mixer.weight1, mixer.bias1, True), (mixer.weight2, mixer.bias2, False)):
        z = torch.einsum("...nb,nbc->...nc", z, torch.complex(*weight)) + torch.complex(*bias)
        z = torch.complex(z.real.relu(), z.imag.relu()) if act else z
    z = z.flatten(-2)
    want = synthesise(low * mixer.gate, torch.stack([z.real, z.imag], 1))[:, : grid[0], : grid[1]].flatten(1, 2)
    torch.testing.assert_close(mixer(Tokens(x, grid)), want)


def test_gates_are_made_for_the_grid_that_is_asked_for():
    model = create_model("svt_s", img_size=(96, 132))
    gate = model.backbone.stages[0].blocks[0].mixer.gate
    assert gate.shape == (24, 34, 64)  # 24 x 33, made even
    state = golden.load("svt/svt_s").state_dict()
    report = load_published(model, state)
    assert [n for n in report.resized if n.endswith("gate")] == report.resized
    assert len(report.resized) == 3
    other = create_model("svt_s")
    load_published(other, state)
    x = torch.randn(1, 3, 96, 132)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(x), other.eval()(x), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_smooth_gate_keeps_its_values_on_another_grid():
    mixer = Scattering(8, (14, 14))
    mixer.gate.fill_(0.7)
    torch.testing.assert_close(mixer.resized((20, 10)), torch.full((20, 10, 8), 0.7))


def test_merging_is_refused_where_the_mlp_needs_the_grid():
    with pytest.raises(SeamError, match="full grid"):
        create_model("svt_s", tokens="tome:r=8")
