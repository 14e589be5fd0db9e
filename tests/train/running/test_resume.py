"""kill -9, SIGTERM or a full stop anywhere, then resume: the run that results is the run that was never stopped, bit
for bit.
"""

import signal
from pathlib import Path

import pytest
from fit_parts import RECIPE, differences, patchloom, recipe, run_folder

from patchloom.train import cli
from patchloom.train.running.runs import read_metrics

STRIKE = "callbacks: [{class_path: fit_parts.Strike, init_args: {step: %d, number: %d, when: %s}}]"


def struck(folder: Path, step: int, number: int = signal.SIGKILL, when: str = "batch", **replaced: str) -> Path:
    """The run folder of a run that was struck."""
    text = RECIPE.replace("log_every_n_steps: 1}", f"log_every_n_steps: 1, {STRIKE % (step, number, when)}}}")
    done = patchloom("fit", "-c", recipe(folder, "small", text, **replaced), "--test", "false", cwd=folder)
    assert done.returncode == (-number if number == signal.SIGKILL else 128 + number), done.stderr
    return run_folder(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    done = patchloom("fit", "-c", recipe(folder), "--test", "false", cwd=folder)
    assert done.returncode == 0, done.stderr
    return run_folder(folder)


def check(run: Path, whole: Path) -> None:
    """That both runs are one, bit for bit."""
    assert differences(whole, run) == []
    assert not list(run.glob(".*"))  # what the kill left half-written is gone
    ours, theirs = (
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(r / "metrics.csv")]
        for r in (run, whole)
    )
    assert ours == theirs


def test_cut_off_by_an_error_and_resumed(tmp_path, monkeypatch):
    """In this process, which is quicker than to kill others."""

    def fit(name: str, *words: str, status: int = 0) -> Path:
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / name)
        assert cli.main(["fit", *words, "--test", "false"]) == status
        return run_folder(tmp_path / name)

    whole = fit("whole", "-c", str(recipe(tmp_path)))
    cut = "callbacks: [{class_path: fit_parts.Cut, init_args: {step: 17}}]"
    text = RECIPE.replace("log_every_n_steps: 1}", f"log_every_n_steps: 1, {cut}}}")
    run = fit("cut", "-c", str(recipe(tmp_path, text=text)), status=1)
    assert fit("cut", "--resume", str(run), "--trainer.callbacks", "null") == run
    check(run, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "step", "when"), [(0, 17, "batch"), (2, 17, "batch"), (0, 20, "validation"), (0, 24, "save")]
)
def test_killed_and_resumed_is_bit_for_bit_the_same(tmp_path, whole, workers, step, when):
    run = struck(tmp_path, step, when=when, workers=str(workers))
    assert sorted(p.name for p in run.glob("*.ckpt")) == ["best.ckpt", "last.ckpt"]
    done = patchloom("fit", "--resume", run, "--test", "false", "--trainer.callbacks", "null", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert run_folder(tmp_path) == run  # it went on in its folder
    check(run, whole)
