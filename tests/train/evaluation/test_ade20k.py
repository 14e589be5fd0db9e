"""Semantic numbers against plain counting and torchmetrics; eval ade20k with predicted masks and with a network."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from real_data import real
from torch import Tensor, nn
from torchmetrics.classification import MulticlassJaccardIndex

from patchloom.data.read import read_image
from patchloom.train.cli import main
from patchloom.train.evaluation import ade20k
from patchloom.train.evaluation.dense_input import FitPicture
from patchloom.train.evaluation.dense_metrics import SemanticNumbers, SemanticScores
from patchloom.train.running import checkpoint
from patchloom.train.saved.judge import Judge
from patchloom.vision import zoo

Capture = pytest.CaptureFixture[str]
NAMES = ["road", "sky", "tree"]
COLOURS = torch.tensor([[128, 64, 128], [70, 130, 180], [107, 142, 35]]) / 255


# ---- the numbers


def test_numbers_by_plain_counting() -> None:
    r = np.random.default_rng(0)
    target, found = r.integers(0, 5, (3, 40, 50)), r.integers(0, 5, (3, 40, 50))
    found = np.where(r.random(found.shape) < 0.6, target, found)
    target[r.random(target.shape) < 0.1] = 255
    target[target == 3] = 255  # 3 is predicted and never true, 5 neither
    metric = SemanticScores(6)
    for f, t in zip(found, target, strict=True):
        metric.update(torch.from_numpy(f), torch.from_numpy(t))
    judged = target != 255
    numbers = metric.numbers()
    iou, accuracy = [], []
    for k in range(5):
        true, pred = (target == k) & judged, (found == k) & judged
        iou.append((true & pred).sum() / (true | pred).sum())
        accuracy.append((true & pred).sum() / max(true.sum(), 1))
    assert numbers.iou[:5].tolist() == pytest.approx(iou)
    assert numbers.iou[3] == 0
    assert numbers.iou[5].isnan()
    assert numbers.accuracy[[3, 5]].isnan().all()
    assert numbers.miou == pytest.approx(np.mean(iou))
    assert numbers.macc == pytest.approx(np.mean([a for k, a in enumerate(accuracy) if k != 3]))
    assert numbers.aacc == pytest.approx((target == found)[judged].mean())


def test_torchmetrics_on_logits() -> None:
    torch.manual_seed(0)
    ours, theirs = SemanticScores(7), MulticlassJaccardIndex(7, ignore_index=255, average="none")
    for _ in range(3):
        logits, target = torch.randn(2, 7, 19, 23), torch.randint(0, 7, (2, 19, 23))
        target[torch.rand(target.shape) < 0.2] = 255
        ours.update(logits, target)
        theirs.update(logits, target)
    torch.testing.assert_close(ours.numbers().iou.float(), theirs.compute())
    assert ours.compute()["miou"] == pytest.approx(float(theirs.compute().mean()))


def test_values_and_sizes_that_are_none() -> None:
    metric, zeros = SemanticScores(3), torch.zeros(1, 4, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match="the target holds 3 to 3; there are classes 0 to 2, and 255"):
        metric.update(zeros, zeros + 3)
    with pytest.raises(ValueError, match="the prediction holds 7 to 7"):
        metric.update(zeros + 7, zeros)
    with pytest.raises(ValueError, match="sizes must agree"):
        metric.update(zeros, zeros[:, 1:])
    metric.update(zeros + 255, zeros)  # no class at all: wrong
    assert metric.numbers().iou[0] == 0


def test_nothing_is_nan() -> None:
    assert np.isnan(SemanticNumbers.of(torch.zeros(3, 4, dtype=torch.int64)).miou)


# ---- the command


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """ADE20K's layout: pictures painted in the colours of their classes; a strip at the left is not judged."""
    r = np.random.default_rng(0)
    for name in ("images", "annotations"):
        (tmp_path / "ade" / name / "validation").mkdir(parents=True)
    (tmp_path / "ade" / "classes.json").write_text(json.dumps(NAMES))
    for i, (h, w) in enumerate([(40, 56), (33, 47), (64, 30)]):
        classes = np.kron(r.integers(0, 3, (4, 4)), np.ones((16, 16), int))[:h, :w]
        classes = np.pad(classes, ((0, h - classes.shape[0]), (0, w - classes.shape[1])), mode="edge")
        image = (COLOURS[torch.from_numpy(classes)].numpy() * 255).round().astype(np.uint8)
        mask = (classes + 1).astype(np.uint8)
        mask[:, :4] = 0
        Image.fromarray(image).save(tmp_path / "ade" / "images" / "validation" / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / "ade" / "annotations" / "validation" / f"{i}.png")
    return tmp_path / "ade"


@pytest.fixture
def predictions(data: Path, tmp_path: Path) -> Path:
    """The true masks, shifted by two pixels."""
    (tmp_path / "found").mkdir()
    for file in (data / "annotations" / "validation").glob("*.png"):
        mask = np.asarray(Image.open(file)).copy()
        mask[:, :4] = 1
        Image.fromarray(np.roll(mask, 2, 0)).save(tmp_path / "found" / file.name)
    return tmp_path / "found"


class Nearest(nn.Module):
    """Logits: minus the distance of a pixel's colour to that of each class; counts how often it was asked."""

    def __init__(self, order: Sequence[int] = (0, 1, 2)):
        super().__init__()
        self.colours, self.asked = COLOURS[list(order)], []

    def forward(self, image: Tensor) -> Tensor:
        self.asked.append(tuple(image.shape[2:]))
        image = image * 0.25 + 0.5
        return -((image[:, None] - self.colours.view(1, -1, 3, 1, 1)) ** 2).sum(2) * 50


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module, Sequence[str]], None]:
    def install(model: nn.Module, classes: Sequence[str]) -> None:
        cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
        judge = Judge("run", model, list(classes), cfg, torch.device("cpu"))
        monkeypatch.setattr(ade20k, "load", lambda spec, device: judge)

    return install


def judged(capsys: Capture, data: Path, *more: str) -> dict[str, Any]:
    assert main(["eval", "ade20k", "--data", str(data), "--json", *more]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refused(capsys: Capture, data: Path, *more: str) -> str:
    assert main(["eval", "ade20k", "--data", str(data), *more]) == 1
    return capsys.readouterr().err


def test_predicted_masks(data: Path, predictions: Path, capsys: Capture) -> None:
    both = np.zeros((3, 3))
    for file in (data / "annotations" / "validation").glob("*.png"):
        true, found = (
            np.asarray(Image.open(file)).astype(int),
            np.asarray(Image.open(predictions / file.name)).astype(int),
        )
        for t, f in zip(true[true > 0], found[true > 0], strict=True):
            both[t - 1, f - 1] += 1
    iou = both.diagonal() / (both.sum(0) + both.sum(1) - both.diagonal())
    ours = judged(capsys, data, "--predictions", str(predictions))["single_scale"]
    assert ours["miou"] == pytest.approx(iou.mean())
    assert [ours["per_class"][name]["iou"] for name in NAMES] == pytest.approx(iou)
    assert ours["aacc"] == pytest.approx(both.trace() / both.sum())
    assert main(["eval", "ade20k", "--data", str(data), "--predictions", str(predictions), "--per-class"]) == 0
    text = capsys.readouterr().out
    assert f"{100 * iou.mean():.2f}" in text
    assert "sidewalk" not in text


def test_predictions_that_do_not_fit(data: Path, predictions: Path, capsys: Capture) -> None:
    Image.new("L", (9, 8), 1).save(predictions / "1.png")
    error = refused(capsys, data, "--predictions", str(predictions))
    assert "1 of 3 predictions have another size than their mask" in error
    assert "1.png (8x9, not 33x47)" in error
    Image.new("L", (47, 33), 9).save(predictions / "1.png")
    assert "1,551 pixels are 9" in refused(capsys, data, "--predictions", str(predictions)).replace("1551", "1,551")
    Image.new("L", (47, 33), 0).save(predictions / "1.png")
    (predictions / "other.png").write_bytes((predictions / "0.png").read_bytes())
    notes = judged(capsys, data, "--predictions", str(predictions))["notes"]
    assert any("1,419 judged pixels are 0 in the predictions" in note for note in notes)
    assert any("1 predictions are of no image of the data (other)" in note for note in notes)
    (predictions / "0.png").unlink()
    assert "no prediction for 1 of 3 images (0)" in refused(capsys, data, "--predictions", str(predictions))


def test_a_network_at_one_scale(data: Path, use: Any, capsys: Capture) -> None:
    """Classes in another order are found by name."""
    model = Nearest((2, 0, 1))
    use(model, ["tree", "road", "sky"])
    ours = judged(capsys, data, "--checkpoint", "run", "--shortest", "80", "--longest", "120")
    assert set(model.asked) == {(80, 112), (80, 114), (120, 56)}
    assert ours["single_scale"]["miou"] > 0.97
    assert "multi_scale" not in ours


def test_many_scales(data: Path, use: Any, capsys: Capture) -> None:
    model = Nearest()
    use(model, NAMES)
    ours = judged(capsys, data, "--checkpoint", "run", "--shortest", "40", "--multi-scale")
    assert len(model.asked) == 3 * 12
    assert ours["single_scale"] == judged(capsys, data, "--checkpoint", "run", "--shortest", "40")["single_scale"]
    assert 0.8 < ours["multi_scale"]["miou"] <= 1
    image = np.asarray(read_image(data / "images" / "validation" / "0.png"))
    judge = ade20k.load("run", device="cpu")
    fit, smaller = (FitPicture.of(judge.preprocessing, side, 2048) for side in (40, 20))
    single, several = ade20k.probabilities(judge, image, fit, (0.5, 1.0))
    mirrored, alone = (next(ade20k.probabilities(judge, i, fit, (1.0,))) for i in (image[:, ::-1].copy(), image))
    half = [next(ade20k.probabilities(judge, i, smaller, (1.0,))) for i in (image, image[:, ::-1].copy())]
    torch.testing.assert_close(single, alone)
    torch.testing.assert_close(several, (alone + mirrored.flip(-1) + half[0] + half[1].flip(-1)) / 4)


def test_what_a_checkpoint_lacks(data: Path, use: Any, capsys: Capture) -> None:
    use(Nearest((0, 1)), ["road", "sky"])
    assert "run does not know 1 of the data's 3 classes (tree)" in refused(capsys, data, "--checkpoint", "run")
    use(Nearest(), ["0", "1", "2"])
    assert judged(capsys, data, "--checkpoint", "run", "--shortest", "64")["single_scale"]["miou"] > 0.9
    (data / "images" / "validation" / "2.png").write_bytes(b"nothing")
    assert "2.png" in refused(capsys, data, "--checkpoint", "run")
    notes = judged(capsys, data, "--checkpoint", "run", "--on-error", "skip")["notes"]
    assert "1 of 3 images could not be read" in notes[0]


def test_a_classifier_is_no_segmenter(data: Path, tmp_path: Path, capsys: Capture) -> None:
    model = zoo.create_model("cct_2_3x2_32", num_classes=3)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    header = checkpoint.header(model, NAMES, checkpoint.preprocessing_of(model))
    checkpoint.save({"patchloom": header, "state_dict": state}, tmp_path / "best.ckpt")
    error = refused(capsys, data, "--checkpoint", str(tmp_path / "best.ckpt"), "--shortest", "32")
    assert "gives (1, 3) for one image; a segmenter gives (1, 3, H, W)" in error


def test_options_that_would_do_nothing(data: Path, predictions: Path, capsys: Capture) -> None:
    assert main(["eval", "ade20k", "--data", str(data), "--predictions", str(predictions), "--multi-scale"]) == 2
    assert "--multi-scale goes with --checkpoint" in capsys.readouterr().err


def test_real_masks_against_themselves(capsys: Capture) -> None:
    folder = real("ade20k_mini")
    ours = judged(capsys, folder, "--predictions", str(folder / "masks"))
    assert (ours["images"], ours["classes"], ours["single_scale"]["miou"], ours["notes"]) == (21, 150, 1, [])
