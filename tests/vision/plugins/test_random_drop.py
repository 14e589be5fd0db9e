from dataclasses import replace

import pytest
import torch
from golden import golden
from torch import nn
from vision_tiny import tiny_classifier

from patchloom.vision.plugins import SeamError, attach, attached, hosts_of, plugin
from patchloom.vision.plugins.evit import Evit
from patchloom.vision.plugins.merge import Merge
from patchloom.vision.plugins.random_drop import RandomDrop, RandomLayer
from patchloom.vision.tokens import Tokens, unmerge
from patchloom.vision.zoo import create_model


@torch.inference_mode()
def counts(model: nn.Module, settings: object, x: torch.Tensor) -> list[int]:
    """How many tokens each block leaves."""
    seen: list[int] = []
    hooks = [h.block.register_forward_hook(lambda _m, _i, t: seen.append(t.x.shape[1])) for h in hosts_of(model)]
    with attached(model, settings):
        model(x)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("random:r=2", Merge(2)),
        ("random:r=16", Merge(16)),  # more than there are
        ("random:r=2,inflect=-1", Merge(2, -1)),
        ("random:r=3+0+1", Merge((3, 0, 1))),
        ("random", Evit(fuse=False)),
        ("random:keep=0.6,at=1+3", Evit(0.6, False, (1, 3))),
    ],
)
def test_as_many_stay_as_the_method_leaves_that_it_is_compared_with(ours, theirs):
    x = torch.randn(1, 3, 64, 64)
    for name in ("deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"):
        model = create_model(name, img_size=64).eval()
        assert counts(model, plugin(ours), x) == counts(model, theirs, x)


def test_the_choice_goes_by_seed_block_and_number():
    def kept(layer: RandomLayer, images: int, n: int = 30) -> torch.Tensor:
        return layer(Tokens(torch.arange(n).float()[None, :, None].expand(images, -1, 2), None), {}).x[..., 0]

    layer = RandomLayer(0, 0.5, "0 3").eval()
    first = kept(layer, 3)
    assert torch.equal(first, first[:1].expand(3, -1))  # the same of all images
    assert torch.equal(first, first.sort(1).values)
    assert torch.equal(kept(layer, 1), first[:1])
    assert torch.equal(kept(RandomLayer(0, 0.5, "0 3").eval(), 1), first[:1])
    for other in ("1 3", "0 4"):
        assert not torch.equal(kept(RandomLayer(0, 0.5, other).eval(), 1), first[:1])
    layer.train()
    drawn = kept(layer, 3)
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn, drawn.sort(1).values)
    assert not torch.equal(kept(layer, 3), drawn)


def test_every_patch_and_every_pair_is_kept_as_often_as_any():
    rounds, n = 4000, 12
    chosen = torch.stack([RandomLayer(0, 1, f"{s} 0").chosen(n, 6, torch.device("cpu")) for s in range(rounds)])
    kept = torch.zeros(rounds, n).scatter(1, chosen, 1.0)
    assert kept.sum(1).unique().tolist() == [6]
    together = kept.T @ kept / rounds
    assert (together.diagonal() - 0.5).abs().max() < 0.035  # four deviations
    apart = together[~torch.eye(n, dtype=torch.bool)]
    assert (apart - 6 * 5 / (12 * 11)).abs().max() < 0.03


@pytest.mark.parametrize(("special", "leads"), [((), 0), ((0,), 0), ((0, 1), 0), ((6,), 3), ((12,), 6), ((12, 13), 6)])
@pytest.mark.parametrize("training", [False, True])
def test_special_tokens_keep_their_place_and_patches_theirs_on_the_map(special, leads, training):
    k = len(special)
    t = Tokens(torch.randn(2, 12 + k, 4), (3, 4), special)
    out = RandomLayer(0, 0.5, "7 0").train(training)(t, {})
    assert out.special == tuple(range(leads, leads + k))
    assert torch.equal(out.x[:, list(out.special)], t.x[:, list(special)])
    assert out.grid is None
    assert out.full == (3, 4)
    back, here = unmerge(out), out.source >= 0
    assert here.sum(1).tolist() == [6, 6]
    torch.testing.assert_close(back, t.patches() * here[..., None])
    assert torch.equal(out.patches().flatten(), t.patches()[here].flatten())  # in their order


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("vim_tiny", "random:r=2"),
        ("plainmamba_l1", "random:keep=0.5,at=1"),
        ("vmamba_tiny_s1l8", "random:r=2+1+0+3"),
        ("cct_7_3x1_32", "random:r=2"),
        ("t2t_vit_7", "random:keep=0.5"),
        ("vir_small_patch16_224", "random:keep=0.5"),
        ("sret_t", "random:r=1"),
        ("caformer_s18", "random:keep=0.5"),  # in its last stage
        ("caformer_s18", "random:r=0+0+0+0+2"),  # in the one before, behind which all are there again
    ],
)
def test_it_works_where_tokens_may_be_fewer(name, setting):
    model = golden.fill_module(tiny_classifier(name)).eval()
    x = torch.randn(2, 3, 96, 128)
    with torch.inference_mode():
        plain = model(x)
        with attached(model, plugin(setting)):
            less = model(x)
            torch.testing.assert_close(model(x[1:]), less[1:], rtol=1e-4, atol=1e-5)
    assert less.shape == plain.shape
    assert less.isfinite().all()
    assert not torch.allclose(less, plain)


def test_the_map_between_stages_has_every_patch_at_its_place():
    model = create_model("caformer_s18", features_only=True).eval()
    settings, x = RandomDrop((0,) * 14 + (20,)), torch.randn(1, 3, 160, 128)
    with torch.inference_mode():
        plain = model(x)
        with attached(model, settings):
            less = model(x)
    assert [m.shape for m in less] == [m.shape for m in plain]
    gone = (less[2] == 0).all(1)
    assert int(gone.sum()) == 20
    torch.testing.assert_close(less[2] + plain[2] * gone, plain[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("setting", ["random:r=0", "random:r=2", "random", "random:keep=1"])
def test_others_are_refused_by_name(setting):
    with torch.device("meta"):
        model = create_model("swin_tiny")
    with pytest.raises(SeamError, match=r"stages\.\d\.blocks\.0: WindowAttention needs a full grid"):
        attach(model, plugin(setting))
    assert all(getattr(h.block, seam) is None for h in hosts_of(model) for seam in h.block.seams)


def test_settings():
    assert plugin("random:r=8,seed=3") == RandomDrop(8, seed=3)
    assert plugin("random:keep=0.5,at=1+2") == RandomDrop(keep=0.5, at=(1, 2))
    for options, words in (
        ({"r": 2, "keep": 0.5}, "give r, or keep and at"),
        ({"r": 2, "at": (1,)}, "give r, or keep and at"),
        ({"inflect": 1.0}, "without r"),
        ({"r": -1}, "0 or more"),
        ({"r": 1, "inflect": 2.0}, "between -1 and 1"),
        ({"keep": 0.0}, "above 0"),
        ({"at": (2, 1)}, "rising"),
    ):
        with pytest.raises(ValueError, match=words):
            RandomDrop(**options)


def test_seeds_give_other_answers_and_a_seed_the_same():
    model = create_model("deit_tiny_patch16_224", num_classes=10, img_size=64).eval()
    x, drop, answers = torch.randn(1, 3, 64, 64), RandomDrop(2), []
    for seed in (0, 0, 1):
        with torch.inference_mode(), attached(model, replace(drop, seed=seed)):
            answers.append(model(x))
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])
