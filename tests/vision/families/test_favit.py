"""FaViT: the authors' numbers, its sizes, and the windows whose mean is none."""

import pytest
import torch
import torch.nn.functional as F
from golden import golden
from plain import favit as plain
from recorded import agree, captured, sizes_are

from patchloom.vision.mixers.factorized import FactorizedAttention, LocalPath, window_places
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import VARIANTS, create_model, list_models

FACTS = {  # parameters, GMACs at 224
    "favit_b0": (3_427_704, 0.63),
    "favit_b1": (12_958_568, 2.34),
    "favit_b2": (24_919_896, 4.46),
    "favit_b3": (48_746_440, 8.51),
}


@pytest.mark.parametrize("name", ["favit_b0", "favit_b2"])
@torch.inference_mode()
def test_matches_the_original(name):
    record = golden.load(f"favit/{name}")
    state, x = record.state_dict(), record.input()
    model, pyramid = create_model(name).eval(), create_model(name, features_only=True).eval()
    report = load_published(model, state)
    assert not report.fresh
    assert not report.dropped
    report = load_published(pyramid, state)
    assert not report.fresh
    assert report.dropped == ["head.weight", "head.bias"]
    found = {f"stage{i}": y for i, y in enumerate(pyramid(x), 1)} | {"logits": model(x)}
    agree(record, found)
    record.compare("logits", model.fold()(x), 1e-5)


def test_sizes_are_the_papers():
    assert set(list_models("favit*")) == set(FACTS)
    sizes_are(FACTS)
    assert [VARIANTS[n].drop_path for n in FACTS] == [0.1, 0.1, 0.1, 0.3]


@torch.inference_mode()
def test_is_the_plain_network():
    torch.manual_seed(0)
    theirs, ours = plain.build().eval(), create_model(plain.VARIANT).eval()
    assert not load_published(ours, theirs.state_dict()).fresh
    x = torch.randn(2, 3, 224, 256)
    want = theirs(x)
    torch.testing.assert_close(ours(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def test_norms_have_the_published_eps():
    model = create_model("favit_b0", device="meta")
    eps = {n: m.eps for n, m in model.named_modules() if isinstance(m, torch.nn.LayerNorm)}
    for name, value in eps.items():
        assert value == (1e-5 if "convolution" in name or "broad" in name else 1e-6), name


@pytest.mark.parametrize(("side", "dilation"), [(56, 1), (56, 8), (25, 4), (14, 2), (9, 1), (48, 8)])
def test_windows_are_those_of_a_reflected_map(side, dilation):
    span = 6 * dilation + 1
    padded = F.pad(torch.arange(float(side))[None], (0, -side % span), mode="reflect")
    want = padded.unfold(1, span, span)[0, :, ::dilation]
    assert window_places(side, dilation).tolist() == want.flatten().tolist()


def test_small_maps_are_reflected_as_often_as_it_takes():
    assert window_places(3, 1).tolist() == [0, 1, 2, 1, 0, 1, 2]
    assert window_places(2, 2).tolist() == [0, 0, 0, 0, 0, 0, 0]
    assert window_places(1, 8).tolist() == [0] * 7


def test_keys_are_averaged_in_runs_over_windows_and_channels():
    path, m = LocalPath(6, 2, 1), torch.randn(1, 14, 21, 6)
    got = path.places(m)
    windows = F.unfold(m.permute(0, 3, 1, 2), 7, stride=7).view(1, 2, 3, 49, 6).permute(0, 1, 3, 4, 2)  # B h 49 L e
    want = F.adaptive_avg_pool1d(windows.reshape(2, 49, -1), 3).view(1, 2, 49, 3)
    torch.testing.assert_close(got, want)
    assert not torch.allclose(got, windows.mean(3))


@pytest.mark.parametrize("size", [(97, 131), (160, 288), (64, 64), (32, 32), (17, 300)])
@torch.inference_mode()
def test_takes_any_size(size):
    assert create_model("favit_b0").eval()(torch.randn(1, 3, *size)).isfinite().all()


def test_begins_as_published():
    model = create_model("favit_b0")
    stem = model.backbone.stem.convolution.conv
    assert stem.weight.std().item() == pytest.approx((2 / (49 * 32)) ** 0.5, rel=0.05)
    assert not stem.bias.any()


def test_a_width_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="dim 40, heads 1, reduction 2"):
        FactorizedAttention(40, 1, 2)


@torch.inference_mode()
def test_stages_are_normalised():
    model = create_model("favit_b0").eval()
    found = captured(model, torch.randn(1, 3, 64, 64), {"norm": "backbone.stages.3.norm"})
    torch.testing.assert_close(model.head(found["norm"].mean(1)), found["logits"])
