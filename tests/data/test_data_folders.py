"""Folders and files of the usual data sets: what is found, how it is split, what is said when it is wrong."""

import gzip
import json

import numpy as np
import pytest
from PIL import Image
from real_data import real

from patchloom.data.arrays import idx_folder, read_idx, read_idx_split
from patchloom.data.folders import Files, Folder, existing, pictures_below
from patchloom.data.splits import folder_splits, portion, same_classes, split_folders
from patchloom.data.synsets import human_names, imagenet_synsets


def tree(root, *names):
    """Small pictures at the given relative places; a name that ends in / is an empty folder."""
    for i, name in enumerate(names):
        place = root / name
        if name.endswith("/"):
            place.mkdir(parents=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (i * 7 % 256, i % 256, 3)).save(place)
    return root


def test_classes_are_sorted_and_searched_to_any_depth(tmp_path):
    folder = Folder(tree(tmp_path, "dog/1.png", "cat/deep/er/2.JPG", "cat/1.webp", "cat/notes/", "dog/.hidden.png"))
    (tmp_path / "cat" / "readme.txt").write_text("no picture")
    assert folder.classes == ["cat", "dog"]
    assert [(f.removeprefix(str(tmp_path)), t) for f, t in folder.samples] == [
        ("/cat/1.webp", 0), ("/cat/deep/er/2.JPG", 0), ("/dog/1.png", 1)
    ]  # fmt: skip
    image, target = folder[2]
    assert (image.size, image.mode, target) == ((8, 6), "RGB", 1)
    assert len(folder) == 3


def test_given_classes(tmp_path):
    tree(tmp_path, "b/1.png", "d/1.png")
    assert Folder(tmp_path, ["a", "b", "c", "d"]).targets == [1, 3]
    with pytest.raises(ValueError, match="unknown class folder d"):
        Folder(tmp_path, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("names", "error", "says"),
    [
        (("a/1.png", "b/"), ValueError, "b: class folder without pictures"),
        (("1.png", "2.png"), ValueError, "no class folders in it, 2 loose pictures"),
        ((), ValueError, "the folder is empty"),
    ],
)
def test_wrong_layouts(tmp_path, names, error, says):
    with pytest.raises(error, match=says):
        Folder(tree(tmp_path, *names))


def test_missing_root_offers_near_names(tmp_path):
    tree(tmp_path, "flowers/a/1.png", "cars/a/1.png")
    with pytest.raises(FileNotFoundError, match=r"flower/train: did you mean flowers in"):
        Folder(tmp_path / "flower" / "train")
    with pytest.raises(FileNotFoundError, match="there is cars, flowers in"):
        existing(tmp_path / "zzz")
    with pytest.raises(NotADirectoryError, match="is a file"):
        Folder(tmp_path / "cars" / "a" / "1.png")


def test_classes_that_differ_between_splits(tmp_path):
    tree(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "test/dogs/1.png", "test/fox/1.png")
    with pytest.raises(ValueError, match=r"test lacks dog and has dogs, fox besides.*did you mean dog") as error:
        folder_splits(tmp_path, 0.1, 0.1)
    assert "\n" not in str(error.value)
    one, two = Folder(tmp_path / "train"), Folder(tmp_path / "train")
    same_classes(one, two)


def test_all_three_folders(tmp_path):
    tree(tmp_path, *(f"{s}/{c}/{i}.png" for s in ("train", "validation", "test") for c in "ab" for i in range(2)))
    splits = folder_splits(tmp_path, 0.5, 0.5)
    assert [s.root.name for s in (splits.train, splits.val, splits.test)] == ["train", "validation", "test"]
    assert split_folders(tmp_path).keys() == {"train", "val", "test"}
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match=r"both val/ and validation/"):
        split_folders(tmp_path)


def test_one_folder_is_split_by_hash(tmp_path):
    tree(tmp_path, *(f"{c}/{i}.png" for c in "ab" for i in range(20)))
    first, again = (folder_splits(tmp_path, 0.1, 0.2) for _ in range(2))
    assert [len(s) for s in (first.train, first.val, first.test)] == [28, 4, 8]
    names = [{s.name(i) for i in range(len(s))} for s in (first.train, first.val, first.test)]
    assert len(set.union(*names)) == 40  # disjoint and complete
    assert names == [{s.name(i) for i in range(len(s))} for s in (again.train, again.val, again.test)]
    assert [s.load(0)[1] for s in (first.train, first.val, first.test)] == [0, 0, 0]
    assert "split by hash into 28 for training, 4 for validation, 8 for test" in first.notes[0]
    tree(tmp_path, "a/new.png")  # one more picture moves at most one in or out of each part
    more = folder_splits(tmp_path, 0.1, 0.2)
    assert len(names[1] ^ {more.val.name(i) for i in range(len(more.val))}) <= 2


def test_portion_of_small_classes():
    names, targets = [f"{i}" for i in range(7)], [0, 1, 1, 2, 2, 2, 2]
    val, train = portion(names, targets, 0.1)
    assert {targets[i] for i in train} == {0, 1, 2}
    assert [targets[i] for i in val] == [1, 2]  # the class of one stays in training
    assert portion(names, targets, 0.0)[0] == []
    for wrong in ((0.6, 0.5), (-0.1, 0.2)):
        with pytest.raises(ValueError, match="fractions"):
            portion(names, targets, *wrong)


def test_only_val(tmp_path):
    splits = folder_splits(tree(tmp_path, "val/a/1.png", "val/b/1.png"), 0.1, 0.1)
    assert splits.train is None
    assert splits.test is splits.val


def test_files(tmp_path):
    tree(tmp_path, "x/1.png", "x/y/2.png", "3.png", "empty/")
    files = Files([tmp_path / "3.png", tmp_path / "x"])
    assert [f.removeprefix(str(tmp_path)) for f in files.files] == ["/3.png", "/x/1.png", "/x/y/2.png"]
    assert files.load(1)[1] == 1
    assert len(pictures_below(tmp_path)) == 3
    with pytest.raises(ValueError, match="no pictures in it or below"):
        Files(tmp_path / "empty")
    with pytest.raises(ValueError, match="no picture files given"):
        Files([])


# ImageNet


def test_synsets_and_names(tmp_path):
    synsets = imagenet_synsets()
    assert len(synsets) == 1000
    assert synsets == sorted(synsets)
    assert synsets[0] == "n01440764"
    assert "tench" in human_names(tmp_path, synsets)[0]  # timm's
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01440764 a fish, indeed\n")
    assert human_names(tmp_path, synsets)[0] == "a fish, indeed"
    (tmp_path / "classes.json").write_text(json.dumps({"0": ["n01440764", "Tinca"]}))
    assert human_names(tmp_path, synsets)[0] == "Tinca"
    (tmp_path / "classes.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"classes\.json: expected"):
        human_names(tmp_path, synsets)


def test_real_imagenet_layout():
    root = real("imagenet_1k_mini")
    assert human_names(root, imagenet_synsets())[:3] == ["tench", "goldfish", "great white shark"]
    folder = Folder(root / "val", imagenet_synsets())
    assert folder.targets == list(range(1000))


# IDX


def write_idx(path, array):
    head = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def test_idx(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28))
    raw = tmp_path / "FashionMNIST" / "raw"
    write_idx(raw / "train-images-idx3-ubyte.gz", images)
    write_idx(raw / "train-labels-idx1-ubyte", np.array([0, 1, 2, 1, 0]))
    assert idx_folder(tmp_path) == idx_folder(raw) == raw
    source = read_idx_split(raw, "train", ["a", "b", "c"])
    image, target = source.load(2)
    assert np.array_equal(np.asarray(image)[..., 1], images[2])
    assert (target, image.mode, len(source)) == (2, "RGB", 5)
    with pytest.raises(FileNotFoundError, match="no t10k-images"):
        read_idx_split(raw, "test", "abc")
    with pytest.raises(ValueError, match="labels from 0 to 2, but there are 2 classes"):
        read_idx_split(raw, "train", "ab")
    assert idx_folder(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\0\0\x08\x03\0\0\0\x05", "do not hold"),
        (b"\x89PNG....", "not an IDX file"),
        (b"", "not an IDX file"),
        (b"\0\0\x08\x01\0\0\0\x05abc", "do not hold the"),
    ],
)
def test_damaged_idx(tmp_path, data, says):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ValueError, match=says):
        read_idx(tmp_path / "x")
    (tmp_path / "x.gz").write_bytes(b"\x1f\x8b" + data)
    with pytest.raises(ValueError, match="damaged gzip"):
        read_idx(tmp_path / "x.gz")


def test_real_mnist():
    folder = idx_folder(real("mnist_mini"))
    sizes = {split: len(read_idx_split(folder, split, "0123456789")) for split in ("train", "test")}
    assert sizes == {"train": 7000, "test": 1500}
