"""Where the small real data sets lie that some tests need; they are never part of the project."""

import os
from pathlib import Path

import pytest


def real(name: str) -> Path:
    """The folder of data set `name`, or a skip that says where it was looked for."""
    root = Path(os.environ.get("PATCHLOOM_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (root / name).is_dir():
        pytest.skip(f"no data set {name!r} in {root}: set PATCHLOOM_TEST_DATA to the folder that holds it")
    return root / name
