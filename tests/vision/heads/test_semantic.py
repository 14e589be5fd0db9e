"""UPerNet and Semantic FPN: any pyramid and size, adapters, token clustering, a few steps of learning, wrong input."""

import pytest
import torch
import torch.nn.functional as F
from semantic_parts import CLASSES, SIZE, Maps, image, labels, semantic_fpn, small, stirred, upernet
from torch import nn
from vision_tiny import distinct, tiny_pyramid

from patchloom.vision.adapters import adapt, adapter
from patchloom.vision.heads.conv_norm import ConvNorm
from patchloom.vision.heads.multi_level import MultiLevel
from patchloom.vision.heads.semantic import UPerNet
from patchloom.vision.heads.semantic_loss import SemanticLosses
from patchloom.vision.heads.slide import Slide
from patchloom.vision.plugins import SeamError, attach, plugin
from patchloom.vision.pyramid import Pyramid
from patchloom.vision.resnet import ResNetPyramid

NAMES = ("swin_tiny", "convnext_tiny", "cvt_13", "poolformer_s12", "vmamba_tiny_s1l8", "vim_tiny", "vssd_tiny",
         "deit_small_patch16_224")  # fmt: skip
KINDS = [  # scans compile a part of theirs first
    pytest.param(n, marks=pytest.mark.slow if n.startswith("v") and n != "vssd_tiny" else ()) for n in NAMES
]
CLUSTERED = ("swin_tiny", "vim_tiny", "deit_small_patch16_224")  # the others need full grids (docs/compatibility.md)


def step(model, size=SIZE, batch=2):
    """The losses of a training step, with gradients where they belong; then an evaluation step."""
    losses = SemanticLosses()(model.train().both(image(size, batch)), labels(size, batch))
    sum(losses.values()).backward()
    learning = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    lacking = [n for n, p in learning if not n.startswith("backbone.") and (p.grad is None or not p.grad.any())]
    assert not lacking
    assert not [n for n, p in learning if p.grad is not None and not p.grad.isfinite().all()]
    assert any(n.startswith("backbone.") and p.grad is not None and p.grad.any() for n, p in learning)
    with torch.no_grad():
        assert model.eval()(image(size, batch)).shape == (batch, CLASSES, *size)
    return losses


# ---------------------------------------------------------------------------------------------------- any pyramid, size


@pytest.mark.parametrize("name", KINDS)
def test_any_backbone_trains_and_evaluates(name):
    losses = step(small(name))
    assert set(losses) == {"main", "auxiliary"}
    assert set(step(small(name, semantic_fpn))) == {"main"}


@pytest.mark.parametrize("name", KINDS)
def test_with_an_adapter(name):
    model = small(name)
    adapt(model.backbone, adapter("lora:r=2"))
    trunk = model.backbone.backbone.stem
    step(model)
    assert not any(p.requires_grad for p in trunk.parameters())
    assert all(p.requires_grad for p in model.head.parameters())


@pytest.mark.parametrize("name", KINDS)
def test_with_token_clustering(name):
    model = small(name)
    if name not in CLUSTERED:
        with pytest.raises(SeamError, match="needs a full grid"):
            attach(model.backbone, plugin("clustering:scale=0.5"))
        return
    before = model.eval()(image()).detach()
    attach(model.backbone, plugin("clustering:scale=0.5"))
    assert not torch.equal(model.eval()(image()), before)
    step(model)


@pytest.mark.parametrize("make", [upernet, semantic_fpn])
@pytest.mark.parametrize("name", ["swin_tiny", "convnext_tiny", "deit_small_patch16_224"])
@pytest.mark.parametrize("size", [(97, 131), (33, 65)])
def test_odd_sizes_and_one_image(make, name, size):
    step(small(name, make, norm="group", width=48), size, batch=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", distinct())
@torch.no_grad()
def test_every_pyramid_has_both_heads(name):
    for make in (upernet, semantic_fpn):
        model = small(name, make).eval()
        assert model(image((97, 131), 1)).shape == (1, CLASSES, 97, 131)


@torch.no_grad()
def test_any_number_of_maps():
    for indices in ([3], [1, 3], [0, 1, 2]):
        backbone = Pyramid(tiny_pyramid("swin_tiny").backbone, indices)
        for make in (upernet, semantic_fpn):
            assert make(backbone).eval()(image((64, 96))).shape == (2, CLASSES, 64, 96)
    assert small("swin_tiny").auxiliary.at == 2
    assert upernet(ResNetPyramid((1, 1, 1, 1))).eval()(image((64, 96))).shape == (2, CLASSES, 64, 96)


@pytest.mark.parametrize(
    ("stride", "count", "strides"),
    [(16, 4, [4, 8, 16, 32]), (8, 4, [4, 8, 16, 32]), (14, 4, [3.5, 7, 14, 28]), (16, 3, [4, 8, 16]), (4, 2, [4, 8])],
)
def test_maps_of_one_resolution_become_a_pyramid(stride, count, strides):
    neck = MultiLevel([8] * count, stride, "group")
    assert neck.strides == strides
    maps = neck([torch.randn(1, 8, 5, 7)] * count)
    assert [tuple(m.shape[2:]) for m in maps] == [tuple(-(-n * stride // s) for n in (5, 7)) for s in strides]


@torch.no_grad()
def test_a_model_without_auxiliary_head_and_one_with_batch_norm():
    model = small(auxiliary=None)
    assert model.both(image()).auxiliary is None
    assert model.no_weight_decay() == {f"backbone.{n}" for n in model.backbone.no_weight_decay()}
    assert any(isinstance(m, ConvNorm) for m in small().modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in small(norm="group", width=48).modules())


@torch.no_grad()
def test_an_image_alone_is_as_in_a_batch():
    model, x = stirred(small()).double(), image().double()
    torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_padding_keeps_maps_where_they_are():
    """An image that is extended by the zeros of the padding has the same logits where both are."""
    model, x = stirred(small()), image((70, 90))
    torch.testing.assert_close(model(F.pad(x, (0, 6, 0, 26)))[..., :70, :90], model(x))


@pytest.mark.parametrize("make", [upernet, semantic_fpn])
@pytest.mark.parametrize("name", ["swin_tiny", "deit_small_patch16_224"])
def test_bfloat16(make, name):
    model, x, y = stirred(small(name, make)), image((64, 96)), labels((64, 96))
    with torch.no_grad():
        want = model(x)
        half = model.to(torch.bfloat16)(x.bfloat16())
        assert half.dtype == torch.bfloat16
        assert (half.float() - want).abs().mean() < 0.05 * want.abs().mean()
    model.float().train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = SemanticLosses()(model.both(x), y)
    sum(losses.values()).backward()
    assert all(v.dtype == torch.float32 and v.isfinite() for v in losses.values())
    assert all(p.grad.isfinite().all() for p in model.head.parameters())


def test_checkpointing_the_backbone_changes_no_gradient():
    grads = []
    for enable in (False, True):
        model = small(dropout=0.0).train()
        model.set_grad_checkpointing(enable)
        model(image()).square().mean().backward()
        grads.append(model.backbone.backbone.stages[0].blocks[0].mixer.qkv.weight.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("make", [upernet, semantic_fpn])
def test_a_few_steps_teach_it_a_picture(make):
    """Brightness tells the class."""
    model, y = small(make=make, dropout=0.0).train(), torch.zeros(2, 64, 96, dtype=torch.long)
    y[:, 16:48, 24:60], y[1, :, 70:] = 1, 2
    x = y[:, None].float().expand(-1, 3, -1, -1) - 1
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(40):
        optimiser.zero_grad()
        sum(SemanticLosses()(model.both(x), y).values()).backward()
        optimiser.step()
    with torch.no_grad():
        assert (model(x).argmax(1) == y).float().mean() > 0.95


# --------------------------------------------------------------------------------------------------------- wrong input


def test_wrong_input_is_named():
    backbone = tiny_pyramid("swin_tiny")
    for make, words in (
        (lambda: UPerNet(backbone, 0), "classes 0"),
        (lambda: upernet(backbone, norm="layer"), "norm 'layer' is not known; there are batch and group"),
        (lambda: upernet(backbone, pools=()), r"pools \(\)"),
        (lambda: upernet(backbone, norm="group"), "width 16: norm='group' would have one channel a group"),
        (lambda: upernet(nn.Identity()), "Identity does not say its channels and strides"),
        (lambda: upernet(Maps(strides=(4, 16, 8, 32))), r"from fine to coarse .* \[4, 16, 8, 32\]"),
        (lambda: Slide(64, 65), "stride of 1 to the window's size"),
        (lambda: Slide((64, 32), (16, 0)), "stride of 1 to the window's size"),
        (lambda: upernet(backbone).train()(image(batch=1)), "it trains on 2 images or more, or with norm='group'"),
        (lambda: upernet(backbone)(image()[0]), r"images of shape .* got \(3, 160, 224\)"),
        (lambda: upernet(backbone)(list(image())), "images of shape .* got list"),
        (lambda: upernet(backbone)(image()[:0]), r"images of shape .* got \(0, 3, 160, 224\)"),
        (lambda: upernet(backbone)(image()[:, :2]), r"images of shape \(B, 3, H, W\)"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
    model = upernet(backbone)
    adapt(backbone, adapter("hst:meta=0"))
    with pytest.raises(ValueError, match=r"maps of .* channels, and the head was made for \[16, 32, 48, 64\]"):
        model(image())
    assert upernet(backbone).eval()(image()).shape == (2, CLASSES, *SIZE)
