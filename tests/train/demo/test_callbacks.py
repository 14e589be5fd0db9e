"""The demo's callbacks, as plain functions: answers, limits, refusals."""

import threading
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from demo_parts import COLOURS, app_over, picture, runs_in
from PIL import Image

from patchloom.train.demo.classify import classify
from patchloom.train.demo.compare import Living, compare
from patchloom.train.demo.find import classes_of, find
from patchloom.train.demo.limits import Clock, Refused
from patchloom.train.demo.making import make, takes
from patchloom.train.demo.merging import view
from patchloom.train.demo.shelf import Shelf
from patchloom.train.demo.talk import talk
from patchloom.train.demo.uploads import Upload
from patchloom.vision.plugins import plugins_of


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with app_over(runs_in(tmp_path_factory.mktemp("runs"))) as app:
        yield app


@pytest.fixture
def noisy():
    noise = np.random.default_rng(1).integers(0, 255, (60, 90, 3), np.uint8)
    return Upload(Image.fromarray(noise), "noise.png")


# ---- models


def test_the_shelf_knows_what_each_run_does(app):
    kinds = {entry.name: entry.kind for entry in app.shelf.entries()}
    assert kinds == {
        "vit/1": "classify", "colours/1": "classify", "mask/1": "detect", "fpn/1": "segment", "dit/1": "generate",
        "vlm/1": "chat",
    }  # fmt: skip
    assert app.shelf.names("detect", "segment") != []


def test_what_is_no_model_is_left_out(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "last.ckpt").write_bytes(b"nothing")
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    assert Shelf(tmp_path).entries() == []
    assert "is left out" in capsys.readouterr().err
    with pytest.raises(Refused, match="no such model here yet"):
        Shelf(tmp_path / "nowhere").entry("x", "classify")
    with pytest.raises(ValueError, match="a tab for"):
        Shelf(tmp_path, [str(tmp_path / "last.ckpt")])
    with pytest.raises(FileNotFoundError):
        Shelf(tmp_path, ["runs/of/nobody"])


def test_only_so_many_models_stay_loaded(app):
    shelf = Shelf(app.shelf.runs, device="cpu", kept=1)
    for name in ("vit/1", "colours/1"):
        with shelf.borrowed(name, Clock(20), "classify"):
            pass
    assert len(shelf.slots) == 1


def test_a_model_is_used_by_one_at_a_time(app, noisy):
    held, free = threading.Event(), threading.Event()

    def hold():
        with app.shelf.borrowed("vit/1", Clock(20), "classify"):
            held.set()
            free.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(20)
    with pytest.raises(Refused, match="busy"):
        classify(app.shelf, replace(app.limits, seconds=0.2), noisy, "vit/1")
    free.set()
    thread.join()
    assert classify(app.shelf, app.limits, noisy, "vit/1").top


# ---- answers


@pytest.mark.parametrize("kind", ["gradient", "attention", "none"])
def test_classify(app, noisy, kind):
    answer = classify(app.shelf, app.limits, noisy, "vit/1", kind)
    assert list(answer.top) != sorted(answer.top, key=answer.top.get)
    assert set(answer.top) == {"cat", "dog", "bird", "fish"}
    assert sum(answer.top.values()) == pytest.approx(1, abs=1e-5)
    assert answer.seen.size == (384, 384)
    assert next(iter(answer.top)) in answer.text


def test_the_answer_is_the_models(app):
    for name, colour in COLOURS.items():
        answer = classify(app.shelf, app.limits, Upload(picture(colour), "x"), "colours/1", "none")
        assert next(iter(answer.top)) == name
    with pytest.raises(Refused, match="no global attention"):
        classify(app.shelf, app.limits, Upload(picture(), "x"), "colours/1", "attention")


def test_the_map_is_hot_where_the_class_depends_on(app):
    image = np.full((32, 32, 3), 128, np.uint8)
    dull = classify(app.shelf, app.limits, Upload(Image.fromarray(image), "x"), "vit/1", "none").seen
    hot = classify(app.shelf, app.limits, Upload(Image.fromarray(image), "x"), "vit/1", "gradient").seen
    assert np.abs(np.asarray(dull).astype(int) - np.asarray(hot)).max() > 50
    with app.shelf.borrowed("vit/1", Clock(20), "classify") as judge:
        assert all(p.requires_grad for p in judge.model.parameters())


def test_find_objects(app, noisy):
    found = find(app.shelf, app.limits, noisy, "mask/1", 0.0)
    assert found.drawn.size == (450, 300)
    assert all(row[0] in ("square", "circle") and len(row) == 6 for row in found.rows)
    scores = [row[1] for row in found.rows]
    assert scores == sorted(scores, reverse=True)
    only = find(app.shelf, app.limits, noisy, "mask/1", 0.0, [found.rows[0][0]])
    assert {row[0] for row in only.rows} == {found.rows[0][0]}
    assert len(only.rows) <= len(found.rows)
    assert "nothing" in find(app.shelf, app.limits, noisy, "mask/1", 1.0).text
    assert classes_of(app.shelf, app.limits, "mask/1") == ["square", "circle"]


def test_find_classes_of_pixels(app, noisy):
    found = find(app.shelf, app.limits, noisy, "fpn/1", 0.0)
    assert sum(row[1] for row in found.rows) == pytest.approx(1, abs=1e-3)
    some = find(app.shelf, app.limits, noisy, "fpn/1", 0.0, ["circle"])
    assert {row[0] for row in some.rows} <= {"circle"}
    assert find(app.shelf, app.limits, noisy, "fpn/1", 1.0).rows == []


def test_tokens(app, noisy):
    found = view(app.shelf, app.limits, noisy, "vit/1", "tome:r=3")
    assert [row[1] for row in found.rows] == [14, 11, 8]
    assert found.drawn.width > 500
    assert "times as fast" in found.text
    with app.shelf.borrowed("vit/1", Clock(20), "classify") as judge:
        assert plugins_of(judge.model) == []
    for wrong in ("tome:q=3", "nothing:r=2", "", "x" * 300, 7):
        with pytest.raises(ValueError, match=r"."):
            view(app.shelf, app.limits, noisy, "vit/1", wrong)
    with pytest.raises(Refused, match="nobody trained"):
        view(app.shelf, app.limits, noisy, "vit/1", "dynamicvit:at=1")
    with app.shelf.borrowed("vit/1", Clock(20), "classify") as judge:
        assert plugins_of(judge.model) == []
    with pytest.raises(ValueError, match=r"Pool"):
        view(app.shelf, app.limits, noisy, "colours/1", "tome:r=3")


def test_generate(app):
    assert takes(app.shelf, app.limits, "dit/1").classes[3] == "star"
    heard = []
    made = make(
        app.shelf, app.limits, "dit/1", ["star", "heart"], count=2, steps=3, guidance=2, seed=5,
        told=lambda share, text: heard.append(share),
    )  # fmt: skip
    assert [title for _, title in made.images] == ["star", "star", "heart", "heart"]
    assert made.images[0][0].size == (192, 192)
    assert heard == pytest.approx([1 / 3, 2 / 3, 1])
    again = make(app.shelf, app.limits, "dit/1", ["star", "heart"], count=2, steps=3, guidance=2, seed=5)
    assert all(a[0].tobytes() == b[0].tobytes() for a, b in zip(made.images, again.images, strict=True))
    assert len(make(app.shelf, app.limits, "dit/1", count=16, steps=1).images) == 16
    with pytest.raises(Refused, match="16 images of each of 2 classes are 32"):
        make(app.shelf, app.limits, "dit/1", ["star", "heart"], count=16, steps=1)


def test_talk(app, noisy):
    heard = list(talk(app.shelf, app.limits, noisy, "vlm/1", "what colour is the star?"))
    assert heard
    assert all(b.startswith(a) for a, b in pairwise(heard))
    before = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": heard[-1][:20]}]
    assert list(talk(app.shelf, app.limits, noisy, "vlm/1", "why <image>?", before, temperature=1.0))
    with pytest.raises(Refused, match="new conversation"):
        list(talk(app.shelf, app.limits, noisy, "vlm/1", "why?", before * 8))
    for wrong in ("", "  ", None, "x" * 401):
        with pytest.raises(Refused, match="the question"):
            list(talk(app.shelf, app.limits, noisy, "vlm/1", wrong))
    pieces = talk(app.shelf, app.limits, noisy, "vlm/1", "what?")
    next(pieces)
    del pieces  # a visitor who leaves holds nothing up
    assert list(talk(app.shelf, replace(app.limits, seconds=20), noisy, "vlm/1", "what?"))


def test_compare(app, noisy):
    one, other = compare(app.shelf, app.limits, noisy, "vit/1", "fpn/1")
    for side in (one, other):
        rows = dict(side.rows)
        assert list(rows) == ["answer", "time", "memory", "parameters", "input"]
        assert " ms " in rows["time"]
        assert "MiB" in rows["memory"]
    assert set(one.top) == {"cat", "dog", "bird", "fish"}
    with pytest.raises(Refused, match="the model is 'dit/1'"):
        compare(app.shelf, app.limits, noisy, "vit/1", "dit/1")


def test_memory_of_a_pass_is_what_lives_at_a_time():
    with torch.inference_mode(), Living() as living:
        x = torch.ones(256, 256)
        for _ in range(5):
            x = x * 2
    assert living.most == 2 * 4 * 256 * 256
    assert living.now == 4 * 256 * 256
