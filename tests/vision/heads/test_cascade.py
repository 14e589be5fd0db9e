"""Cascade R-CNN: its stages, their boxes, matches and losses."""

import torch
from detector_parts import built, image, target
from torch import nn
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import box_iou

from patchloom.vision.heads.cascade import refined


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
