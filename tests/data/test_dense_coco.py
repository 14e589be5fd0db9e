"""COCO annotations as scenes: what the official reader reads, and whatever is wrong said and counted."""

import json
import logging

import numpy as np
import pytest
from dense_parts import annotation, coco, picture, written
from PIL import Image
from pycocotools import mask as pycocomask
from pycocotools.coco import COCO
from real_data import real

from patchloom.data.coco import Annotations, CocoScenes, read_json
from patchloom.data.coco_masks import rasterise, run_lengths
from patchloom.data.coco_panoptic import PanopticScenes
from patchloom.data.findings import Kind
from patchloom.data.read import UnreadableImage
from patchloom.data.scene import IGNORE
from patchloom.data.scene_files import Packed

SETS = {  # set, split, folder of pictures, its images, annotations, pictures without an object
    "coco_mini/val2017": (46, 271, 0),
    "coco_mini/train2017": (72, 624, 1),
    "penn_fudan/train": (90, 229, 0),
    "penn_fudan/val": (30, 76, 0),
}


def scenes(root, split="train", **more):
    return CocoScenes(root / "annotations" / f"instances_{split}.json", root / "images" / split, **more)


@pytest.mark.parametrize("name", SETS)
def test_masks_and_boxes_are_those_of_pycocotools(name, capsys):
    """Every object of the real sets, pixel by pixel; polygons, compressed and plain run lengths (crowds)."""
    root, split = real(name.split("/")[0]), name.split("/")[1]
    file = root / "annotations" / f"instances_{split}.json"
    folder = root / "images" / split if (root / "images" / split).is_dir() else root / "images"
    found, theirs = CocoScenes(file, folder, masks=True), COCO(str(file))
    images, annotations, empty = SETS[name]
    assert len(found) == images
    assert len(found.findings) == 0
    ids = {c.id: i for i, c in enumerate(found.categories, 1)}
    total = without = 0
    for index in range(len(found)):
        scene = found.load(index)
        rows = theirs.loadAnns(theirs.getAnnIds(imgIds=scene.id))
        assert len(scene.objects) == len(rows)
        total += len(rows)
        without += not any(not row["iscrowd"] for row in rows)
        for i, row in enumerate(rows):
            assert np.array_equal(scene.objects.masks[i], theirs.annToMask(row))
            x, y, w, h = row["bbox"]
            assert np.allclose(scene.objects.boxes[i], [x, y, x + w, y + h], atol=1.01)  # a clipped rounding at most
            assert scene.objects.labels[i] == ids[row["category_id"]]
            assert scene.objects.crowd[i] == row["iscrowd"]
            assert scene.objects.area[i] == pytest.approx(row["area"])
    assert (total, without) == (annotations, empty)
    kept = CocoScenes(file, folder, empty=False)
    assert len(kept) == images - empty


def test_bccd_has_boxes_and_no_masks():
    root = real("bccd")
    file, folder = root / "annotations" / "instances_train.json", root / "images"
    found = CocoScenes(file, folder)
    assert len(found) == 205
    counts = np.bincount(np.concatenate([found.load(i).objects.labels for i in range(205)]))
    assert counts.tolist() == [0, 2381, 214, 209]
    with pytest.raises(ValueError, match=r"2804 x object without a mask: annotation 1 of BloodImage_00001.jpg"):
        CocoScenes(file, folder, masks=True)


def test_a_scene_without_objects_and_one_without_annotation(tmp_path):
    coco(tmp_path, [annotation(1), annotation(2, 2, iscrowd=1)], images=3)
    found = scenes(tmp_path, masks=True)
    assert [len(found.load(i).objects) for i in range(3)] == [1, 1, 0]
    empty = found.load(2).objects
    assert empty.boxes.shape == (0, 4)
    assert empty.masks.shape == (0, 30, 40)
    assert found.notes == (f"{found.file}: 2 x picture without an object",)  # a crowd is no object
    assert len(scenes(tmp_path, empty=False)) == 1


WRONG = {
    Kind.CLIPPED: (annotation(1, box=(30, 20, 15, 5)), "annotation 1 of 1.png (30 20 45 25 in 40 x 30)"),
    Kind.OUTSIDE: (annotation(1, box=(41, 20, 15, 5)), "annotation 1 of 1.png (41 20 56 25 in 40 x 30)"),
    Kind.FLAT: (annotation(1, box=(4, 20, 0, 5)), "annotation 1 of 1.png (0 x 5)"),
    Kind.MALFORMED: (annotation(1) | {"bbox": [1, 2, 3]}, "annotation 1 of 1.png: [1, 2, 3]"),
    Kind.CATEGORY: (annotation(1, category=5), "category_id 5 (annotation 1 of 1.png)"),
    Kind.IMAGE: (annotation(1, image=9), "image_id 9 (annotation 1)"),
    Kind.UNMASKED: (annotation(1, segmentation=[]), "annotation 1 of 1.png"),
    Kind.POLYGON: (annotation(1, segmentation=[[1, 1, 5, 5], [5, 6, 15, 6, 15, 14]]), "annotation 1 of 1.png"),
    Kind.MASK_SIZE: (
        annotation(1, segmentation={"size": [30, 41], "counts": [1230]}),
        "annotation 1 of 1.png (41 x 30, not 40 x 30)",
    ),
}
WRONG[Kind.RUNS] = (annotation(1, segmentation={"size": [30, 40], "counts": [5, 6]}), "annotation 1 of 1.png")
GONE = {*Kind} - {Kind.CLIPPED, Kind.POLYGON}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_named_and_counted(kind, tmp_path, caplog):
    row, says = WRONG[kind]
    coco(tmp_path, [row, annotation(2)])
    line = f"1 x {kind.text}: {says}"
    if kind.stops:
        with pytest.raises(ValueError) as error:  # noqa: PT011 (compared in full below)
            scenes(tmp_path, masks=True)
        assert line in str(error.value)
        assert "on_error: skip" in str(error.value)
    with caplog.at_level(logging.WARNING, "patchloom.data"):
        found = scenes(tmp_path, masks=True, on_error="skip")
    assert line in caplog.text
    assert found.findings.counts() == {kind.text: 1}
    assert len(found.load(0).objects) == (1 if kind in GONE else 2)


def test_a_clipped_box_ends_at_the_border_and_rounding_is_no_fault(tmp_path):
    coco(tmp_path, [annotation(1, box=(30, 20, 15, 15)), annotation(2, box=(-0.4, 3, 40.8, 5))])
    found = scenes(tmp_path)
    assert found.load(0).objects.boxes.tolist() == [[30, 20, 40, 30], [0, 3, 40, 8]]
    assert found.findings.counts() == {Kind.CLIPPED.text: 1}


def test_many_faults_are_counted_and_some_named(tmp_path):
    coco(tmp_path, [annotation(i, category=5) for i in range(1, 21)])
    with pytest.raises(ValueError, match=r"20 x unknown category: category_id 5 .*annotation 5 of 1.png\) and 15 more"):
        scenes(tmp_path)


def test_missing_files(tmp_path):
    coco(tmp_path, [annotation(1), annotation(2, 2)], images=3)
    (tmp_path / "images/train/2.png").unlink()
    with pytest.raises(ValueError, match=r"1 x picture file missing: 2\.png"):
        scenes(tmp_path)
    left = scenes(tmp_path, on_error="skip")
    assert left.names() == ["1.png", "3.png"]
    assert left.findings.counts() == {Kind.MISSING.text: 1}
    with pytest.raises(FileNotFoundError, match="did you mean train"):
        CocoScenes(left.file, tmp_path / "images/trian")
    picture(tmp_path / "images/train/9.png")
    assert "1 x picture of" in scenes(tmp_path, on_error="skip").notes[0]


def test_a_picture_of_another_size_is_unreadable(tmp_path):
    coco(tmp_path, [annotation(1)])
    file = picture(tmp_path / "images/train/1.png", 30, 40)
    with pytest.raises(UnreadableImage, match="it has 30 x 40 pixels, its annotations are of 40 x 30") as error:
        scenes(tmp_path).load(0)
    assert error.value.file == str(file)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned when shown: upright it is as the annotations have it
    Image.new("RGB", (30, 40)).save(file, exif=exif)
    assert scenes(tmp_path).load(0).size == (30, 40)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON, or cut short"),
        ("[1]", "no list 'images'"),
        ('{"images": [], "annotation": [], "categories": []}', "no list 'annotations': did you mean annotation"),
        (
            '{"images": [{"id": 1}], "annotations": [], "categories": []}',
            r"images\[0\] has no file_name, height, width",
        ),
        (
            '{"categories": [], "annotations": [],'
            '"images": [{"id": 1, "file_name": "a.jpg", "width": "4", "height": 0}]}',
            "a.jpg has size '4' x 0",
        ),
        (
            '{"images": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "annotations": []}',
            "categories has the id 1 twice",
        ),
    ],
)
def test_files_that_are_not_annotations(text, says, tmp_path):
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=says):
        Annotations(file)


def test_ids_that_are_no_numbers(tmp_path):
    rows = [{"id": "one", "file_name": "1.png", "width": 40, "height": 30}]
    coco(tmp_path, [annotation(1, "one")])
    written(tmp_path / "a.json", {"images": rows, "annotations": [], "categories": []})
    with pytest.raises(ValueError, match=r"1 ids of pictures are no whole numbers \(one\)"):
        CocoScenes(tmp_path / "a.json", tmp_path / "images/train")


def test_reading_json(tmp_path):
    assert read_json(written(tmp_path / "a.json", {"a": 1})) == {"a": 1}
    with pytest.raises(FileNotFoundError, match=r"did you mean a.json"):
        read_json(tmp_path / "b.json")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read_json(tmp_path)


def test_keypoints(tmp_path):
    names = ["nose", "left_eye", "right_eye"]
    categories = [{"id": 3, "name": "cat", "keypoints": names}, {"id": 7, "name": "stone"}]
    points = [8, 9, 2, 6, 7, 1, 0, 0, 0]
    coco(tmp_path, [annotation(1, keypoints=points), annotation(2, category=7)], categories=categories)
    found = scenes(tmp_path, keypoints=True)
    assert found.load(0).objects.keypoints.tolist() == [[[8, 9, 2], [6, 7, 1], [0, 0, 0]], [[0, 0, 0]] * 3]
    assert found.categories[0].keypoints == tuple(names)
    coco(tmp_path, [annotation(1)])
    with pytest.raises(ValueError, match="no category has keypoints"):
        scenes(tmp_path, keypoints=True)


def test_packed_rows_are_what_went_in():
    rows = [[], [1, "a"], {"b": np.arange(3)}]
    packed = Packed(rows)
    assert packed[0] == []
    assert packed[1] == [1, "a"]
    assert packed[2]["b"].tolist() == [0, 1, 2]


def test_run_lengths_are_those_of_pycocotools():
    root = real("penn_fudan")
    rows = json.loads((root / "annotations/instances_val.json").read_text())["annotations"]
    for row in rows:
        height, width = row["segmentation"]["size"]
        flat = pycocomask.decode(row["segmentation"]).T.ravel()
        ends = [0, *(np.flatnonzero(np.diff(flat)) + 1), height * width]
        assert run_lengths(row["segmentation"]["counts"]) == np.diff(ends).tolist()


@pytest.mark.parametrize("counts", ["xx", "", "k35i00000000ol", "k35i00000000ol011", "zz~~", [5, 6], [-4, 1204]])
def test_run_lengths_that_do_not_fill_the_picture(counts, tmp_path):
    """pycocotools reads memory that nobody wrote for some of these."""
    with pytest.raises(ValueError, match="do not fill 40 x 30"):
        rasterise({"size": [30, 40], "counts": counts}, 30, 40)
    coco(tmp_path, [annotation(1, segmentation={"size": [30, 40], "counts": "xx"})])
    with pytest.raises(UnreadableImage, match=r"1\.png: the mask of object 1 is none: its run lengths"):
        scenes(tmp_path, masks=True).load(0)


def test_run_lengths_of_both_kinds():
    truth = np.zeros((5, 7), np.uint8)
    truth[1:4, 2:6] = 1
    packed = pycocomask.encode(np.asfortranarray(truth))
    flat = truth.T.ravel()  # column by column
    ends = np.flatnonzero(np.diff(flat)) + 1
    plain = {"size": [5, 7], "counts": np.diff([0, *ends, len(flat)]).tolist()}
    for form in (packed, {**packed, "counts": packed["counts"].decode()}, plain):
        assert np.array_equal(rasterise(form, 5, 7), truth)


# --------------------------------------------------------------------------------------------------------- panoptic


@pytest.mark.parametrize(("split", "count"), [("train2017", 62), ("val2017", 16)])
def test_panoptic_segments_are_those_of_the_file(split, count):
    root = real("coco_mini")
    file = root / "annotations" / f"panoptic_{split}.json"
    found = PanopticScenes(file, root / "images" / split)
    rows = {row["image_id"]: row["segments_info"] for row in json.loads(file.read_text())["annotations"]}
    assert len(found) == count
    assert sum(c.thing for c in found.categories) == 80
    assert len(found.classes) == 133
    for index in range(0, count, 3):
        scene = found.load(index)
        wanted = {s["id"]: s for s in rows[scene.id]}
        assert len(scene.objects) == len(wanted)
        assert sorted(scene.objects.area.tolist()) == sorted(s["area"] for s in wanted.values())
        assert scene.objects.masks.sum(0).max() == 1  # segments do not overlap
        for mask, label, crowd in zip(scene.objects.masks, scene.objects.labels, scene.objects.crowd, strict=True):
            assert set(np.unique(scene.semantic[mask > 0]).tolist()) == {IGNORE if crowd else label - 1}
        assert (scene.semantic[scene.objects.masks.sum(0) == 0] == IGNORE).all()
        boxes = sorted([x, y, x + w, y + h] for x, y, w, h in (s["bbox"] for s in wanted.values()))
        assert sorted(scene.objects.boxes.tolist()) == boxes


def panoptic(root, segments, ids, **more):
    rows = [{"id": 1, "file_name": "1.png", "width": 4, "height": 2}]
    picture(root / "images/1.png", 4, 2)
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.array(ids) % 256, np.array(ids) // 256
    (root / "p").mkdir(exist_ok=True)
    Image.fromarray(pixels).save(root / "p/1.png")
    categories = [{"id": 5, "name": "cat", "isthing": 1}, {"id": 9, "name": "sky", "isthing": 0}]
    parts = [{"id": i, "category_id": c, "iscrowd": w} for i, c, w in segments]
    notes = [{"image_id": 1, "file_name": "1.png", "segments_info": parts}]
    return written(root / "p.json", {"images": rows, "annotations": notes, "categories": categories, **more})


def test_a_panoptic_picture_by_hand(tmp_path):
    file = panoptic(tmp_path, [(300, 5, 0), (7, 9, 0), (8, 5, 1)], [[300, 300, 7, 7], [0, 300, 7, 8]])
    scene = PanopticScenes(file, tmp_path / "images").load(0)
    assert scene.semantic.tolist() == [[0, 0, 1, 1], [IGNORE, 0, 1, IGNORE]]
    assert scene.objects.labels.tolist() == [2, 1, 1]
    assert scene.objects.crowd.tolist() == [False, True, False]
    assert scene.objects.boxes.tolist() == [[2, 0, 4, 2], [3, 1, 4, 2], [0, 0, 2, 2]]


def test_panoptic_faults(tmp_path):
    good = [[7, 7, 7, 7], [7, 7, 7, 7]]
    file = panoptic(tmp_path, [(7, 9, 0), (8, 5, 0)], good)
    with pytest.raises(UnreadableImage, match=r"it lacks segments that .* lists: 8"):
        PanopticScenes(file, tmp_path / "images").load(0)
    file = panoptic(tmp_path, [(7, 9, 0)], [[7, 7, 7, 7], [7, 7, 7, 4]])
    with pytest.raises(UnreadableImage, match=r"it has segments that .* does not list: 4"):
        PanopticScenes(file, tmp_path / "images").load(0)
    file = panoptic(tmp_path, [(7, 9, 0)], good)
    file.write_text(file.read_text().replace('"category_id": 9', '"category": 9'))
    with pytest.raises(ValueError, match=r"a segment of 1\.png has no id or category_id"):
        PanopticScenes(file, tmp_path / "images")
    file = panoptic(tmp_path, [(7, 11, 0)], good)
    with pytest.raises(ValueError, match="1 x unknown category: category_id 11"):
        PanopticScenes(file, tmp_path / "images")
    file = panoptic(tmp_path, [(7, 9, 0)], good)
    with pytest.raises(ValueError, match="these are panoptic annotations"):
        CocoScenes(file, tmp_path / "images")
    (tmp_path / "p/1.png").unlink()
    with pytest.raises(ValueError, match=r"1 x mask file missing: 1\.png"):
        PanopticScenes(file, tmp_path / "images")
    coco(tmp_path, [annotation(1)])
    with pytest.raises(ValueError, match="no segments_info"):
        PanopticScenes(tmp_path / "annotations/instances_train.json", tmp_path / "images/train", tmp_path / "p")
