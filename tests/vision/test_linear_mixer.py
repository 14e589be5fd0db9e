"""Linear attention as a token mixer: its formula, merged tokens, orders, and its place in a YAML."""

from dataclasses import replace

import pytest
import torch
from jsonargparse import ArgumentParser

from patchloom.vision.backbone import Backbone
from patchloom.vision.mixers.linear import LinearAttention
from patchloom.vision.mixers.scanned import Scanned
from patchloom.vision.orders import Order
from patchloom.vision.tokens import Tokens

FEATURES = ["elu", "relu", "hedgehog", "hedgehog_exp", "hedgehog_joint"]


def mixer(**options):
    torch.manual_seed(0)
    m = LinearAttention(2, **options).build(16, 0)
    for p in m.parameters():
        p.data.add_(torch.randn_like(p) * 0.2)
    return m.double()


def tokens(n=12, grid=(3, 4)):
    return Tokens(torch.randn(2, n, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64), grid)


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("causal", [False, True])
def test_it_is_the_weights_times_the_values(features, causal):
    m, t = mixer(features=features, causal=causal), tokens()
    q, k, v = m.qkv(t.x).unflatten(-1, (3, 2, 8)).unbind(2)
    a, b = m.maps or ((lambda x: torch.nn.functional.elu(x) + 1) if features == "elu" else torch.relu,) * 2
    weights = torch.einsum("bnhd,bmhd->bhnm", a(q), b(k))
    weights = weights.tril() if causal else weights
    y = torch.einsum("bhnm,bmhd->bnhd", weights / (weights.sum(-1, keepdim=True) + 1e-6), v)
    torch.testing.assert_close(m(t), m.proj(y.flatten(2)))


@pytest.mark.parametrize("causal", [False, True])
def test_a_merged_token_counts_as_often_as_it_stands_for_patches(causal):
    m, t = mixer(causal=causal), tokens()
    twice = replace(t, x=torch.cat([t.x[:, :1], t.x], 1), grid=None)  # the first token a second time
    size = torch.ones(2, 12, 1, dtype=torch.float64)
    size[:, 0] = 2
    torch.testing.assert_close(m(replace(t, size=size, grid=None)), m(twice)[:, 1:])


def test_a_causal_one_follows_an_order():
    torch.manual_seed(0)
    m = Scanned(LinearAttention(2, causal=True), Order("raster", both=True)).build(16, 0).double()
    t = tokens()
    back = m.mixers[1](replace(t, x=t.x.flip(1), grid=None)).flip(1)
    torch.testing.assert_close(m(t), (m.mixers[0](t) + back) / 2)


@pytest.mark.parametrize("features", FEATURES)
def test_every_parameter_learns(features):
    m = mixer(features=features)
    m(tokens()).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in m.parameters())


def test_it_stands_in_a_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Backbone, "backbone")
    path, options = "patchloom.vision.mixers.linear.LinearAttention", "{heads: 2, features: hedgehog, causal: true}"
    given = parser.parse_string(f"""
        backbone:
          stages:
          - {{dim: 16, depth: 1, mixer: {{class_path: {path}, init_args: {options}}}}}
    """)
    made = parser.instantiate(given).backbone
    assert made.specs[0].mixer == LinearAttention(2, "hedgehog", True)
    assert made(torch.randn(1, 3, 16, 16))[0].x.shape == (1, 16, 16)


def test_what_it_does_not_know_is_named():
    with pytest.raises(ValueError, match=r"features 'cos' are not known; there are elu, relu, hedgehog"):
        LinearAttention(2, "cos").build(16, 0)
    with pytest.raises(ValueError, match="dim 16 does not divide into 3 heads"):
        LinearAttention(3).build(16, 0)
