"""ViT-CoMer: the originals' numbers, published counts, and what two branches have to keep."""

from dataclasses import replace

import pytest
import torch
from golden import golden
from recorded import agree, loaded
from torch import nn
from vision_tiny import tiny_pyramid

from patchloom.kernels.attend import attend
from patchloom.vision.adapters import AdapterError, adapt, adapter
from patchloom.vision.families.vit_comer import VARIANTS
from patchloom.vision.interaction import enlarged, halved
from patchloom.vision.mixers.deformable import DeformableAttention, cells
from patchloom.vision.mixers.padded_window import PaddedWindowAttention
from patchloom.vision.plugins import attached, plugin
from patchloom.vision.pyramid import Pyramid
from patchloom.vision.tokens import Tokens
from patchloom.vision.two_branches import Branch, TwoBranches, begin_from
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model, model_info

PARAMETERS = {"vit_comer_seg_tiny": 10_619_360, "vit_comer_det_small": 30_457_568}  # the records'
MILLIONS = {"vit_comer_seg_tiny": 10.62, "vit_comer_seg_small": 31.28, "vit_comer_det_small": 30.46}  # the paper's
SIZES = [(96, 160), (97, 131), (33, 64)]


def image(size=(96, 160), batch=2, seed=0):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def stirred(model: nn.Module) -> nn.Module:
    """With numbers where weights begin at 0, so that nothing is without effect."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.copy_(0.1 * torch.randn(p.shape, generator=g))
    return model


@pytest.mark.parametrize("name", ["seg_tiny", "det_small"])
def test_it_is_the_original(name):
    r = golden.load(f"vit_comer/{name}")
    model, found = loaded(name, r, features_only=True), {}
    b = model.backbone

    def first(_, __, maps):
        found.update(spm_c1=maps[0].permute(0, 3, 1, 2), spm_c4=maps[3].flatten(1, 2))

    b.convolutions.register_forward_hook(first)
    b.stages[0].blocks[2].register_forward_hook(lambda _, __, t: found.update(tokens1=t.x))
    b.exchanges[0].within.register_forward_hook(lambda _, __, p: found.update(pyramid1=p))
    with torch.inference_mode():
        found |= {f"stage{i}": m for i, m in enumerate(model(r.input()), 1)}
    agree(r, found)


def test_a_detector_s_file_fits():
    r = golden.load("vit_comer/seg_tiny")
    file = {f"backbone.{n}": v for n, v in r.state_dict().items()} | {"decode_head.conv_seg.weight": torch.zeros(1)}
    report = load_published(create_model("vit_comer_seg_tiny", features_only=True), file)
    assert report.dropped == ["decode_head.conv_seg.weight"]
    assert not report.fresh


@pytest.mark.parametrize("name", MILLIONS)
def test_parameters_are_the_published_ones(name):
    info = model_info(name)
    assert info.parameters / 1e6 == pytest.approx(MILLIONS[name], abs=0.005)
    assert info.parameters == PARAMETERS.get(name, info.parameters)
    assert info.trainable == info.parameters - VARIANTS[name].unread


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["vit_comer_seg_tiny", "vit_comer_det_small"])
def test_every_parameter_of_a_pyramid_gets_a_gradient(name, size):
    torch.manual_seed(0)
    model = stirred(tiny_pyramid(name)).train()
    maps = model(image(size))
    assert [tuple(m.shape[2:]) for m in maps] == [(-(-size[0] // s), -(-size[1] // s)) for s in (4, 8, 16, 32)]
    sum(m.square().mean() for m in maps).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@torch.inference_mode()
def test_zeros_beside_an_image_change_little_of_it():
    """Maps at a size that no stride divides are those of the image in a frame of zeros, up to what its border sees."""
    torch.manual_seed(0)
    model, x = stirred(tiny_pyramid("vit_comer_seg_tiny")).eval(), image((97, 131), 1)
    alone, framed = model(x), model(nn.functional.pad(x, (0, 29, 0, 31)))
    for a, b in zip(alone, framed, strict=True):
        h, w = a.shape[2] // 2, a.shape[3] // 2
        near = (a - b[:, :, : a.shape[2], : a.shape[3]])[:, :, :h, :w]
        assert near.norm() < 0.25 * a[:, :, :h, :w].norm()


@pytest.mark.parametrize("name", ["vit_comer_seg_tiny", "vit_comer_det_small"])
def test_checkpointing_changes_nothing_of_a_pyramid(name):
    torch.manual_seed(0)
    model, found = stirred(tiny_pyramid(name)).train(), []
    for on in (False, True):
        model.set_grad_checkpointing(on)
        model.zero_grad()
        sum(m.square().mean() for m in model(image())).backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for n in found[0]:
        torch.testing.assert_close(found[0][n], found[1][n], msg=n)
    assert int(model.backbone.norms[0].num_batches_tracked) == 2  # once a step


@torch.inference_mode()
def test_folding_and_bfloat16():
    torch.manual_seed(0)
    model = stirred(tiny_pyramid("vit_comer_seg_tiny")).train()
    model(image())
    want = model.eval()(image())
    for a, b in zip(model.fold()(image()), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))
    for a, b in zip(model.bfloat16()(image().bfloat16()), want, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a - b).norm() < 0.05 * b.norm()


# ------------------------------------------------------------------------------------------------ plugins and adapters


@pytest.mark.parametrize(
    "text", ["tome:r=4", "dynamicvit", "soft_merge", "clustering", "random", "window_merge:share=0.4"]
)
def test_tokens_that_were_reduced_are_had_back_at_each_exchange(text):
    model = stirred(tiny_pyramid("vit_comer_seg_tiny")).eval()
    with attached(model, plugin(text)), torch.inference_mode():
        for m, s in zip(model(image((97, 131))), model.strides, strict=True):
            assert m.shape[2:] == (-(-97 // s), -(-131 // s))
            assert m.isfinite().all()


@torch.inference_mode()
def test_merging_nothing_changes_nothing():
    model = stirred(tiny_pyramid("vit_comer_seg_tiny")).eval()
    want = model(image())
    with attached(model, plugin("tome:r=0")):
        for a, b in zip(model(image()), want, strict=True):
            torch.testing.assert_close(a, b)


def test_prompts_stand_beside_the_patches_and_learn():
    model = stirred(tiny_pyramid("vit_comer_seg_tiny"))
    adapt(model, adapter("vpt:n=3"))
    sum(m.square().mean() for m in model.train()(image())).backward()
    learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert learning
    assert all(p.grad is not None and p.grad.any() for p in learning.values())


def test_a_side_network_that_would_pass_the_branch_by_is_refused():
    with pytest.raises(AdapterError, match="TwoBranches does more between its blocks"):
        adapt(tiny_pyramid("vit_comer_seg_tiny"), adapter("hst"))


# ---------------------------------------------------------------------------------------------------------- its parts


@torch.inference_mode()
def test_it_begins_from_a_plain_vit():
    plain = create_model("deit_tiny_patch16_224")
    model = create_model("vit_comer_seg_tiny", features_only=True)
    begin_from(model.backbone, plain.backbone)
    x = image((224, 224), 1)
    a, b = model.backbone.stem(x).x, plain.backbone.stem(x).x[:, 1:]
    torch.testing.assert_close(a, b)
    block = model.backbone.stages[0].blocks[3], plain.backbone.stages[0].blocks[3]
    torch.testing.assert_close(block[0](Tokens(a, (14, 14))).x, block[1](Tokens(a, (14, 14))).x)
    with pytest.raises(ValueError, match=r"stem\.convolution\.conv\.weight has another shape"):
        begin_from(model.backbone, create_model("deit_small_patch16_224").backbone)
    with pytest.raises(ValueError, match="with a table of positions"):
        begin_from(model.backbone, create_model("swin_tiny", device="meta").backbone)


@torch.inference_mode()
def test_at_first_the_transformer_hears_nothing():
    """gamma begins at 0: tokens of the first blocks are those of the ViT alone."""
    model, x = create_model("vit_comer_seg_tiny", features_only=True).eval(), image((64, 96), 1)
    t = model.backbone.stem(x)
    for block in model.backbone.stages[0].blocks:
        t = block(t)
    seen = {}
    model.backbone.stages[0].blocks[-1].register_forward_hook(lambda _, __, t: seen.update(x=t.x))
    model(x)
    torch.testing.assert_close(seen["x"], t.x)


@torch.inference_mode()
def test_deformable_attention_is_the_definition():
    torch.manual_seed(0)
    layer = DeformableAttention(12, 2, 2, 3, 0.5).eval()
    for p in layer.parameters():
        p.normal_()
    shapes = [(4, 6), (2, 3)]
    query, value, at = torch.randn(2, 5, 12), torch.randn(2, 30, 12), torch.rand(1, 5, 2, 2)
    got = layer(query, value, shapes, at)
    v = layer.value(value).unflatten(-1, (2, 3))
    offsets, share = layer.offsets(query).view(2, 5, 2, 2, 3, 2), layer.weigh(query).view(2, 5, 2, 6).softmax(-1)
    want = torch.zeros(2, 5, 2, 3)
    for level, (h, w) in enumerate(shapes):
        start = 0 if level == 0 else 24
        for b, q, head, point in torch.cartesian_prod(*(torch.arange(n) for n in (2, 5, 2, 3))).tolist():
            x, y = (at[0, q, level] * torch.tensor([w, h]) + offsets[b, q, head, level, point] - 0.5).tolist()
            m = v[b, start : start + h * w, head].view(h, w, 3)
            for j in range(h):
                for i in range(w):
                    part = max(0.0, 1 - abs(x - i)) * max(0.0, 1 - abs(y - j))
                    want[b, q, head] += share[b, q, head, 3 * level + point] * part * m[j, i]
    torch.testing.assert_close(got, layer.proj(want.flatten(2)), rtol=1e-4, atol=1e-4)


def test_samples_begin_on_a_ring_and_bad_shapes_are_named():
    layer = DeformableAttention(16, 4, 1, 2)
    ring = layer.offsets.bias.view(4, 2, 2)
    torch.testing.assert_close(ring[:, 0], torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(ring[:, 1], 2 * ring[:, 0])
    with pytest.raises(ValueError, match="2 maps for deformable attention that is made for 1"):
        layer(torch.zeros(1, 1, 16), torch.zeros(1, 2, 16), [(1, 1), (1, 1)], torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match="do not divide into 5 heads"):
        DeformableAttention(16, 5)


def test_cells_of_maps_that_reach_beyond_the_image_lie_where_they_are():
    at = cells([(3, 4), (2, 2)], (8, 16))
    assert at.shape == (1, 16, 2, 2)
    torch.testing.assert_close(at[0, 5], torch.tensor([[12 / 32, 12 / 24], [12 / 32, 12 / 32]]))
    torch.testing.assert_close(at[0, -1], torch.tensor([[24 / 32, 24 / 24], [24 / 32, 24 / 32]]))


@torch.inference_mode()
def test_windows_pad_behind_the_projection():
    torch.manual_seed(0)
    mixer = PaddedWindowAttention(8, 2, 4).eval()
    nn.init.normal_(mixer.qkv.bias)
    m = torch.randn(1, 5, 7, 8)
    got = mixer(Tokens(m.flatten(1, 2), (5, 7))).unflatten(1, (5, 7))
    qkv = nn.functional.pad(mixer.qkv(m), (0, 0, 0, 1, 0, 3))
    for y in (0, 4):
        for x in (0, 4):
            q, k, v = qkv[:, y : y + 4, x : x + 4].flatten(1, 2).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            want = mixer.proj(attend(q, k, v).transpose(1, 2).flatten(2)).unflatten(1, (4, 4))
            here = got[:, y : y + 4, x : x + 4]
            torch.testing.assert_close(here, want[:, : here.shape[1], : here.shape[2]], rtol=1e-5, atol=1e-5)


def test_resizing_is_torch_s_bilinear():
    m = torch.randn(2, 6, 8, 3)
    x = m.permute(0, 3, 1, 2)
    half = nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
    torch.testing.assert_close(halved(m).permute(0, 3, 1, 2), half)
    assert halved(m[:, :5, :7]).shape == (2, 3, 4, 3)
    torch.testing.assert_close(halved(m[:, :5])[:, 2], m[:, 4].unflatten(1, (4, 2)).mean(2))
    double = nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(enlarged(m, 2, (11, 15)).permute(0, 3, 1, 2), double[:, :, :11, :15])


def test_what_does_not_fit_is_named():
    stage = VARIANTS["vit_comer_seg_tiny"].stages[0]
    with pytest.raises(ValueError, match="one stage at stride 16"):
        TwoBranches([stage], Branch(1.0), patch=8)
    with pytest.raises(ValueError, match="exchanges=3: 4 are wanted"):
        Branch(1.0, exchanges=3)
    three = TwoBranches([replace(stage, dim=24, depth=3)], Branch(1.0, 2, exchanges=3, extra=0, each=False, width=4))
    assert len(Pyramid(three)(image((64, 64), 1))) == 4
