"""The detector of the YOLO family: what it learns by, term by term, and what it gives."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import box_iou, complete_box_iou
from vision_tiny import tiny_pyramid

from patchloom.vision.heads.yolo import Yolo, mamba_yolo, stacked
from patchloom.vision.heads.yolo_loss import Places, YoloLoss, side_loss
from patchloom.vision.zoo import create_model


def places(batch=1, classes=3, bins=8, side=4, stride=8, seed=0):
    """A map of side x side places, whose logits are random."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(*[(torch.arange(side) + 0.5) * stride] * 2, indexing="ij")
    n = side * side
    return Places(
        torch.stack([x, y], -1).flatten(0, 1), torch.full((n,), float(stride)),
        torch.randn(batch, n, 4, bins, generator=g).requires_grad_(),
        torch.randn(batch, n, classes, generator=g).requires_grad_(),
    )  # fmt: skip


def target(boxes, labels, **more):
    return {"boxes": torch.tensor(boxes).view(-1, 4), "labels": torch.tensor(labels, dtype=torch.long), **more}


OBJECTS = target([[2.0, 3, 20, 27], [9, 9, 30, 31], [1, 1, 3, 3]], [2, 3, 1])  # the last holds no place's centre


def tiny(classes=3):
    torch.manual_seed(0)
    return Yolo(tiny_pyramid("mamba_yolo_tiny"), classes)


# ------------------------------------------------------------------------------------------------------------ learning


def test_boxes_are_expected_distances_around_centres():
    p = places()
    share = p.sides.softmax(-1)
    for i, side in itertools.product(range(16), range(4)):
        distance = 8 * sum(k * share[0, i, side, k] for k in range(8))
        sign, axis = (-1, 1)[side >= 2], side % 2
        torch.testing.assert_close(p.boxes[0, i, side], p.centres[i, axis] + sign * distance)


def test_sides_learn_by_the_two_bins_around_the_truth():
    p, at = places(), torch.tensor([0, 5, 6])
    objects = torch.tensor([[-3.0, 1, 9, 90], [2, 3, 20, 27], [19, 11, 20.5, 12]])
    got = side_loss(p, 0, at, objects)
    for row, (i, (x0, y0, x1, y1)) in enumerate(zip(at.tolist(), objects.tolist(), strict=True)):
        x, y = p.centres[i].tolist()
        terms = []
        for side, d in enumerate((x - x0, y - y0, x1 - x, y1 - y)):
            d = min(max(d / 8, 0), 7 - 0.01)
            logs = p.sides[0, i, side].log_softmax(-1)
            terms.append(-(1 - d % 1) * logs[int(d)] - (d % 1) * logs[int(d) + 1])
        torch.testing.assert_close(got[row], torch.stack(terms).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("top", [1, 2, 10])
def test_places_are_assigned_by_definition(top):
    p, loss = places(seed=top), YoloLoss(top=top)
    boxes, scores = p.boxes[0].detach(), p.scores[0].detach().sigmoid()
    objects, labels = OBJECTS["boxes"], OBJECTS["labels"] - 1
    got = loss.assign(boxes, scores, p.centres, objects, labels)
    iou = complete_box_iou(objects, boxes).clamp(min=0)
    chosen = {}
    for n, (x0, y0, x1, y1) in enumerate(objects.tolist()):
        inside = [i for i, (x, y) in enumerate(p.centres.tolist()) if x0 < x < x1 and y0 < y < y1]
        fit = {i: float(scores[i, labels[n]] ** 0.5 * iou[n, i] ** 6) for i in inside}
        chosen[n] = dict(sorted(fit.items(), key=lambda kv: -kv[1])[:top])
    assert not chosen[2]
    for i in range(16):
        wanting = [n for n in chosen if i in chosen[n]]
        best = max(wanting, key=lambda n: float(iou[n, i])) if wanting else -1
        assert int(got.of[i]) == best
        for n in wanting:
            if n != best:
                del chosen[n][i]
    for n, fit in chosen.items():
        for i, value in fit.items():
            want = value / (max(fit.values()) + 1e-9) * max(float(iou[n, j]) for j in fit)
            assert float(got.worth[i]) == pytest.approx(want, rel=1e-4, abs=1e-7)
    assert not got.worth[got.of < 0].any()


def test_the_three_losses_are_weighed_sums():
    p, loss = places(2), YoloLoss(box=2.0, classes=3.0, sides=5.0)
    targets = [OBJECTS, target([], [])]
    got = loss(p, targets)
    given = loss.assign(p.boxes[0].detach(), p.scores[0].detach().sigmoid(), p.centres, OBJECTS["boxes"],
                        OBJECTS["labels"] - 1)  # fmt: skip
    wanted = torch.zeros(2, 16, 3)
    boxes = sides = 0
    for i, n in enumerate(given.of.tolist()):
        if n >= 0:
            wanted[0, i, OBJECTS["labels"][n] - 1] = given.worth[i]
            truth = OBJECTS["boxes"][n : n + 1]
            boxes += given.worth[i] * (1 - complete_box_iou(p.boxes[0, i : i + 1], truth)[0, 0])
            sides += given.worth[i] * side_loss(p, 0, torch.tensor([i]), truth)[0]
    total = max(float(wanted.sum()), 1)
    entropy = -(wanted * F.logsigmoid(p.scores) + (1 - wanted) * F.logsigmoid(-p.scores)).sum()
    torch.testing.assert_close(got["box"], 2 * boxes / total, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got["sides"], 5 * sides / total, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got["classes"], 3 * entropy / total, rtol=1e-4, atol=1e-5)
    sum(got.values()).backward()
    assert p.sides.grad.any()
    assert p.scores.grad.all()


def test_images_without_objects_teach_what_is_none():
    p = places(2)
    got = YoloLoss()(p, [target([], []), target([], [])])
    assert got["box"] == got["sides"] == 0
    sum(got.values()).backward()
    assert (p.scores.grad > 0).all()
    assert not p.sides.grad.any()


def test_crowds_are_no_targets():
    p, loss = places(), YoloLoss()
    marked = {**OBJECTS, "iscrowd": torch.tensor([1, 0, 1])}
    alone = target([[9.0, 9, 30, 31]], [3])
    assert loss(p, [marked]) == loss(p, [alone])


def test_wrong_targets_are_named():
    with pytest.raises(ValueError, match="label 4 of a target: this head tells 3 classes apart, 1 to 3"):
        YoloLoss()(places(), [target([[0.0, 0, 9, 9]], [4])])
    with pytest.raises(ValueError, match="label 0 of a target"):
        YoloLoss()(places(), [target([[0.0, 0, 9, 9]], [0])])
    with pytest.raises(ValueError, match="2 images, but targets for 1"):
        YoloLoss()(places(2), [OBJECTS])


# ------------------------------------------------------------------------------------------------------------ detecting


def test_every_parameter_learns_from_images_of_any_size():
    model = tiny().train()
    model.loss = YoloLoss(top=1000)  # places of every map
    images = [torch.randn(3, 70, 100), torch.randn(3, 96, 64)]
    losses = model(images, [target([[0.0, 0, 99, 69], [10, 20, 40, 44]], [1, 2]), target([[0.0, 0, 64, 96]], [3])])
    sum(losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert set(losses) == {"box", "classes", "sides"}
    with pytest.raises(ValueError, match="takes targets"):
        model(images)


@torch.inference_mode()
def test_detections_lie_in_their_image_the_best_first():
    model = tiny().eval()
    images = [torch.randn(3, 70, 100), torch.randn(3, 33, 64)]
    model.score = 0.0
    found = model(images)
    for one, image in zip(found, images, strict=True):
        h, w = image.shape[1:]
        low, high = one["boxes"].split(2, 1)
        assert (low >= 0).all()
        assert (low <= high).all()
        assert (high <= torch.tensor([w, h])).all()
        assert len(one["boxes"]) == len(one["scores"]) == len(one["labels"]) <= model.limit
        assert (one["scores"].diff() <= 0).all()
        assert set(one["labels"].tolist()) <= {1, 2, 3}
        for label in (1, 2, 3):
            mine = one["boxes"][one["labels"] == label]
            overlap = box_iou(mine, mine).fill_diagonal_(0)
            assert len(mine) < 2 or float(overlap.max()) <= model.iou
    model.score = 1.0
    assert [len(one["boxes"]) for one in model(images)] == [0, 0]


@torch.inference_mode()
def test_an_image_alone_is_what_it_is_in_a_batch_of_its_size():
    model, images = tiny().eval(), [torch.randn(3, 64, 96) for _ in range(2)]
    model.score = 0.0
    torch.testing.assert_close(model(images)[1], model(images[1:])[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(torch.stack(images)), model(images))


def test_images_are_padded_where_boxes_do_not_move():
    batch, sizes = stacked([torch.ones(3, 33, 20), torch.ones(3, 8, 65)], 32)
    assert batch.shape == (2, 3, 64, 96)
    assert sizes == [(33, 20), (8, 65)]
    assert batch.sum((1, 2, 3)).tolist() == [3 * 33 * 20, 3 * 8 * 65]
    with pytest.raises(ValueError, match="no images"):
        stacked([], 32)


@torch.inference_mode()
def test_bfloat16_decodes_in_float32():
    model = tiny().eval().bfloat16()
    p = model.branches.places(model.raw(torch.randn(1, 3, 64, 96).bfloat16()))
    assert p.boxes.dtype == torch.float32
    assert p.boxes.isfinite().all()


def test_any_pyramid_with_maps_at_strides_from_eight_will_do():
    swin = create_model("swin_tiny", features_only=True, device="meta")
    with torch.device("meta"):
        model = Yolo(swin, 5)
    assert model.neck.channels == [192, 384, 768]
    assert model.branches.strides == [8, 16, 32]
    vit = create_model("vit_tiny_patch16_224", features_only=True, device="meta")
    with pytest.raises(ValueError, match=r"maps at strides 8, 16, … are wanted; this backbone has \[16, 16, 16, 16\]"):
        Yolo(vit, 5)
    with pytest.raises(ValueError, match="classes 0"):
        mamba_yolo(classes=0)


@pytest.mark.slow
def test_it_learns_to_find_what_it_was_shown():
    """A bright and a dark square on grey, in four pictures."""
    torch.manual_seed(0)
    model = tiny(2).train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.3  # there are few steps
    images, targets = [], []
    for i in range(4):
        image = torch.full((3, 64, 64), 0.5)
        boxes = torch.tensor([[4 + 8 * i, 4, 28 + 8 * i, 28], [32 - 8 * i, 34, 60 - 8 * i, 62]])
        for (x0, y0, x1, y1), value in zip(boxes.tolist(), (1.0, 0.0), strict=True):
            image[:, y0:y1, x0:x1] = value
        images.append(image)
        targets.append({"boxes": boxes.float(), "labels": torch.tensor([1, 2])})
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    history = []
    for _ in range(50):
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert history[-1] < 0.4 * history[0]
    with torch.inference_mode():
        found = model.eval()(images)
    hits = 0
    for one, truth in zip(found, targets, strict=True):
        for box, label in zip(truth["boxes"], truth["labels"], strict=True):
            mine = one["boxes"][one["labels"] == label][:1]
            hits += len(mine) == 1 and float(box_iou(mine, box[None])) > 0.5
    assert hits >= 7
