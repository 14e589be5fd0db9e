"""Convolutions with batch norms: an evaluation in short form equals the long one, and gives way to whoever looks."""

import pytest
import torch
from torch import nn

from patchloom.vision import conv
from patchloom.vision.conv import ConvNorm, InvertedBottleneck, LinearNorm


@pytest.fixture(autouse=True)
def small_maps_do_not_take_the_long_form(monkeypatch):
    monkeypatch.setattr(conv, "worth", lambda norm, weight, rows: True)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trained(module):
    """With statistics, scales and shifts that are not 0 and 1."""
    for i, m in enumerate(module.modules()):
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.copy_(numbers(m.num_features, seed=i))
            m.running_var.copy_(numbers(m.num_features, seed=i).abs() + 0.5)
            nn.init.normal_(m.weight, 1, 0.2)
            nn.init.normal_(m.bias, 0, 0.2)
    return module.eval()


MODULES = {
    "conv": lambda: ConvNorm(6, 8, 3, 2, act="relu"),
    "depthwise": lambda: ConvNorm(6, 6, 3, groups=6, bias=True, act="gelu"),
    "unknown act": lambda: ConvNorm(6, 6, 5, act="star_relu"),
    "linear": lambda: LinearNorm(6, 9, bias=True, act="gelu"),
    "silu": lambda: LinearNorm(6, 9, act="silu"),
    "bottleneck": lambda: InvertedBottleneck(6, 12, 5, 2, bias=True),
    "no middle": lambda: InvertedBottleneck(6, 12, 5, None),
}


@pytest.mark.parametrize("name", MODULES)
def test_the_short_form_is_the_long_one(name):
    torch.manual_seed(0)
    module, m = trained(MODULES[name]()), numbers(3, 9, 7, 6)
    want = module(m).detach()  # a graph: the long form
    with torch.no_grad():
        torch.testing.assert_close(module(m), want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(module(m[:1]), want[:1], rtol=1e-5, atol=1e-5)
        module.requires_grad_(False)
        seen = []
        hooks = [c.register_forward_hook(lambda *_: seen.append(1)) for c in module.modules() if c is not module]
        torch.testing.assert_close(module(m), want, rtol=1e-5, atol=1e-5)
        assert len(seen) == len(hooks)  # nobody is passed by
        for hook in hooks:
            hook.remove()
        for child in module.modules():
            if hasattr(child, "fold_"):
                child.fold_()
        torch.testing.assert_close(module(m), want, rtol=1e-5, atol=1e-5)


def test_a_large_batch_goes_through_in_slices(monkeypatch):
    monkeypatch.setattr("patchloom.kernels.mlp.SLICE", 9 * 7 * 12)
    module, m = trained(InvertedBottleneck(6, 12, 5, 1)), numbers(5, 9, 7, 6)
    with torch.no_grad():
        assert len(list(module.images(m))) == 5
        short = module(m)
    torch.testing.assert_close(short, module(m).detach(), rtol=1e-5, atol=1e-5)


def test_training_keeps_statistics_as_torch_does():
    module, m = ConvNorm(6, 8, 3, act="gelu"), numbers(3, 9, 7, 6)
    with torch.no_grad():
        module(m)
        y = module.conv(m.permute(0, 3, 1, 2))
    torch.testing.assert_close(module.norm.running_mean, 0.1 * y.mean((0, 2, 3)))
    assert int(module.norm.num_batches_tracked) == 1


@torch.no_grad()
def test_norms_are_put_into_weights_where_that_is_less_than_they_act_on(monkeypatch):
    monkeypatch.undo()
    layer, asked = trained(ConvNorm(64, 128, 3, 2)), []
    monkeypatch.setattr(layer, "at_once", lambda m: asked.append(m.shape))
    layer(numbers(1, 8, 8, 64))
    assert not asked  # 16 x 128 numbers come out, and the weights are 73,728
    layer(numbers(4, 32, 32, 64))
    assert asked == [(4, 32, 32, 64)]
    layer.fold_()
    layer(numbers(1, 8, 8, 64))
    assert len(asked) == 2  # there is nothing to put in
