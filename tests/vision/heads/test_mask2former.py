"""Mask2Former: the authors' numbers, network and losses, through the rules of their checkpoints; any pyramid and size;
what its predictions say of an image; a few steps of learning."""

import pytest
import torch
from golden import golden
from vision_tiny import tiny_pyramid

from patchloom.vision.heads import mask_inference
from patchloom.vision.heads.mask2former import Mask2Former, Predictions, load_mask2former
from patchloom.vision.heads.mask_losses import MaskLosses
from patchloom.vision.heads.masked_decoder import MaskPrediction
from patchloom.vision.heads.segments import Segments, of_instances, of_semantic
from patchloom.vision.mixers.window import offsets
from patchloom.vision.resnet import RULES as RESNET
from patchloom.vision.resnet import ResNetPyramid
from patchloom.vision.zoo import create_model

NAMES = ("swin_tiny", "convnext_tiny", "cvt_13", "poolformer_s12", "vmamba_tiny_s1l8", "vim_tiny", "vssd_tiny",
         "deit_small_patch16_224")  # fmt: skip


def small(name="swin_tiny", classes=5, **options):
    torch.manual_seed(0)
    given = {"queries": 12, "dim": 32, "heads": 4, "encoder_depth": 2, "decoder_depth": 4} | options
    return Mask2Former(tiny_pyramid(name), classes, **given)


def image(size=(96, 128), batch=2, seed=0):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def rectangles(size=(96, 128)):
    """Two objects, and one."""
    masks = torch.zeros(3, *size, dtype=torch.bool)
    masks[0, 8:40, 16:60], masks[1, 50:90, 70:120], masks[2, 20:80, 30:100] = True, True, True
    return [Segments(torch.tensor([0, 3]), masks[:2]), Segments(torch.tensor([1]), masks[2:])]


# ------------------------------------------------------------------------------------------------------------- records


def swin():
    return Mask2Former(create_model("swin_tiny", features_only=True, dense=True), 80).eval()


@torch.inference_mode()
def test_the_network_is_the_record_s():
    record = golden.load("mask2former/swin_tiny_instance")
    model = swin()
    report = load_mask2former(model, record.state_dict())
    assert not report.fresh
    assert not report.resized
    assert sum(p.numel() for p in model.parameters()) == record.meta["parameters"]
    maps = model.backbone(record.input())
    decoded = model.pixel_decoder(maps)
    layers = model.decoder(decoded, every=True)
    found = {f"res{i}": m for i, m in enumerate(maps, 2)}
    found |= {f"pixel_decoder_level{i}": m for i, m in enumerate(decoded.memories, 1)}
    found |= {"mask_features": decoded.features, "logits_query": layers[0].classes, "masks_query": layers[0].masks}
    found |= {"logits_layer1": layers[1].classes, "masks_layer4": layers[4].masks}
    found |= {"logits": layers[-1].classes, "masks": layers[-1].masks}
    assert set(found) == set(record.meta["outputs"])
    for name, value in found.items():
        record.compare(name, value, 1e-5)
    assert torch.equal(model(record.input()).last.masks, layers[-1].masks)


def test_matching_and_losses_are_the_record_s():
    record = golden.load("mask2former/losses")
    x, labels = record.input(), record.meta["config"]["labels"]
    masks = x["targets"] > 0.3
    targets = [Segments(torch.tensor(labels[0]), masks[:3]), Segments(torch.tensor(labels[1]), masks[3:])]
    losses, prediction = MaskLosses(points=64), MaskPrediction(x["pred_logits"], x["pred_masks"])
    points = {n: x[n].sigmoid() for n in ("match_points", "over_points", "random_points")}
    for i, (target, p) in enumerate(zip(targets, points["match_points"], strict=True)):
        record.compare(f"cost{i + 1}", losses.cost(prediction.classes[i], prediction.masks[i], target, p), 1e-5)
    drawn = iter([*points["match_points"], points["over_points"], points["random_points"]])
    pairs = losses.match(prediction, targets, lambda shape: next(drawn))
    record.compare("query_index", torch.cat([q for q, _ in pairs]), 0)
    record.compare("target_index", torch.cat([t for _, t in pairs]), 0)
    found = losses.of(prediction, targets, pairs, record.meta["config"]["num_masks"], lambda shape: next(drawn))
    for ours, theirs in (("class", "loss_ce"), ("mask", "loss_mask"), ("dice", "loss_dice")):
        record.compare(theirs, found[ours], 1e-5)


def test_a_published_file_may_hold_what_can_be_computed_and_nothing_else():
    record = golden.load("mask2former/swin_tiny_instance")
    state = record.state_dict()
    old = {n.replace("query_feat", "static_query"): v for n, v in state.items()}
    table = "backbone.layers.0.blocks.1.attn.relative_position_index"
    extra = {"criterion.empty_weight": torch.ones(81), table: torch.from_numpy(offsets(7, 7))}
    assert set(load_mask2former(swin(), old | extra).dropped) == set(extra)
    with pytest.raises(ValueError, match="not the table that this architecture computes"):
        load_mask2former(swin(), state | {table: extra[table] + 1})
    with pytest.raises(ValueError, match=r"no place for sem_seg_head\.other"):
        load_mask2former(swin(), state | {"sem_seg_head.other": torch.ones(2)})
    state.pop("sem_seg_head.predictor.decoder_norm.weight")
    with pytest.raises(ValueError, match=r"nothing fills decoder\.norm\.weight"):
        load_mask2former(swin(), state)


def test_a_resnet_s_names_are_detectron2_s():
    model = Mask2Former(ResNetPyramid((1, 1, 1, 1), frozen_norm=True), 3, dim=32, encoder_depth=1, decoder_depth=1)
    head = {n: v for n, v in golden.load("mask2former/swin_tiny_instance").state_dict().items() if "sem_seg" in n}
    state = golden.load("kmax/r50_cityscapes").state_dict()
    trunk = {n: v for n, v in state.items() if n.startswith("backbone.")}
    full = Mask2Former(ResNetPyramid(frozen_norm=True), 80)
    head["sem_seg_head.pixel_decoder.adapter_1.weight"] = torch.zeros(256, 256, 1, 1)
    for i, c in enumerate((2048, 1024, 512)):
        head[f"sem_seg_head.pixel_decoder.input_proj.{i}.0.weight"] = torch.zeros(256, c, 1, 1)
    assert not load_mask2former(full, trunk | head, RESNET).fresh
    model.train()
    assert not any(m.training or m.weight.requires_grad for m in model.backbone.norms())


# ---------------------------------------------------------------------------------------------------- any pyramid, size


def combinations():
    """Scans take their time on the larger size."""
    for name in NAMES:
        for size in [(160, 224), (97, 131)]:
            slow = name.startswith("vmamba") or (name.startswith("vim") and size == (160, 224))
            yield pytest.param(name, size, marks=pytest.mark.slow if slow else (), id=f"{name}-{size}")


@pytest.mark.parametrize(("name", "size"), list(combinations()))
def test_any_backbone_trains_and_evaluates(name, size):
    model = small(name).train()
    targets = [t.padded(size) for t in rectangles()]
    predictions = model(image(size))
    assert len(predictions.layers) == 5
    losses = MaskLosses(points=100)(predictions, targets)
    assert set(losses) == {"class", "mask", "dice"}
    sum(losses.values()).backward()
    head = [(n, p) for n, p in model.named_parameters() if not n.startswith("backbone.")]
    assert not [n for n, p in head if p.grad is None or not p.grad.isfinite().all()]
    assert any(p.grad is not None and p.grad.any() for p in model.backbone.parameters())
    with torch.no_grad():
        predictions = model.eval()(image(size))
        assert [tuple(m.shape) for m in mask_inference.semantic(predictions)] == [(5, *size)] * 2
        assert all(i.masks.shape[1:] == size for i in mask_inference.instances(predictions))


def test_what_is_embedded_does_not_decay():
    model = small("deit_small_patch16_224")
    names = model.no_weight_decay()
    assert {"decoder.query_feat", "pixel_decoder.level_embed"} <= names <= dict(model.named_parameters()).keys()
    assert any(n.startswith("backbone.") for n in names)


def test_checkpointing_the_backbone_changes_no_gradient():
    grads = []
    for enable in (False, True):
        model = small().train()
        model.set_grad_checkpointing(enable)
        model(image()).last.masks.square().mean().backward()
        grads.append(model.backbone.backbone.stages[0].blocks[0].mixer.qkv.weight.grad)
    torch.testing.assert_close(*grads)


def test_every_parameter_learns():
    model = small().train()
    optimiser = torch.optim.SGD(model.parameters(), 1e-3)
    for _ in range(2):
        optimiser.zero_grad()
        sum(MaskLosses(points=200)(model(image()), rectangles()).values()).backward()
        optimiser.step()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@torch.no_grad()
def test_an_image_alone_is_as_in_a_batch_and_a_list_as_a_tensor():
    model, x = small().eval(), image()
    both, alone, listed = model(x).last, model(x[1:]).last, model(list(x)).last
    torch.testing.assert_close(both.masks[1:], alone.masks, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both.masks, listed.masks)
    mixed = model([x[0], x[1][:, :70, :90]])
    assert (mixed.size, mixed.sizes) == ((96, 128), [(96, 128), (70, 90)])
    assert [tuple(m.shape[1:]) for m in mask_inference.semantic(mixed)] == [(96, 128), (70, 90)]
    assert [tuple(m.shape[1:]) for m in mask_inference.semantic(mixed, [(50, 60), (7, 9)])] == [(50, 60), (7, 9)]


@torch.no_grad()
def test_bfloat16_is_near():
    model, x = small().eval(), image()
    want = model(x).last.classes
    with torch.autocast("cpu", torch.bfloat16):
        got = model(x).last.classes
    assert float((got.float() - want).abs().max() / want.abs().max()) < 0.1
    got = model.bfloat16()(x.bfloat16()).last.classes
    assert got.dtype == torch.bfloat16
    assert float((got.float() - want).abs().max() / want.abs().max()) < 0.1


@torch.no_grad()
def test_it_exports():
    class Answers(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            last = self.model(x).last
            return last.classes, last.masks

    model, x = Answers(small().eval()), image()
    for got, want in zip(torch.export.export(model, (x,)).module()(x), model(x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="Linear does not say its channels and strides"):
        Mask2Former(torch.nn.Linear(3, 3), 2)
    model = small().train()
    predictions = model(image())
    with pytest.raises(ValueError, match="1 targets for 2 images"):
        MaskLosses()(predictions, rectangles()[:1])
    with pytest.raises(ValueError, match=r"masks of \(90, 128\) for an image of \(96, 128\)"):
        MaskLosses()(predictions, [Segments(t.labels, t.masks[:, :90]) for t in rectangles()])
    with pytest.raises(ValueError, match="label 7: the model knows the classes 0 to 4"):
        MaskLosses()(predictions, [Segments(t.labels * 0 + 7, t.masks) for t in rectangles()])
    with pytest.raises(ValueError, match="depth 3: the encoder has 1 to 2 layers"):
        model(image(), depth=3)


# -------------------------------------------------------------------------------------------------------------- losses


def perfect(targets, queries=6, classes=5, size=(96, 128)):
    """Predictions that say exactly the targets, by queries in another order."""
    rows = []
    for t in targets:
        logits = torch.full((queries, classes + 1), -20.0)
        logits[:, -1] = 20
        masks = torch.full((queries, *size), -20.0)
        for i, (label, mask) in enumerate(zip(t.labels, t.masks, strict=True)):
            q = queries - 1 - i
            logits[q, -1], logits[q, label] = -20, 20
            masks[q][mask] = 20
        rows.append((logits, masks))
    layer = MaskPrediction(*(torch.stack(r) for r in zip(*rows, strict=True)))
    return Predictions([layer], size, [size] * len(rows))


def test_what_is_right_costs_nothing_and_finds_its_targets():
    torch.manual_seed(0)
    targets = rectangles()
    losses = MaskLosses(points=500)
    predictions = perfect(targets)
    pairs = losses.match(predictions.last, targets, torch.rand)
    assert [(q.tolist(), t.tolist()) for q, t in pairs] == [([4, 5], [1, 0]), ([5], [0])]
    found = losses(predictions, targets)
    assert found["class"] < 1e-6
    assert found["mask"] + found["dice"] < 0.8  # points between the pixels of a border, which are sought for, alone
    wrong = losses(predictions, [targets[1], targets[0]])
    assert wrong["class"] > 5
    assert wrong["mask"] + wrong["dice"] > 10


def test_an_image_without_objects_has_a_loss():
    model = small().train()
    empty = Segments(torch.zeros(0, dtype=torch.long), torch.zeros(0, 96, 128, dtype=torch.bool))
    losses = MaskLosses(points=50)(model(image()), [empty, empty])
    assert losses["mask"] == losses["dice"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_targets_of_both_kinds_become_segments():
    labels = torch.tensor([[0, 0, 2], [255, 2, 2]])
    found = of_semantic(labels)
    assert found.labels.tolist() == [0, 2]
    assert found.masks.sum((1, 2)).tolist() == [2, 3]
    masks = torch.ones(2, 2, 3, dtype=torch.uint8)
    found = of_instances({"labels": torch.tensor([1, 4]), "masks": masks, "iscrowd": torch.tensor([0, 1])})
    assert (found.labels.tolist(), found.masks.dtype) == ([0], torch.bool)


# ------------------------------------------------------------------------------------------------------------- results


def test_results_of_what_is_right_are_right():
    targets = rectangles()
    predictions = perfect(targets)
    for t, found in zip(targets, mask_inference.instances(predictions, limit=4), strict=True):
        assert len(found.scores) >= len(t.labels)
        sure = found.scores > 0.99
        assert not (found.scores[~sure] > 0.01).any()
        order = sure.nonzero()[:, 0][found.labels[sure].argsort()]
        assert found.labels[order].tolist() == t.labels.tolist()
        assert torch.equal(found.masks[order], t.masks)
    first = mask_inference.instances(predictions, limit=2)[0]
    assert sorted(first.boxes.tolist()) == [[16, 8, 60, 40], [70, 50, 120, 90]]
    assert sorted(first.as_target()["labels"].tolist()) == [1, 4]
    assert mask_inference.instances(predictions, things=[3], limit=2)[0].labels.tolist() == [3]
    scores = mask_inference.semantic(predictions)[0]
    assert torch.equal(scores[3] > 0.5, targets[0].masks[1])
    whole = mask_inference.panoptic(predictions, things=[0])[0]
    assert [s.label for s in whole.segments] == [3, 0]
    for s in whole.segments:
        assert torch.equal(whole.numbers == s.number, targets[0].masks[targets[0].labels.tolist().index(s.label)])


def test_stuff_is_one_segment_and_things_are_several():
    masks = rectangles()[0].masks
    predictions = perfect([Segments(torch.tensor([2, 2]), masks)])
    assert len(mask_inference.panoptic(predictions, things=[2])[0].segments) == 2
    stuff = mask_inference.panoptic(predictions, things=[])[0]
    assert len(stuff.segments) == 1
    assert torch.equal(stuff.numbers == 1, masks.any(0))


def test_what_is_hidden_or_unsure_is_left_out():
    masks = torch.zeros(2, 96, 128, dtype=torch.bool)
    masks[0, :60, :60] = masks[1, :50, :60] = True  # the second lies in the first
    predictions = perfect([Segments(torch.tensor([0, 1]), masks)])
    predictions.last.classes[0, 4] = torch.tensor([0.0, 3.5, 0, 0, 0, 0])  # sure by 0.87, less than the first
    found = mask_inference.panoptic(predictions, things=[0, 1])[0]
    assert [s.label for s in found.segments] == [0]
    predictions.last.classes[:] = 0
    assert not mask_inference.panoptic(predictions, things=[0, 1])[0].segments


def test_it_learns():
    torch.manual_seed(0)
    size, model, losses = (64, 64), small(classes=2, queries=6).train(), MaskLosses(points=256)
    x, labels = torch.randn(4, 3, *size) * 0.1, torch.zeros(4, *size, dtype=torch.long)
    for i in range(4):
        labels[i, 8 * i : 8 * i + 32, 16:48] = 1
        x[i, 0][labels[i] == 1] += 2
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(40):
        optimiser.zero_grad()
        sum(losses(model(x), [of_semantic(t) for t in labels]).values()).backward()
        optimiser.step()
    with torch.no_grad():
        found = torch.stack(mask_inference.semantic(model.eval()(x))).argmax(1)
    assert (found == labels).float().mean() > 0.9
