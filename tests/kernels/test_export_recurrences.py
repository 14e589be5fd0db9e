"""Every causal recurrence in a graph that does not know the length: torch.export, and onnxruntime where ONNX has the
operators."""

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from patchloom.kernels.delta_rule import delta_rule
from patchloom.kernels.feature_maps import elu_features
from patchloom.kernels.gated_linear_attention import gated_linear_attention
from patchloom.kernels.linear_attention import causal_linear_attention, linear_attention
from patchloom.kernels.retention import retention, retnet_decay
from patchloom.kernels.selective_scan import selective_scan
from patchloom.kernels.ssd import ssd


def scan(u, delta, b, c, state):
    A = -torch.arange(1.0, 5).repeat(u.shape[2], 1)
    y, last = selective_scan(u, delta, A, b[:, :, :2], c[:, :, :2], state=state, return_state=True)
    return y + selective_scan(u, delta, A, b[:, :, 0], c[:, :, 0], z=u, reverse=True), last


def scalar(q, k, v, g, state):
    return gated_linear_attention(q, k, v, F.logsigmoid(g), state=state, return_state=True)


def vector(q, k, v, state):
    return gated_linear_attention(q, k, v, F.logsigmoid(k), state=state, return_state=True)


def retained(q, k, v, state):
    return retention(q, k, v, retnet_decay(3), state=state, return_state=True)


def dual(q, k, v, g, state):
    return ssd(v, g, -torch.arange(1.0, 4), q[:, :, :1], k[:, :, :1], state=state.mT, return_state=True)


def linear(q, k, v):
    q, k = elu_features(q), elu_features(k)
    whole = linear_attention(*(t.transpose(1, 2) for t in (q, k, v)))
    return (*causal_linear_attention(q, k, v, return_state=True), whole)


def delta(q, k, v, g, state):
    k = F.normalize(k, dim=-1)
    return delta_rule(q, k, v, g.sigmoid(), F.logsigmoid(g), state=state, return_state=True)


def inputs(names, length):
    g = torch.Generator().manual_seed(length)
    b, h, keys, values = 2, 3, 4, 6
    shapes = {"q": (b, length, h, keys), "k": (b, length, h, keys), "v": (b, length, h, values), "g": (b, length, h)}
    shapes |= {"u": (b, length, values), "delta": (b, length, values), "b": (b, length, 3, keys)}
    shapes |= {"c": (b, length, 3, keys), "state": (b, values, keys) if "u" in names else (b, h, keys, values)}
    return tuple(torch.randn(*shapes[n], generator=g) for n in names)


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


FORMS = [scan, scalar, vector, retained, dual, linear, delta]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_one_graph_serves_every_length(form):
    names = form.__code__.co_varnames[: form.__code__.co_argcount]
    length = torch.export.Dim("length", min=2, max=1 << 20)
    axes = (tuple({} if n == "state" else {1: length} for n in names),)
    program = torch.export.export(Call(form), inputs(names, 80), dynamic_shapes=axes)
    lengths = (2, 17, 64, 65, 300)
    for n in lengths:
        given = inputs(names, n)
        for got, want in zip(program.module()(*given), form(*given), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    onnx = torch.onnx.export(program, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(onnx.model_proto.SerializeToString())
    for n in lengths:
        given = inputs(names, n)
        feed = {i.name: t.numpy() for i, t in zip(session.get_inputs(), given, strict=True)}
        for got, want in zip(session.run(None, feed), form(*given), strict=True):
            torch.testing.assert_close(torch.from_numpy(got), want, rtol=1e-4, atol=1e-5)
