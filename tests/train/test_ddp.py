"""Two CPU processes (gloo) against one: the same training, and metrics over every image exactly once."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from classify_parts import shapes_run

SCRIPT = """
import os, sys, torch
from pathlib import Path
from classify_parts import shapes_run
torch.set_num_threads(1)
found = shapes_run(2, Path(sys.argv[1]))
torch.save(found, Path(sys.argv[1]) / f"of_{os.environ.get('LOCAL_RANK', 0)}.pt")
"""


@pytest.mark.slow
def test_two_processes_train_and_judge_as_one(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK")}
    env |= {
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=env, capture_output=True, text=True, timeout=240, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (first, weights), (second, copy) = (torch.load(tmp_path / f"of_{rank}.pt", weights_only=True) for rank in (0, 1))
    one, expected = shapes_run(1, tmp_path)
    assert set(one) == {"train/loss", "val/loss", "val/top1", "val/top5", "test/loss", "test/top1", "test/top5"}
    for name in set(one) - {"train/loss"}:  # that one is of the last batch, which is shared out
        assert first[name] == second[name] == pytest.approx(one[name], abs=1e-5), name
    for name, value in expected.items():
        assert torch.equal(weights[name], copy[name]), name
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5, msg=name)
