"""patchloom features: the file holds the network's embeddings; neighbours and linear classifier find what there is."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from real_data import real
from safetensors import safe_open
from sklearn.neighbors import KNeighborsClassifier

from patchloom.train.cli import main
from patchloom.train.commands import features, predict

Capture = pytest.CaptureFixture[str]
MODEL = ("timm:test_convnext", "--random-weights", "--size", "32")
COLOURS = {"blue": (0, 0, 250), "green": (0, 250, 0), "red": (250, 0, 0)}


def paint(root: Path, each: int = 6, names: tuple[str, ...] = tuple(COLOURS)) -> Path:
    """Noisy pictures of one colour a class: even an untrained network tells them apart."""
    noise = np.random.default_rng(len(root.name))
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(each):
            pixels = np.clip(np.array(COLOURS[name]) + noise.integers(-40, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def say(capsys: Capture, *line: object) -> dict:
    torch.manual_seed(0)
    assert main(["features", MODEL[0], *map(str, line), *MODEL[1:], "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_file_holds_the_embeddings_in_the_order_of_the_names(tmp_path: Path, capsys: Capture) -> None:
    root, out = paint(tmp_path / "data"), tmp_path / "x.safetensors"
    said = say(capsys, root, "--out", out, "--batch", 4)
    assert said == {"model": MODEL[0], "out": str(out), "images": 18, "width": said["width"]}
    torch.manual_seed(0)
    judge = predict.load(MODEL[0], random_weights=True, size=(32, 32))
    with safe_open(out, "pt") as file:
        embeddings, notes = file.get_tensor("embeddings"), file.metadata()
    names = json.loads(notes["files"])
    assert names[0] == "blue/0.png"
    assert embeddings.shape == (18, said["width"])
    ((_, expected),) = judge.outputs([root / names[7]], batch=1, pre_logits=True)
    torch.testing.assert_close(embeddings[7], expected[0], rtol=1e-4, atol=1e-5)
    model = judge.model
    prepared = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(model.get_classifier()(judge.embed(prepared)), model(prepared))


@pytest.mark.parametrize("split", [True, False])
def test_colours_are_told_apart(tmp_path: Path, capsys: Capture, split: bool) -> None:
    root = tmp_path / "data"
    for part in ("train", "test") if split else (".",):
        paint(root / part)
    said = say(capsys, root, "--out", tmp_path / "x.safetensors", "--labels", "folder", "--k", 3)
    assert (said["train"], said["test"]) == ((18, 18) if split else (15, 3))
    assert said["knn_acc1"] == said["linear_acc1"] == 100
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        classes = json.loads(file.metadata()["classes"])
        assert [classes[i] for i in file.get_tensor("label")] == [
            Path(n).parent.name for n in json.loads(file.metadata()["files"])
        ]


def test_second_folder_and_table_of_labels(tmp_path: Path, capsys: Capture) -> None:
    train, test = paint(tmp_path / "a"), paint(tmp_path / "bc")
    rows = [
        f"{f.relative_to(root).as_posix()},{f.parent.name}"
        for root in (train, test)
        for f in sorted(root.rglob("*.png"))
    ]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["file,label", *rows]))
    out = ("--out", tmp_path / "x.safetensors", "--against", test)
    by_table = say(capsys, train, *out, "--labels", labels)
    assert by_table == say(capsys, train, *out, "--labels", "folder")
    assert (by_table["train"], by_table["test"]) == (18, 18)


def test_split_depends_on_names_alone() -> None:
    names, labels = [f"{c}/{i}.png" for c in "ab" for i in range(10)], [c for c in "ab" for _ in range(10)]
    order = torch.randperm(20).tolist()
    bank = features.Bank(names, torch.zeros(20, 1), labels)
    shuffled = bank.pick(order)
    train, test = features.hold_out(bank)
    assert sorted(test.names) == sorted(features.hold_out(shuffled)[1].names)
    assert [test.labels.count(c) for c in "ab"] == [2, 2]
    assert not set(train.names) & set(test.names)


def test_neighbours_vote_with_exponential_weights() -> None:
    """Against a formula written out, and against scikit-learn where every weight is 1."""
    bank, query = torch.randn(40, 8), torch.randn(7, 8)
    labels = torch.arange(40) % 3
    votes = features.nearest(bank, labels, query, 5, 3)
    for q in range(7):
        cosine = torch.nn.functional.cosine_similarity(query[q][None], bank)
        expected = torch.zeros(3)
        for i in cosine.argsort(descending=True)[:5]:
            expected[labels[i]] += torch.exp((cosine[i] - 1) / 0.07)
        torch.testing.assert_close(votes[q], expected)
    one = KNeighborsClassifier(1, metric="cosine").fit(bank.numpy(), labels.numpy())
    assert features.nearest(bank, labels, query, 1, 3).argmax(1).tolist() == one.predict(query.numpy()).tolist()


def test_more_neighbours_than_pictures_is_all_of_them() -> None:
    assert features.nearest(torch.eye(3), torch.arange(3), torch.eye(3), 20, 3).argmax(1).tolist() == [0, 1, 2]


def test_real_photographs_give_better_than_chance(tmp_path: Path, capsys: Capture) -> None:
    said = say(
        capsys, real("flower_photos_mini"), "--out", tmp_path / "x.safetensors", "--labels", "folder", "--workers", 0
    )
    assert (said["train"], said["test"], said["classes"]) == (250, 70, 5)
    assert said["linear_acc1"] > 30, "colours alone tell flowers apart better than 20%"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["DATA", "--out", "x.npy"], "safetensors"),
        (["DATA", "--against", "DATA"], "--labels"),
        (["DATA/red", "--labels", "folder"], "itself, not in a class folder"),
        (["DATA", "--labels", "no.csv"], "no.csv"),
        (["DATA", "--labels", "LABELS"], "no label for blue/1.png (17 of 18 images)"),
        (["DATA", "--labels", "folder", "--against", "OTHER"], "test classes that training lacks: violet"),
        (["nowhere"], "nowhere"),
    ],
)
def test_wrong_lines_are_one_line_and_leave_no_file(
    line: list[str], says: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paint(tmp_path / "data")
    monkeypatch.setitem(COLOURS, "violet", (250, 0, 250))
    paint(tmp_path / "other", 2, ("red", "violet"))
    (tmp_path / "labels.csv").write_text("file,label\nblue/0.png,blue\n")
    words = [word.replace("DATA", "data").replace("OTHER", "other").replace("LABELS", "labels.csv") for word in line]
    assert main(["features", MODEL[0], *words, *MODEL[1:]]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("patchloom: error: ")
    assert says in err
    assert "Traceback" not in err
