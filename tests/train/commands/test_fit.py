import json
from pathlib import Path

import pytest
from fit_parts import RECIPE, patchloom, recipe, run_folder

from patchloom.train import cli, words
from patchloom.train.running import checkpoint
from patchloom.train.running.runs import MetricsFile, new_run, read_metrics, run_of


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of `fit --json`, and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "more.yaml").write_text("trainer: {max_epochs: 2}\ndata: {init_args: {batch_size: 16}}")
    done = patchloom("-c", recipe(folder), "fit", "-c", "more.yaml", "--data.batch_size", "20", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return run_folder(folder), json.loads(done.stdout), done.stderr


def test_a_run_folder_holds_what_is_promised(run):
    folder, told, err = run
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.yaml",
        "metrics.csv",
        "last.ckpt",
        "best.ckpt",
        "curves.png",
        "predictions.png",
        "confusion.png",
    } <= names
    assert folder.parent.name == "small"
    assert folder.parent.parent.name == "runs"
    assert told["run"] == str(folder.relative_to(folder.parents[2]))
    assert told["checkpoint"].endswith("best.ckpt")
    assert set(told["validation"]) >= {"val/top1", "val/loss"}
    assert set(told["test"]) >= {"test/top1", "test/top5"}
    content = checkpoint.read(folder / "last.ckpt")
    assert content["patchloom"]["recipe"] == "small"
    assert content["global_step"] == 8
    assert any(line.startswith("epoch 2/2") and "images/s" in line and "left" in line for line in err.splitlines())


def test_metrics_hold_losses_scores_and_rates(run):
    rows = read_metrics(run[0] / "metrics.csv")
    steps = [row["step"] for row in rows if "train/loss" in row]
    assert steps == list(range(8))
    assert all("lr" in row for row in rows if "train/loss" in row)
    assert [row["step"] for row in rows if "val/top1" in row] == [3, 7]
    best = max(row["val/top1"] for row in rows if "val/top1" in row)
    assert run[1]["validation"]["val/top1"] == pytest.approx(best, abs=1e-6)


def test_judging_a_run_again_gives_the_same(run, monkeypatch, capsys):
    folder, told, _ = run
    monkeypatch.chdir(folder.parents[2])
    for verb, target, key in (("test", folder, "test"), ("validate", folder / "best.ckpt", "validation")):
        assert cli.main([verb, str(target), "--json"]) == 0
        again = json.loads(capsys.readouterr().out)
        assert again[key] == pytest.approx(told[key], abs=1e-6)
    assert cli.main(["test", "-c", "small.yaml", "--ckpt_path", str(folder / "best.ckpt"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["test"] == pytest.approx(told["test"], abs=1e-6)


def test_judging_on_another_folder(run, tmp_path, monkeypatch, capsys):
    """A bare checkpoint and a run, on a folder of class folders: all its images are judged."""
    from PIL import Image

    from patchloom.data.shapes import Shapes

    classes = checkpoint.read(run[0] / "best.ckpt")["patchloom"]["classes"]
    shapes = Shapes(40, (32, 32), "class", 0, "test")
    for i in range(40):
        sample = shapes.draw(i)
        (tmp_path / "photos" / classes[sample.label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(sample.image).save(tmp_path / "photos" / classes[sample.label] / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.ckpt").write_bytes((run[0] / "best.ckpt").read_bytes())
    results = []
    for target in ("a.ckpt", run[0]):
        assert cli.main(["test", str(target), "--data", "photos", "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out)["test"])
    assert results[0] == pytest.approx(results[1])
    assert (results[0]["test/top1"] * 40) % 1 == pytest.approx(0, abs=1e-4)
    assert (run[0] / "test_photos" / "predictions.png").is_file()
    assert (tmp_path / "test_photos" / "predictions.png").is_file()


@pytest.mark.slow
def test_a_finished_run_goes_on_longer(run, tmp_path):
    folder = tmp_path / "runs" / "small" / "copy"
    folder.parent.mkdir(parents=True)
    import shutil

    shutil.copytree(run[0], folder)
    done = patchloom("fit", "--resume", folder, "--trainer.max_epochs", "3", "--test", "false", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert checkpoint.read(folder / "last.ckpt")["global_step"] == 12
    assert [row["step"] for row in read_metrics(folder / "metrics.csv") if "train/loss" in row] == list(range(12))
    assert "run " in done.stdout
    assert "checkpoint" in done.stdout
    assert "validation" in done.stdout


def test_words_and_options():
    assert words.split_words(["runs/x", "--data.root", "y", "--a=b", "z", "--trainer.lr", "-1", "--print_config"]) == (
        ["runs/x", "z"],
        ["--data.root", "y", "--a=b", "--trainer.lr", "-1", "--print_config"],
    )
    assert list(words.pairs(["--a.b", "c", "--d=e", "--f"])) == [("a.b", "c"), ("d", "e"), ("f", None)]
    assert (
        words.in_words({"test/loss": 0.1234, "test/top1": 0.5, "test/top5": 0.75})
        == "top-1 50.00%   top-5 75.00%   loss 0.1234"
    )


def test_names_of_runs(tmp_path):
    first = new_run(tmp_path, "cifar10/cct")
    assert first.parent == tmp_path / "cifar10" / "cct"
    assert not first.exists()
    first.mkdir(parents=True)
    assert new_run(tmp_path, "cifar10/cct") != first
    assert run_of(first) is None
    (first / "config.yaml").touch()
    assert run_of(first / "last.ckpt") == first == run_of(first)


def test_a_metrics_file_is_taken_up_where_the_checkpoint_is(tmp_path):
    log = MetricsFile(tmp_path)
    for step in range(6):
        log.log_metrics({"loss": 1 / (step + 1)}, step)
    log.log_metrics({"acc": 0.5}, 5)
    log.finalize("success")
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("6,0,1.2")  # a line that a kill cut short
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.csv")] == list(range(6))
    log = MetricsFile(tmp_path, resumed_at=4)
    for step in range(4, 7):
        log.log_metrics({"loss": 2.0, "new": 1.0}, step)
    log.finalize("success")
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == list(range(7))
    assert [row["loss"] for row in rows[3:]] == [0.25, 2.0, 2.0, 2.0]
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)


def test_fast_dev_run_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["fit", "-c", str(recipe(tmp_path, text=RECIPE)), "--trainer.fast_dev_run", "true"]) == 0
    assert not list(Path(tmp_path).rglob("*.ckpt"))
    assert not list(Path(tmp_path).rglob("*.png"))
