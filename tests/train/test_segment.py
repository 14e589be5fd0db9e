"""`Segment`: training, checkpoints, what is logged, and what does not fit."""

import json

import numpy as np
import pytest
import torch
from dense_run_parts import drawn, fake_ade20k, fcos, fitted, semantic_by_masks, semantic_fpn, trainer, upernet
from PIL import Image

from patchloom.data.dense_modules import Fit, SegmentationData
from patchloom.train.callbacks.pictures import Pictures
from patchloom.train.cli import main
from patchloom.train.ema import Ema
from patchloom.train.running import checkpoint
from patchloom.train.segment import Segment
from patchloom.vision.adapters import adapter_of
from patchloom.vision.heads.mask_losses import MaskLosses
from patchloom.vision.heads.semantic_loss import SemanticLosses

KINDS = {"upernet": upernet, "semantic fpn": semantic_fpn, "masks": semantic_by_masks}


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_judges_and_its_checkpoint_is_the_network(kind, tmp_path):
    torch.manual_seed(0)
    module = Segment(KINDS[kind](), ema=Ema(0.5))
    before = {n: p.clone() for n, p in module.model.named_parameters()}
    made = fitted(module, tmp_path)
    moved = [n for n, p in module.model.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) > 0.8 * len(before)
    assert torch.isfinite(made.callback_metrics["train/loss"])
    assert {"val/miou", "val/macc", "val/aacc"} <= made.callback_metrics.keys()
    parts = [v for n, v in made.callback_metrics.items() if n.startswith("train/") and n != "train/loss"]
    assert sum(parts) == pytest.approx(float(made.callback_metrics["train/loss"]), rel=1e-5)
    model, classes, _ = checkpoint.load_model(str(tmp_path / "last.ckpt"))
    assert classes[:2] == ["ground", "circle"]
    image = torch.randn(2, 3, 70, 90)
    with torch.inference_mode():
        torch.testing.assert_close(module.eval()(image), model(image))  # both the average of the weights


def test_an_adapter_learns_below_the_head(tmp_path):
    module = Segment(upernet(), adapter="lora:r=2", layer_decay=0.9)
    fitted(module, tmp_path, 1, limit_val_batches=0)
    assert adapter_of(checkpoint.load_model(str(tmp_path / "last.ckpt"))[0]) == adapter_of(module.model)


def test_the_score_counts_every_pixel_once(tmp_path):
    """Against the counts by hand; what is ignored is left out."""
    module = Segment(semantic_fpn())
    data = drawn(True, val_length=5)  # the last batch has one picture
    made = trainer(tmp_path, limit_val_batches=1.0)
    found = made.validate(module, data, verbose=False)[0]
    right = total = 0
    for image, target in data.val_dataloader():
        with torch.inference_mode():
            right += int((module.eval()(image).argmax(1) == target)[target != 255].sum())
        total += int((target != 255).sum())
    assert total == 5 * 64 * 96
    assert found["val/aacc"] == pytest.approx(right / total, abs=1e-6)


def test_the_sheet_shows_truth_beside_prediction(tmp_path):
    pictures = Pictures(predictions=3)
    module = Segment(semantic_fpn())
    trainer(tmp_path, limit_test_batches=3, callbacks=[pictures]).test(module, drawn(True), verbose=False)
    with Image.open(pictures.sheet) as sheet:
        colours = np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)
    assert len(colours) > 200


def test_what_does_not_fit_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"the data has 11 classes .* 4 apart"):
        fitted(Segment(semantic_fpn(4)), tmp_path, 1)
    with pytest.raises(ValueError, match="FCOS gives no class for each pixel"):
        Segment(fcos())
    with pytest.raises(ValueError, match="has its own losses"):
        Segment(semantic_by_masks(), SemanticLosses())
    assert Segment(semantic_by_masks(ignore=254)).ignore == 254
    assert isinstance(semantic_by_masks().losses, MaskLosses)


def test_a_segmenter_is_judged_by_the_official_command(tmp_path, capsys):
    from patchloom.data.dense_modules import Ade20kData

    root = fake_ade20k(tmp_path / "ade", count=3)
    data = Ade20kData(str(root), batch_size=1, workers=0, augment=None, resize=Fit())
    module = Segment(semantic_fpn(3))
    fitted(module, tmp_path, 1, data, limit_val_batches=0)
    found = trainer(tmp_path, limit_val_batches=1.0).validate(module, data, verbose=False)[0]
    capsys.readouterr()
    assert main(["eval", "ade20k", "--data", str(root), "--checkpoint", str(tmp_path / "last.ckpt"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["single_scale"]
    for name in ("miou", "macc", "aacc"):
        assert said[name] == pytest.approx(found[f"val/{name}"], abs=1e-5)


def test_camvids_small_set_is_read(tmp_path):
    """Its void is ignored, a tenth of its training pictures held out."""
    from real_data import real

    data = SegmentationData(str(real("camvid_mini")), batch_size=2, workers=0, val_fraction=0.1)
    made = fitted(Segment(semantic_fpn(11)), tmp_path, 1, data, limit_train_batches=1)
    assert 0 < made.callback_metrics["val/miou"] < 0.5
