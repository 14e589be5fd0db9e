"""SIGTERM and Ctrl-C leave a checkpoint that resumes exactly; the second signal kills."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fit_parts import RECIPE, differences, patchloom, recipe, run_folder

STRIKE = "callbacks: [{class_path: fit_parts.Strike, init_args: {step: %d, number: %d, when: %s, group: %s}}]"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert patchloom("fit", "-c", recipe(folder), "--test", "false", cwd=folder).returncode == 0
    return run_folder(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "when", "step", "workers", "group", "says"),
    [
        (signal.SIGTERM, "batch", 2, 0, False, "terminated"),  # before any save
        (signal.SIGTERM, "batch", 3, 2, True, "terminated"),  # the whole process group, as timeout and batch systems do
        # the whole process group, as a terminal's Ctrl-C
        (signal.SIGINT, "validation", 10, 2, True, "interrupted"),
    ],
)
def test_a_signal_leaves_a_checkpoint_that_resumes_exactly(tmp_path, whole, number, when, step, workers, group, says):
    text = RECIPE.replace(
        "log_every_n_steps: 1}", f"log_every_n_steps: 1, {STRIKE % (step, number, when, str(group).lower())}}}"
    )
    done = patchloom(
        "fit",
        "-c",
        recipe(tmp_path, "small", text, workers=str(workers)),
        "--test",
        "false",
        cwd=tmp_path,
        start_new_session=True,
    )
    run = run_folder(tmp_path)
    assert done.returncode == 128 + number, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith(f"go on with: patchloom fit --resume {run.relative_to(tmp_path)}\npatchloom: {says}\n")
    assert (run / "last.ckpt").is_file()
    done = patchloom("fit", "--resume", run, "--test", "false", "--trainer.callbacks", "null", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert differences(whole, run) == []


def test_the_second_signal_kills_at_once(tmp_path):
    text = RECIPE.replace(
        "log_every_n_steps: 1}",
        "log_every_n_steps: 1, callbacks: [{class_path: fit_parts.Sleep, init_args: {step: 3}}]}",
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        [sys.executable, "-m", "patchloom", "fit", "-c", str(recipe(tmp_path, text=text))],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in run.stderr:
        if "sleeping" in line:
            break
    run.send_signal(signal.SIGTERM)
    assert any("once more stops at once" in run.stderr.readline() for _ in range(3))
    begun = time.monotonic()
    run.send_signal(signal.SIGTERM)
    assert run.wait(10) == -signal.SIGTERM
    assert time.monotonic() - begun < 5
