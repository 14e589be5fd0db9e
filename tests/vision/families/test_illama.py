"""iLLaMA: the authors' numbers with a closed and a half open mask, sizes as the paper counts them, rotary places."""

import pytest
import torch
import torch.nn.functional as F
from golden import golden
from plain import illama as plain
from recorded import agree, loaded

from patchloom.vision.families.illama import hidden
from patchloom.vision.mixers.soft_mask import set_soft_mask
from patchloom.vision.plugins import SeamError
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model, list_models, model_info

FACTS = {  # parameters, GMACs; of the large ones only what is reported: 310.2 M, without the positions
    "illama_tiny": (5_701_096, 1.25),
    "illama_small": (22_018_024, 4.60),
    "illama_base": (86_502_376, 17.56),
    "illama_base_384": (86_794_216, 55.5),
    "illama_large": (310_243_304 + 197 * 1024, 62.8),
    "illama_large_384": (310_243_304 + 577 * 1024, 194.7),
}


@torch.inference_mode()
def test_matches_the_original():
    record = golden.load("illama/illama_tiny")
    model = loaded("illama_tiny", record)
    blocks, found, x = model.backbone.stages[0].blocks, {}, record.input()
    hooks = [
        blocks[0].mixer.register_forward_hook(lambda m, x, y: found.update({"block0.attn": y})),
        blocks[-1].register_forward_hook(lambda m, x, y: found.update(blocks=y.x)),
    ]
    found["logits"] = model(x)
    for hook in hooks:
        hook.remove()
    set_soft_mask(model, 0.5)
    found["logits_soft_mask_0.5"] = model(x)
    agree(record, found)


def test_sizes_are_the_papers():
    assert set(list_models("illama*")) == set(FACTS)
    for name, (parameters, gmacs) in FACTS.items():
        info = model_info(name)
        assert info.parameters == info.trainable == parameters
        assert info.macs / 1e9 == pytest.approx(gmacs, rel=0.01)
        assert info.weights
    assert [hidden(c) for c in (192, 384, 768, 1024)] == [512, 1024, 2048, 2816]


@torch.inference_mode()
def test_is_the_plain_network():
    torch.manual_seed(0)
    theirs = plain.build().eval()
    ours = create_model(plain.VARIANT).eval()
    assert not load_published(ours, theirs.state_dict()).fresh
    x = torch.randn(2, 3, 224, 224)
    want = theirs(x)
    torch.testing.assert_close(ours(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


@torch.inference_mode()
def test_the_class_token_stands_last():
    model = create_model("illama_tiny", num_classes=5).eval()
    assert model.backbone.special == model.special == (-1,)
    x = torch.randn(2, 3, 64, 96)
    t = model.backbone.last(x)
    assert t.special == (24,)
    assert t.grid == (4, 6)
    torch.testing.assert_close(model.forward_head(model.forward_features(x)), model(x))
    torch.testing.assert_close(model(x), model.head(model.norm(t.x[:, -1])))


@torch.inference_mode()
def test_a_patch_sees_only_those_before_it():
    model = create_model("illama_tiny").eval()
    x = torch.randn(1, 3, 224, 224)
    late = x.clone()
    late[:, :, 112:] += 1
    a, b = model.backbone.last(x).x, model.backbone.last(late).x
    # what later patches change is only the softmax's denominator, so the first layer's values stay in proportion
    first = model.backbone.stages[0].blocks[0]
    t, u = model.backbone.stem(x), model.backbone.stem(late)
    assert torch.equal(t.x[:, :98], u.x[:, :98])
    first.mixer.proj = torch.nn.Identity()
    y, z = (first.mix(s, first.norm1(s.x))[0][:, 0].unflatten(-1, (3, -1)) for s in (t, u))
    torch.testing.assert_close(F.normalize(y, dim=-1), F.normalize(z, dim=-1))
    assert not torch.allclose(y, z, rtol=1e-4)
    assert not torch.allclose(a[:, -1], b[:, -1])


@torch.inference_mode()
def test_positions_of_another_size_keep_the_class_tokens_entry():
    small = create_model("illama_tiny").eval()
    state = plain.build().state_dict()
    load_published(small, state)
    large = create_model("illama_tiny_384").eval()
    report = load_published(large, state)
    assert report.resized == ["backbone.stem.position.table"]
    table, want = large.backbone.stem.position.table, state["pos_embed"]
    m = want[:, :-1].transpose(1, 2).unflatten(2, (14, 14))
    m = F.interpolate(m, (24, 24), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(table, torch.cat([m, want[:, -1:]], 1))
    x = torch.randn(1, 3, 384, 384)
    torch.testing.assert_close(small(x), large(x))  # the same is done in the forward pass


@pytest.mark.parametrize("size", [(97, 131), (160, 288), (64, 64), (16, 16)])
@torch.inference_mode()
def test_takes_any_size(size):
    model = create_model("illama_tiny", num_classes=5).eval()
    assert model(torch.randn(1, 3, *size)).isfinite().all()


def test_masks_are_set_on_models_that_have_them():
    model = create_model("illama_tiny", device="meta")
    set_soft_mask(model, 0.25)
    assert {b.mixer.rate for b in model.backbone.stages[0].blocks} == {0.25}
    with pytest.raises(ValueError, match=r"soft mask rate 1\.5: from 0"):
        set_soft_mask(model, 1.5)
    with pytest.raises(ValueError, match="has no attention with a soft mask"):
        set_soft_mask(torch.nn.Linear(2, 2), 0.5)


def test_its_tokens_cannot_be_merged():
    with pytest.raises(SeamError, match="needs a full grid"):
        create_model("illama_tiny", device="meta", tokens="tome:r=4")
