"""Dense networks as plain values: a checkpoint rebuilds them, with the adapter and the plugin of their backbone."""

import json
from functools import partial

import pytest
import torch
from dense_run_parts import fcos, instances_by_masks, mask2former, mask_rcnn, semantic_by_masks, semantic_fpn, upernet
from detector_parts import built
from vision_tiny import tiny_pyramid

from patchloom.vision import zoo
from patchloom.vision.adapters import adapt, adapter, adapter_of, host
from patchloom.vision.heads.kmax import KMax
from patchloom.vision.heads.kmax_losses import KMaxLosses
from patchloom.vision.heads.mask_tasks import InstanceSegmenter, SemanticSegmenter
from patchloom.vision.heads.slide import Slide
from patchloom.vision.heads.yolo import Yolo
from patchloom.vision.heads.yolo_loss import YoloLoss
from patchloom.vision.plugins import attach, plugin, plugins_of
from patchloom.vision.pyramid import Pyramid
from patchloom.vision.resnet import ResNetPyramid

NETWORKS = {
    **{kind: partial(built, kind) for kind in ("retinanet", "faster", "cascade mask")},
    "fcos": partial(fcos, score=0.11, iou=0.4, limit=7),
    "mask": mask_rcnn,
    "upernet": partial(upernet, pools=(1, 2), slide=Slide(64, (32, 48)), norm="group", width=64),
    "semantic fpn": partial(semantic_fpn, norm="batch"),
    "instances": partial(instances_by_masks, limit=9),
    "semantic": partial(semantic_by_masks, exits=True, ignore=254),
    "mask2former": partial(mask2former, 3),
    "kmax": lambda: KMax(tiny_pyramid("convnext_tiny"), 4, queries=8, semantic="coarse", odd=False),
    "yolo": lambda: Yolo(tiny_pyramid("swin_tiny"), 3, loss=YoloLoss(box=3.0), bins=4, limit=5),
    "resnet": lambda: ResNetPyramid((1, 1, 1, 1), ("res3", "res5"), eps=1e-3, frozen_norm=True),
}


def again(model):
    return zoo.rebuild(json.loads(json.dumps(zoo.describe(model))))


def settings(model):
    """What the constructor was given, but for modules."""
    return {k: v for k, v in model.arguments().items() if not isinstance(v, torch.nn.Module)}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_dense_network_is_rebuilt_of_plain_values(name):
    model = NETWORKS[name]()
    other = again(model)
    assert type(other) is type(model)
    assert settings(other) == settings(model)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (model, other)]
    assert shapes[0] == shapes[1]


def test_a_published_backbone_is_rebuilt_by_its_name():
    made = zoo.create_model(
        "swin_tiny", features_only=True, dense=True, drop_path_rate=0.3, out_indices=[1, 3], device="meta"
    )
    said = zoo.describe(made)
    assert said["name"] == "swin_tiny"
    said["arguments"]["device"] = "meta"
    other = zoo.rebuild(json.loads(json.dumps(said)))
    assert isinstance(other, Pyramid)
    assert (other.channels, other.strides, other.dense) == (made.channels, made.strides, True)
    assert other.backbone.drop_path == 0.3
    assert set(other.state_dict()) == set(made.state_dict())


def test_timms_backbones_are_rebuilt_too():
    made = zoo.create_model("timm:resnet18", features_only=True, out_indices=(2, 3))
    other = again(made)
    assert other.channels == made.channels
    assert set(other.state_dict()) == set(made.state_dict())


@pytest.mark.parametrize("kind", [mask_rcnn, upernet, instances_by_masks])
def test_adapters_and_plugins_of_the_backbone_are_described(kind):
    model = kind()
    below = host(model)
    assert isinstance(below, Pyramid)
    attach(below, plugin("clustering"))
    adapt(below, adapter("lora:r=2"))
    other = again(model)
    assert adapter_of(other) == adapter("lora:r=2")
    assert plugins_of(host(other)) == plugins_of(below)
    assert set(other.state_dict()) == set(model.state_dict())
    assert zoo.adapter_within(zoo.describe(model)) == zoo.describe(below)["adapter"]


def test_a_network_that_does_not_say_what_it_is_made_of_is_refused():
    with pytest.raises(ValueError, match="Linear cannot be described"):
        zoo.describe(InstanceSegmenterOf(torch.nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="no network that a checkpoint can describe"):
        zoo.rebuild({"class_path": "patchloom.vision.layers.Linear", "init_args": {}})


class InstanceSegmenterOf(torch.nn.Module):
    """A head on what nobody can describe."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def arguments(self):
        return {"backbone": self.backbone}


def test_networks_of_masks_say_what_does_not_fit():
    with pytest.raises(ValueError, match="whole picture's segments"):
        InstanceSegmenter(KMax(tiny_pyramid("convnext_tiny"), 4, queries=8))
    with pytest.raises(ValueError, match="has none; a Mask2Former's has"):
        SemanticSegmenter(KMax(tiny_pyramid("convnext_tiny"), 4, queries=8), exits=True)
    with pytest.raises(ValueError, match="learns by MaskLosses"):
        SemanticSegmenter(mask2former(3), KMaxLosses())
    with pytest.raises(ValueError, match="takes targets with masks"):
        instances_by_masks()([torch.zeros(3, 64, 64)], [{"labels": torch.tensor([1])}])
    with pytest.raises(ValueError, match="takes a map of classes"):
        semantic_by_masks()(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("make", [lambda: mask2former(5), lambda: KMax(tiny_pyramid("convnext_tiny"), 5, queries=8)])
def test_a_segmenter_by_masks_learns_and_answers(make):
    torch.manual_seed(0)
    model = SemanticSegmenter(make())
    image, target = torch.randn(2, 3, 70, 90), torch.randint(0, 5, (2, 70, 90))
    target[:, :5] = 255
    losses = model.train()(image, target)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in host(model).parameters())
    with torch.inference_mode():
        logits = model.eval()(image)
    assert logits.shape == (2, 5, 70, 90)
    assert torch.isfinite(logits).all()
