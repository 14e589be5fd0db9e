"""tests/benchmarks/scan.py on tiny sizes."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def scan():
    spec = spec_from_file_location("scan", Path(__file__).parents[1] / "benchmarks" / "scan.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(text):
    """The cells of the rows below the header."""
    return [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()[2:]]


SMALL = ["--batch", "1", "--seconds", "0", "--forms", "chunked", "recurrence"]


@pytest.mark.slow
@pytest.mark.parametrize("yardstick", ["exp", "recurrence"])
def test_times_beside_the_yardstick(scan, capsys, yardstick):
    scan.main([*SMALL, "--length", "5", "9", "--yardstick", yardstick])
    rows = table(capsys.readouterr().out)
    assert [row[0] for row in rows] == ["1, 5", "1, 9"]
    assert all(len(row) == 7 and row[1].endswith("(1.00x)") and row[2].endswith("(1.00x)") for row in rows)


@pytest.mark.slow
def test_the_exponent_is_that_of_the_times(scan, capsys):
    assert scan.slope([10, 100, 1000], [0.3, 6.0, 120.0]) == pytest.approx(1.30103)
    scan.main([*SMALL, "--exponent", "--length", "16", "64"])
    assert [row[0] for row in table(capsys.readouterr().out)] == ["1, chunked", "1, recurrence"]


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own(scan, capsys):
    scan.main([*SMALL, "--memory", "--length", "256", "1024"])
    rows = table(capsys.readouterr().out)
    chunked, recurrence = zip(*((float(a), float(b)) for _, a, b in rows), strict=True)
    step = 384 * 16 * 4 / 2**20  # MiB of the states of one step, of which the recurrence keeps several for each
    assert recurrence[1] > 2 * 1024 * step
    assert 0 < chunked[0] < recurrence[0]
    assert 0 < chunked[1] < recurrence[1] / 2
