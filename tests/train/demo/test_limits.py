"""The demo's callbacks, as plain functions: what is refused, and how."""

import os
import time
from dataclasses import replace

import numpy as np
import pytest
from demo_parts import app_over, encoded, hostile, picture, runs_in
from PIL import Image

from patchloom.train.demo import limits as limit
from patchloom.train.demo.app import in_words
from patchloom.train.demo.classify import classify
from patchloom.train.demo.limits import Limits, Refused, without_paths
from patchloom.train.demo.making import make
from patchloom.train.demo.uploads import Upload, file_name, open_upload, read_upload


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with app_over(runs_in(tmp_path_factory.mktemp("runs"), "vit", "dit")) as app:
        yield app


@pytest.fixture
def noisy():
    noise = np.random.default_rng(1).integers(0, 255, (60, 90, 3), np.uint8)
    return Upload(Image.fromarray(noise), "noise.png")


# ---- limits


def test_what_takes_too_long_is_stopped(app, noisy):
    short = replace(app.limits, seconds=0.4)
    begun = time.monotonic()
    with pytest.raises(Refused, match=r"longer than 0\.4 seconds"):
        make(app.shelf, short, "dit/1", ["star"], count=16, steps=250)
    assert time.monotonic() - begun < 5
    assert make(app.shelf, app.limits, "dit/1", ["star"], count=1, steps=1).images


@pytest.mark.parametrize(
    ("name", "value"),
    [("count", 0), ("count", 17), ("count", "4"), ("steps", 251), ("steps", 2.5), ("steps", None), ("guidance", -1),
     ("guidance", float("nan")), ("seed", -1), ("seed", True), ("sampler", "magic"), ("sampler", ["ddim"])],
)  # fmt: skip
def test_settings_out_of_range_are_refused(app, name, value):
    with pytest.raises(Refused, match=r"wanted|choose one"):
        make(app.shelf, app.limits, "dit/1", ["star"], **{name: value})


@pytest.mark.parametrize("classes", [["unicorn"], "star", 3, [["star"]], {"star": 1}])
def test_classes_that_nobody_offered_are_refused(app, classes):
    with pytest.raises(Refused):
        make(app.shelf, app.limits, "dit/1", classes, steps=1)


@pytest.mark.parametrize("model", [None, "../../etc/passwd", "/etc/passwd", 3, ["vit/1"], "dit/1"])
def test_models_that_nobody_offered_are_refused(app, noisy, model):
    with pytest.raises(Refused, match="choose"):
        classify(app.shelf, app.limits, noisy, model)


# ---- files


@pytest.mark.parametrize("name", hostile())
def test_hostile_files(app, name):
    data, refusal = hostile()[name]
    path = app.folder / "upload"
    path.write_bytes(data)
    payload = {"path": str(path), "orig_name": name}
    if refusal:
        with pytest.raises(Refused, match=refusal) as told:
            app.open(payload)
        assert str(app.folder) not in str(told.value)
        return
    upload = app.open(payload)
    assert upload.picture.mode == "RGB"
    expected = {"moving.gif": "first of 3", "inks.jpg": "CMYK", "deep.png": "16 bits", "turned.jpg": "upright"}
    assert expected.get(name, "") in "; ".join(upload.notes)
    assert upload.picture.size == ((48, 64) if name == "turned.jpg" else (64, 48))
    assert "/" not in upload.name
    assert "<" not in upload.name


def test_large_pictures_are_made_smaller_and_it_is_said():
    upload = read_upload(encoded(picture(size=(3000, 1000))), "wide.png", Limits())
    assert upload.picture.size == (1600, 533)
    assert "3000 x 1000" in upload.notes[0]
    with pytest.raises(Refused, match="too large: 3000 x 1000"):
        read_upload(encoded(picture(size=(3000, 1000))), "wide.png", Limits(pixels=1_000_000))
    with pytest.raises(Refused, match="too thin"):
        read_upload(encoded(picture(size=(3000, 1))), "thin.png", Limits())


def test_only_uploads_are_opened(app, tmp_path):
    outside = tmp_path / "secret.png"
    outside.write_bytes(encoded(picture()))
    (app.folder / "link.png").symlink_to(outside)
    tries = [str(outside), "/etc/passwd", str(app.folder / ".." / "x"), "a\x00b", "x" * 5000, str(app.folder),
             str(app.folder / "link.png"), "http://127.0.0.1/x.png"]  # fmt: skip
    for path in tries:
        with pytest.raises(Refused, match="not uploaded here") as told:
            open_upload({"path": path, "orig_name": None}, app.folder, app.limits)
        assert str(tmp_path) not in str(told.value)
    for payload in (None, "", 3, [], {"url": "x"}, {"path": 3}):
        with pytest.raises(Refused, match=r"no picture yet|no uploaded picture"):
            open_upload(payload, app.folder, app.limits)
    (app.folder / "big").write_bytes(bytes(2000))
    with pytest.raises(Refused, match="MiB are taken"):
        open_upload({"path": str(app.folder / "big")}, app.folder, Limits(upload=1000))


def test_names_and_errors_tell_no_paths():
    assert file_name("C:\\Users\\me\\a.png") == "a.png"
    assert file_name("../..") == "the file" or "/" not in file_name("../..")
    assert without_paths("no file /home/me/runs/x.ckpt or ~/a/b") == "no file x.ckpt or b"
    assert without_paths("shapes/cct is 3/4 of https://a.org/b/c") == "shapes/cct is 3/4 of https://a.org/b/c"
    assert in_words(Refused("so")) == "so"
    assert in_words(FileNotFoundError(2, "No such file", "/root/x/y.ckpt")) == "y.ckpt: No such file"
    assert "memory" in in_words(MemoryError())


def test_text_is_cleaned():
    assert limit.words(" a\x00b\x1bc ", "it", 10) == "abc"
    with pytest.raises(Refused, match="at most 3"):
        limit.words("abcd", "it", 3)


# ---- the app's folder


def test_the_folder_goes_with_the_app(tmp_path):
    with app_over(tmp_path) as app:
        folder = app.folder
        assert [Image.open(path).size for path in app.samples] == [(160, 160)] * 4 + [(160, 128)] * 4
    assert not os.path.exists(folder)
