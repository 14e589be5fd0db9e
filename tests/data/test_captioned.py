"""Drawn pictures come with captions that are true of them, the same in any worker and epoch."""

import numpy as np
import pytest
import torch

from patchloom.data.captioned import CaptionedShapes
from patchloom.data.drawn import DrawnSource, caption
from patchloom.data.sample import COLOURS, KINDS, RELATIONS
from patchloom.data.shapes import Shapes

HOW = {"input_size": (3, 32, 48), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0, "interpolation": "bicubic"}


def data(**options) -> CaptionedShapes:
    made = CaptionedShapes(
        train_length=20, val_length=7, test_length=5, batch_size=6, preprocessing=HOW, **{"workers": 0, **options}
    )
    made.setup("fit")
    return made


def test_batches_are_pixels_and_captions() -> None:
    made = data()
    batches = list(made.val_dataloader())
    assert [len(x) for x, _ in batches] == [6, 1]
    x, captions = batches[0]
    assert x.shape == (6, 3, 32, 48)
    assert -1 <= x.min() < x.max() <= 1
    shapes = Shapes(7, (32, 48), "caption", 0, "val")
    for i, words in enumerate(captions):
        sample = shapes[i]
        assert words == sample.caption
        torch.testing.assert_close((x[i] + 1) * 127.5, torch.from_numpy(sample.image).permute(2, 0, 1).float())
        assert words.split()[1] in COLOURS
        assert words.split()[2] in KINDS
        assert any(relation in words for relation in RELATIONS)


def test_epochs_are_fresh_and_workers_change_nothing() -> None:
    plain, workers = data().train_dataloader(), data(workers=1).train_dataloader()
    epochs = []
    for loader in (plain, workers):
        epochs.append([[c for _, captions in loader for c in captions] for _ in range(2)])
        loader.close()
    assert epochs[0] == epochs[1]
    assert set(epochs[0][0]) != set(epochs[0][1])
    still = data(fresh=False).train_dataloader()
    every = {sample.caption for sample in map(Shapes(20, (32, 48), "caption").draw, range(20))}
    assert {c for _ in range(2) for _, captions in still for c in captions} <= every


def test_held_out_pairs_are_never_shown() -> None:
    red = [(kind, "red") for kind in KINDS if kind != "star"]
    made = data(without=red)
    said = " ".join(c for _, captions in made.train_dataloader() for c in captions)
    assert not any(f"red {kind}" in said for kind, _ in red)


def test_the_relation_is_true_of_the_picture() -> None:
    source = DrawnSource(Shapes(40, 64, "caption"), False, caption)
    for i in range(40):
        sample, (_, words) = source.shapes[i], source.load(i)
        (x0, y0, x1, y1) = sample.boxes.T
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        true = {"left of": x[0] < x[1], "right of": x[0] > x[1], "above": y[0] < y[1], "below": y[0] > y[1]}
        assert all(true[r] for r in RELATIONS if f" {r} " in words), words
        assert np.ptp(x) + np.ptp(y) > 5


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match="task caption"):
        DrawnSource(Shapes(3, 32, "class"), False, caption).load(0)
    with pytest.raises(ValueError, match="nothing to predict"):
        data().predict_dataloader()
    with pytest.raises(ValueError, match="no pair"):
        data(without=[("circle", "mauve")])
