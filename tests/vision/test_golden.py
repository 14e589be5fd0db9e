"""Every record: the authors' numbers, from our model, through the rules that a downloaded checkpoint takes."""

import pytest
import torch
from golden import golden

from patchloom.vision.weights import load_published
from patchloom.vision.zoo import VARIANTS, create_model

FAMILIES = ("swin", "metaformer", "convnext", "cct")
LARGE = {"swin/swin_base_384", "convnext/convnext_base_22k", "cct/cct_14_7x2_224"}
RECORDS = [
    pytest.param(r, marks=pytest.mark.slow if r in LARGE else ())
    for r in golden.available() if r.split("/")[0] in FAMILIES
]  # fmt: skip
TOLERANCE = 1e-5


def outputs(name: str, record: golden.Record) -> dict[str, torch.Tensor]:
    """What the record's model gives here, under the record's names."""
    x, state = record.input(), record.state_dict()
    model = create_model(name).eval()
    report = load_published(model, state)
    assert not report.fresh
    assert not report.resized
    found = {}
    if isinstance(y := model(x), list):
        return {f"stage{i}": f for i, f in enumerate(y, 1)}
    found["logits"] = y
    if "stage1" not in record.meta["outputs"]:  # the compact transformers: a sequence, not maps
        blocks = model.backbone.walk(x, [(0, 0), model.backbone.taps[-1]])[1]
        tokens = model.backbone.stem
        tokens.position = torch.nn.Identity()
        return found | {"tokens": tokens(x).x, "block1": blocks[0].x, "sequence": blocks[1].x}
    pyramid = create_model(name, features_only=True).eval()
    assert not load_published(pyramid, state).fresh
    maps = pyramid(x)
    if len(pyramid.backbone.specs) == 1:
        return found | {"stage1": maps[-1]}
    return found | {f"stage{i}": f for i, f in enumerate(maps, 1)}


@pytest.mark.parametrize("path", RECORDS)
@torch.inference_mode()
def test_matches_the_original(path):
    record = golden.load(path)
    found = outputs(path.split("/")[1], record)
    assert set(found) == set(record.meta["outputs"])
    for name, value in found.items():
        record.compare(name, value, TOLERANCE)


@pytest.mark.parametrize("path", [p.values[0] for p in RECORDS])
def test_parameters_are_those_of_the_original(path):
    record, name = golden.load(path), path.split("/")[1]
    model = create_model(name, device="meta")
    trained = sum(p.numel() for p in model.parameters())
    frozen = sum(b.numel() for n, b in model.named_buffers() if n in model.state_dict())
    assert trained + frozen == record.meta["parameters"]


def test_every_family_has_records_here():
    assert {r.split("/")[0] for r in golden.available()} >= set(FAMILIES)
    assert {p.values[0].split("/")[1].replace("_feat", "").replace("_dense", "") for p in RECORDS} <= set(VARIANTS)
