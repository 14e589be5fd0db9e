"""patchloom eval coco: the published table, pycocotools' numbers to the last bit, and what is said of wrong input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_parts import NAMES, pycocotools, random_annotations, random_results
from real_data import real

from patchloom.train.cli import main
from patchloom.train.evaluation.coco import NOTHING

Capture = pytest.CaptureFixture[str]
Write = Callable[[str, Any], Path]
OFFICIAL = {"box": "bbox", "mask": "segm"}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def save(name: str, content: Any) -> Path:
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    return save


def judged(capsys: Capture, annotations: Path, results: Path, *more: str) -> dict[str, Any]:
    line = ["eval", "coco", "--annotations", str(annotations), "--results", str(results), "--json", *more]
    assert main(line) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refused(capsys: Capture, annotations: Path, results: Path, *more: str) -> str:
    assert main(["eval", "coco", "--annotations", str(annotations), "--results", str(results), *more]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    return error


def same(ours: dict[str, float | None], official: dict[str, float]) -> bool:
    """Bit for bit; None stands where pycocotools says -1."""
    return {name: -1.0 if value is None else value for name, value in ours.items()} == official


# ---- the official numbers


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_reference_results_give_the_published_table(kind: str, capsys: Capture) -> None:
    folder = real("coco_eval_reference")
    files = folder / "instances_val2014_100.json", folder / f"instances_val2014_fake{kind}100_results.json"
    assert main(["eval", "coco", "--annotations", str(files[0]), "--results", str(files[1])]) == 0
    table = capsys.readouterr().out.partition(f"type={kind}\n")[2].splitlines()
    published = (folder / "val2014_fake_eval_res.txt").read_text().partition(f"type={kind}\n")[2].splitlines()
    assert [line.strip() for line in table] == [line.strip() for line in published if "@[" in line][:12]
    expected = json.loads((folder / "expected.json").read_text())["values"][kind]
    assert judged(capsys, *files)[kind] == expected


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("holds", ["boxes and masks", "boxes", "masks"])
def test_random_results_equal_pycocotools(holds: str, seed: int, write: Write, capsys: Capture) -> None:
    r = np.random.default_rng(seed)
    truth = random_annotations(r, images=4 + 6 * seed)
    results = random_results(r, truth, boxes="boxes" in holds, masks="masks" in holds)
    ours = judged(capsys, write("a.json", truth), write("r.json", results))
    kinds = [kind for kind, word in (("bbox", "boxes"), ("segm", "masks")) if word in holds]
    assert [k for k in ("bbox", "segm") if k in ours] == kinds
    for kind in kinds:
        official = pycocotools(truth, results, kind)
        assert same(ours[kind], official), (ours[kind], official)
        assert 0.05 < ours[kind]["AP"] < 0.9


@pytest.mark.parametrize("file", ["instances_val2017.json", "instances_train2017.json"])
def test_coco_mini_equals_pycocotools(file: str, write: Write, capsys: Capture) -> None:
    path = real("coco_mini") / "annotations" / file
    results = random_results(np.random.default_rng(3), json.loads(path.read_text()), wild=200)
    ours = judged(capsys, path, write("r.json", results))
    for kind in ("bbox", "segm"):
        assert same(ours[kind], pycocotools(path, results, kind))


def test_many_objects_of_a_category_equal_pycocotools(write: Write, capsys: Capture) -> None:
    """Over 100 of each, where a recall of 1/100 holds more than one object; over 100 detections of one image too."""
    r = np.random.default_rng(5)
    truth = random_annotations(r, images=40, categories=1, most=12)
    results = random_results(r, truth, masks=False, wild=500)
    for row in results[: len(results) // 2]:
        row["image_id"] = truth["images"][0]["id"]
    assert same(
        judged(capsys, write("a.json", truth), write("r.json", results))["bbox"], pycocotools(truth, results, "bbox")
    )


def test_the_best_detection_alone_is_right(write: Write, capsys: Capture) -> None:
    """pycocotools' precision is then 1 - 2**-52, and so is ours."""
    image = {"id": 1, "file_name": "a.jpg", "height": 100, "width": 100}
    box = {"image_id": 1, "category_id": 1, "bbox": [10.0, 10.0, 40.0, 40.0]}
    other = {**box, "bbox": [60.0, 60.0, 30.0, 30.0]}
    truth = {
        "images": [image],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [
            {"id": 1, "area": 1600.0, "iscrowd": 0, **box},
            {"id": 2, "area": 900.0, "iscrowd": 0, **other},
        ],
    }
    results = [{**box, "score": 0.9}, {**box, "score": 0.8}, {**other, "score": 0.7}]
    ours = judged(capsys, write("a.json", truth), write("r.json", results))["bbox"]
    assert same(ours, pycocotools(truth, results, "bbox"))
    assert ours["APm"] == 1 - 2**-52


@pytest.mark.parametrize("first", [0, 2**40])
def test_ids_are_only_names(first: int, write: Write, capsys: Capture) -> None:
    """An annotation with the id 0, which pycocotools takes for no match, and ids that no float holds."""
    r = np.random.default_rng(1)
    truth = random_annotations(r)
    results = random_results(r, truth)
    expected = judged(capsys, write("a.json", truth), write("r.json", results))
    for i, row in enumerate(truth["annotations"]):
        row["id"] = first * first + i
    for row in truth["images"]:
        row["id"] += first * first
    for row in [*truth["annotations"], *results]:
        row["image_id"] += first * first
    found = judged(capsys, write("a.json", truth), write("r.json", results))
    assert [found[k] for k in ("bbox", "segm")] == [expected[k] for k in ("bbox", "segm")]


def test_areas_of_masks(write: Write, capsys: Capture) -> None:
    """As pycocotools judges results without boxes, which is how detectron2 and mmdetection hand theirs over."""
    r = np.random.default_rng(2)
    truth = random_annotations(r)
    results = random_results(r, truth)
    files = write("a.json", truth), write("r.json", results)
    by_boxes, by_masks = judged(capsys, *files), judged(capsys, *files, "--mask-areas")
    bare = [{k: v for k, v in row.items() if k != "bbox"} for row in results]
    assert same(by_masks["segm"], pycocotools(truth, bare, "segm"))
    assert by_masks["segm"] != by_boxes["segm"]
    assert by_masks["bbox"] == by_boxes["bbox"]
    assert "--mask-areas" in by_boxes["notes"][-1]


def test_boxes_of_masks(write: Write, capsys: Capture) -> None:
    r = np.random.default_rng(4)
    truth = random_annotations(r)
    results = random_results(r, truth, boxes=False)
    ours = judged(capsys, write("a.json", truth), write("r.json", results), "--kind", "box")
    assert "segm" not in ours
    assert same(ours["bbox"], pycocotools(truth, results, "bbox"))


# ---- what there is nothing to judge by


def test_minus_one_is_no_score(write: Write, capsys: Capture) -> None:
    r = np.random.default_rng(0)
    truth = random_annotations(r)
    for row in truth["annotations"]:
        row["area"] = 5000.0
    results = random_results(r, truth, masks=False)
    files = write("a.json", truth), write("r.json", results)
    ours = judged(capsys, *files)["bbox"]
    assert [name for name, value in ours.items() if value is None] == ["APs", "APl", "ARs", "ARl"]
    assert main(["eval", "coco", "--annotations", str(files[0]), "--results", str(files[1])]) == 0
    text = capsys.readouterr().out
    assert "-1" not in text.partition("type=")[2].replace("pycocotools prints -1.000", "")
    assert text.count(f"= {NOTHING}") == 4
    assert "nothing of that kind to find" in text


def test_no_detection_at_all(write: Write, capsys: Capture) -> None:
    """pycocotools fails there; nothing found is a recall of 0."""
    truth = random_annotations(np.random.default_rng(0))
    ours = judged(capsys, write("a.json", truth), write("r.json", []))
    assert {ours[kind][name] for kind in ("bbox", "segm") for name in NAMES} <= {0.0, None}
    assert ours["bbox"]["AP"] == 0


def test_per_category(write: Write, capsys: Capture) -> None:
    r = np.random.default_rng(0)
    truth = random_annotations(r)
    truth["categories"].append({"id": 99, "name": "never there"})
    files = write("a.json", truth), write("r.json", random_results(r, truth))
    ours = judged(capsys, *files)
    each = ours["per_category"]["bbox"]
    assert each.pop("never there") is None
    assert ours["bbox"]["AP"] == pytest.approx(np.mean(list(each.values())))
    line = ["eval", "coco", "--annotations", str(files[0]), "--results", str(files[1]), "--per-category"]
    assert main(line) == 0
    assert f"never there      {NOTHING}" in capsys.readouterr().out


def test_out(write: Write, tmp_path: Path, capsys: Capture) -> None:
    r = np.random.default_rng(0)
    truth = random_annotations(r)
    files = write("a.json", truth), write("r.json", random_results(r, truth))
    printed = judged(capsys, *files, "--out", str(tmp_path / "numbers.json"))
    assert json.loads((tmp_path / "numbers.json").read_text()) == printed


# ---- wrong input: named, counted


@pytest.fixture
def sound() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    r = np.random.default_rng(0)
    truth = random_annotations(r)
    truth["annotations"].sort(key=lambda row: row["id"])
    return truth, random_results(r, truth)


Sound = tuple[dict[str, Any], list[dict[str, Any]]]


def test_categories_that_the_annotations_lack(sound: Sound, write: Write, capsys: Capture) -> None:
    truth, results = sound
    for row in results[:3]:
        row["category_id"] = 500
    ours = judged(capsys, write("a.json", truth), write("r.json", results))
    assert any(f"3 of {len(results)} detections are of 1 categories" in n and "500" in n for n in ours["notes"])
    assert same(ours["bbox"], pycocotools(truth, results, "bbox"))
    for row in results:
        row["category_id"] = 500
    assert "not one can count" in refused(capsys, write("a.json", truth), write("r.json", results))


def test_annotations_without_their_image_or_category(sound: Sound, write: Write, capsys: Capture) -> None:
    truth, results = sound
    truth["annotations"][0]["image_id"] = 12345
    truth["annotations"][1]["category_id"] = 77
    ours = judged(capsys, write("a.json", truth), write("r.json", results))
    assert any("1 x annotation of a picture that is not listed" in n and "12345" in n for n in ours["notes"])
    assert any("1 x unknown category" in n and "77" in n for n in ours["notes"])
    for kind in ("bbox", "segm"):
        assert same(ours[kind], pycocotools(truth, results, kind))


def test_boxes_outside_the_image(sound: Sound, write: Write, capsys: Capture) -> None:
    truth, results = sound
    truth["annotations"][0]["bbox"] = [5000.0, 10.0, 20.0, 20.0]
    results[0]["bbox"], results[1]["bbox"], results[2]["bbox"] = (
        [-50.0, 0.0, 30.0, 30.0],
        [-9.0, 0.0, 50.0, 30.0],
        [1, 1, 0, 5],
    )
    ours = judged(capsys, write("a.json", truth), write("r.json", results))
    notes = "\n".join(ours["notes"])
    assert f"1 of {len(truth['annotations'])} boxes of annotations outside their image (annotation 1 of image" in notes
    assert f"1 of {len(results)} boxes of detections outside their image (detection 0 of image" in notes
    assert "boxes of detections reaching beyond their image (" in notes
    assert f"1 of {len(results)} boxes of detections without area (detection 2 of image" in notes
    assert same(ours["bbox"], pycocotools(truth, results, "bbox"))


def test_masks_of_another_size(sound: Sound, write: Write, capsys: Capture) -> None:
    truth, results = sound
    for row in results[:2]:
        row["segmentation"]["size"] = [50, 60]
    error = refused(capsys, write("a.json", truth), write("r.json", results))
    assert f"2 of {len(results)} detections have a mask of another size than the image: detection 0" in error
    assert "50x60, not" in error
    assert "bbox" in judged(capsys, write("a.json", truth), write("r.json", results), "--kind", "box")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image_id", 999, "1 of {n} detections are of 1 images that"),
        ("image_id", None, "detection 0 has the image_id None"),
        ("score", "high", "has the score 'high'"),
        ("score", float("nan"), "has the score nan"),
        ("score", ..., "detection 0 has no score"),
        ("bbox", [1, 2, 3], "has the bbox [1, 2, 3]"),
        ("bbox", [1, 2, 3, float("inf")], "has the bbox [1, 2, 3, inf]"),
        ("bbox", ..., "1 of {n} detections have no bbox (the first: detection 0)"),
        ("segmentation", ..., "1 of {n} detections have no segmentation"),
        ("segmentation", [[1, 2, 3]], "1 of {n} detections have a segmentation that is no list of polygons"),
        ("segmentation", "abc", "1 of {n} detections have a segmentation that is no list of polygons"),
    ],
)
def test_detections_that_are_none(
    key: str, value: Any, message: str, sound: Sound, write: Write, capsys: Capture
) -> None:
    truth, results = sound
    if value is ...:
        del results[0][key]
    else:
        results[0][key] = value
    error = refused(capsys, write("a.json", truth), write("r.json", results))
    assert message.format(n=len(results)) in error


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("area", ..., "1 of {n} annotations have no area (annotation 1)"),
        ("bbox", [1, 2], "1 x box that is not four finite numbers: annotation 1"),
        ("segmentation", [], "1 of {n} annotations have no segmentation: annotation 1 of image"),
        ("segmentation", {"size": [1, 1], "counts": [1]}, "1 of {n} annotations have a mask of another size"),
        ("id", 2, "the id 2 twice"),
    ],
)
def test_annotations_that_are_none(
    key: str, value: Any, message: str, sound: Sound, write: Write, capsys: Capture
) -> None:
    truth, results = sound
    if value is ...:
        del truth["annotations"][0][key]
    else:
        truth["annotations"][0][key] = value
    assert message.format(n=len(truth["annotations"])) in refused(
        capsys, write("a.json", truth), write("r.json", results)
    )


def test_files_that_are_something_else(sound: Sound, write: Write, tmp_path: Path, capsys: Capture) -> None:
    truth, results = sound
    a, r = write("a.json", truth), write("r.json", results)
    assert "did you mean" in refused(capsys, tmp_path / "b.json", r)
    assert "results are a list of" in refused(capsys, a, a)
    assert "no list 'images'" in refused(capsys, r, r)
    assert "holds no annotation" in refused(capsys, write("e.json", {**truth, "annotations": []}), r)
    (tmp_path / "cut.json").write_text(a.read_text()[:500])
    assert "not JSON, or cut short" in refused(capsys, tmp_path / "cut.json", r)
    boxes = write("b.json", [{k: v for k, v in row.items() if k != "segmentation"} for row in results])
    assert "no detection has a segmentation, so the mask numbers" in refused(capsys, a, boxes, "--kind", "mask")


def test_options_that_would_do_nothing(sound: Sound, write: Write, capsys: Capture) -> None:
    truth, results = sound
    files = ["--annotations", str(write("a.json", truth)), "--results", str(write("r.json", results))]
    assert main(["eval", "coco", *files, "--batch", "3"]) == 2
    assert "--batch goes with --checkpoint" in capsys.readouterr().err
    assert main(["eval", "coco", *files[:2]]) == 2
    assert main(["eval", "coco", *files, "--checkpoint", "x"]) == 2
