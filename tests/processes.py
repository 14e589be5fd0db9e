"""A test's training in two CPU processes (gloo), as torchrun would start them."""

import inspect
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SCRIPT = """
import os, sys, torch
from pathlib import Path
from {module} import {name}
torch.set_num_threads(1)
*words, folder = sys.argv[1:]
torch.save({name}(*words, 2, Path(folder)), Path(folder) / f"of_{{os.environ.get('LOCAL_RANK', 0)}}.pt")
"""


def two_processes(run: Callable[..., Any], folder: Path, *words: str, lightning: bool = True) -> list[Any]:
    """What run(*words, 2, folder), a function of a test's file, gives in each of two processes that begin there. The
    second is started by Lightning's trainer in the first, or here."""
    file, tests = Path(inspect.getfile(run)), Path(__file__).parent
    script = folder / "train.py"
    script.write_text(SCRIPT.format(module=file.stem, name=run.__name__))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK")}
    env |= {
        "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": f"{file.parent}:{tests}",
    }  # fmt: skip
    line = [sys.executable, str(script), *words, str(folder)]
    kinds = [env] if lightning else [env | {"LOCAL_RANK": str(rank)} for rank in (0, 1)]
    logs = [folder / f"log_{rank}.txt" for rank in range(len(kinds))]
    started = []
    for log, own in zip(logs, kinds, strict=True):
        with log.open("w") as out:
            started.append(subprocess.Popen(line, env=own, cwd=folder, stdout=out, stderr=out))
    try:
        for log, process in zip(logs, started, strict=True):
            assert process.wait(400) == 0, log.read_text()[-3000:]
    finally:
        for process in started:
            process.kill()
    return [torch.load(folder / f"of_{rank}.pt", weights_only=True) for rank in (0, 1)]
