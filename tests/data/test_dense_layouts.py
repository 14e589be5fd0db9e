"""Pascal VOC, label maps (CamVid, ADE20K, Cityscapes), instance masks: what the files say, and what is wrong."""

import logging

import numpy as np
import pytest
from dense_parts import mask, pairs, picture, voc, written
from PIL import Image
from real_data import real

from patchloom.data.findings import Kind
from patchloom.data.instance_masks import InstanceMasks
from patchloom.data.label_maps import CITYSCAPES, Values, cityscapes_maps, classes_of, folder_maps, read_numbers
from patchloom.data.read import UnreadableImage
from patchloom.data.scene import IGNORE
from patchloom.data.voc import VOC_CLASSES, VocScenes


def test_voc(tmp_path):
    voc(tmp_path, a=[("dog", 0, 1, 1, 40, 30), ("cat", 1, 5, 6, 5, 6)], b=[])
    found = VocScenes(tmp_path, "train")
    assert found.classes == list(VOC_CLASSES)
    first = found.load(0).objects
    assert first.boxes.tolist() == [[0, 0, 40, 30], [4, 5, 5, 6]]  # counted from 1, both ends included
    assert first.labels.tolist() == [12, 8]
    assert first.crowd.tolist() == [False, True]
    assert found.load(1).objects.boxes.shape == (0, 4)
    assert found.names() == ["a.jpg", "b.jpg"]
    assert VocScenes(tmp_path, None).names() == ["a.jpg", "b.jpg"]


def test_voc_with_classes_of_its_own_counted_from_0(tmp_path):
    voc(tmp_path, a=[("wbc", 0, 0, 0, 40, 30), ("rbc", 0, 7, 7, 7, 9), ("rbc", 0, 30, 20, 44, 25)])
    found = VocScenes(tmp_path, "train", first=0)
    assert found.classes == ["rbc", "wbc"]
    assert found.findings.counts() == {Kind.FLAT.text: 1, Kind.CLIPPED.text: 1}
    assert found.load(0).objects.boxes.tolist() == [[0, 0, 40, 30], [30, 20, 40, 25]]
    with pytest.raises(ValueError, match=r"2 x unknown category: 'rbc' \(object 2 of a\): did you mean rbcs"):
        VocScenes(tmp_path, "train", classes=["rbcs", "wbc"], first=0)
    with pytest.raises(ValueError, match="first = 2"):
        VocScenes(tmp_path, "train", first=2)


def test_voc_faults(tmp_path, caplog):
    voc(tmp_path, a=[("dog", 0, 1, 1, 9, 9)], b=[], c=[])
    (tmp_path / "JPEGImages/b.jpg").unlink()
    (tmp_path / "Annotations/c.xml").unlink()
    with pytest.raises(ValueError, match=r"1 x picture file missing: b.jpg. 1 x annotation file missing: c.xml"):
        VocScenes(tmp_path, "train")
    with caplog.at_level(logging.WARNING, "patchloom.data"):
        assert VocScenes(tmp_path, "train", on_error="skip").names() == ["a.jpg"]
    assert "annotation file missing: c.xml (left out)" in caplog.text
    with pytest.raises(FileNotFoundError, match="did you mean train"):
        VocScenes(tmp_path, "trian")
    (tmp_path / "Annotations/a.xml").write_text("<annotation><size>")
    with pytest.raises(ValueError, match=r"a.xml: not as VOC writes it"):
        VocScenes(tmp_path, "train")


# -------------------------------------------------------------------------------------------------------- label maps


def test_camvid():
    root = real("camvid_mini")
    names, void = classes_of(root)
    values = Values.of(names, [void])
    train, val, test = (folder_maps(root, split, values) for split in ("train", "val", "test"))
    assert (len(train), val, len(test)) == (100, None, 40)
    assert train.classes[:3] == ["sky", "building", "pole"]
    scene = train.load(5)
    assert scene.size == (180, 240)
    raw = np.asarray(Image.open(train.pairs[5][1]))
    assert np.array_equal(scene.semantic, np.where(raw == 11, IGNORE, raw))


def test_ade20k():
    root = real("ade20k_mini")
    names, _ = classes_of(root)
    assert len(names) == 150
    found = folder_maps(root, "val", Values.of(names, [0], first=1))
    assert len(found) == 21
    for i in range(0, 21, 4):
        raw = np.asarray(Image.open(found.pairs[i][1])).astype(int)
        assert np.array_equal(found.load(i).semantic, np.where(raw == 0, IGNORE, raw - 1))


def test_ade20k_as_published(tmp_path):
    (tmp_path / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t1\t1\twall\n2\t0.1\t1\t1\tbuilding, edifice\n"
    )
    names, ignored = classes_of(tmp_path)
    assert (names, ignored) == (["wall", "building, edifice"], None)
    for split in ("training", "validation"):
        picture(tmp_path / "images" / split / "ADE_1.jpg", 3, 2)
        mask(tmp_path / "annotations" / split / "ADE_1.png", [[0, 1, 2], [2, 2, 0]])
    found = folder_maps(tmp_path, "val", Values.of(names, [0], first=1))
    assert found.load(0).semantic.tolist() == [[255, 0, 1], [1, 1, 255]]
    assert folder_maps(tmp_path, "test", found.values) is None


def test_cityscapes(tmp_path):
    for city, name in (("ulm", "ulm_000_1"), ("bonn", "bonn_000_2")):
        picture(tmp_path / f"leftImg8bit/train/{city}/{name}_leftImg8bit.png", 3, 2)
        mask(tmp_path / f"gtFine/train/{city}/{name}_gtFine_labelIds.png", [[7, 8, 0], [33, 26, 255]])
        mask(tmp_path / f"gtFine/train/{city}/{name}_gtFine_instanceIds.png", [[7, 8, 0], [33, 26, 255]])
    found = cityscapes_maps(tmp_path, "train")
    assert len(found.classes) == 19
    assert found.names() == [
        "leftImg8bit/train/bonn/bonn_000_2_leftImg8bit.png",
        "leftImg8bit/train/ulm/ulm_000_1_leftImg8bit.png",
    ]
    assert found.load(0).semantic.tolist() == [[0, 1, 255], [18, 13, 255]]
    assert list(CITYSCAPES)[13] == 26
    assert cityscapes_maps(tmp_path, "val") is None
    for file in tmp_path.rglob("*_labelIds.png"):
        mask(file.with_name(file.name.replace("labelIds", "labelTrainIds")), [[0, 18, 255], [1, 1, 1]])
        file.unlink()
    assert cityscapes_maps(tmp_path, "train").load(1).semantic.tolist() == [[0, 18, 255], [1, 1, 1]]


VALUES = Values.of(["a", "b", "c"], [255])


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda f: mask(f, [[0, 1, 7], [9, 7, 0]]), "3 pixels are 7, 9, which is none of the 3 classes nor ignored"),
        (lambda f: mask(f, np.zeros((3, 2))), "a mask of 2 x 3 pixels for a picture of 3 x 2"),
        (lambda f: mask(f, np.zeros((2, 3, 3))), "mode RGB: one number a pixel is needed, not colours"),
        (lambda f: f.write_bytes(b"no picture"), "cannot identify image file"),
        (lambda f: Image.fromarray(np.full((2, 3), 300, np.uint16)).save(f), "the number 300"),
    ],
)
def test_a_mask_that_is_not_one(write, says, tmp_path):
    found = folder_maps(pairs(tmp_path), "train", VALUES)
    write(tmp_path / "masks/train/1.png")
    assert found.load(0).semantic.tolist() == [[0, 1, 2], [2, 255, 0]]
    with pytest.raises(UnreadableImage, match=says) as error:
        found.load(1)
    assert error.value.file.endswith("masks/train/1.png")


def test_a_palette_mask_gives_its_numbers(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    image.putpalette([10, 20, 30, 200, 100, 0, 7, 7, 7])
    image.save(tmp_path / "m.png")
    assert read_numbers(str(tmp_path / "m.png")).tolist() == [[0, 1], [2, 1]]


def test_pictures_without_masks_and_masks_without_pictures(tmp_path, caplog):
    pairs(tmp_path, 3)
    (tmp_path / "masks/train/1.png").unlink()
    (tmp_path / "images/train/2.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 x mask file missing: of 1. 1 x picture file missing: of the mask 2"):
        folder_maps(tmp_path, "train", VALUES)
    with caplog.at_level(logging.WARNING, "patchloom.data"):
        assert len(folder_maps(tmp_path, "train", VALUES, "skip")) == 1
    assert "1 x mask file missing: of 1" in caplog.text


def test_two_files_of_one_name(tmp_path):
    pairs(tmp_path)
    picture(tmp_path / "images/train/1.png", 3, 2)
    with pytest.raises(ValueError, match=r"both .*1\.jpg and .*1\.png are there: which one is 1"):
        folder_maps(tmp_path, "train", VALUES)


def test_layouts_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of pictures"):
        folder_maps(tmp_path, "val", VALUES)
    picture(tmp_path / "images/train/1.jpg")
    with pytest.raises(FileNotFoundError, match="train has pictures only, both are needed"):
        folder_maps(tmp_path, "train", VALUES)
    (tmp_path / "masks/train").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no picture with a mask of the same name \(pictures: 1; masks: none\)"):
        folder_maps(tmp_path, "train", VALUES)
    with pytest.raises(FileNotFoundError, match=r"no classes.json"):
        classes_of(tmp_path)
    written(tmp_path / "classes.json", {"names": []})
    with pytest.raises(ValueError, match="expected"):
        classes_of(tmp_path)


def test_values():
    with pytest.raises(ValueError, match=r"class 'b' is written as 1: a byte that is not also ignored"):
        Values.of(["a", "b"], [1])
    with pytest.raises(ValueError, match="256 classes"):
        Values.of([str(i) for i in range(256)], [])
    assert Values.of(["a", "b"], [], first=1).table[:4].tolist() == [-1, 0, 1, -1]


# ---------------------------------------------------------------------------------------------------- instance masks


def test_penn_fudan_masks_say_what_its_annotations_say():
    from patchloom.data.coco import CocoScenes

    root = real("penn_fudan")
    masks = InstanceMasks(root / "images", root / "masks", ["person"])
    assert len(masks) == 120
    by_name = {name: i for i, name in enumerate(masks.names())}
    told = CocoScenes(root / "annotations/instances_val.json", root / "images", masks=True)
    for i, name in enumerate(told.names()):
        ours, theirs = masks.load(by_name[name]).objects, told.load(i).objects
        order, other = np.lexsort(ours.boxes.T), np.lexsort(theirs.boxes.T)
        assert np.array_equal(ours.boxes[order], theirs.boxes[other])
        assert np.array_equal(ours.masks[order], theirs.masks[other])
        assert np.array_equal(ours.area[order], theirs.area[other])


def test_instance_masks_as_published(tmp_path):
    picture(tmp_path / "PNGImages/F1.png", 3, 2)
    picture(tmp_path / "PNGImages/F2.png", 3, 2)
    mask(tmp_path / "PedMasks/F1_mask.png", [[0, 2, 2], [1, 0, 2]])
    with pytest.raises(ValueError, match="1 x mask file missing: of F2"):
        InstanceMasks(tmp_path / "PNGImages", tmp_path / "PedMasks")
    mask(tmp_path / "PedMasks/F2_mask.png", [[0, 0], [0, 0]])
    found = InstanceMasks(tmp_path / "PNGImages", tmp_path / "PedMasks")
    assert found.load(0).objects.boxes.tolist() == [[0, 1, 1, 2], [1, 0, 3, 2]]
    with pytest.raises(UnreadableImage, match="a mask of 2 x 2 pixels for a picture of 3 x 2"):
        found.load(1)
    mask(tmp_path / "PedMasks/F2_mask.png", np.zeros((2, 3)))
    assert found.load(1).objects.masks.shape == (0, 2, 3)
    with pytest.raises(ValueError, match="name one"):
        InstanceMasks(tmp_path / "PNGImages", tmp_path / "PedMasks", ["a", "b"])
