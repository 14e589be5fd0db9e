"""Anchors, pooling, losses and detections are torchvision's own."""

import pytest
import torch
import torchvision
from detector_parts import built, image, target
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.ops import MultiScaleRoIAlign

from patchloom.vision.heads.anchors import Anchors, RegionPool
from patchloom.vision.heads.detection_input import Padded
from patchloom.vision.heads.region_parts import MaskPredictor


@pytest.mark.parametrize(("kind", "octaves"), [("faster", 1), ("retinanet", 3)])
def test_anchors_are_the_published_ones(kind, octaves):
    published = tuple(tuple(int(x * 2 ** (i / 3)) for i in range(octaves)) for x in (32, 64, 128, 256, 512))
    anchors = built(kind).rpn.anchor_generator if kind == "faster" else built(kind).anchor_generator
    theirs = AnchorGenerator(published, ((0.5, 1.0, 2.0),) * 5)
    batch = ImageList(torch.zeros(2, 3, 256, 384), [(256, 384)] * 2)
    maps = [torch.zeros(2, 4, 256 // int(s), 384 // int(s)) for s in anchors.strides]
    got, want = anchors(batch, maps), theirs(batch, maps)
    assert len(got) == 2
    assert got[0].shape == want[0].shape
    assert float((got[0] - want[0]).abs().max()) <= 1  # theirs are rounded to pixels
    assert anchors.num_anchors_per_location() == theirs.num_anchors_per_location()


def test_anchors_stand_by_declared_strides_in_float32():
    batch = ImageList(torch.zeros(1, 3, 160, 224), [(160, 224)])
    (got,) = Anchors([32, 64], (1.0,), (1.0,), offset=0.5)(
        batch, [torch.zeros(1, 1, 5, 7), torch.zeros(1, 1, 3, 4).half()]
    )
    assert got.dtype == torch.float32
    assert got[:2].tolist() == [[0, 0, 32, 32], [32, 0, 64, 32]]
    assert got[35:][[0, 1, 4]].tolist() == [[0, 0, 64, 64], [64, 0, 128, 64], [0, 64, 64, 128]]


def test_regions_are_pooled_as_by_torchvision():
    torch.manual_seed(0)
    maps = {str(i): torch.randn(2, 5, 160 // s, 224 // s) for i, s in enumerate((4, 8, 16, 32, 64))}
    corners = torch.rand(2, 20, 4) * torch.tensor([100.0, 70, 100, 70])
    boxes = [torch.cat([c[:, :2], c[:, :2] + c[:, 2:] * 1.2 + 1], 1) for c in corners]
    shapes = [(160, 224)] * 2
    want = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)(maps, boxes, shapes)
    pool = RegionPool([4, 8, 16, 32], 7)
    torch.testing.assert_close(pool(maps, boxes, shapes), want)
    half = pool({n: m.bfloat16() for n, m in maps.items()}, boxes, shapes)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), want, rtol=0.02, atol=0.02)


def torchvision_s(model):
    """Mask R-CNN of torchvision's whole class, given this model's features and anchors."""
    theirs = torchvision.models.detection.MaskRCNN(
        model.backbone, None, 160, 224, [0.0] * 3, [1.0] * 3, rpn_anchor_generator=model.rpn.anchor_generator,
        box_head=TwoMLPHead(32 * 49, 32), box_predictor=model.roi_heads.box_predictor,
        mask_head=MaskRCNNHeads(32, (32,) * 4, 1), mask_predictor=MaskPredictor(32, 32, 4),
        _skip_resize=True,
    )  # fmt: skip
    theirs.load_state_dict(model.state_dict())
    return theirs


def test_mask_rcnn_is_torchvision_s():
    model, x = built(), [image(), image(seed=1)]
    theirs, taught = torchvision_s(model), [target(), target(boxes=((3, 4, 100, 150),), labels=(2,))]
    found = []
    for m in (model, theirs):
        torch.manual_seed(3)
        found.append(m(x, taught))
    torch.testing.assert_close(*found)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_dense_detectors_are_torchvision_s_but_for_the_count_of_classes(kind):
    model, x, taught = built(kind, score=0.005), [image()], [target()]
    whole = {"retinanet": torchvision.models.detection.RetinaNet, "fcos": torchvision.models.detection.FCOS}[kind]
    theirs = whole(model.backbone, 3, 160, 224, [0.0] * 3, [1.0] * 3, anchor_generator=model.anchor_generator,
                   head=model.head, score_thresh=0.005, nms_thresh=model.nms_thresh,
                   detections_per_img=100)  # fmt: skip
    torch.testing.assert_close(model(x, taught), theirs(x, [{**taught[0], "labels": taught[0]["labels"] - 1}]))
    with torch.inference_mode():
        (got,), (want,) = model.eval()(x), theirs.eval()(x)
    assert len(got["labels"]) > 10
    torch.testing.assert_close(got, {**want, "labels": want["labels"] + 1})
    assert model.head.classification_head.cls_logits.out_channels == 3 * (9 if kind == "retinanet" else 1)


def test_images_are_padded_and_nothing_else():
    x = [image((97, 131)), image((64, 90), seed=1)]
    batch, targets = Padded(32)(x, [target((97, 131)), target((64, 90))])
    assert batch.tensors.shape == (2, 3, 128, 160)
    for one, padded in zip(x, batch.tensors, strict=True):
        h, w = one.shape[1:]
        assert torch.equal(padded[:, :h, :w], one)
        assert not padded[:, h:].any()
        assert not padded[:, :, w:].any()
    assert torch.equal(targets[1]["boxes"], target()["boxes"])
