"""Detectors of torchvision's parts on our pyramids: torchvision's own numbers, any backbone, adapter and size, what a
cascade adds, and wrong input."""

from functools import partial

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import MultiScaleRoIAlign, box_iou
from vision_tiny import tiny_pyramid

from patchloom.vision import adapters
from patchloom.vision.adapters import adapt
from patchloom.vision.heads.anchors import Anchors, RegionPool
from patchloom.vision.heads.cascade import CascadeRCNN, refined
from patchloom.vision.heads.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from patchloom.vision.heads.detection_input import Padded
from patchloom.vision.heads.region_parts import MaskPredictor
from patchloom.vision.plugins import SeamError, attach
from patchloom.vision.plugins.words import from_words
from patchloom.vision.resnet import ResNetPyramid
from patchloom.vision.zoo import create_model

KINDS = ("vit_base_patch16_224", "swin_tiny", "cvt_13", "convnext_tiny", "poolformer_s12", "vim_tiny",
         "vmamba_tiny_s1l8", "vssd_tiny")  # fmt: skip
CLUSTERED = ("vit_base_patch16_224", "swin_tiny", "vim_tiny")  # the others need full grids
DETECTORS = {
    "retinanet": partial(RetinaNet, dim=32), "fcos": partial(FCOS, dim=32),
    "faster": partial(FasterRCNN, dim=32, hidden=32), "mask": partial(MaskRCNN, dim=32, hidden=32),
    "cascade": partial(CascadeRCNN, dim=32, hidden=32),
    "cascade mask": partial(CascadeRCNN, dim=32, hidden=32, masks=True),
}  # fmt: skip
LOSSES = {
    "retinanet": {"classification", "bbox_regression"}, "fcos": {"classification", "bbox_regression", "bbox_ctrness"},
    "faster": {"loss_classifier", "loss_box_reg"}, "mask": {"loss_classifier", "loss_box_reg", "loss_mask"},
    "cascade": {f"loss_{k}_{i}" for k in ("classifier", "box_reg") for i in (1, 2, 3)},
}  # fmt: skip
LOSSES["cascade mask"] = LOSSES["cascade"] | {"loss_mask"}
PROPOSALS = {"loss_objectness", "loss_rpn_box_reg"}


def built(kind="mask", name="swin_tiny", classes=3, **options):
    torch.manual_seed(0)
    return DETECTORS[kind](tiny_pyramid(name), classes, **options)


def image(size=(160, 224), seed=0):
    return torch.randn(3, *size, generator=torch.Generator().manual_seed(seed))


def target(size=(160, 224), boxes=((10, 20, 70, 90), (30, 5, 90, 60)), labels=(1, 3), **more):
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    return {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.int64), "masks": masks, **more}


def check_answer(answer, size, classes, masks):
    boxes, scores, labels = answer["boxes"], answer["scores"], answer["labels"]
    assert boxes.shape == (len(scores), 4) and labels.shape == scores.shape  # noqa: PT018
    assert boxes.dtype == scores.dtype == torch.float32
    assert (boxes >= 0).all() and (boxes <= torch.tensor([size[1], size[0]] * 2)).all()  # noqa: PT018
    assert ((labels >= 1) & (labels <= classes)).all()
    assert (scores.diff() <= 0).all()
    assert ("masks" in answer) == masks
    if masks:
        assert answer["masks"].shape == (len(scores), 1, *size)


# ---------------------------------------------------------------------------------------------- every backbone and head


def step(model, size=(160, 224)):
    model.train()
    losses = model([image(size)], [target(size)])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    heads = [(n, p) for n, p in model.named_parameters() if not n.startswith("backbone.pyramid.")]
    assert not [n for n, p in heads if p.grad is None or not p.grad.isfinite().all()]
    assert any(p.grad is not None and p.grad.any() for p in model.pyramid.parameters())
    with torch.inference_mode():
        (answer,) = model.eval()([image(size)])
    check_answer(answer, size, model.classes, masks=True)
    return losses


@pytest.mark.parametrize("name", KINDS)
def test_any_backbone_trains_and_evaluates(name):
    assert set(step(built(name=name))) == LOSSES["mask"] | PROPOSALS


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mask", "cascade mask"])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [(97, 131), (224, 160)])
def test_any_backbone_of_other_sizes(name, kind, size):
    step(built(kind, name), size)


@pytest.mark.parametrize("name", KINDS)
def test_with_an_adapter(name):
    torch.manual_seed(0)
    pyramid = tiny_pyramid(name)
    adapt(pyramid, adapters.from_words("lora:r=2"))
    model = MaskRCNN(pyramid, 3, 32, 32)
    step(model)
    learnt = [n for n, p in model.pyramid.named_parameters() if p.grad is not None and p.grad.any()]
    assert learnt
    assert all("lora_" in n for n in learnt)


@pytest.mark.parametrize("name", KINDS)
def test_with_token_clustering(name):
    torch.manual_seed(0)
    pyramid, plugin = tiny_pyramid(name), from_words("clustering:scale=0.7")
    if name not in CLUSTERED:
        with pytest.raises(SeamError, match="needs a full grid"):
            attach(pyramid, plugin)
        return
    attach(pyramid, plugin)
    step(MaskRCNN(pyramid, 3, 32, 32))


@pytest.mark.parametrize("kind", DETECTORS)
def test_any_head_takes_any_sizes_and_images_without_objects(kind):
    model, sizes = built(kind), [(97, 131), (160, 90)]
    images, targets = [image(s) for s in sizes], [target(sizes[0]), target(sizes[1], (), ())]
    losses = model(images, targets)
    assert set(losses) == LOSSES[kind] | (set() if kind in ("retinanet", "fcos") else PROPOSALS)
    sum(losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    empty = model(images, [target(s, (), ()) for s in sizes])
    assert sum(empty.values()).isfinite()
    model.eval()
    with torch.inference_mode():
        for answer, size in zip(model(images), sizes, strict=True):
            check_answer(answer, size, 3, model.masks)
        stacked = model(torch.stack([image()] * 2))
    torch.testing.assert_close(stacked[0]["scores"], stacked[1]["scores"])


@pytest.mark.parametrize("kind", DETECTORS)
def test_two_steps_reach_every_parameter(kind):
    model = built(kind)
    optimiser = torch.optim.SGD(model.parameters(), 1e-3)
    large = target((256, 320), ((10, 20, 40, 40), (20, 5, 120, 90), (2, 3, 310, 250)), (1, 3, 2))
    for _ in range(2):
        optimiser.zero_grad()
        sum(model([image((256, 320))], [large]).values()).backward()
        optimiser.step()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("kind", DETECTORS)
def test_bfloat16_is_near(kind):
    model, x = built(kind), image()
    taught = [target()]
    torch.manual_seed(1)
    want = sum(model([x], taught).values())
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        got = sum(model([x], taught).values())
    torch.testing.assert_close(got, want, rtol=0.1, atol=0.1)
    got.backward()
    model.eval().bfloat16()
    with torch.inference_mode():
        (answer,) = model([x.bfloat16()])
    check_answer(answer, (160, 224), 3, model.masks)


def test_checkpointing_the_backbone_changes_no_gradient():
    grads = []
    for enable in (False, True):
        model = built("retinanet")
        model.set_grad_checkpointing(enable)
        sum(model([image()], [target()]).values()).backward()
        grads.append(model.pyramid.backbone.stages[0].blocks[0].mixer.qkv.weight.grad)
    torch.testing.assert_close(*grads)


def test_what_a_model_says_of_itself():
    model = built(name="deit_small_patch16_224")
    names = model.no_weight_decay()
    assert names
    assert names <= dict(model.named_parameters()).keys()
    pyramid = create_model("vssd_micro", features_only=True)
    model = FCOS(pyramid, 3, 32)
    assert {k: model.default_cfg[k] for k in ("shortest", "longest", "mean", "std")} == {
        "shortest": 800, "longest": 1333, "mean": pyramid.default_cfg["mean"], "std": pyramid.default_cfg["std"]
    }  # fmt: skip
    assert (model.name, model.family, model.classes) == ("vssd_micro", "vssd", 3)


def test_other_backbones_and_a_clone_of_the_state():
    with torch.device("meta"):
        model = MaskRCNN(ResNetPyramid(), 80)
    assert model.backbone.strides == [4, 8, 16, 32, 64]
    one, other = built("cascade mask"), built("cascade mask", classes=3)
    torch.manual_seed(5)
    for p in other.parameters():
        nn.init.normal_(p, std=0.01)
    other.load_state_dict(one.state_dict())
    with torch.inference_mode():
        a, b = (m.eval()([image()])[0] for m in (one, other))
    torch.testing.assert_close(a, b)


# ------------------------------------------------------------------------------------------------ torchvision's numbers


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


# ------------------------------------------------------------------------------------------------------------ a cascade


def given(model, seed=2):
    torch.manual_seed(seed)
    with torch.no_grad():
        features = model.backbone(image()[None])
    corners = torch.rand(40, 4) * torch.tensor([120.0, 80, 100, 70])
    return features, [torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:] + 2], 1)], [(160, 224)]


def still(model):
    """No stage moves a box."""
    for stage in model.roi_heads.stages:
        nn.init.zeros_(stage.box_predictor.bbox_pred.weight)
        nn.init.zeros_(stage.box_predictor.bbox_pred.bias)
    return model


def test_stages_are_the_published_ones():
    stages = built("cascade").roi_heads.stages
    assert [s.proposal_matcher.high_threshold for s in stages] == [0.5, 0.6, 0.7]
    assert [s.proposal_matcher.low_threshold for s in stages] == [0.5, 0.6, 0.7]
    assert [s.box_coder.weights for s in stages] == [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]
    assert [s.has_mask() for s in built("cascade mask").roi_heads.stages] == [True, False, False]


@torch.no_grad()
def test_boxes_go_through_three_stages_and_probabilities_are_averaged():
    model = built("cascade", score=0.0, iou=1.0, limit=1000).eval()
    features, regions, shapes = given(model)
    stages = model.roi_heads.stages
    for stage in stages:
        nn.init.normal_(stage.box_predictor.bbox_pred.weight, std=0.3)
    (got,) = model.roi_heads.found(features, regions, shapes)
    total, boxes = 0.0, regions[0]
    for stage in stages:
        hidden = stage.box_head(stage.box_roi_pool(features, [boxes], shapes))
        total = total + stage.box_predictor.cls_score(hidden).softmax(-1)
        moved = stage.box_coder.decode_single(stage.box_predictor.bbox_pred(hidden), boxes)
        boxes = torch.stack([moved[:, 0].clamp(0, 224), moved[:, 1].clamp(0, 160),
                             moved[:, 2].clamp(0, 224), moved[:, 3].clamp(0, 160)], 1)  # fmt: skip
    assert (boxes - regions[0]).abs().max() > 1
    scores = (total / 3)[:, 1:]
    whole = ((boxes[:, 2:] - boxes[:, :2]) >= 1e-2).all(1)
    want = scores[whole].flatten().sort(descending=True)
    torch.testing.assert_close(got["scores"], want.values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got["boxes"], boxes[whole][want.indices // 3], rtol=1e-4, atol=1e-2)
    assert torch.equal(got["labels"], want.indices % 3 + 1)


def test_each_stage_learns_by_its_own_matches():
    model = still(built("cascade"))
    features, regions, shapes = given(model)
    taught, heads = [target()], model.roi_heads
    torch.manual_seed(4)
    got = heads.losses(features, regions, shapes, taught)
    for k, (overlap, share) in enumerate(((0.5, 1.0), (0.6, 0.5), (0.7, 0.25))):
        boxes = torch.cat([regions[0], taught[0]["boxes"]])  # fewer than 512: all are kept
        best, which = box_iou(boxes, taught[0]["boxes"]).max(1)
        labels = torch.where(best >= overlap, taught[0]["labels"][which], 0)
        stage = heads.stages[k]
        scores, sides = stage.box_predictor(stage.box_head(stage.box_roi_pool(features, [boxes], shapes)))
        codes = stage.box_coder.encode_single(taught[0]["boxes"][which], boxes)
        negatives = (labels == 0).sum()
        assert negatives < 384
        want = fastrcnn_loss(scores, sides, [labels], [codes])
        for name, value in zip(("classifier", "box_reg"), want, strict=True):
            torch.testing.assert_close(got[f"loss_{name}_{k + 1}"], share * value, rtol=1e-4, atol=1e-6)
        assert want[1].item() > 0 or k == 2


@torch.no_grad()
def test_boxes_stay_inside():
    model = built("cascade")
    regions = [torch.tensor([[0.0, 0, 10, 10], [5, 5, 20, 30]]), torch.tensor([[1.0, 2, 30, 40]])]
    sides = torch.tensor([[-20.0, 0, 0, 0], [0, 0, 50, 50], [0, 0, 0, 0]]).repeat(1, 4)
    one, two = refined(model.roi_heads.stages[0], sides, regions, [(50, 60), (20, 25)])
    assert one.tolist() == [[0, 0, 0, 10], [0, 0, 60, 50]]
    assert two.tolist() == [[1, 2, 25, 20]]


# ------------------------------------------------------------------------------------------------------ right and wrong


def test_crowds_are_left_out():
    model = built()
    found = []
    for taught in (target(iscrowd=torch.tensor([0, 1])), target(boxes=((10, 20, 70, 90),), labels=(1,))):
        torch.manual_seed(3)
        found.append(model([image()], [taught]))
    torch.testing.assert_close(*found)


def changed(**parts):
    return [{**target(), **parts}]


@pytest.mark.parametrize(("targets", "message"), [
    (None, "takes a target for each of 1 images; got none"),
    (changed() * 2, "for each of 1 images; got 2"),
    ([{"boxes": torch.zeros(0, 4)}], "target 0 has no labels and no masks; it has boxes"),
    (changed(boxes=torch.zeros(2, 5)), r"boxes of target 0 are torch.float32 \(2, 5\); floating \(n, 4\)"),
    (changed(boxes=torch.ones(2, 4).long()), "boxes of target 0 are torch.int64"),
    (changed(labels=torch.tensor([1])), r"labels of target 0 are torch.int64 \(1,\) for 2 boxes"),
    (changed(labels=torch.tensor([1, 4])), "object 1 of target 0 is labelled 4, and labels are from 1 to 3"),
    (changed(labels=torch.tensor([0, 1])), "object 0 of target 0 is labelled 0"),
    (changed(boxes=torch.tensor([[1.0, 2, 3, 4], [9, 9, 9, 12]])), r"object 1 .* box \[9.0, 9.0, 9.0, 12.0\], which"),
    (changed(boxes=torch.tensor([[1.0, 2, torch.nan, 4], [9, 9, 10, 12]])), "object 0 of target 0 has the box"),
    (changed(boxes=torch.tensor([[1.0, 2, 3, 4], [200, 9, 230, 12]])), "object 1 .* outside its image of 224 x 160"),
    (changed(masks=torch.zeros(2, 160, 200)), r"masks of target 0 are \(2, 160, 200\); .* \(2, 160, 224\)"),
])  # fmt: skip
def test_wrong_targets_are_named(targets, message):
    with pytest.raises(ValueError, match=message):
        built()([image()], targets)


def test_other_wrong_input_is_named():
    model = built().eval()
    with pytest.raises(ValueError, match="no images"):
        model([])
    with pytest.raises(ValueError, match=r"image 1 is torch.float32 \(1, 9, 9\); normalised floating ones \(3, H, W\)"):
        model([image(), torch.zeros(1, 9, 9)])
    with pytest.raises(ValueError, match=r"image 0 is torch.uint8"):
        model([torch.zeros(3, 9, 9, dtype=torch.uint8)])
    for kind in DETECTORS:
        with pytest.raises(ValueError, match="classes 0: a detector tells at least 1 apart"):
            built(kind, classes=0)
    with pytest.raises(ValueError, match="dim 40: FCOS normalises 32 groups"):
        FCOS(tiny_pyramid("swin_tiny"), 3, 40)
    with pytest.raises(ValueError, match="Linear does not say its channels"):
        MaskRCNN(nn.Linear(3, 3), 3)


# ------------------------------------------------------------------------------------------------------------- learning


@pytest.mark.slow
@pytest.mark.parametrize("kind", DETECTORS)
def test_it_learns_a_picture(kind):
    model, x, taught = (
        built(kind, "convnext_tiny"),
        image() * 0.1,
        target(boxes=((10, 20, 74, 90), (120, 40, 200, 140))),
    )
    x[0, 20:90, 10:74] += 2
    x[2, 40:140, 120:200] -= 2
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(120):
        optimiser.zero_grad()
        sum(model([x], [taught]).values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
    with torch.inference_mode():
        (found,) = model.eval()([x])
    for box, label, mask in zip(taught["boxes"], taught["labels"], taught["masks"], strict=True):
        near = box_iou(box[None], found["boxes"])[0] * (found["labels"] == label)
        assert near.max() > 0.7
        assert found["scores"][near.argmax()] > 0.3
        if model.masks:
            got = found["masks"][near.argmax(), 0] > 0.5
            assert (got & mask).sum() / (got | mask).sum() > 0.6
