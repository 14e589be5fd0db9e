"""`eval coco --checkpoint`: a detector's answers for files become the official numbers; what doesn't fit is said."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from patchloom.train.cli import main
from patchloom.train.evaluation import detector
from patchloom.train.evaluation.detector import Detections, as_results
from patchloom.train.running import checkpoint
from patchloom.train.saved.judge import Judge
from patchloom.vision import zoo

Capture = pytest.CaptureFixture[str]
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Finder(nn.Module):
    """Finds the one rectangle of each colour; masks too, as booleans or, as torchvision has them, probabilities."""

    def __init__(self, classes: Sequence[str], probabilities: bool = False):
        super().__init__()
        self.colours, self.probabilities, self.sizes = [COLOURS[name] for name in classes], probabilities, []

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        assert not self.training
        return [self.one(image * 0.25 + 0.5) for image in images]

    def one(self, image: Tensor) -> dict[str, Tensor]:
        self.sizes.append(tuple(image.shape))
        boxes, labels, masks = [], [], []
        for label, colour in enumerate(self.colours, 1):
            plane = ((image - torch.tensor(colour).view(3, 1, 1) / 255).abs() < 0.45).all(0)
            if plane.any():
                y, x = plane.nonzero(as_tuple=True)
                boxes.append([float(v) for v in (x.min(), y.min(), x.max() + 1, y.max() + 1)])
                labels.append(label)
                masks.append(plane)
        n = len(boxes)
        found = torch.stack(masks) if n else torch.zeros(0, *image.shape[1:], dtype=torch.bool)
        answer = {
            "boxes": torch.tensor(boxes).reshape(n, 4),
            "scores": torch.ones(n),
            "labels": torch.tensor(labels).long(),
        }
        return {**answer, "masks": found[:, None].float() if self.probabilities else found}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """coco/val2017/*.png and coco/annotations/instances_val2017.json; the second image is empty."""
    rectangles = {
        "0.png": {"red": (5, 7, 40, 30), "green": (60, 10, 25, 70)},
        "1.png": {},
        "2.png": {"red": (0, 0, 11, 99)},
    }
    (tmp_path / "val2017").mkdir()
    (tmp_path / "annotations").mkdir()
    document: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    document["categories"] = [{"id": 20 - i, "name": name} for i, name in enumerate(("red", "green"))]
    ids = {c["name"]: c["id"] for c in document["categories"]}
    for i, (file, objects) in enumerate(rectangles.items()):
        image = np.zeros((100, 120 + i, 3), np.uint8)
        for name, (x, y, w, h) in objects.items():
            image[y : y + h, x : x + w] = COLOURS[name]
            document["annotations"].append({
                "id": len(document["annotations"]) + 1, "image_id": i, "category_id": ids[name], "bbox": [x, y, w, h],
                "area": w * h, "iscrowd": 0, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            })  # fmt: skip
        document["images"].append({"id": i, "file_name": file, "height": 100, "width": 120 + i})
        Image.fromarray(image).save(tmp_path / "val2017" / file)
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(document))
    return tmp_path


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets every checkpoint hold this network."""

    def install(model: nn.Module, classes: Sequence[str], **more: int) -> None:
        cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), **more}
        judge = Judge("run", model, list(classes), cfg, torch.device("cpu"))
        monkeypatch.setattr(detector, "load", lambda spec, device: judge)

    return install


def line(data: Path, *more: str) -> list[str]:
    return [
        "eval",
        "coco",
        "--checkpoint",
        "run",
        "--annotations",
        str(data / "annotations/instances_val2017.json"),
        *more,
    ]


def judged(capsys: Capture, data: Path, *more: str) -> dict[str, Any]:
    assert main(line(data, "--json", *more)) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_perfect_detector(workers: str, data: Path, use: Any, capsys: Capture) -> None:
    use(Finder(["green", "red"]).train(), ["green", "red"])
    ours = judged(capsys, data, "--batch", "1", "--workers", workers)
    assert ours["images"] == 3
    assert ours["images_with_detections"] == 2
    for kind in ("bbox", "segm"):
        assert ours[kind]["AP"] == pytest.approx(1)
        assert ours[kind]["AR100"] == 1
        assert ours[kind]["APs"] is None or ours[kind]["APs"] == pytest.approx(1)


def test_the_written_results_give_the_same_numbers(data: Path, use: Any, capsys: Capture, tmp_path: Path) -> None:
    use(Finder(["red"]), ["red"])
    file = tmp_path / "found.json"
    ours = judged(capsys, data, "--write-results", str(file), "--images", str(data / "val2017"))
    rows = json.loads(file.read_text())
    assert [(row["image_id"], row["category_id"], row["bbox"]) for row in rows] == [
        (0, 20, [5, 7, 40, 30]),
        (2, 20, [0, 0, 11, 99]),
    ]
    again = ["eval", "coco", "--annotations", ours["annotations"], "--results", str(file), "--json"]
    assert main(again) == 0
    other = json.loads(capsys.readouterr().out)
    assert [other[k] for k in ("bbox", "segm")] == [ours[k] for k in ("bbox", "segm")]


def test_categories_that_only_one_of_the_two_knows(data: Path, use: Any, capsys: Capture) -> None:
    use(Finder(["red", "blue"]), ["red", "blue"])
    Image.new("RGB", (121, 100), COLOURS["blue"]).save(data / "val2017" / "1.png")
    ours = judged(capsys, data)
    assert any(
        "run does not know 1 of 2 categories (green): their 1 annotations count as missed" in n for n in ours["notes"]
    )
    assert any("1 of 2 classes of run are not annotated (blue)" in n for n in ours["notes"])
    assert any("1 of 3 detections are of classes that are not annotated" in n for n in ours["notes"])
    assert ours["bbox"]["AP"] == pytest.approx(0.5)
    use(Finder(["blue"]), ["blue"])
    assert main(line(data)) == 1
    assert "run knows no category of" in capsys.readouterr().err


def test_missing_and_broken_images(data: Path, use: Any, capsys: Capture) -> None:
    use(Finder(["red", "green"]), ["red", "green"])
    (data / "val2017" / "2.png").unlink()
    assert main(line(data)) == 1
    assert "1 of 3 images of" in (error := capsys.readouterr().err)
    assert "2.png" in error
    ours = judged(capsys, data, "--on-error", "skip")
    assert ours["images"] == 2
    assert any("not the official number" in note for note in ours["notes"])
    assert ours["bbox"]["AP"] == pytest.approx(1)
    (data / "val2017" / "2.png").write_bytes(b"nothing")
    assert main(line(data)) == 1
    assert "unreadable image" in (error := capsys.readouterr().err)
    assert "2.png" in error
    ours = judged(capsys, data, "--on-error", "skip")
    assert ours["images"] == 2
    assert any("1 images could not be read" in note for note in ours["notes"])
    assert main(line(data, "--images", str(data / "nowhere"), "--on-error", "skip")) == 1
    assert "3 of 3 images" in capsys.readouterr().err


def test_an_image_of_another_size(data: Path, use: Any, capsys: Capture) -> None:
    use(Finder(["red", "green"]), ["red", "green"])
    Image.new("RGB", (50, 60), COLOURS["red"]).save(data / "val2017" / "1.png")
    assert main(line(data)) == 1
    assert "1.png has 60x50 pixels, its annotations are of 100x121" in capsys.readouterr().err


def test_where_the_images_are(data: Path, use: Any, capsys: Capture) -> None:
    use(Finder(["red"]), ["red"])
    (data / "images").mkdir()
    (data / "val2017").rename(data / "images" / "val2017")
    assert judged(capsys, data)["images"] == 3
    (data / "images").rename(data / "pictures")
    assert main(line(data)) == 1
    assert "name their folder with --images" in capsys.readouterr().err


def test_a_classifier_is_no_detector(tmp_path: Path, data: Path, capsys: Capture) -> None:
    model = zoo.create_model("cct_2_3x2_32", num_classes=2)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    header = checkpoint.header(model, ["a", "b"], checkpoint.preprocessing_of(model))
    checkpoint.save({"patchloom": header, "state_dict": state}, tmp_path / "best.ckpt")
    words = line(data)
    words[words.index("run")] = str(tmp_path / "best.ckpt")
    assert main(words) == 1
    assert "is a classifier, which finds no objects" in capsys.readouterr().err


def test_results_of_nothing() -> None:
    empty = Detections(
        torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 5, 6, dtype=torch.bool)
    )
    assert as_results(empty, 3, [1]) == []


@pytest.mark.parametrize("probabilities", [False, True])
def test_answers_come_back_at_the_size_of_the_picture(
    probabilities: bool, data: Path, use: Any, capsys: Capture
) -> None:
    """Of images that are 1.5 times as large, by the checkpoint's preprocessing; 1.2 times by the option."""
    model = Finder(["red", "green"], probabilities)
    use(model, ["red", "green"], shortest=150, longest=183)
    ours = judged(capsys, data)
    assert set(model.sizes) == {(3, 150, 180), (3, 150, 182), (3, 150, 183)}
    for kind in ("bbox", "segm"):
        assert ours[kind]["AP75"] == pytest.approx(1)
    model.sizes.clear()
    judged(capsys, data, "--shortest", "120")
    assert set(model.sizes) == {(3, 120, 144), (3, 120, 145), (3, 120, 146)}


def test_torchvision_gives_what_is_asked_for(data: Path, use: Any, capsys: Capture) -> None:
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    network = MaskRCNN(backbone, 3, min_size=64, max_size=96, box_detections_per_img=5, box_score_thresh=0.0)
    use(network, ["red", "green"])
    ours = judged(capsys, data, "--batch", "2")
    assert ours["detections"] > 0
    assert 0 <= ours["segm"]["AP"] < 1


def test_labels_that_no_class_has(data: Path, use: Any, capsys: Capture) -> None:
    use(Finder(["red", "green"]), ["red"])
    assert main(line(data)) == 1
    assert "run gives the labels 1 to 2 and has 1 classes, counted from 1" in capsys.readouterr().err
