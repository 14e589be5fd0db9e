"""Detectors of torchvision's parts on our pyramids: any backbone, adapter and size, and wrong input."""

import pytest
import torch
from detector_parts import DETECTORS, built, image, target
from torch import nn
from torchvision.ops import box_iou
from vision_tiny import tiny_pyramid

from patchloom.vision import adapters
from patchloom.vision.adapters import adapt
from patchloom.vision.heads.detection import FCOS, MaskRCNN
from patchloom.vision.plugins import SeamError, attach
from patchloom.vision.plugins.words import from_words
from patchloom.vision.resnet import ResNetPyramid
from patchloom.vision.zoo import create_model

KINDS = ("vit_base_patch16_224", "swin_tiny", "cvt_13", "convnext_tiny", "poolformer_s12", "vim_tiny",
         "vmamba_tiny_s1l8", "vssd_tiny")  # fmt: skip
CLUSTERED = ("vit_base_patch16_224", "swin_tiny", "vim_tiny")  # the others need full grids
LOSSES = {
    "retinanet": {"classification", "bbox_regression"}, "fcos": {"classification", "bbox_regression", "bbox_ctrness"},
    "faster": {"loss_classifier", "loss_box_reg"}, "mask": {"loss_classifier", "loss_box_reg", "loss_mask"},
    "cascade": {f"loss_{k}_{i}" for k in ("classifier", "box_reg") for i in (1, 2, 3)},
}  # fmt: skip
LOSSES["cascade mask"] = LOSSES["cascade"] | {"loss_mask"}
PROPOSALS = {"loss_objectness", "loss_rpn_box_reg"}


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
