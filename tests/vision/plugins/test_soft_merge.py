from dataclasses import replace

import pytest
import torch
from golden import golden
from torch import Tensor, nn
from vision_tiny import tiny_classifier

from patchloom.vision.plugins import SeamError, attach, attached, hosts_of, plugin
from patchloom.vision.plugins.soft_merge import SoftMerge, SoftMergeLayer
from patchloom.vision.tokens import Tokens, unmerge
from patchloom.vision.zoo import create_model


def weights(layer: SoftMergeLayer, x: Tensor) -> Tensor:
    """B n K, by the formula."""
    score = layer.fc2(nn.functional.gelu(layer.fc1(layer.norm(x)))).exp()
    return score / score.sum(1, keepdim=True)


@pytest.mark.parametrize(("special", "leads"), [((), 0), ((0,), 0), ((0, 1), 0), ((6,), 2), ((12,), 5)])
def test_tokens_are_weighted_sums_and_patches_come_back_by_their_shares(special, leads):
    layer, k = SoftMergeLayer(8, 5, 16), len(special)
    t = Tokens(torch.randn(2, 12 + k, 8), (3, 4), special)
    out, w = layer(t), weights(layer, t.patches())
    assert out.special == tuple(range(leads, leads + k))
    assert torch.equal(out.x[:, list(out.special)], t.x[:, list(special)])
    torch.testing.assert_close(out.patches(), w.mT @ t.patches())
    share = w / w.sum(2, keepdim=True)
    torch.testing.assert_close(unmerge(out), share @ out.patches())
    torch.testing.assert_close(replace(out, x=out.size).patches()[..., 0], share.sum(1))
    torch.testing.assert_close(out.size.sum(1), torch.full((2, 1), 12.0 + k))
    assert (out.size[:, list(out.special)] == 1).all()
    assert (out.grid, out.full, out.source) == (None, (3, 4), None)
    torch.testing.assert_close(out.whole(), (share @ out.patches()).unflatten(1, (3, 4)))


def test_a_map_of_one_colour_comes_back_as_it_was():
    t = Tokens(torch.randn(2, 1, 8).expand(-1, 12, -1), (3, 4))
    torch.testing.assert_close(unmerge(SoftMergeLayer(8, 5, 16)(t)), t.x)


def test_tokens_differ_from_the_start():
    out = SoftMergeLayer(64, 8, 64)(Tokens(torch.randn(1, 196, 64), (14, 14))).x[0]
    alike = nn.functional.cosine_similarity(out[:, None], out[None], dim=-1)
    assert alike[~torch.eye(8, dtype=torch.bool)].max() < 0.9


def test_sizes_that_came_count():
    layer, x = SoftMergeLayer(8, 3, 16), torch.randn(1, 6, 8)
    once = layer(Tokens(x, (2, 3), size=torch.tensor([2.0, 1, 1, 1, 1, 3])[None, :, None]))
    several = layer(Tokens(x[:, [0, 0, 1, 2, 3, 4, 5, 5, 5]], (3, 3)))
    torch.testing.assert_close(once.x, several.x)
    torch.testing.assert_close(once.size, several.size)


def test_patches_that_were_gone_stay_so_and_sums_of_sums_are_sums():
    layer, x = SoftMergeLayer(8, 3, 16), torch.randn(1, 7, 8)
    plain = layer(Tokens(x, (2, 3), (0,)))
    dropped = layer(Tokens(x, None, (0,), source=torch.tensor([[1, 2, -1, 3, 4, 5, 6, 6]]), full=(2, 4)))
    want = unmerge(plain)[:, [0, 1, 1, 2, 3, 4, 5, 5]]
    want[:, 2] = 0
    torch.testing.assert_close(unmerge(dropped), want)
    spread = torch.rand(1, 10, 7) * (torch.arange(7) > 0)
    torch.testing.assert_close(
        unmerge(layer(Tokens(x, None, (0,), spread=spread, full=(2, 5)))), spread[..., 1:] @ unmerge(plain)
    )


def test_as_many_tokens_as_patches_change_nothing():
    model = create_model("deit_tiny_patch16_224", num_classes=10, img_size=64).eval()
    x, seen = torch.randn(2, 3, 64, 64), []
    hosts_of(model)[-1].block.register_forward_hook(lambda _m, _i, t: seen.append(t))
    names = list(model.state_dict())
    with torch.inference_mode():
        plain = model(x)
        with attached(model, SoftMerge(16)):
            assert torch.equal(model(x), plain)
        with attached(model, SoftMerge(7, at=4)):
            assert list(model.state_dict()) != names
            assert not torch.allclose(model(x), plain)
            torch.testing.assert_close(model(x)[1:], model(x[1:]), rtol=1e-4, atol=1e-5)
    assert seen[-1].x.shape[1] == 1 + 7
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "cct_14_7x2_224", "vim_tiny", "sret_t", "caformer_s18"])
def test_its_parameters_train_in_every_host(name):
    model = golden.fill_module(tiny_classifier(name)).train()
    before, x = set(model.parameters()), torch.randn(4, 3, 64, 64)
    attach(model, SoftMerge(3))
    own = {n: p for n, p in model.named_parameters() if p not in before}
    assert len(own) == 5
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert [n for n, p in own.items() if not p.grad.any() or not p.grad.isfinite().all()] == []


def test_scores_far_apart_stay_finite():
    layer = SoftMergeLayer(8, 5, 16)
    nn.init.normal_(layer.fc2.weight, std=1e4)
    x = torch.randn(1, 12, 8, requires_grad=True)
    out = layer(Tokens(x, (3, 4)))
    (out.x.sum() + out.size.log().sum() + unmerge(out).sum()).backward()
    assert x.grad.isfinite().all()


def test_others_are_refused_by_name():
    with torch.device("meta"):
        model = create_model("swin_tiny")
    with pytest.raises(SeamError, match=r"stages\.3\.blocks\.1: WindowAttention needs a full grid"):
        attach(model, SoftMerge())
    assert all(getattr(h.block, seam) is None for h in hosts_of(model) for seam in h.block.seams)


def test_settings():
    assert plugin("soft_merge:tokens=8,at=3") == SoftMerge(8, 3)
    for options, words in (({"tokens": 0}, "tokens=0: 1 or more"), ({"at": -1}, "at=-1: 0 or more"),
                           ({"hidden": 0}, "hidden=0: 1 or more")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            SoftMerge(**options)
    with pytest.raises(ValueError, match="has 12 blocks, 0 to 11"):
        attach(create_model("deit_tiny_patch16_224", img_size=32), SoftMerge(at=12))
