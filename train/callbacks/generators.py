"""States of the process-wide random generators as tensors and plain values."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def generators_state() -> dict[str, Any]:
    """Python's, NumPy's, torch's and, once CUDA runs, each GPU's generator."""
    numpy: dict[str, Any] = np.random.get_state(legacy=False)  # type: ignore[assignment]
    key, position = numpy["state"]["key"], numpy["state"]["pos"]
    return {
        "python": random.getstate(),
        "numpy": {**numpy, "state": {"key": torch.from_numpy(key.astype(np.int64)), "pos": int(position)}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_generators_state(state: Mapping[str, Any]) -> None:
    """The inverse; GPU states are set where as many GPUs are there as were saved."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy = state["numpy"]
    key = numpy["state"]["key"].cpu().numpy().astype(np.uint32)
    np.random.set_state({**numpy, "state": {"key": key, "pos": numpy["state"]["pos"]}})
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
