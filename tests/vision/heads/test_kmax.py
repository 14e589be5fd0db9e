"""kMaX-DeepLab: the authors' numbers through the rules of their checkpoints; any pyramid and size; laws of its losses;
what its clusters say of an image; a few steps of learning."""

import math
from dataclasses import replace

import pytest
import torch
from golden import golden
from vision_tiny import tiny_pyramid

from patchloom.vision.heads import kmax_inference
from patchloom.vision.heads.kmax import KMax, KMaxPredictions, kmax, load_kmax
from patchloom.vision.heads.kmax_decoder import KMaxPrediction, gathered
from patchloom.vision.heads.kmax_losses import KMaxLosses, draw, owner_of
from patchloom.vision.heads.kmax_pixel_decoder import REACH, AxisAttention, Level
from patchloom.vision.heads.segments import Segments, of_semantic

LEVELS = (Level(16, 1, True), Level(16, 2, True), Level(8), Level(8))
RECORDS = {"kmax/convnext_tiny_coco": "coco_convnext_tiny", "kmax/r50_cityscapes": "cityscapes_r50"}
SHARP = ("centers_layer6", "logits", "masks")  # see below


def small(name="swin_tiny", classes=5, **options):
    torch.manual_seed(0)
    return KMax(tiny_pyramid(name), classes, **({"queries": 12, "levels": LEVELS} | options))


def image(size=(97, 129), batch=2, seed=0):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def rectangles(size=(97, 129)):
    masks = torch.zeros(3, *size, dtype=torch.bool)
    masks[0, 8:40, 16:60], masks[1, 48:88, 72:120], masks[2, 20:80, 32:100] = True, True, True
    return [Segments(torch.tensor([0, 3]), masks[:2]), Segments(torch.tensor([1]), masks[2:])]


# ------------------------------------------------------------------------------------------------------------- records


def outputs(model, x, names):
    """What the record calls its outputs."""
    maps = model.backbone(x)
    coarse = model.pixel_decoder(maps)
    found = dict(zip(names, maps, strict=True)) | {f"pixel_decoder_level{i}": m for i, m in enumerate(coarse[:3], 1)}
    centres = model.decoder.centres.expand(1, -1, -1)
    for i, layer in enumerate(model.decoder.layers, 1):
        centres, prediction = layer(centres, coarse[(i - 1) // 2])
        found |= {f"centers_layer{i}": centres, f"mask_logits_layer{i}": prediction.masks}
        found |= {f"class_logits_layer{i}": prediction.classes}
    last = model.decoder(coarse)[-1]
    found |= {"logits": last.classes, "masks": last.masks, "pixel_feature": last.pixels, "panoptic_feature": coarse[-1]}
    return found | {"aux_semantic": model.semantic(maps)}


@pytest.mark.parametrize("path", RECORDS)
@torch.inference_mode()
def test_the_network_is_the_record_s(path):
    """Behind the Cityscapes record's last layer scores of up to 12,495 go into a softmax, so that float32 leaves no
    fifth digit: there this is compared in float64."""
    record = golden.load(path)
    model = kmax(RECORDS[path]).eval()
    report = load_kmax(model, record.state_dict())
    assert not report.fresh
    assert sum(p.numel() for p in model.parameters()) == record.meta["parameters"]
    stem = ("stem",) if "stem" in record.meta["outputs"] else ()
    names = ("res2", *stem, "res3", "res4", "res5")
    found = outputs(model, record.input(), names)
    wide = outputs(model.double(), record.input().double(), names)
    assert set(record.meta["outputs"]) <= set(found)
    for name in record.meta["outputs"]:
        if not (stem and name in SHARP):
            record.compare(name, found[name], 1e-5)
        record.compare(name, wide[name], 1e-5)


def test_a_network_without_the_semantic_head_leaves_its_weights_out():
    record = golden.load("kmax/r50_cityscapes")
    model = kmax("cityscapes_r50")
    model.semantic = None
    assert any("_auxiliary_semantic_predictor" in n for n in load_kmax(model, record.state_dict()).dropped)
    state = record.state_dict() | {"sem_seg_head.predictor.other": torch.ones(1)}
    with pytest.raises(ValueError, match=r"no place for sem_seg_head\.predictor\.other"):
        load_kmax(model, state)


def test_variants_are_named():
    with pytest.raises(ValueError, match="no kMaX-DeepLab 'coco_swin_tiny'"):
        kmax("coco_swin_tiny")
    with pytest.raises(ValueError, match="a map of the stem"):
        kmax("cityscapes_convnext_large")
    with torch.device("meta"):
        assert kmax("ade20k_convnext_large").classes == 150


# ---------------------------------------------------------------------------------------------------- any pyramid, size


@pytest.mark.parametrize(("size", "odd"), [((160, 224), False), ((97, 131), True)], ids=str)
@pytest.mark.parametrize("name", ["swin_tiny", "convnext_tiny", "poolformer_s12", "deit_small_patch16_224"])
def test_any_backbone_trains_and_evaluates(name, size, odd):
    backbone = tiny_pyramid(name)
    levels = LEVELS[-len(backbone.channels) :]
    torch.manual_seed(0)
    model = KMax(backbone, 5, 12, levels, "fused" if len(levels) == 4 else "coarse", odd=odd).train()
    targets = [t.padded(size) for t in rectangles((90, 129))]
    losses = KMaxLosses(sampled=300)(model(image(size)), targets)
    assert set(losses) == {"class", "mask", "dice", "pixels", "semantic"}
    sum(losses.values()).backward()
    head = [(n, p) for n, p in model.named_parameters() if not n.startswith("backbone.")]
    assert not [n for n, p in head if p.grad is None or not p.grad.isfinite().all()]
    with torch.no_grad():
        predictions = model.eval()(image(size))
        assert predictions.semantic is None
        assert [tuple(m.shape) for m in kmax_inference.semantic(predictions)] == [(5, *size)] * 2
        assert all(p.numbers.shape == size for p in kmax_inference.panoptic(predictions, [0]))


def test_what_is_embedded_does_not_decay():
    model = small()
    names = model.no_weight_decay()
    assert {"decoder.centres", "pixel_decoder.stages.0.0.middle.0.height.key_table"} <= names
    assert names <= dict(model.named_parameters()).keys()


def test_every_parameter_learns():
    model = small().train()
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):  # norms that begin at 0 hide what stands before them
        optimiser.zero_grad()
        sum(KMaxLosses(sampled=300)(model(image()), rectangles()).values()).backward()
        optimiser.step()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@torch.no_grad()
def test_an_image_alone_is_as_in_a_batch_and_sizes_may_differ():
    model, x = small().eval(), image()
    both, alone = model(x).last, model(x[1:]).last
    torch.testing.assert_close(both.masks[1:], alone.masks, rtol=1e-4, atol=1e-4)
    mixed = model([x[0], x[1][:, :70, :90]])
    assert (mixed.size, mixed.sizes) == ((97, 129), [(97, 129), (70, 90)])
    assert [tuple(m.shape[1:]) for m in kmax_inference.semantic(mixed, [(50, 60), (7, 9)])] == [(50, 60), (7, 9)]


@torch.no_grad()
def test_bfloat16_is_near():
    """But for pixels that change their cluster: the layers' first prediction is compared, where none has chosen yet."""
    model, x = small().eval(), image()
    want = model(x).layers[0]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(x).layers[0]
    short = model.bfloat16()(x.bfloat16()).layers[0]
    for got in (mixed, short):
        for ours, theirs in ((got.masks, want.masks), (got.classes, want.classes)):
            assert float((ours.float() - theirs).abs().max() / theirs.abs().max()) < 0.1


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="3 levels for 4 maps"):
        small(levels=LEVELS[:3])
    with pytest.raises(ValueError, match="trains on 2 or more"):
        small().train()(image(batch=1))
    with pytest.raises(ValueError, match=f"over {REACH + 2} places"):
        AxisAttention(8)(torch.zeros(1, 16, REACH + 2))
    with pytest.raises(ValueError, match="label 9"):
        KMaxLosses()(small()(image()), [Segments(t.labels + 9, t.masks) for t in rectangles()])


# ---------------------------------------------------------------------------------------------------------------- parts


def test_a_cluster_gathers_the_pixels_that_are_nearest_to_it():
    masks = torch.tensor([[[[3.0, 1, 0]], [[1.0, 2, 5]]]])  # 1 2 1 3
    values = torch.tensor([[[[1.0, 10, 100]], [[2.0, 20, 200]]]])
    assert gathered(masks, values).tolist() == [[[1, 110], [2, 220]]]


def test_rare_segments_are_drawn_as_often_as_asked():
    torch.manual_seed(0)
    group = torch.cat([torch.full((900,), 1), torch.full((100,), 0), torch.full((500,), -1)])
    drawn = torch.stack([group[draw(group, 1, 1.0)] for _ in range(2000)])
    assert not (drawn < 0).any()
    assert float((drawn == 0).float().mean()) == pytest.approx(0.5, abs=0.05)
    assert len(draw(group, 5000, 1.5).unique()) == 1000


def test_the_map_of_segments_is_that_of_the_pixels_it_stands_on():
    masks = rectangles()[0]
    owner = owner_of(masks, (25, 33))  # every fourth pixel
    want = torch.where(masks.masks.any(0), masks.masks.int().argmax(0), -1)[::4, ::4]
    assert torch.equal(owner, want)
    assert (owner_of(Segments(torch.zeros(0), torch.zeros(0, 9, 9)), (3, 3)) == -1).all()


# --------------------------------------------------------------------------------------------------------------- losses


def perfect(targets, queries=6, classes=5, size=(97, 129), order=1):
    """Predictions that say exactly the targets; of a pixel of none, nothing."""
    rows = []
    for t in targets:
        logits, masks = torch.full((queries, classes + 1), -20.0), torch.zeros(queries, *size)
        logits[:, -1] = 20
        pixels = torch.zeros(8, *size)
        pixels[0] = 1
        for i, (label, mask) in enumerate(zip(t.labels, t.masks, strict=True)):
            q = (order * (i + 1)) % queries
            logits[q, -1], logits[q, label] = -20, 20
            masks[q][mask] = 40
            pixels[:, mask] = torch.eye(8)[i + 1][:, None]
        rows.append((logits, masks, pixels))
    return KMaxPredictions([KMaxPrediction(*(torch.stack(r) for r in zip(*rows, strict=True)))], None, size, [size] * 2)


def test_what_is_right_costs_nothing():
    torch.manual_seed(0)
    losses, targets = KMaxLosses(), rectangles()
    found = losses(perfect(targets), targets)
    assert max(float(found[n]) for n in ("class", "mask", "dice")) < 1e-3
    moved = losses(perfect(targets), [Segments(t.labels, t.masks.roll(12, -1)) for t in targets])
    assert moved["mask"] > 0.1
    assert moved["dice"] > 0.05
    predictions = perfect(targets)
    predictions.last.classes[:] = 0  # nobody knows
    assert losses(predictions, targets)["class"] > 1


def test_alike_pixels_of_a_segment_and_unlike_others_cost_the_least():
    """The cross entropy with equal shares is at least their entropy, log of how many pixels a segment has."""
    owner = torch.tensor([0] * 6 + [1] * 6)
    together = torch.eye(2)[owner].mT
    apart = torch.eye(12)
    losses = KMaxLosses(temperature=0.02, sampled=12)
    assert losses.contrast(together, owner).tolist() == pytest.approx([math.log(6)] * 12, abs=1e-3)
    assert losses.contrast(apart, owner).mean() > 5


def test_the_order_of_clusters_does_not_matter_nor_do_void_pixels():
    targets = rectangles()
    names = ("class", "mask", "dice")
    one, other = (KMaxLosses()(perfect(targets, order=o), targets) for o in (1, 5))
    for n in names:
        torch.testing.assert_close(one[n], other[n])
    predictions = perfect(targets)
    layer = predictions.last
    masks = layer.masks.clone()
    for i, t in enumerate(targets):
        masks[i, 0][~t.masks.any(0)] = 30  # a cluster that covers void alone
    changed = KMaxLosses()(replace(predictions, layers=[replace(layer, masks=masks)]), targets)
    for n in ("mask", "dice"):
        torch.testing.assert_close(changed[n], one[n])


def test_an_image_without_segments_has_a_loss():
    model = small().train()
    empty = Segments(torch.zeros(0, dtype=torch.long), torch.zeros(0, 97, 129, dtype=torch.bool))
    losses = KMaxLosses()(model(image()), [empty, empty])
    assert all(v.isfinite() for v in losses.values())
    sum(losses.values()).backward()


# -------------------------------------------------------------------------------------------------------------- results


def test_results_of_what_is_right_are_right():
    targets = rectangles()
    for t, found in zip(targets, kmax_inference.panoptic(perfect(targets), things=[0, 1, 3]), strict=True):
        assert sorted(s.label for s in found.segments) == sorted(t.labels.tolist())
        for s in found.segments:
            assert torch.equal(found.numbers == s.number, t.masks[t.labels.tolist().index(s.label)])
    same = [Segments(t.labels * 0 + 2, t.masks) for t in targets]
    assert [len(p.segments) for p in kmax_inference.panoptic(perfect(same), things=[2])] == [2, 1]
    assert [len(p.segments) for p in kmax_inference.panoptic(perfect(same), things=[])] == [1, 1]


def test_a_cluster_that_finds_its_pixels_taken_is_left_out():
    masks = torch.zeros(1, 3, 1, 10)
    masks[0, 0], masks[0, 1, :, :4] = 10, 10.2  # both over 0.4 in four pixels
    classes = torch.full((1, 3, 3), -20.0)
    classes[0, 0, 0], classes[0, 1, 1], classes[0, 2, 2] = 20, 3, 20
    classes[0, 1, 2] = 0
    predictions = KMaxPredictions([KMaxPrediction(classes, masks, masks)], None, (1, 10), [(1, 10)])
    found = kmax_inference.panoptic(predictions, [0, 1])[0]
    assert [s.label for s in found.segments] == [0]
    assert (found.numbers == 1).all()


@pytest.mark.slow
def test_it_learns():
    torch.manual_seed(0)
    size, model = (49, 49), small(classes=2, queries=6).train()
    x, labels = torch.randn(4, 3, *size) * 0.1, torch.zeros(4, *size, dtype=torch.long)
    for i in range(4):
        labels[i, 6 * i : 6 * i + 26, 12:38] = 1
        x[i, 0][labels[i] == 1] += 2
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(18):
        optimiser.zero_grad()
        sum(KMaxLosses(sampled=100)(model(x), [of_semantic(t) for t in labels]).values()).backward()
        optimiser.step()
    with torch.no_grad():
        model.eval()
        for m in model.modules():  # statistics of so few steps
            if isinstance(m, torch.nn.modules.batchnorm._BatchNorm):
                m.train()
        found = torch.stack(kmax_inference.semantic(model(x))).argmax(1)
    assert (found == labels).float().mean() > 0.9
