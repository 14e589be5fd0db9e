"""MicroDiT: experts that choose their tokens, training on some of the patches, any size, what it begins as."""

import pytest
import torch
import torch.nn.functional as F
from denoiser_parts import awake, batch, small_micro_dit

from patchloom.vision.generation.expert_choice import ExpertChoice
from patchloom.vision.generation.micro_dit import MicroDiT, lowest
from patchloom.vision.plugins import attached, plugin

# ------------------------------------------------------------------------------------------------------------- experts


def test_experts_are_their_formula():
    ffn, x = ExpertChoice(6, 16, experts=4, capacity=2.0).double(), torch.randn(3, 9, 6, dtype=torch.float64)
    want = torch.zeros_like(x)
    for i, tokens in enumerate(x):
        shares = (tokens @ ffn.gate.weight.T).softmax(-1)
        for e in range(4):
            for token in shares[:, e].argsort(descending=True)[: 2 * 9 // 4]:
                want[i, token] += shares[token, e] * (F.gelu(tokens[token] @ ffn.w1[e]) @ ffn.w2[e])
    assert torch.allclose(ffn(x), want)
    assert torch.autograd.gradcheck(ffn, x[:1].requires_grad_())


def test_a_token_that_no_expert_chose_gets_nothing_and_samples_do_not_compete():
    ffn = ExpertChoice(8, 16, experts=8, capacity=1.0)
    x = torch.randn(2, 16, 8)
    y = ffn(x)
    idle = (y == 0).all(-1)
    assert idle.any()
    assert not idle.all()
    assert torch.allclose(y[1:], ffn(x[1:]), atol=1e-6)
    assert not ffn(x[:, :3]).any()  # fewer tokens than experts: int(capacity N / experts) is 0


def test_a_capacity_that_no_expert_has_is_refused():
    with pytest.raises(ValueError, match="capacity 9 of 8 experts"):
        ExpertChoice(8, 16, experts=8, capacity=9)


# ------------------------------------------------------------------------------------------------------------- network


def test_it_begins_as_nothing_with_the_published_deviations():
    model = small_micro_dit()
    assert not model.eval()(*batch(model)).any()
    assert all(not b.modulation.linear.weight.any() for b in (*model.patch_mixer, *model.blocks))
    assert not model.caption_block.mixer.proj.weight.any()
    deep = model.requires_grad_(False).blocks[1]
    assert deep.cross.proj.weight.std() == pytest.approx(0.02 / 4**0.5, rel=0.1)
    assert deep.ffn.w2.std() == pytest.approx(0.02 / 4**0.5, rel=0.1)
    assert [deep.ffn.w1.std(), deep.mixer.qkv.weight.std()] == pytest.approx([0.02, 0.02], rel=0.1)
    assert model.patch_mixer[1].mixer.proj.weight.std() == pytest.approx(0.02 / 4**0.5, rel=0.1)
    assert model.pooled.fc1.weight.std() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("size", [(8, 8), (7, 12), (16, 6)])
def test_any_size_and_one_alone_as_in_a_batch(size):
    model = awake(small_micro_dit()).eval()
    x, t, y = batch(model, 3, size)
    with torch.inference_mode():
        whole, one = model(x, t, y), model(x[1:2], t[1:2], y[1:2])
    assert whole.shape == x.shape
    assert torch.allclose(whole[1:2], one, atol=1e-5)


def test_half_precision_is_near():
    model = awake(small_micro_dit()).eval()
    x, t, y = batch(model)
    with torch.inference_mode():
        want = model(x, t, y)
        with torch.autocast("cpu", torch.bfloat16):
            cast = model(x, t, y)
        own = model.bfloat16()(x.bfloat16(), t, y.bfloat16())
    for got in (cast, own):
        assert (got.float() - want).norm() < 0.05 * want.norm()


def test_checkpointing_changes_nothing():
    model = awake(small_micro_dit(dropout=0.0))
    x, t, y = batch(model)
    plain = torch.autograd.grad(model(x, t, y).square().sum(), list(model.parameters()))
    model.set_grad_checkpointing()
    again = torch.autograd.grad(model(x, t, y).square().sum(), list(model.parameters()))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, again, strict=True))


def test_a_network_for_twice_the_size_counts_places_by_halves():
    one, two = small_micro_dit(), small_micro_dit(size=(16, 16), position_scale=2.0)
    assert torch.equal(two.stem.position.table.view(8, 8, 64)[::2, ::2], one.stem.position.table.view(4, 4, 64))
    assert MicroDiT(**two.arguments()).arguments() == two.arguments()


# ------------------------------------------------------------------------------------------------------------- masking


def test_the_patches_that_stay_are_the_lowest():
    noise = torch.tensor([[0.4, 0.1, 0.9, 0.2], [0.5, 0.6, 0.0, 0.7]])
    kept, there = lowest(noise, 0.5)
    assert kept.tolist() == [[1, 3], [2, 0]]
    assert there.tolist() == [[False, True, False, True], [True, False, True, False]]
    for ratio in (-0.1, 0.8, 1.0):
        with pytest.raises(ValueError, match=f"mask ratio {ratio} of 4 patches"):
            lowest(noise, ratio)


def test_masked_training_predicts_what_stayed_and_reaches_every_parameter():
    model = awake(small_micro_dit(dropout=0.0))
    x, t, y = batch(model)
    out, kept = model.masked(x, t, y, 0.75)
    assert kept.shape == (2, 16)
    assert kept.sum(1).tolist() == [4, 4]
    predicted = F.max_pool2d(out.abs().amax(1), 2).flatten(1) > 0
    assert torch.equal(predicted, kept)
    out.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_tokens_that_a_plugin_merged_come_back_and_are_not_masked():
    model = awake(small_micro_dit()).eval()
    x, t, y = batch(model)
    with attached(model, plugin("tome:r=2")), torch.inference_mode():
        assert model(x, t, y).shape == x.shape
        with pytest.raises(ValueError, match="a plugin reduced the tokens before they are masked"):
            model.masked(x, t, y, 0.5)


def test_the_mixer_tells_those_that_stay_of_those_that_go():
    """A change of a dropped patch changes the prediction of the others: masking is deferred until they have met."""
    model = awake(small_micro_dit()).eval()
    x, t, y = batch(model, 1)
    kept = torch.tensor([[0, 5, 10]])
    other = x.clone()
    other[..., 6:, 6:] += 1  # the last patch, which is dropped
    with torch.inference_mode():
        a, b = (model.predict(v, t, y, kept)[-1] for v in (x, other))
        shuffled = model.predict(x, t, y, kept.flip(1))[-1]
    assert (a - b).abs().max() > 1e-4
    assert torch.allclose(a, shuffled, atol=1e-6)


def test_nothing_masked_is_the_whole():
    model = awake(small_micro_dit()).eval()
    x, t, y = batch(model)
    with torch.inference_mode():
        out, kept = model.masked(x, t, y, 0.0)
        assert kept.all()
        assert torch.allclose(out, model(x, t, y), atol=1e-5)


# --------------------------------------------------------------------------------------------------------- wrong input


def test_captions_of_another_shape_are_refused():
    model = small_micro_dit()
    x, t, y = batch(model)
    with pytest.raises(ValueError, match=r"captions of shape \(2, 5, 12\); got shape \(2, 4, 12\)"):
        model(x, t, y[:, :4])
    with pytest.raises(ValueError, match="got none"):
        model(x, t)
    with pytest.raises(ValueError, match="width 40 does not divide into heads of 16 channels"):
        small_micro_dit(dim=40, mixer=(2, 40))
