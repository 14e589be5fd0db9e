import math

import numpy as np
import pytest
import torch
from PIL import Image

from patchloom.train.callbacks.curves import draw_curves, series, smooth
from patchloom.train.callbacks.progress import Meter, clock, images_in
from patchloom.train.callbacks.sheet import Collection, draw_sheet, shown
from patchloom.train.running.runs import MetricsFile

CLASSES = ["cat", "dog", "owl", "tree frog, tree-frog"]
PREPROCESSING = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}


def test_curves_of_a_run(tmp_path):
    assert draw_curves(tmp_path / "metrics.csv", tmp_path / "curves.png") is None
    log = MetricsFile(tmp_path)
    for step in range(200):
        log.log_metrics(
            {"train/loss": math.exp(-step / 60) + 0.1 * math.sin(step * 12.9), "lr": 1e-3 * (1 + math.cos(step / 64))},
            step,
        )
        if step % 40 == 39:
            log.log_metrics(
                {"val/loss": math.exp(-step / 70), "val/top1": step / 250, "val/top5": 0.5 + step / 500}, step
            )
    log.finalize("success")
    path = draw_curves(tmp_path / "metrics.csv", tmp_path / "curves.png", 40)
    image = np.asarray(Image.open(path).convert("RGB"))
    assert image.shape[1] > 1500
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 100
    steps, values = series([{"step": 3, "a": 1.0}, {"step": 4}, {"step": 9, "a": 2.0}], "a")
    assert steps.tolist() == [4, 10]
    assert values.tolist() == [1.0, 2.0]


def test_smoothing_does_not_lag_at_the_start():
    assert smooth(np.full(50, 3.0), 8) == pytest.approx(np.full(50, 3.0))
    assert smooth(np.array([4.0, 2.0]), 100)[0] == 4.0
    assert smooth(np.array([4.0, 2.0]), 100)[1] == pytest.approx(3.0, abs=0.01)


def logits_of(chances):
    return torch.tensor(chances).log()


def test_the_sheet_takes_the_surest_mistakes_and_the_hardest_right_ones(tmp_path):
    collection = Collection(CLASSES, 4)
    torch.manual_seed(0)
    chances, target = [], []
    for i in range(40):  # the class is i % 4; sure by 0.4 … 0.79; every fifth is wrong
        sure, truth = 0.4 + i / 100, i % 4
        row = [(1 - sure) / 3] * 4
        row[(truth + 1) % 4 if i % 5 == 0 else truth] = sure
        chances.append(row)
        target.append(truth)
    images = torch.rand(40, 3, 24, 24)
    for part in torch.arange(40).split(7):
        collection.add(images[part], logits_of([chances[i] for i in part]), torch.tensor([target[i] for i in part]))
    right, wrong = collection.chosen()
    assert collection.seen == 40
    assert collection.correct == 32
    assert [a.top[0][1] for a in wrong] == pytest.approx([0.75, 0.70, 0.65, 0.60])
    assert wrong[0].truth == CLASSES[35 % 4]
    assert wrong[0].top[0][0] == CLASSES[36 % 4]
    assert torch.equal(wrong[0].image, images[35])
    assert sorted(a.truth for a in right) == sorted(CLASSES)  # one of each class, the least sure
    assert sorted(a.top[0][1] for a in right) == pytest.approx([0.41, 0.42, 0.43, 0.44])
    path = draw_sheet(collection, PREPROCESSING, tmp_path / "predictions.png", "a title")
    assert Image.open(path).size[0] > 800
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.png"]
    assert draw_sheet(Collection(CLASSES, 4), PREPROCESSING, tmp_path / "none.png", "") is None


def test_many_labels():
    collection = Collection(CLASSES, 3)
    logits = torch.tensor([[3.0, 3.0, -3.0, -3.0], [3.0, -3.0, -3.0, -3.0]])
    collection.add(torch.rand(2, 3, 8, 8), logits, torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0]]))
    right, wrong = collection.chosen()
    assert [a.truth for a in right] == ["cat, dog"]
    assert [a.truth for a in wrong] == ["dog"]
    assert wrong[0].chance == pytest.approx(torch.tensor(-3.0).sigmoid().item())


def test_images_are_shown_as_they_were():
    original = torch.rand(3, 5, 7)
    mean, std = (torch.tensor(PREPROCESSING[k])[:, None, None] for k in ("mean", "std"))
    torch.testing.assert_close(shown((original - mean) / std, PREPROCESSING), original.permute(1, 2, 0))


def test_meter_and_clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("patchloom.train.callbacks.progress.time.perf_counter", lambda: now[0])
    meter = Meter()
    for _ in range(5):
        now[0] += 0.5
        meter.batch(32)
    assert meter.rate == pytest.approx(64)
    now[0] += 100  # a validation
    meter.restart()
    now[0] += 0.5
    meter.batch(32)
    assert meter.rate == pytest.approx(64)
    assert [clock(s) for s in (5, 75, 4000)] == ["0:05", "1:15", "1:06:40"]
    assert images_in({"a": [torch.ones(3, 1)]}) == 3
    assert images_in((torch.ones(4), 1)) == 4
    assert images_in(5) == 0
