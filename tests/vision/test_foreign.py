"""timm's models keep our contract: numbers are timm's, names are ours, errors are one line."""

import re
import socket

import pytest
import timm
import torch
from timm.models._manipulate import group_parameters

from patchloom.vision import zoo
from patchloom.vision.foreign import HEAD, TimmClassifier, TimmPyramid, create_timm

FEW = (
    "resnet18",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "convnext_atto",
    "mobilenetv3_small_050",
    "cait_xxs24_224",
)


def same_as_timm(name: str, **arguments: object) -> tuple[TimmClassifier, torch.nn.Module]:
    ours, theirs = create_timm(name, **arguments).eval(), timm.create_model(name, **arguments).eval()
    theirs.load_state_dict(ours.network.state_dict())
    return ours, theirs


@pytest.mark.parametrize("name", FEW)
def test_contract_over_families_on_the_meta_device(name: str) -> None:
    model = create_timm(name, num_classes=7, device="meta").eval()
    names = [n for n, _ in model.named_parameters()]
    assert all(n.startswith(HEAD) for n in names)
    assert model.num_classes == 7
    assert model.in_chans == model.default_cfg["input_size"][0] == 3
    for key in ("classifier", "first_conv"):
        assert f"{model.default_cfg[key]}.weight" in names
    assert model.no_weight_decay() <= set(names)
    image = torch.empty(2, *model.default_cfg["input_size"], device="meta")
    features = model.forward_features(image)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert model(image).shape == (2, 7)
    ours = group_parameters(model, model.group_matcher(), reverse=True)
    theirs = group_parameters(model.network, model.network.group_matcher(), reverse=True)
    assert {n.removeprefix(HEAD): group for n, group in ours.items()} == theirs
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert model(image).shape == (2, model.head_hidden_size)


def test_logits_and_maps_are_timms() -> None:
    ours, theirs = same_as_timm("resnet18", num_classes=5)
    image = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=0)
        last, maps = ours.forward_intermediates(image)
        torch.testing.assert_close(last, ours.forward_features(image), rtol=0, atol=0)
    assert [m.shape[1] for m in maps] == [row["num_chs"] for row in ours.feature_info]
    assert all(row["module"].startswith(HEAD) for row in ours.feature_info)


def test_vision_transformer_takes_any_size() -> None:
    ours, _ = same_as_timm("vit_tiny_patch16_224")
    theirs = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True).eval()
    theirs.load_state_dict(ours.network.state_dict())
    image = torch.randn(1, 3, 160, 288)
    with torch.inference_mode():
        torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=0)


def test_patches_that_do_not_divide_the_size_still_build() -> None:
    model = create_timm("vit_small_patch14_reg4_dinov2", img_size=100, device="meta")
    assert model(torch.empty(1, 3, 100, 100, device="meta")).shape[0] == 1


def test_swin_changes_its_size_after_it_was_built() -> None:
    model = create_timm("swin_tiny_patch4_window7_224", num_classes=4).eval()
    model.set_input_size((96, 128))
    assert model.default_cfg["input_size"] == (3, 96, 128)
    with torch.inference_mode():
        assert model(torch.randn(1, 3, 96, 128)).shape == (1, 4)
    again = zoo.rebuild(zoo.describe(model))
    again.load_state_dict(model.state_dict())


def test_pyramid_is_nchw_even_where_timms_is_not() -> None:
    model = create_timm(
        "swin_tiny_patch4_window7_224", features_only=True, out_indices=(1, 3), img_size=(96, 128)
    ).eval()
    assert isinstance(model, TimmPyramid)
    with torch.inference_mode():
        maps = model(torch.randn(1, 3, 96, 128))
    assert [tuple(m.shape) for m in maps] == [
        (1, c, 96 // s, 128 // s) for c, s in zip(model.channels, model.strides, strict=True)
    ]
    assert model.channels == [192, 768]


def test_describe_and_rebuild_give_the_same_network() -> None:
    model = zoo.create_model("timm:convnext_atto", num_classes=3, in_chans=1, drop_path_rate=0.1)
    model.reset_classifier(9)
    again = zoo.rebuild(zoo.describe(model))
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert again.num_classes == 9
    assert again.in_chans == 1


def test_file_of_timms_names_or_ours_loads_strictly(tmp_path) -> None:
    theirs = timm.create_model("resnet18", num_classes=3)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "theirs.pth")
    ours = create_timm("resnet18", num_classes=3, checkpoint_path=tmp_path / "theirs.pth")
    torch.testing.assert_close(ours.network.state_dict(), theirs.state_dict())
    torch.save(ours.state_dict(), tmp_path / "ours.pth")
    create_timm("resnet18", num_classes=3, checkpoint_path=tmp_path / "ours.pth")
    with pytest.raises(ValueError, match=r"another shape of 2 tensors, among them fc\.bias"):
        create_timm("resnet18", num_classes=4, checkpoint_path=tmp_path / "ours.pth")
    state = theirs.state_dict()
    del state["fc.weight"]
    torch.save(state, tmp_path / "lacking.pth")
    with pytest.raises(ValueError, match=r"lacks 1 tensors, among them fc\.weight"):
        create_timm("resnet18", num_classes=3, checkpoint_path=tmp_path / "lacking.pth")


@pytest.mark.parametrize(
    ("name", "arguments", "error", "says"),
    [
        ("resnt50", {}, ValueError, "unknown model 'timm:resnt50': did you mean timm:resnet50"),
        ("resnet18.nonsense", {}, ValueError, "timm:resnet18 has no weights 'nonsense'; it has"),
        ("resnet18", {"drop_pth_rate": 0.1}, TypeError, "drop_pth_rate"),
        ("resnet18", {"tokens": "tome:r=8"}, ValueError, "tokens="),
        ("resnet18", {"out_indices": (1,)}, ValueError, "features_only=True"),
        ("resnet18", {"features_only": True, "num_classes": 3}, ValueError, "num_classes=3"),
        ("mixer_s16_224", {"img_size": 96, "pretrained": True}, ValueError, "has no pretrained weights"),
        ("resnet18", {"features_only": True, "resized": 96}, ValueError, "resized=96"),
        ("mixer_s16_224", {"resized": 96}, ValueError, "cannot change its input size after it was built"),
    ],
)
def test_wrong_arguments_are_one_line(name: str, arguments: dict, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=re.escape(says)) as caught:
        create_timm(name, **arguments)
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_fetched_are_one_line_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    from huggingface_hub import constants

    def unknown(*_: object) -> None:
        raise socket.gaierror("no network in this test")

    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(FileNotFoundError, match="timm:resnet18 are not in the cache") as caught:
        create_timm("resnet18", pretrained=True)
    assert "\n" not in str(caught.value)


def test_offline_asks_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("a socket was asked for"))
    with pytest.raises(FileNotFoundError, match="not in the cache"):
        create_timm("resnet18", pretrained=True)
