"""patchloom predict: the same answers in every form, from the spelling of the line to the file."""

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from real_data import real

from patchloom.data.transforms import evaluation_transform
from patchloom.train.cli import main
from patchloom.train.commands import predict
from patchloom.train.running import checkpoint
from patchloom.vision import zoo

CLASSES = ["ant", "bee", "cat", "dog", "eel", "fox"]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a small network of six classes, with preprocessing of its own."""
    torch.manual_seed(1)
    model = zoo.create_model("cct_2_3x2_32", num_classes=len(CLASSES))
    cfg = {**checkpoint.preprocessing_of(model), "crop_pct": 0.8, "mean": (0.1, 0.2, 0.3), "interpolation": "bilinear"}
    folder = tmp_path_factory.mktemp("run")
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    checkpoint.save({"patchloom": checkpoint.header(model, CLASSES, cfg), "state_dict": state}, folder / "best.ckpt")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for i, name in enumerate(("b.png", "a.jpg", "deep/c.bmp", "deep/er/d.webp")):
        Image.new("RGB", (40 + i, 50), (60 * i, 250 - 60 * i, 99)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_json_is_what_the_network_says_of_the_prepared_image(run_folder: Path, photos: Path, capsys: Capture) -> None:
    assert main(["predict", str(run_folder), str(photos), "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [Path(a["file"]).relative_to(photos).as_posix() for a in answers] == [
        "a.jpg",
        "b.png",
        "deep/c.bmp",
        "deep/er/d.webp",
    ]
    model, classes, cfg = checkpoint.load_model(str(run_folder))
    for answer in answers:
        with Image.open(answer["file"]) as image, torch.inference_mode():
            p = model(evaluation_transform(cfg)(image.convert("RGB"))[None]).softmax(1)[0]
        order = p.argsort(descending=True)[:5].tolist()
        assert [t["index"] for t in answer["top"]] == order
        assert [t["class"] for t in answer["top"]] == [classes[i] for i in order]
        assert [t["probability"] for t in answer["top"]] == pytest.approx(p[order].tolist(), abs=2e-6)


@pytest.mark.parametrize("batch", [1, 3])
def test_forms_and_batches_agree(run_folder: Path, photos: Path, capsys: Capture, batch: int) -> None:
    line = ["predict", str(run_folder), str(photos), "--top", "2", "--batch", str(batch)]
    assert main([*line, "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert main([*line, "--csv", str(photos / "x.csv")]) == 0
    assert main([*line, "--out", str(photos / "x.json")]) == 0
    assert capsys.readouterr().out == ""
    assert json.loads((photos / "x.json").read_text()) == answers
    assert main([*line, "--csv", "-"]) == 0
    assert capsys.readouterr().out == (photos / "x.csv").read_text()
    rows = list(csv.DictReader((photos / "x.csv").open()))
    assert [(r["file"], r["rank"], r["class"]) for r in rows] == [
        (a["file"], str(k), t["class"]) for a in answers for k, t in enumerate(a["top"], 1)
    ]
    assert main(line) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["file", "rank", "class", "index", "probability"]
    assert len(lines) == 2 + 2 * len(answers)
    assert not list(photos.glob(".*.part"))


def test_words_stand_on_either_side_of_options(run_folder: Path, photos: Path, capsys: Capture) -> None:
    said = []
    file, spec = str(photos / "a.jpg"), str(run_folder)
    for line in (
        [spec, file, "--json"],
        [spec, "--json", file],
        ["--json", "--top", "5", spec, file],
        ["--json", "--ckpt_path", f"{spec}/best.ckpt", file],
    ):
        assert main(["predict", *line]) == 0
        said.append(json.loads(capsys.readouterr().out))
    assert all(answers == said[0] for answers in said)


def test_recipe_gives_the_images_where_none_are_named(
    run_folder: Path, photos: Path, capsys: Capture, tmp_path: Path
) -> None:
    (photos / "test").mkdir()
    (photos / "a.jpg").rename(photos / "test" / "a.jpg")
    recipe = tmp_path / "my.yaml"
    recipe.write_text(f"data:\n  class_path: patchloom.data.modules.FolderData\n  init_args:\n    root: {photos}\n")
    assert main(["predict", "-c", str(recipe), "--ckpt_path", str(run_folder), "--json"]) == 0
    assert [Path(a["file"]).name for a in json.loads(capsys.readouterr().out)] == ["a.jpg"]


def test_size_changes_the_crop(run_folder: Path, photos: Path) -> None:
    judge = predict.load(str(run_folder), size=(48, 64))
    ((_, logits),) = judge.outputs([photos / "a.jpg"], batch=1)
    assert judge.preprocessing["input_size"] == (3, 48, 64)
    assert logits.shape == (1, len(CLASSES))


def test_real_photograph_has_the_class_that_the_whole_folder_gives(run_folder: Path, capsys: Capture) -> None:
    folder = real("flower_photos_mini") / "val" / "daisy"
    assert main(["predict", str(run_folder), str(folder), "--json", "--workers", "2", "--batch", "2"]) == 0
    together = json.loads(capsys.readouterr().out)
    assert main(["predict", str(run_folder), together[3]["file"], "--json"]) == 0
    (alone,) = json.loads(capsys.readouterr().out)
    assert [t["class"] for t in alone["top"]] == [t["class"] for t in together[3]["top"]]


def test_truncated_image_stops_or_is_left_out(run_folder: Path, photos: Path, capsys: Capture) -> None:
    whole = (photos / "a.jpg").read_bytes()
    (photos / "a.jpg").write_bytes(whole[: len(whole) // 2])
    assert main(["predict", str(run_folder), str(photos), "--json", "--batch", "1", "--workers", "1"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "a.jpg" in err.splitlines()[-1]
    assert main(["predict", str(run_folder), str(photos), "--json", "--on-error", "skip"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == 3
    assert "1 of 4 images could not be read" in err


@pytest.mark.parametrize(
    ("line", "status", "says"),
    [
        ([], 2, "name a MODEL"),
        (["RUN"], 2, "no images for"),
        (["RUN", "PHOTOS", "--tpo", "3"], 2, "did you mean --top"),
        (["RUN", "PHOTOS", "--top", "0"], 2, "from 1 on"),
        (["-c", "shapes/hybrid"], 2, "--ckpt_path"),
        (["RUN", "nowhere.jpg"], 1, "nowhere.jpg"),
        (["RUN", "PHOTOS", "--out", "answers.txt"], 1, ".json or .csv"),
        (["RUN", "PHOTOS", "--csv", "no/such/folder.csv"], 1, "no folder no/such"),
        (["swin_tny", "PHOTOS"], 1, "swin_tiny"),
        (["timm:resnt18", "PHOTOS"], 1, "timm:resnet18"),
        (["RUN", "PHOTOS", "--random-weights"], 1, "has weights of its own"),
        (["RUN", "PHOTOS", "--device", "gpu"], 1, "auto, cpu, cuda"),
        (["poolformer_x.ckpt", "PHOTOS"], 1, "poolformer_x.ckpt"),
    ],
)
def test_wrong_lines_are_one_line(
    line: list[str], status: int, says: str, run_folder: Path, photos: Path, capsys: Capture
) -> None:
    words = [{"RUN": str(run_folder), "PHOTOS": str(photos)}.get(word, word) for word in line]
    assert main(["predict", *words]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("patchloom: error: ")
    assert err.count("\n") == 1
    assert says in err


def test_untrained_network_is_refused_unless_asked_for(photos: Path, capsys: Capture) -> None:
    name = next(n for n in zoo.list_models() if not zoo.resolve(n).weights)
    assert main(["predict", name, str(photos)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "untrained" in err
    assert "--random-weights" in err
    assert main(["predict", name, str(photos / "a.jpg"), "--random-weights", "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)[0]["top"]) == 5
    assert "means nothing" in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu_is_one_line(run_folder: Path, photos: Path, capsys: Capture) -> None:
    assert main(["predict", str(run_folder), str(photos), "--device", "cuda"]) == 1
    assert "no GPU" in capsys.readouterr().err


@pytest.mark.gpu
def test_gpu_agrees_with_the_processor(run_folder: Path, photos: Path) -> None:
    files = predict.find_images(photos)
    said = [list(predict.load(str(run_folder), device=d).outputs(files, batch=4)) for d in ("cpu", "cuda")]
    torch.testing.assert_close(said[0][0][1], said[1][0][1], rtol=1e-3, atol=1e-3)
