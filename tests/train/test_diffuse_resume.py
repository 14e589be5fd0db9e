"""A diffusion run that was cut off goes on bit for bit: weights, average, noise, loader, alarm."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from fit_parts import differences, patchloom, run_folder
from generation_parts import RECIPE, save_autoencoder, save_pictures

from patchloom.train.cli import main
from patchloom.train.running.runs import read_metrics

STRIKE = "callbacks: [{class_path: %s, init_args: {step: %d}}]"


def recipe(folder: Path, text: str, cut: str | None = None, step: int = 17) -> str:
    if cut is not None:
        text = text.replace("log_every_n_steps: 1}", f"log_every_n_steps: 1, {STRIKE % (cut, step)}}}")
    path = folder / "small.yaml"
    path.write_text(text)
    return str(path)


def fit(folder: Path, monkeypatch, *words: str, status: int = 0) -> Path:
    monkeypatch.chdir(folder)
    assert main(["fit", *words, "--test", "false"]) == status
    return run_folder(folder)


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("latents")
    pictures = save_pictures(root / "pictures", {"train": 16, "val": 4})
    for seed, name in enumerate(("one", "other")):
        vae = save_autoencoder(root / f"vae_{name}", seed)
        words = ["--vae", vae, "--size", "32", "--flips", "--shard", "10"]
        assert main(["latents", str(pictures), str(root / name), *words]) == 0
    return root


def on_latents(root: Path) -> str:
    """The recipe in latents, decoded for its sheets."""
    head, rest = RECIPE.split("data:\n")
    head = head.replace(
        "in_channels: 3, size: [32, 32], num_classes: 10", "in_channels: 4, size: [8, 8], num_classes: 2"
    )
    head += f"    autoencoder: {root / 'vae_one'}\n"
    data = "  class_path: patchloom.data.latents.LatentsData\n"
    data += f"  init_args: {{root: {root / 'one'}, batch_size: 4, workers: 0}}\n"
    return f"{head}data:\n{data}trainer:{rest.split('trainer:')[1]}"


@pytest.mark.parametrize("kind", ["pixels", pytest.param("latents", marks=pytest.mark.slow)])
def test_cut_off_and_resumed_is_bit_for_bit_the_same(kind, tmp_path, latents, monkeypatch):
    text = RECIPE if kind == "pixels" else on_latents(latents)
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = fit(tmp_path / "whole", monkeypatch, "-c", recipe(tmp_path / "whole", text))
    words = ["-c", recipe(tmp_path / "cut", text, "fit_parts.Cut")]
    run = fit(tmp_path / "cut", monkeypatch, *words, status=1)
    assert (run / "last.ckpt").is_file()
    assert not (run / "samples_0000020.png").exists()
    assert fit(tmp_path / "cut", monkeypatch, "--resume", str(run), "--trainer.callbacks", "null") == run
    assert differences(whole, run) == []
    ours, theirs = (
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(r / "metrics.csv")]
        for r in (run, whole)
    )
    assert ours == theirs
    sheets = sorted(p.name for p in whole.glob("samples_*.png"))
    assert sheets[0] == "samples_0000020.png"
    assert all((run / name).read_bytes() == (whole / name).read_bytes() for name in sheets)


@pytest.mark.slow
def test_killed_and_resumed_is_bit_for_bit_the_same(tmp_path, monkeypatch):
    (tmp_path / "whole").mkdir()
    whole = fit(tmp_path / "whole", monkeypatch, "-c", recipe(tmp_path / "whole", RECIPE))
    strike = f"fit_parts.Strike, init_args: {{step: 17, number: {int(signal.SIGKILL)}}}}}]"
    text = RECIPE.replace("log_every_n_steps: 1}", f"log_every_n_steps: 1, callbacks: [{{class_path: {strike}}}")
    (tmp_path / "cut").mkdir()
    done = patchloom("fit", "-c", recipe(tmp_path / "cut", text), "--test", "false", cwd=tmp_path / "cut")
    assert done.returncode == -signal.SIGKILL, done.stderr
    run = run_folder(tmp_path / "cut")
    words = ("--resume", run, "--test", "false", "--trainer.callbacks", "null")
    done = patchloom("fit", *words, cwd=tmp_path / "cut")
    assert done.returncode == 0, done.stderr
    assert differences(whole, run) == []


def test_other_latents_and_another_process_are_refused(tmp_path, latents, monkeypatch, capsys):
    text = on_latents(latents).replace("max_epochs: 3", "max_epochs: 1")
    run = fit(tmp_path, monkeypatch, "-c", recipe(tmp_path, text))
    config = (run / "config.yaml").read_text()

    def resumed(*words: str) -> str:
        capsys.readouterr()
        assert main(["fit", "--resume", str(run), "--trainer.max_epochs", "2", *words]) == 1
        assert (run / "config.yaml").read_text() == config
        return capsys.readouterr().err

    moved = json.loads((latents / "one" / "latents.json").read_text())
    moved["latents"]["scale"] = 0.5
    shutil.copytree(latents / "one", tmp_path / "scaled")
    (tmp_path / "scaled" / "latents.json").write_text(json.dumps(moved))
    assert "are latents of autoencoder" in resumed("--data.root", str(latents / "other"))
    assert "are latents of autoencoder" in resumed("--model.autoencoder", str(latents / "vae_other"))
    assert "scale 0.18215 and shift 0, the data have 0.5 and 0" in resumed("--data.root", str(tmp_path / "scaled"))
    schedule = ["--model.process", "patchloom.vision.generation.gaussian.Gaussian", "--model.process.betas", "cosine"]
    assert "the checkpoint was trained with process Gaussian(" in resumed(*schedule)
    capsys.readouterr()
    assert main(["validate", str(run), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["validation"]) == {"val/loss", "val/error", "val/bound"}


@pytest.mark.slow
def test_two_processes_train_and_draw_one_sheet(tmp_path):
    text = RECIPE.replace("max_epochs: 3", "max_epochs: 1")
    words = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--test", "false"]
    done = patchloom("fit", "-c", recipe(tmp_path, text), *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = run_folder(tmp_path)
    assert (run / "samples_0000005.png").is_file()
    assert (run / "last.ckpt").is_file()
