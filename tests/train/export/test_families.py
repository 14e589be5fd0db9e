"""One variant of every family, in a tiny form, as one ONNX file for every size: what onnxruntime makes of it is what
the network makes of it, at three sizes that it was not made with; folded too."""

from argparse import Namespace

import pytest
from export_parts import of_family

from patchloom.train.export.command import compare, programmed, sizes_to_try, write
from patchloom.train.export.model import portable
from patchloom.vision.families import FAMILIES

QUICK = ("vit", "cct")  # seconds each: the rest is slow
FIRST = {family: next(iter(module.VARIANTS)) for family, module in FAMILIES.items()}
ONE_SIZE: dict[str, str] = {}  # families that are a file a size, and why


@pytest.mark.parametrize("fold", [False, True], ids=["as it is", "folded"])
@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=() if f in QUICK else pytest.mark.slow) for f in FIRST if f not in ONE_SIZE]
)
def test_one_file_for_every_size(family, fold, tmp_path):
    network = portable(of_family(FIRST[family]), FIRST[family], folded=fold)
    args = Namespace(model=FIRST[family], dynamic=True, batch=1, format="onnx")
    ranges = write(network, tmp_path / "net.onnx", args, {})
    sizes = sizes_to_try(network, ranges, 1)
    assert len({s[1:] for s in sizes}) == 3
    assert network.made_with() not in sizes
    compare(network, tmp_path / "net.onnx", "onnx", sizes)


@pytest.mark.slow
@pytest.mark.parametrize("family", list(ONE_SIZE))
def test_others_are_a_file_a_size(family, tmp_path):
    network = portable(of_family(FIRST[family]), FIRST[family])
    with pytest.raises(ValueError, match="leave out --dynamic"):
        programmed(network, FIRST[family], True)
    args = Namespace(model=FIRST[family], dynamic=False, batch=1, format="onnx")
    ranges = write(network, tmp_path / "net.onnx", args, {})
    compare(network, tmp_path / "net.onnx", "onnx", sizes_to_try(network, ranges, 1))
