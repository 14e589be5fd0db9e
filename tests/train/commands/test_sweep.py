"""The sweep over image sizes: its sizes, crossovers, files and errors."""

import json

import pytest

from patchloom.train.cli import main
from patchloom.train.commands.sweep import crossovers, sizes_of


def test_sizes():
    assert sizes_of("size=64:128:32") == [64, 96, 128]
    found = sizes_of("size=224:1280")
    assert found[0] == 224
    assert found[-1] == 1280
    assert found == sorted(set(found))
    assert all(s % 32 == 0 for s in found)
    for bad in ("224:1280", "size=a:b", "size=224", "size=512:224", "size=0:64"):
        with pytest.raises(ValueError, match="--sweep"):
            sizes_of(bad)


def test_a_crossover_holds_at_every_larger_size():
    def row(name, seconds, memory):
        points = zip((1, 2, 3, 4), seconds, memory, strict=True)
        return {
            "model": name,
            "points": [{"size": s, "seconds_per_image": t, "peak_memory_mb": m} for s, t, m in points],
        }

    (found,) = crossovers([row("a", (2, 2, 2, 2), (1, 1, 1, 1)), row("b", (1, 3, 1, 1), (2, 2, 2, 2))])
    assert found == {"model": "b", "against": "a", "faster_from": 3, "smaller_from": None}


def test_a_sweep_draws_and_tells(tmp_path, capsys):
    line = ["bench", "cct_2_3x2_32", "vit_lite_7_4_32", "--sweep", "size=32:64:32", "--batch", "1", "--repeats", "1"]
    assert main([*line, "--no-memory", "--out", str(tmp_path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in result["models"]] == ["cct_2_3x2_32", "vit_lite_7_4_32"]
    assert [p["size"] for p in result["models"][0]["points"]] == [32, 64]
    assert json.loads((tmp_path / "sweep.json").read_text()) == result
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("extra", [["--against", "cct_2_3x2_32"], ["--size", "64"], ["--sweep", "sizes=1:2"]])
def test_wrong_sweeps_are_named(extra, capsys):
    assert main(["bench", "cct_2_3x2_32", "--sweep", "size=32:64:32", *extra]) == 1
    assert extra[0] in capsys.readouterr().err
