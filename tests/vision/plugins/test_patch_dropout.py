import pytest
import torch
from vision_tiny import tiny_classifier

from patchloom.vision.plugins import SeamError, attach, attached, hosts_of, plugin
from patchloom.vision.plugins.patch_dropout import PatchDropout, PatchDropoutLayer
from patchloom.vision.tokens import Tokens, unmerge
from patchloom.vision.zoo import create_model


def test_evaluation_sees_all_and_training_a_part():
    model = create_model("deit_tiny_patch16_224", num_classes=10, img_size=64, drop_path_rate=0.0).eval()
    x, seen = torch.randn(2, 3, 64, 64), []
    for host in hosts_of(model):
        host.block.register_forward_hook(lambda _m, _i, t: seen.append(t.x.shape[1]))
    with torch.no_grad():
        plain = model(x)
        with attached(model, PatchDropout(0.3)):
            assert torch.equal(model(x), plain)
            seen.clear()
            assert not torch.equal(model.train()(x), plain)
            assert seen == [1 + 4] * 12  # int(0.3 * 16)
        with attached(model, PatchDropout(1.0)):
            torch.testing.assert_close(model(x), plain)


@pytest.mark.parametrize(("special", "leads"), [((), 0), ((0,), 0), ((6,), 3), ((12, 13), 6)])
@pytest.mark.parametrize("ordered", [False, True])
def test_each_image_keeps_others_at_every_step(special, leads, ordered):
    k, layer = len(special), PatchDropoutLayer(0.5, ordered)
    t = Tokens(torch.randn(8, 12 + k, 4), (3, 4), special)
    torch.manual_seed(1)
    out = layer(t)
    assert out.special == tuple(range(leads, leads + k))
    assert torch.equal(out.x[:, list(out.special)], t.x[:, list(special)])
    here = out.source >= 0
    assert (here.sum(1) == 6).all()
    assert len(here.unique(dim=0)) > 4
    torch.testing.assert_close(unmerge(out), t.patches() * here[..., None])
    places = torch.stack([s[s >= 0] for s in out.source])  # of the patches in the order of the grid
    assert torch.equal(places, places.sort(1).values) is ordered
    assert not torch.equal(layer(t).source, out.source)
    torch.manual_seed(1)
    assert torch.equal(layer(t).source, out.source)
    assert layer.eval()(t) is t


def test_every_patch_is_kept_as_often_as_any():
    t = Tokens(torch.zeros(4000, 12, 1), (3, 4))
    here = PatchDropoutLayer(0.25, True)(t).source >= 0
    assert (here.float().mean(0) - 0.25).abs().max() < 0.035


def test_one_patch_stays_at_least():
    assert PatchDropoutLayer(0.01, True)(Tokens(torch.zeros(1, 13, 2), (3, 4), (0,))).x.shape[1] == 2


@pytest.mark.parametrize("name", ["vim_tiny", "vmamba_tiny_s1l8", "cct_7_3x1_32", "vir_small_patch16_224", "sret_t"])
def test_it_trains_other_hosts(name):
    model, counts = tiny_classifier(name).train(), []
    hosts_of(model)[0].block.register_forward_hook(lambda _m, _i, t: counts.append(t.x.shape[1]))
    with attached(model, PatchDropout(0.5)):
        model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert len(set(counts)) == 1  # also where a block runs twice in a row
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("name", ["swin_tiny", "poolformer_s12", "randformer_s12"])
def test_others_are_refused_by_name(name):
    with torch.device("meta"):
        model = create_model(name)
    with pytest.raises(SeamError, match=r"stages\.\d\.blocks\.0: \w+ needs a full grid"):
        attach(model, PatchDropout())
    assert all(getattr(h.block, seam) is None for h in hosts_of(model) for seam in h.block.seams)


def test_settings():
    assert plugin("patch_dropout:keep=0.75,ordered=false") == PatchDropout(0.75, False)
    with pytest.raises(ValueError, match="above 0 and up to 1"):
        PatchDropout(0.0)
