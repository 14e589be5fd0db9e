"""Drawn pictures: what is said of a picture is true of it, and the same everywhere."""

import hashlib

import numpy as np
import pytest

from patchloom.data.sample import ANSWERS, COLOURS, KINDS, RELATIONS, SIZES
from patchloom.data.shapes import Shapes, places, size_name

TASKS = ("class", "boxes", "caption", "question")


def pick(task, count, size=64, **more):
    shapes = Shapes(count, size, task, **more)
    return [shapes[i] for i in range(count)]


def test_vocabulary():
    assert len(KINDS) == len(set(KINDS)) == 10
    assert set(COLOURS) < set(ANSWERS)
    colours = np.array(list(COLOURS.values()), float)
    apart = np.linalg.norm(colours[:, None] - colours, axis=-1) + np.eye(len(colours)) * 999
    assert apart.min() > 60  # no two names for nearly one colour
    assert [size_name(v) for v in (0.0, 0.1, 0.13, 0.2, 0.5)] == ["small", "small", "medium", "large", "large"]
    assert list(SIZES) == ["small", "medium", "large"]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", [32, (48, 96), (97, 51)])
def test_sample_is_consistent(task, size):
    for s in pick(task, 25, size):
        h, w = (size, size) if isinstance(size, int) else size
        n = len(s.labels)
        assert s.image.shape == (h, w, 3)
        assert s.image.dtype == np.uint8
        assert s.masks.shape == (n, h, w)
        assert len(s.colours) == len(s.sizes) == n
        assert set(s.colours) <= set(COLOURS)
        assert set(s.sizes) <= set(SIZES)
        assert s.masks.sum(0).max() <= 1  # visible parts do not overlap
        for box, mask in zip(s.boxes, s.masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert s.label == s.labels[0]
        assert s.kinds == tuple(KINDS[i] for i in s.labels)


def test_masks_have_the_colour_that_is_named():
    """The median pixel of a mask is nearer to its own colour than to most others: shading and grain are small."""
    right = total = 0
    names, values = list(COLOURS), np.array(list(COLOURS.values()), float)
    for s in pick("boxes", 40, 96):
        for colour, mask in zip(s.colours, s.masks, strict=True):
            median = np.median(s.image[mask], axis=0)
            right += names[np.linalg.norm(values - median, axis=1).argmin()] == colour
            total += 1
    assert right / total > 0.97


def test_deterministic_by_seed_split_and_index():
    digest = {}
    for key in [(0, "train", 0), (0, "train", 1), (0, "val", 0), (0, "test", 0), (1, "train", 0)]:
        seed, split, index = key
        a, b = (Shapes(2, 64, seed=seed, split=split)[index] for _ in range(2))
        assert np.array_equal(a.image, b.image)
        digest[hashlib.sha256(a.image.tobytes()).hexdigest()] = key
    assert len(digest) == 5
    whole, part = Shapes(1000, 64), Shapes(5, 64)
    assert np.array_equal(whole[3].image, part[3].image)  # the length does not matter
    assert np.array_equal(part.draw(700).image, whole[700].image)
    with pytest.raises(IndexError):
        part[5]


def test_drawing_leaves_the_global_generators_alone():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    Shapes(1)[0]
    assert np.array_equal(before, np.random.get_state()[1])


def test_every_kind_and_colour_is_drawn_evenly():
    samples = pick("class", 600, 32)
    kinds = np.bincount([s.label for s in samples], minlength=10)
    assert kinds.min() > 30
    assert {s.colours[0] for s in samples} == set(COLOURS)
    assert all(len(s.labels) == 1 for s in samples)


def centre(s, i):
    return s.boxes[i].reshape(2, 2).mean(0)


def stands(s, relation):
    (x0, y0), (x1, y1) = centre(s, 0), centre(s, 1)
    return {"left of": x0 < x1, "right of": x0 > x1, "above": y0 < y1, "below": y0 > y1}[relation]


def test_captions_are_true():
    seen = set()
    for s in pick("caption", 80):
        relation = next(r for r in RELATIONS if f" {r} " in s.caption)
        first, second = s.caption.split(f" {relation} ")
        for i, phrase in enumerate((first, second)):
            article, colour, kind = phrase.split(" ")
            assert (colour, kind) == (s.colours[i], s.kinds[i])
            assert article == ("an" if colour == "orange" else "a")
        assert stands(s, relation)
        assert first != second
        seen.add(relation)
    assert seen == set(RELATIONS)


def test_answers_are_true():
    yes = relations = 0
    counts = set()
    for s in pick("question", 300):
        assert s.answer in ANSWERS
        words = s.question.rstrip("?").split(" ")
        if s.about == "colour":
            kind = words[-1]
            assert s.kinds.count(kind) == 1
            assert s.colours[s.kinds.index(kind)] == s.answer
        elif s.about == "count":
            asked = s.question[len("how many ") : -len(" are there?")].split(" ")
            singular = {"crosses": "cross", **{f"{k}s": k for k in KINDS if k != "cross"}}
            there = sum(
                all(w in (c, "objects") or singular.get(w) == k for w in asked)
                for k, c in zip(s.kinds, s.colours, strict=True)
            )
            assert str(there) == s.answer, s.question
            counts.add(s.answer)
        else:
            relation = next(r for r in RELATIONS if f" {r} the " in s.question)
            assert stands(s, relation) == (s.answer == "yes")
            relations += 1
            yes += s.answer == "yes"
    assert 0.3 < yes / relations < 0.7
    assert {"0", "1", "2", "3"} <= counts


@pytest.mark.parametrize("task", TASKS)
def test_held_out_pairs(task):
    held = [("star", "red"), ("circle", "blue")]
    for s in pick(task, 60, without=held):
        assert not set(zip(s.kinds, s.colours, strict=True)) & set(held)
    for s in pick(task, 30, featured=held, split="test"):
        assert (s.kinds[0], s.colours[0]) in held


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"task": "clas"}, "no task 'clas'"),
        ({"split": "dev"}, "no split 'dev'"),
        ({"size": 16}, "at least 32 x 32"),
        ({"length": 0}, "at least 1"),
        ({"without": [("star", "mauve")]}, "mauve"),
        ({"without": [("star", c) for c in COLOURS]}, "every colour of"),
        ({"without": [("star", "red")], "featured": [("star", "red")]}, "both held out and featured"),
    ],
)
def test_wrong_arguments(arguments, says):
    with pytest.raises(ValueError, match=says):
        Shapes(**{"length": 4, **arguments})


@pytest.mark.parametrize("count", [2, 6])
def test_places_hardly_overlap(count):
    r = np.random.default_rng(0)
    for _ in range(50):
        x, y, radius = places(r, count, 40, 64).T
        apart = np.hypot(x[:, None] - x, y[:, None] - y) - 0.9 * (radius[:, None] + radius)
        assert apart[np.triu_indices(count, 1)].min() >= 0
        assert ((x >= radius) & (x <= 64 - radius) & (y >= radius) & (y <= 40 - radius)).all()
