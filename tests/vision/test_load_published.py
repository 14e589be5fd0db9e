"""Strict loading: whose names, what is dropped, what is fresh, and one line for what does not fit."""

import pytest
import timm
import torch

from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model


def state_of(name, **arguments):
    return timm.create_model(name, **arguments).state_dict()


def randomised(model):
    torch.manual_seed(0)
    for p in model.parameters():
        if p.ndim == 1 or p.shape[0] == 1:
            torch.nn.init.normal_(p, 0.5, 0.2)
    return model


VITS = ["vit_tiny_patch16_224", "vit_small_patch32_224", "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"]
LARGER = ["vit_small_patch16_224", "vit_base_patch16_224", "vit_base_patch32_384", "vit_tiny_patch16_384",
          "vit_large_patch32_224", "deit_small_distilled_patch16_224",
          "deit_base_patch16_384", "deit_base_distilled_patch16_384"]  # fmt: skip


@pytest.mark.parametrize("name", [*VITS, *(pytest.param(n, marks=pytest.mark.slow) for n in LARGER)])
@pytest.mark.parametrize("size", [None, (160, 288), (97, 131)], ids=str)
@torch.inference_mode()
def test_vit_and_deit_equal_timm(name, size):
    theirs = randomised(timm.create_model(name, num_classes=1000, dynamic_img_size=True, dynamic_img_pad=True)).eval()
    ours = create_model(name).eval()
    assert not load_published(ours, theirs.state_dict()).fresh
    x = torch.randn(2, 3, *(size or ours.default_cfg["input_size"][1:]), generator=torch.Generator().manual_seed(1))
    want = theirs(x)
    assert (ours(x) - want).abs().max() <= 1e-5 * want.abs().max()
    want = theirs.forward_intermediates(x, indices=[2, 11], intermediates_only=True)
    for a, b in zip(ours.forward_intermediates(x, indices=[2, 11], intermediates_only=True), want, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize(("ours", "theirs"), [
    ("swin_tiny", "swin_tiny_patch4_window7_224"), ("convnext_tiny", "convnext_tiny"), ("caformer_s18", "caformer_s18"),
    ("convformer_s18", "convformer_s18"), ("poolformerv2_s12", "poolformerv2_s12"),
])  # fmt: skip
@torch.inference_mode()
def test_timm_s_copies_load_and_give_the_same_maps(ours, theirs):
    theirs = randomised(timm.create_model(theirs)).eval()
    model, pyramid = create_model(ours).eval(), create_model(ours, features_only=True).eval()
    assert load_published(model, theirs.state_dict()).source == "timm"
    load_published(pyramid, theirs.state_dict())
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    want = theirs.forward_intermediates(x, intermediates_only=True)
    for a, b in zip(pyramid(x), want, strict=True):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max()
    if "former_s18" not in ours:  # timm's MLP head has another eps than the authors'
        assert (model(x) - theirs(x)).abs().max() <= 2e-5 * theirs(x).abs().max()


def test_our_own_names_load_too():
    a, b = create_model("cct_2_3x2_32"), create_model("cct_2_3x2_32")
    assert load_published(a, b.state_dict()).source == "ours"


def swin():
    return create_model("swin_tiny"), state_of("swin_tiny_patch4_window7_224")


def unchanged(model, state, message):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as error:
        load_published(model, state)
    assert "\n" not in str(error.value)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_missing_tensor_is_named():
    model, state = swin()
    del state["layers.1.blocks.0.attn.qkv.weight"]
    unchanged(model, state, r"nothing fills backbone\.stages\.1\.blocks\.0\.mixer\.qkv\.weight")


def test_an_extra_tensor_is_named():
    model, state = swin()
    unchanged(
        model,
        state | {"layers.1.blocks.0.attn.qkv.scale": torch.ones(3)},
        r"no place for layers\.1\.blocks\.0\.attn\.qkv\.scale",
    )


def test_a_wrong_shape_is_named():
    model, state = swin()
    unchanged(
        model,
        state | {"head.fc.weight": torch.ones(10, 768)},
        r"head\.fc\.weight is \(10, 768\), head\.weight takes \(1000, 768\)",
    )


def test_another_family_s_file_is_refused_by_its_name():
    model, _ = swin()
    unchanged(model, state_of("convnext_tiny"), "those of convnext")


def test_buffers_that_can_be_computed_are_compared():
    from patchloom.vision.mixers.window import apart, offsets

    model = create_model("swin_tiny")
    state = create_model("swin_tiny").state_dict()
    published = rename_back(state)
    published["layers.0.blocks.1.attn.relative_position_index"] = torch.from_numpy(offsets(7, 7))
    published["layers.0.blocks.1.attn_mask"] = torch.from_numpy(apart(56, 56, 7, 3, False))
    assert len(load_published(model, published).dropped) == 2
    unchanged(model, published | {"layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49)}, "is not the table")


def rename_back(state):
    out = {}
    for name, value in state.items():
        parts = name.split(".")
        if name.startswith("backbone.stem"):
            new = "patch_embed." + ("proj" if parts[3] == "conv" else "norm") + "." + parts[4]
        elif ".down." in name:
            new = f"layers.{int(parts[2]) - 1}.downsample." + ".".join(parts[4:])
        elif name.startswith("backbone"):
            tail = ".".join(parts[5:]).replace("mixer.table", "attn.relative_position_bias_table")
            new = f"layers.{parts[2]}.blocks.{parts[4]}." + tail.replace("mixer.", "attn.").replace("ffn.", "mlp.")
        else:
            new = name
        out[new] = value
    return out


def test_a_window_s_table_and_a_position_are_resampled():
    report = load_published(create_model("swin_base_384"), rename_back(create_model("swin_base").state_dict()))
    assert len(report.resized) == 24
    report = load_published(create_model("vit_tiny_patch16_384"), state_of("vit_tiny_patch16_224"))
    assert report.resized == ["backbone.stem.position.table"]


def test_a_pyramid_drops_head_and_last_norm_and_nothing_else():
    pyramid = create_model("swin_tiny", features_only=True)
    published = rename_back(create_model("swin_tiny").state_dict())
    assert set(load_published(pyramid, published).dropped) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    dense = create_model("swin_tiny", features_only=True, dense=True)
    assert all(n.startswith("norms.") for n in load_published(dense, published).fresh)
    with pytest.raises(ValueError, match=r"no place for norm0\.weight"):
        load_published(pyramid, published | {"norm0.weight": torch.ones(96)})


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_and_classes(tmp_path, channels):
    path = tmp_path / "w.pth"
    torch.save(create_model("cct_2_3x2_32").state_dict(), path)
    model = create_model("cct_2_3x2_32", in_chans=channels, checkpoint_path=path)
    assert model(torch.zeros(1, channels, 32, 32)).shape == (1, 10)


def test_layer_scales_that_a_file_lacks_altogether_are_one():
    model = create_model("convnext_tiny")
    state = {k: v for k, v in state_of("convnext_tiny").items() if not k.endswith("gamma")}
    load_published(model, state)
    assert all((b.add.gamma == 1).all() for s in model.backbone.stages for b in s.blocks)
    one = {k: v for k, v in state_of("convnext_tiny").items() if k != "stages.0.blocks.0.gamma"}
    unchanged(model, one, r"nothing fills backbone\.stages\.0\.blocks\.0\.add\.gamma")
