"""Wrong annotations from the command line on: training stops with a sentence, or goes on where it is told to, and every
fault is named and counted; so do the judging and the prediction of a trained detector and segmenter."""

import json

import numpy as np
import pytest
from dense_run_parts import coco_folder, fake_ade20k, fcos, fitted, semantic_fpn
from PIL import Image

from patchloom.data.dense_modules import Ade20kData, CocoData
from patchloom.train.cli import main
from patchloom.train.detect import Detect
from patchloom.train.segment import Segment

FAULTS = (
    "1 x unknown category: category_id 99 (annotation 101 of 101.png)",
    "1 x mask of another size than its picture: annotation 102 of 102.png (5 x 5, not 128 x 96)",
    "1 x picture file missing: 103.png",
    "1 x box outside the picture; left out: annotation 100 of 100.png (500 10 520 30 in 128 x 96)",
)


def edited(root, change, split="train"):
    path = root / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def damage(content):
    """A box outside its image, an unknown category, a mask of another size, each in a picture of its own."""
    outside, unknown, mask = content["annotations"][:3]
    outside["bbox"] = [500, 10, 20, 20]
    unknown["category_id"] = 99
    mask["segmentation"] = {"size": [5, 5], "counts": [25]}


@pytest.fixture
def damaged(tmp_path):
    root = coco_folder(tmp_path / "data", count=6)
    edited(root, damage)
    (root / "images" / "103.png").unlink()
    return root


def fit(root, folder, *more):
    line = ["fit", "-c", "penn_fudan/mask_rcnn", "--data", "patchloom.data.dense_modules.CocoData"]
    line += ["--data.root", str(root), "--data.task", "instance", "--model.model.init_args.classes", "2"]
    return main([*line, "--trainer.default_root_dir", str(folder), *more])


def test_training_stops_and_names_what_is_wrong(damaged, tmp_path, capsys):
    assert fit(damaged, tmp_path / "runs") == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"patchloom: error: {damaged / 'annotations' / 'instances_train.json'}: ")
    assert all(fault in said for fault in FAULTS[:3])
    assert "on_error: skip" in said
    assert not list((tmp_path / "runs").rglob("*.ckpt"))


@pytest.mark.slow
def test_training_goes_on_where_it_is_told_to(damaged, tmp_path, capsys):
    assert (
        fit(damaged, tmp_path / "runs", "--data.on_error", "skip", "--trainer.max_epochs", "1", "--data.workers", "0")
        == 0
    )
    said = capsys.readouterr().err
    assert all(fault in said for fault in FAULTS)


def test_judging_names_what_the_checkpoint_and_the_folder_lack(tmp_path, capsys):
    root, run = coco_folder(tmp_path / "data"), str(tmp_path / "last.ckpt")
    fitted(Detect(fcos(2)), tmp_path, 1, CocoData(str(root), workers=0, augment=None), limit_val_batches=0)

    def said(status, name):
        path = edited(root, lambda c: c["categories"].__setitem__(0, {"id": 7, "name": name}), "val")
        capsys.readouterr()
        assert main(["eval", "coco", "--annotations", str(path), "--checkpoint", run, "--workers", "0"]) == status
        return "".join(capsys.readouterr())

    found = said(0, "hexagon")
    assert "does not know 1 of 2 categories (hexagon): their 2 annotations count as missed" in found
    assert "1 of 2 classes of" in found
    assert "are not annotated (circle)" in found
    (root / "images" / "201.png").unlink()
    assert "1 of 4 images of" in (found := said(1, "circle"))
    assert "(201.png): name the right folder (--on-error skip judges the others)" in found
    Image.fromarray(np.zeros((50, 60, 3), np.uint8)).save(root / "images" / "201.png")
    assert "201.png has 50x60 pixels, its annotations are of 96x128: the file is another one" in said(1, "circle")


def test_a_mask_of_another_size_is_named_in_training_and_judging(tmp_path, capsys):
    root = fake_ade20k(tmp_path / "ade", count=3)
    data = Ade20kData(str(root), batch_size=1, workers=0, augment=None)
    fitted(Segment(semantic_fpn(3)), tmp_path, 1, data, limit_val_batches=0)
    for split in ("training", "validation"):
        Image.fromarray(np.ones((20, 30), np.uint8)).save(root / "annotations" / split / "1.png")
    capsys.readouterr()
    assert main(["eval", "ade20k", "--data", str(root), "--checkpoint", str(tmp_path / "last.ckpt")]) == 1
    said = capsys.readouterr().err
    assert "1.png" in said
    assert "30" in said
    with pytest.raises(ValueError, match=r"1\.png.*(20|30)"):
        fitted(Segment(semantic_fpn(3)), tmp_path, 3, data, limit_val_batches=0)
