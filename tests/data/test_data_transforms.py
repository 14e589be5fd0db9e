"""Transforms: evaluation is timm's to the bit; training draws depend on (seed, epoch, index) only."""

import random
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from timm.data import create_transform

from patchloom.data.batch import jostle, shifted, wipe
from patchloom.data.folders import Files
from patchloom.data.keyed import key, preserved, uniform
from patchloom.data.pictures import Failure, Pictures, Shelf
from patchloom.data.transforms import (
    Jostle,
    Preprocessing,
    Recrop,
    evaluation_pipeline,
    evaluation_transform,
    training_transform,
)

CFG = {
    "input_size": (3, 96, 96),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
}


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(96, 96), (80, 112)])
@pytest.mark.parametrize(("interpolation", "crop_pct"), [("bicubic", 0.875), ("bilinear", 1.0), ("lanczos", 0.9)])
def test_evaluation_equals_timm(crop_mode, size, interpolation, crop_pct):
    cfg = {
        **CFG,
        "input_size": (3, *size),
        "crop_mode": crop_mode,
        "interpolation": interpolation,
        "crop_pct": crop_pct,
    }
    theirs = create_transform(**cfg, is_training=False)
    ours, pipeline = evaluation_transform(cfg), evaluation_pipeline(cfg)
    for width, height in ((150, 101), (64, 200), (96, 96)):
        image = noise(width, height)
        expected = theirs(image)
        assert torch.equal(ours(image), expected)
        batch = pipeline.finish(pipeline.picture(image)[None], 0, np.zeros(1, int), np.zeros(1, int))
        assert torch.equal(batch[0], expected)  # the two halves, and normalising by the batch


def test_grey_model():
    cfg = {**CFG, "input_size": (1, 32, 32), "mean": (0.5,), "std": (0.25,)}
    image = noise(40, 50)
    theirs = create_transform(input_size=(1, 32, 32), mean=(0.5,), std=(0.25,), interpolation="bicubic", crop_pct=0.875)
    assert torch.equal(evaluation_transform(cfg)(image), theirs(image.convert("L")))
    assert training_transform(cfg)(image).shape == (1, 32, 32)
    assert Preprocessing.of({**cfg, "mean": CFG["mean"]}).mean == pytest.approx((sum(CFG["mean"]) / 3,))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"input_size": (224, 224)}, "input_size"),
        ({"input_size": (5, 32, 32)}, "5 channels"),
        ({"mean": (0.5, 0.5)}, "mean"),
    ],
)
def test_wrong_preprocessing(change, says):
    with pytest.raises(ValueError, match=says):
        evaluation_transform({**CFG, **change})


def test_training_equals_timm_under_the_same_seed(monkeypatch):
    posterize = ImageOps.posterize

    def strict(image, bits):
        if bits < 1:
            raise ValueError("no bits")
        return posterize(image, bits)

    monkeypatch.setattr(ImageOps, "posterize", strict)  # Pillow 13 refuses 0 bits, Pillow 12 makes them black
    args = {
        "scale": (0.3, 1.0),
        "hflip": 0.5,
        "auto_augment": "rand-m9-mstd0.5-inc1",
        "re_prob": 0.5,
        "re_mode": "pixel",
    }
    ours = training_transform(CFG, **args)
    theirs = create_transform(
        input_size=CFG["input_size"], mean=CFG["mean"], std=CFG["std"], is_training=True, interpolation="random", **args
    )
    image, equal = noise(120, 90), 0
    for seed in range(12):
        got = []
        for transform in (ours, theirs):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            with suppress(ValueError):  # timm 1.0 posterises to 0 bits; only theirs may do so
                got.append(transform(image))
        assert len(got) == 2 or seed != 0
        if len(got) == 2:
            assert torch.equal(*got)
            equal += 1
    assert equal > 8


@pytest.mark.parametrize("policy", ["rand-m10-inc1-n6", "rand-m9-mstd0.5-inc1", "original", "v0", "augmix-m9-w3", "3a"])
def test_every_auto_augment_policy_survives_its_strongest_draws(policy):
    transform, image = training_transform(CFG, auto_augment=policy), noise(64, 64)
    with preserved():
        random.seed(0)
        for _ in range(40):
            assert torch.isfinite(transform(image)).all()


# draws


def test_uniform_depends_on_its_own_key_only():
    e, i = np.array([0, 0, 1, 7]), np.array([0, 1, 0, 3])
    u = uniform(5, e, i, 9)
    assert u.shape == (4, 9)
    for row in range(4):
        assert np.array_equal(u[row], uniform(5, e[row : row + 1], i[row : row + 1], 9)[0])
    assert np.array_equal(u[:, :4], uniform(5, e, i, 4))
    assert not np.array_equal(u, uniform(6, e, i, 9))
    many = uniform(0, np.zeros(4000, int), np.arange(4000), 5)
    assert abs(many.mean() - 0.5) < 0.01
    assert abs(many.std() - 12**-0.5) < 0.01
    assert np.abs(np.corrcoef(many.T) - np.eye(5)).max() < 0.06
    assert len({key(0, epoch, index) for epoch in range(30) for index in range(30)}) == 900


def test_preserved():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with preserved():
        random.seed(9), np.random.seed(9), torch.manual_seed(9)
        torch.rand(5)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


# a batch at once


def batch(n=16, h=20, w=28):
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (n, 3, h, w), np.uint8))


def test_shift_equals_pad_crop_and_mirror():
    x, r = batch(), np.random.default_rng(2)
    shift, flip = r.integers(-4, 5, (16, 2)), r.random(16) < 0.5
    got = shifted(x, shift, flip)
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4))
    for i, (dy, dx) in enumerate(shift.tolist()):
        expected = padded[i, :, 4 + dy : 24 + dy, 4 + dx : 32 + dx]
        assert torch.equal(got[i], expected.flip(-1) if flip[i] else expected)
    assert 0 < flip.sum() < 16


def test_affine_form_of_a_plain_shift_is_the_plain_shift():
    x, u = batch(), np.random.default_rng(3).random((16, 6))
    plain = jostle(x, u, padding=3, hflip=0.5)
    affine = jostle(x, u, padding=3, hflip=0.5, rotate=1e-9)
    assert torch.allclose(affine * 255, plain.float(), atol=2e-2)


def test_turning_keeps_the_shape_of_things_in_an_oblong_picture():
    """A disc stays a disc under a turn of 90 degrees, though H != W."""
    y, x = np.mgrid[:40, :60]
    disc = ((y - 19.5) ** 2 + (x - 29.5) ** 2 < 100).astype(np.uint8) * 255
    image = torch.from_numpy(disc)[None, None].expand(1, 3, 40, 60).contiguous()
    u = np.array([[0.5, 0.5, 0.9, 1.0, 0.5, 0.0]])
    turned = jostle(image, u, padding=0, hflip=0.0, rotate=90.0)
    assert (turned * 255 - image.float()).abs().mean() < 2


def test_zoom_and_wipe():
    image = torch.zeros(1, 3, 40, 40, dtype=torch.uint8)
    image[..., 15:25, 15:25] = 255
    u = np.array([[0.5, 0.5, 0.9, 0.5, 0.5, 1.0]])
    larger = jostle(image, u, padding=0, hflip=0.0, zoom=(1.0, 2.0))
    assert larger.sum().item() == pytest.approx(3 * 400, rel=0.02)
    x = wipe(torch.ones(2, 3, 40, 40), np.array([[0.1, 0.0, 0.5, 0.5], [0.9, 0.0, 0.5, 0.5]]), 0.5, (0.25, 0.5))
    assert (x[0] == 0).sum() == 3 * 100
    assert (x[1] == 1).all()


@pytest.mark.parametrize(
    "how",
    [
        Jostle(),
        Jostle(rotate=15, shear=8, zoom=(0.8, 1.2), brightness=0.3, contrast=0.3, saturation=0.3, erase=0.5),
        Recrop(auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.5),
        Recrop(color_jitter=0.4),
    ],
    ids=["shift", "all", "randaugment", "recrop"],
)
def test_variation_depends_on_seed_epoch_and_index_only(tmp_path, how):
    for i in range(6):
        noise(40, 40, i).save(tmp_path / f"{i}.png")
    cfg = {**CFG, "input_size": (3, 32, 32)}

    def draw(keys, seed=0):
        return Pictures(Files(tmp_path), how.pipeline(cfg), seed=seed).__getitems__(keys).images

    keys = [(0, 0), (0, 3), (2, 3), (1, 5)]
    together = draw(keys)
    state = torch.get_rng_state()
    for row, one in zip(together, keys, strict=True):
        assert torch.allclose(row, draw([one])[0], atol=1e-6)
    assert torch.equal(together, draw(keys))
    assert torch.equal(state, torch.get_rng_state())  # the model's generator is not touched
    assert not torch.equal(together[1], together[2])  # epochs differ
    assert not torch.equal(together, draw(keys, seed=1))
    assert together.dtype == torch.float32
    assert together.shape == (4, 3, 32, 32)


def test_jostle_refuses_nonsense():
    for wrong in ({"hflip": 2}, {"padding": -1}, {"zoom": (1.2, 0.8)}, {"erase_size": (0, 0.5)}, {"erase": -0.1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Jostle(**wrong)


# the cache


class Counting(Files):
    reads = 0

    def load(self, index, epoch=0):
        self.reads += 1
        return super().load(index, epoch)


@pytest.mark.parametrize(("cache", "reads"), [("auto", 3), (True, 3), (False, 6)])
@pytest.mark.parametrize("how", [None, Recrop()])
def test_cache(tmp_path, cache, reads, how):
    for i in range(3):
        noise(40, 40, i).save(tmp_path / f"{i}.png")
    source = Counting(tmp_path)
    pictures = Pictures(source, how.pipeline(CFG) if how else evaluation_pipeline(CFG), cache=cache)
    first, second = (pictures.__getitems__([(0, i) for i in range(3)]) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.targets, second.targets)
    assert source.reads == (6 if how and cache == "auto" else reads)  # auto keeps resized pictures only


def test_a_shelf_begins_empty_in_a_spawned_process():
    import pickle

    shelf = Shelf(2, (3, 4, 4))
    shelf.put(1, torch.full((3, 4, 4), 7, dtype=torch.uint8), 5)
    assert shelf.filled.tolist() == [0, 1]
    assert pickle.loads(pickle.dumps(shelf)).filled.tolist() == [0, 0]


def test_unreadable_pictures_in_a_batch(tmp_path):
    for i in range(4):
        noise(40, 40, i).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"\x89PNG broken")
    keys = [(0, i) for i in range(4)]
    stop = Pictures(Files(tmp_path), evaluation_pipeline(CFG)).__getitems__(keys)
    assert isinstance(stop, Failure)
    assert stop.file.endswith("1.png")
    skip = Pictures(Files(tmp_path), evaluation_pipeline(CFG), on_error="skip").__getitems__(keys)
    assert skip.targets.tolist() == [0, 2, 3]
    assert list(skip.skipped) == [str(tmp_path / "1.png")]
    refilled = Pictures(Files(tmp_path), Recrop().pipeline(CFG), on_error="skip", refill=True).__getitems__(keys)
    assert refilled.targets.tolist() == [0, 2, 2, 3]  # the next readable one takes its place
    alone = Pictures(Files(tmp_path), evaluation_pipeline(CFG), on_error="skip").__getitems__([(0, 1)])
    assert alone.images is None
    with pytest.raises(ValueError, match="stop or skip"):
        Pictures(Files(tmp_path), evaluation_pipeline(CFG), on_error="ignore")
