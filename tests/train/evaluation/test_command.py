"""patchloom eval: timm's arithmetic and torchmetrics' on the same pictures, classes by name, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm.data
import torch
from PIL import Image
from real_data import real
from timm.utils import accuracy as timm_accuracy
from torchmetrics.functional.classification import multiclass_accuracy
from torchvision.datasets import ImageFolder

from patchloom.data.read import read_image
from patchloom.data.synsets import imagenet_synsets
from patchloom.train.cli import main
from patchloom.train.evaluation import classes, command
from patchloom.train.running import checkpoint
from patchloom.vision import zoo

Capture = pytest.CaptureFixture[str]
SaveRun = Callable[[list[str]], Path]


RECIPE = """
seed_everything: 0
model:
  class_path: patchloom.train.classify.Classify
  init_args:
    model: {{class_path: patchloom.vision.zoo.create_model, init_args: {{name: cct_2_3x2_32, num_classes: 7}}}}
    ema: {{decay: 0.5}}
data:
  class_path: patchloom.data.modules.FolderData
  init_args: {{root: {root}, batch_size: 14, workers: 0}}
trainer: {{max_epochs: 1}}
"""


@pytest.fixture
def save_run(tmp_path: Path) -> SaveRun:
    """Saves a small network for `classes` as a checkpoint."""

    def save(classes: list[str]) -> Path:
        model = zoo.create_model("cct_2_3x2_32", num_classes=len(classes))
        cfg = {**checkpoint.preprocessing_of(model), "crop_pct": 0.9, "interpolation": "bilinear"}
        state = {f"model.{name}": value for name, value in model.state_dict().items()}
        checkpoint.save(
            {"patchloom": checkpoint.header(model, classes, cfg), "state_dict": state}, tmp_path / "best.ckpt"
        )
        return tmp_path / "best.ckpt"

    return save


def judged(capsys: Capture, *line: str) -> dict:
    assert main(["eval", *line, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def draw(root: Path, names: list[str], each: int = 2) -> Path:
    for i, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for j in range(each):
            Image.effect_noise((40, 40), 30 + 20 * i + j).convert("RGB").save(root / name / f"{j}.png")
    return root


def test_agrees_with_timm_and_torchmetrics_on_real_pictures(save_run: SaveRun, capsys: Capture) -> None:
    """timm's folder, transform and accuracy; ours in batches of another size and in worker processes."""
    folder = real("cifar10_mini")
    images = ImageFolder(str(folder / "test"), loader=read_image)
    run = save_run(images.classes)
    model, _, cfg = checkpoint.load_model(str(run))
    images.transform = timm.data.create_transform(**{**cfg, "input_size": tuple(cfg["input_size"])}, is_training=False)
    with torch.inference_mode():
        logits, target = zip(*[(model(x), y) for x, y in torch.utils.data.DataLoader(images, 100)], strict=True)
    logits, target = torch.cat(logits), torch.cat(target)
    top1, top5 = (float(a) for a in timm_accuracy(logits, target, topk=(1, 5)))
    ours = judged(capsys, "folder", str(run), "--data", str(folder), "--batch", "64", "--workers", "2")
    assert ours["images"] == 1000
    assert ours["data"] == str(folder / "test")
    assert ours["acc1"] == pytest.approx(top1, abs=1e-5)
    assert ours["acc5"] == pytest.approx(top5, abs=1e-5)
    micro = multiclass_accuracy(logits, target, num_classes=10, average="micro")
    assert ours["acc1"] == pytest.approx(100 * float(micro), abs=1e-5)
    assert judged(capsys, "imagenet", str(run), "--data", str(folder))["acc1"] == ours["acc1"]


def test_run_folder_gives_test_eval_and_predict_the_same_numbers(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of one epoch with an averaged copy of the weights; seven classes, so that top-5 can fail."""
    names = list("abcdefg")
    for part in ("train", "val", "test"):
        draw(tmp_path / "data" / part, names, each=4)
    (tmp_path / "tiny.yaml").write_text(RECIPE.format(root=tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "-c", "tiny.yaml"]) == 0
    (run,) = (tmp_path / "runs").glob("*/*")
    capsys.readouterr()
    assert main(["test", str(run), "--json"]) == 0
    test = json.loads(capsys.readouterr().out)["test"]
    ours = judged(capsys, "folder", str(run), "--data", "data")
    assert ours["images"] == 28
    assert ours["acc1"] == pytest.approx(100 * test["test/top1"], abs=1e-4)
    assert ours["acc5"] == pytest.approx(100 * test["test/top5"], abs=1e-4)
    assert main(["predict", str(run), "data/test", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    right = [Path(a["file"]).parent.name == a["top"][0]["class"] for a in answers]
    assert ours["acc1"] == pytest.approx(100 * sum(right) / len(right))


def test_imagenet_classes_go_by_synset_where_only_some_folders_are_there(
    tmp_path: Path, capsys: Capture, save_run: SaveRun
) -> None:
    """A head that always answers synset 17 is right on that folder alone, whatever its place among them."""
    synsets = imagenet_synsets()
    run = save_run(checkpoint.published_classes(1000))
    content = checkpoint.read(run)
    content["state_dict"]["model.head.weight"].zero_()
    content["state_dict"]["model.head.bias"] = torch.nn.functional.one_hot(torch.tensor(17), 1000).float()
    checkpoint.save(content, run)
    root = draw(tmp_path / "data" / "val", [synsets[900], synsets[17], synsets[18]])
    ours = judged(capsys, "imagenet", str(run), "--data", str(root.parent))
    assert ours["acc1"] == pytest.approx(100 / 3)
    assert ours["classes"] == 3
    assert ours["outputs"] == 1000
    assert judged(capsys, "imagenet", str(run), "--data", str(root))["acc1"] == ours["acc1"], (
        "class folders directly under --data"
    )


def test_22k_head_competes_with_its_columns_of_1k() -> None:
    known = list(timm.data.ImageNetInfo("imagenet-22k").label_names())
    targets, columns, note = classes.class_indices(["n01440764", "n04399382"], known, "swin_base_22k")
    assert len(columns) == 999
    assert columns[targets[0]] == known.index("n01440764") == 359
    assert targets[1] == -1, "ImageNet-22k has no teddy bear"
    assert "n04399382" in note
    assert "999" in note


def test_human_names_of_a_head_are_found_by_synset() -> None:
    names = checkpoint.published_classes(1000)
    assert classes.output_names(names, Path("nowhere")) == imagenet_synsets()
    assert classes.output_names(["ant", "bee"], Path("nowhere")) == ["ant", "bee"]
    root = real("imagenet_1k_mini")
    own = [row["name"] for row in json.loads((root / "classes.json").read_text())]
    assert classes.output_names(own, root / "val") == imagenet_synsets()


def test_report_names_the_preprocessing_of_the_weights(capsys: Capture, save_run: SaveRun) -> None:
    root = real("imagenet_1k_mini")
    run = save_run(imagenet_synsets())
    assert main(["eval", "imagenet", str(run), "--data", str(root), "--limit", "30"]) == 0
    out = capsys.readouterr().out
    assert "30 images of 30 classes" in out
    assert "resize to shorter side 35, crop 32x32 (crop_pct 0.9), bilinear" in out
    mean = checkpoint.load_model(str(run))[2]["mean"]
    assert "mean " + " ".join(f"{m:.4g}" for m in mean) in out
    assert out.splitlines()[-1].split()[-1] == "30"


def test_limit_is_spread_over_the_classes_and_size_overrides(capsys: Capture, save_run: SaveRun) -> None:
    root = real("imagenet_1k_mini")
    run = save_run(imagenet_synsets())
    ours = judged(capsys, "imagenet", str(run), "--data", str(root), "--limit", "10", "--size", "40x48")
    assert (ours["images"], ours["classes"]) == (10, 10)
    assert ours["preprocessing"]["input_size"] == [3, 40, 48]


@pytest.mark.parametrize(
    ("cfg", "says"),
    [
        (
            {"input_size": (3, 224, 224), "crop_pct": 0.875},
            "resize to shorter side 256, crop 224x224 (crop_pct 0.875), bilinear",
        ),
        ({"input_size": (3, 384, 384), "crop_pct": 1.0, "crop_mode": "squash"}, "squash to 384x384, crop 384x384"),
        ({"input_size": (3, 160, 288), "crop_pct": 0.9}, "resize to cover 177x320, crop 160x288"),
    ],
)
def test_described_as_timm_does_it(cfg: dict, says: str) -> None:
    assert classes.describe_preprocessing(cfg).startswith(says)
    steps = timm.data.create_transform(**{"interpolation": "bilinear", **cfg}).transforms
    size = steps[0].size
    numbers = {size} if isinstance(size, int) else set(size)
    assert all(str(n) in classes.describe_preprocessing(cfg) for n in numbers)


def test_differing_classes_are_named(tmp_path: Path, capsys: Capture, save_run: SaveRun) -> None:
    run = save_run(["ant", "bee", "cat"])
    root = draw(tmp_path / "data", ["ant", "bea"])
    for task in ("folder", "imagenet"):
        assert main(["eval", task, str(run), "--data", str(root)]) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "bea" in err
        assert "did you mean bee" in err


def test_unreadable_picture_stops_or_is_left_out_of_the_count(
    tmp_path: Path, capsys: Capture, save_run: SaveRun
) -> None:
    run = save_run(["ant", "bee"])
    root = draw(tmp_path / "data", ["ant", "bee"])
    (root / "ant" / "0.png").write_bytes(b"\x89PNG cut")
    assert main(["eval", "folder", str(run), "--data", str(root)]) == 1
    assert "0.png" in capsys.readouterr().err
    assert judged(capsys, "folder", str(run), "--data", str(root), "--on-error", "skip")["images"] == 3


@pytest.mark.parametrize(
    ("line", "status", "says"),
    [
        (["imagnet", "RUN", "--data", "x"], 2, "imagnet"),
        (["imagenet", "RUN"], 2, "--data"),
        (["folder", "RUN", "--data", "nowhere"], 1, "nowhere"),
        (["folder", "RUN", "--data", "EMPTY"], 1, "empty"),
        (["folder", "RUN", "--data", "EMPTY", "--split", "val"], 1, "val"),
        (["folder", "RUN", "--data", "EMPTY", "--limt", "3"], 2, "did you mean --limit"),
    ],
)
def test_wrong_lines_are_one_line(
    line: list[str], status: int, says: str, tmp_path: Path, capsys: Capture, save_run: SaveRun
) -> None:
    (tmp_path / "empty").mkdir()
    names = {"RUN": str(save_run(["ant", "bee"])), "EMPTY": str(tmp_path / "empty")}
    assert main(["eval", *(names.get(word, word) for word in line)]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert says in err


def test_tasks_are_a_table_that_others_extend(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    task = command.Task("counts", lambda parser: parser.add_argument("--n", type=int), lambda args: print(args.n) or 0)
    monkeypatch.setitem(command.TASKS, "count", task)
    assert main(["eval", "count", "--n", "3"]) == 0
    assert capsys.readouterr().out == "3\n"
