"""`Detect`: training, checkpoints, adapters and layer decay, what is logged, and what does not fit."""

import json

import pytest
import torch
from dense_run_parts import coco_folder, drawn, fcos, fitted, instances_by_masks, mask_rcnn, trainer
from torch import nn
from vision_tiny import tiny_pyramid

from patchloom.data.dense_modules import CocoData, Fit
from patchloom.train.callbacks.guard import Guard, NonFinite
from patchloom.train.detect import Detect, in_pixels_of
from patchloom.train.ema import Ema
from patchloom.train.evaluation.detector import Detections
from patchloom.train.optim import layers
from patchloom.train.running import checkpoint
from patchloom.vision.adapters import adapter_of, host
from patchloom.vision.heads.yolo import Yolo
from patchloom.vision.plugins import attach, plugin, plugins_of

KINDS = {
    "fcos": fcos, "mask": mask_rcnn, "masks": instances_by_masks,
    "yolo": lambda: Yolo(tiny_pyramid("convnext_tiny"), 10, bins=4, limit=20),
}  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["mask", "masks", *(pytest.param(k, marks=pytest.mark.slow) for k in ("fcos", "yolo"))]
)
def test_it_trains_judges_and_its_checkpoint_is_the_network(kind, tmp_path):
    torch.manual_seed(0)
    module = Detect(KINDS[kind](), ema=Ema(0.5))
    before = {n: p.clone() for n, p in module.model.named_parameters()}
    made = fitted(module, tmp_path)
    moved = [n for n, p in module.model.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) > 0.8 * len(before)
    assert torch.isfinite(made.callback_metrics["train/loss"])
    assert ("val/mask_map50" in made.callback_metrics) == bool(getattr(module.model, "masks", False))
    assert 0 <= made.callback_metrics["val/map50"] <= 1
    model, classes, preprocessing = checkpoint.load_model(str(tmp_path / "last.ckpt"))
    assert type(model) is type(module.model)
    assert classes[:2] == ["circle", "square"]
    assert {"mean", "std", "shortest", "longest"} <= preprocessing.keys()
    images = [torch.randn(3, 96, 128), torch.randn(3, 80, 112)]
    with torch.inference_mode():
        ours, theirs = module.eval()(images), model(images)  # both the average of the weights
    for one, other in zip(ours, theirs, strict=True):
        for name in one:
            torch.testing.assert_close(one[name], other[name])


def test_a_run_goes_on_where_it_was(tmp_path):
    whole = Detect(fcos(), ema=Ema(0.9))
    fitted(whole, tmp_path)
    later = Detect(fcos(), ema=Ema(0.9))
    made = trainer(tmp_path, 3)
    made.fit(later, drawn(), ckpt_path=str(tmp_path / "last.ckpt"))
    assert made.global_step == 3
    name, there = next(iter(whole.model.named_parameters()))
    now = dict(later.model.named_parameters())[name]
    assert 0 < (now - there).abs().max() < 1e-3  # one step of at most the rate further
    other = Detect(fcos())
    with pytest.raises(ValueError, match=r"average of the weights and model\.ema is unset"):
        trainer(tmp_path, 3).fit(other, drawn(), ckpt_path=str(tmp_path / "last.ckpt"))


def test_an_adapter_learns_below_the_head_and_the_head_with_it(tmp_path):
    module = Detect(mask_rcnn(), adapter="lora:r=2", layer_decay=0.5)
    trunk = {n: p.clone() for n, p in host(module.model).named_parameters() if not p.requires_grad}
    head = {n: p.clone() for n, p in module.model.named_parameters() if ".pyramid." not in n}
    assert all(p.requires_grad for n, p in module.model.named_parameters() if n in head)
    fitted(module, tmp_path)
    now = dict(host(module.model).named_parameters())
    assert all(torch.equal(now[n], value) for n, value in trunk.items())
    assert any(not torch.equal(p, head[n]) for n, p in module.model.named_parameters() if n in head)
    assert any("lora_B" in n and p.count_nonzero() for n, p in now.items())
    model = checkpoint.load_model(str(tmp_path / "last.ckpt"))[0]
    assert adapter_of(model) == adapter_of(module.model)
    with pytest.raises(ValueError, match="trained with adapter lora:r=2, the model has none"):
        trainer(tmp_path, 3).fit(Detect(mask_rcnn()), drawn(), ckpt_path=str(tmp_path / "last.ckpt"))


def test_a_token_plugin_that_can_unmerge_trains_and_comes_back(tmp_path):
    model = fcos()
    attach(host(model), plugin("clustering:k=6"))
    fitted(Detect(model), tmp_path, 1, limit_val_batches=0)
    again = checkpoint.load_model(str(tmp_path / "last.ckpt"))[0]
    assert plugins_of(again) == [plugin("clustering:k=6")]


def test_layer_decay_knows_the_backbone_below_a_head():
    model = mask_rcnn()
    found = layers(model)
    last = max(found.values())
    start = "backbone.pyramid.backbone."
    assert found[f"{start}stem.convolution.conv.weight"] == 0
    assert found[f"{start}stages.0.blocks.1.mixer.qkv.weight"] == 2
    assert found[f"{start}stages.3.blocks.1.mixer.qkv.weight"] == last - 1
    assert {layer for name, layer in found.items() if not name.startswith(start)} == {last}
    module = Detect(model, layer_decay=0.5, lr_scales={"roi_heads.*": 3.0})
    assert set(found) == {n for n, _ in module.model.named_parameters()}


def test_numbers_are_those_of_the_pictures_own_pixels(tmp_path):
    """Judged at half the size, boxes and areas count as they are in the files."""
    root = coco_folder(tmp_path / "data")
    data = CocoData(str(root), task="instance", workers=0, augment=None, resize=Fit(longest=64))
    module = Detect(mask_rcnn(2))
    fitted(module, tmp_path, 1, data)
    assert module.classes == ["circle", "square"]
    assert checkpoint.read(tmp_path / "last.ckpt")["patchloom"]["preprocessing"]["longest"] == 64
    truth = next(iter(data.val_dataloader()))[1][0]
    moved = in_pixels_of(truth, torch.zeros(3, 48, 64), (96, 128))
    torch.testing.assert_close(moved["boxes"], torch.tensor([[8.0, 10, 52, 50]]))
    assert moved["masks"].shape == (1, 96, 128)
    assert moved["area"].item() == pytest.approx(1760, rel=0.02)
    module.judges["val"].reset()
    module.judges["val"].update([Detections(moved["boxes"], torch.ones(1), moved["labels"], moved["masks"])], [moved])
    assert module.judges["val"].compute()["mask_map"] == pytest.approx(1)


def test_the_sheet_shows_truth_beside_prediction(tmp_path):
    from PIL import Image

    from patchloom.train.callbacks.pictures import Pictures

    module, pictures = Detect(fcos(), score=0.0), Pictures(predictions=3)
    made = trainer(tmp_path, limit_test_batches=3, callbacks=[pictures])
    made.test(module, drawn(), verbose=False)
    assert pictures.sheet == tmp_path / "predictions.png"
    with Image.open(pictures.sheet) as sheet:
        assert sheet.width > 1000
        assert sheet.height > 450


def test_bad_numbers_are_found_in_a_detector_too(tmp_path):
    model = fcos()
    layer = host(model).backbone.stages[2].blocks[1].ffn.fc1
    layer.register_forward_hook(lambda _, inputs, output: output * float("nan"))
    with pytest.raises(NonFinite, match=r"stages\.2\.blocks\.1\.ffn\.fc1.* gives nan"):
        fitted(Detect(model), tmp_path, 1, callbacks=[Guard()])


def test_what_does_not_fit_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"the data has 10 classes \(circle, square, triangle, …\), .* 3 apart"):
        fitted(Detect(fcos(3)), tmp_path, 1)
    with pytest.raises(ValueError, match="Linear is no detector"):
        Detect(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="has no masks"):
        fitted(Detect(mask_rcnn()), tmp_path, 1, drawn(masks=False))
    with pytest.raises(ValueError, match="the data has boxes alone"):
        trainer(tmp_path).validate(Detect(mask_rcnn()), drawn(masks=False))


def test_a_detector_is_judged_by_the_official_command(tmp_path, capsys):
    """eval coco asks the run's own network, in the sizes and by the names that its checkpoint says."""
    from patchloom.train.cli import main

    root = coco_folder(tmp_path / "data")
    data = CocoData(str(root), task="instance", workers=0, augment=None, resize=Fit(longest=128))
    module = Detect(mask_rcnn(2, score=0.0))
    fitted(module, tmp_path, 1, data, limit_val_batches=0)
    capsys.readouterr()
    made = trainer(tmp_path, limit_val_batches=2)
    found = made.validate(module, data, verbose=False)[0]
    annotations = root / "annotations" / "instances_val.json"
    line = ["eval", "coco", "--annotations", str(annotations), "--checkpoint", str(tmp_path / "last.ckpt")]
    assert main([*line, "--workers", "0", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    for kind, prefix in (("bbox", ""), ("segm", "mask_")):
        assert said[kind]["AP50"] == pytest.approx(found[f"val/{prefix}map50"], abs=1e-6)
        assert said[kind]["AR100"] == pytest.approx(found[f"val/{prefix}mar100"], abs=1e-6)
