"""patchloom predict with detectors and segmenters: pictures, COCO's results, maps of classes, and what does not fit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from dense_run_parts import coco_folder, fcos, mask_rcnn, semantic_fpn
from PIL import Image

from patchloom.train.cli import main
from patchloom.train.running import checkpoint

PREPROCESSING = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "shortest": None, "longest": 96}


def saved(model, classes, path: Path) -> Path:
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    checkpoint.save({"patchloom": checkpoint.header(model, classes, PREPROCESSING), "state_dict": state}, path)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pictures with annotations, and an untrained network of each kind."""
    torch.manual_seed(0)
    root = coco_folder(tmp_path_factory.mktemp("dense") / "data", splits=("val",), count=2)
    folder = root.parent
    saved(mask_rcnn(2, score=0.0, limit=5), ["square", "circle"], folder / "mask.ckpt")
    saved(fcos(2, score=0.0, limit=5), ["square", "circle"], folder / "fcos.ckpt")
    saved(semantic_fpn(3), ["ground", "square", "circle"], folder / "fpn.ckpt")
    return folder


def predict(place, name, *options):
    return main(["predict", str(place / name), str(place / "data" / "images"), "--workers", "0", *options])


def test_a_detector_draws_and_writes_cocos_results(place, tmp_path, capsys):
    annotations = place / "data" / "annotations" / "instances_val.json"
    assert predict(place, "mask.ckpt", "--out", str(tmp_path), "--annotations", str(annotations), "--score", "0") == 0
    rows = json.loads((tmp_path / "results.json").read_text())
    assert {row["image_id"] for row in rows} == {100, 101}
    assert {row["category_id"] for row in rows} <= {3, 7}  # the annotations' own
    assert all(row["segmentation"]["size"] == [96, 128] for row in rows)
    drawn, plain = (np.asarray(Image.open(f)) for f in (tmp_path / "100.png", place / "data" / "images" / "100.png"))
    assert drawn.shape == plain.shape
    assert (drawn != plain).any()
    capsys.readouterr()
    line = ["eval", "coco", "--annotations", str(annotations)]
    assert main([*line, "--results", str(tmp_path / "results.json"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert main([*line, "--checkpoint", str(place / "mask.ckpt"), "--workers", "0", "--json"]) == 0
    asked = json.loads(capsys.readouterr().out)
    assert told["bbox"] == asked["bbox"]
    assert told["segm"] == asked["segm"]


def test_without_annotations_ids_are_the_files_numbers(place, tmp_path, capsys):
    assert predict(place, "fcos.ckpt", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["image_id"] for row in rows} == {100, 101}
    assert {row["category_id"] for row in rows} <= {1, 2}
    assert predict(place, "fcos.ckpt", "--score", "0") == 0
    table = capsys.readouterr().out
    assert "100.png" in table
    assert "square" in table or "circle" in table
    assert predict(place, "fcos.ckpt", "--out", str(tmp_path / "found.json")) == 0
    assert json.loads((tmp_path / "found.json").read_text()) == rows


def test_a_segmenter_tints_and_writes_maps(place, tmp_path, capsys):
    assert predict(place, "fpn.ckpt", "--out", str(tmp_path)) == 0
    found = np.asarray(Image.open(tmp_path / "maps" / "100.png"))
    assert found.shape == (96, 128)
    assert set(np.unique(found)) <= {1, 2, 3}
    assert Image.open(tmp_path / "100.png").size == (128, 96)
    assert predict(place, "fpn.ckpt", "--json") == 0
    answers = json.loads(capsys.readouterr().out)
    share = answers[0]["classes"]
    assert sum(share.values()) == pytest.approx(1, abs=1e-4)
    names = ["ground", "square", "circle"]
    assert {names[i - 1] for i in np.unique(found)} == set(share)
    assert predict(place, "fpn.ckpt") == 0
    assert "share of pixels" in capsys.readouterr().out


def test_the_same_name_twice_is_two_pictures(place, tmp_path):
    other = tmp_path / "more"
    other.mkdir()
    (other / "100.png").write_bytes((place / "data" / "images" / "100.png").read_bytes())
    assert predict(place, "fpn.ckpt", str(other), "--out", str(tmp_path / "out")) == 0
    assert len(list((tmp_path / "out").glob("100_*.png"))) == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--csv", "-"], "written as JSON, or drawn"),
        (["--out", "x.csv"], "written as JSON, or drawn"),
        (["--size", "64"], "--size"),
        (["--score", "2"], "no probability"),
    ],
)
def test_what_does_not_fit_is_said(options, says, place, capsys):
    try:
        code = predict(place, "fcos.ckpt", *options)
    except SystemExit as stop:
        code = stop.code
    assert code in (1, 2)
    assert says in capsys.readouterr().err


def test_pictures_that_are_not_annotated_are_counted(place, tmp_path, capsys):
    other = coco_folder(tmp_path / "other", splits=("train", "val"), count=1)
    annotations = other / "annotations" / "instances_val.json"
    assert predict(place, "fcos.ckpt", "--annotations", str(annotations)) == 1
    assert "2 of 2 images are not in" in capsys.readouterr().err
    document = json.loads(annotations.read_text())
    document["categories"] = [{"id": 7, "name": "cow"}, {"id": 3, "name": "dog"}]
    annotations.write_text(json.dumps(document))
    assert predict(place, "fcos.ckpt", "--annotations", str(annotations)) == 1
    assert "knows no category" in capsys.readouterr().err


def test_a_classifier_takes_no_folder(tmp_path, place, capsys):
    from patchloom.vision.zoo import create_model

    path = saved(create_model("cct_2_3x2_32"), [str(i) for i in range(10)], tmp_path / "cct.ckpt")
    line = ["predict", str(path), str(place / "data" / "images"), "--out", str(tmp_path / "folder")]
    assert main(line) == 1
    assert ".json or .csv" in capsys.readouterr().err
