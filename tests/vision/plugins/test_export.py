"""Reduced networks as ONNX files: what onnxruntime makes of them is what torch makes of them."""

import onnxruntime
import pytest
import torch
from plugin_parts import METHODS, image, made

from patchloom.train.catalogue.compat import NOT_EXPORTED
from patchloom.vision.plugins import attach

VIT = "global attention, class token"
KIND = dict.fromkeys(METHODS, VIT) | {"scan_pruning": "selective scan, both ways"}
QUICK = ("tome", "evit")  # seconds each: the rest is slow
SOME = [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in METHODS if m not in NOT_EXPORTED]


@pytest.mark.parametrize("method", SOME)
def test_onnxruntime_agrees(method):
    model, x = made(KIND[method]), torch.randn(2, 3, 64, 64)
    attach(model, METHODS[method].acting)
    model.requires_grad_(False)  # of the plugin's own parameters too
    onnx = torch.onnx.export(torch.export.export(model, (image(),)), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(onnx.model_proto.SerializeToString())
    (given,) = session.get_inputs()
    want = model(x)
    got = torch.from_numpy(session.run(None, {given.name: x.numpy()})[0])
    assert (got - want).abs().max() < 1e-4 * want.abs().max()
