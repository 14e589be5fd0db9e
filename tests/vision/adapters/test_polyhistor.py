"""Polyhistor: its sizes and shapes; there is no code of the authors to compare with."""

import torch
from plugin_parts import image, made

from patchloom.vision.adapters import adapt, adapter
from patchloom.vision.adapters.polyhistor import Decomposed, Factored, Polyhistor, PolyhistorLite, Scaled
from patchloom.vision.tokens import Tokens

WINDOWS = "shifted windows"  # 16, 32, 48 and 64 channels


def placed(words: str) -> list[Decomposed]:
    model = made(WINDOWS)
    adapt(model, adapter(words))
    layers = [b.after_block for s in model.backbone.stages for b in s.blocks]
    assert all(isinstance(layer, Decomposed) for layer in layers)
    return layers


def kernels(layer: Decomposed, task: str = "default") -> tuple[torch.Tensor, torch.Tensor]:
    return layer.kernels(Tokens(torch.zeros(1), None, task=task))


@torch.inference_mode()
def test_projections_have_the_rank_that_was_asked_for():
    torch.manual_seed(0)
    factored = Factored(8, 64, 16, 3)
    down, up = factored(torch.randn(8))
    assert (down.shape, up.shape) == ((16, 64), (64, 16))
    assert [int(torch.linalg.matrix_rank(m)) for m in (down, up)] == [3, 3]
    assert sum(p.numel() for p in factored.parameters()) == 9 * 3 * 2 * (64 + 16)
    codes = torch.randn(400, 8)
    entries = torch.stack([factored(c)[0] for c in codes])
    assert 0.8 < float(entries.std()) * 64**0.5 < 1.2


@torch.inference_mode()
def test_it_is_x_and_what_goes_through_the_middle():
    torch.manual_seed(0)
    layer = placed("polyhistor:tasks=a+b")[0]
    factored = layer.hyper[0].generators["16"]
    factored.up_left.weight.normal_()
    x = torch.randn(2, 5, 16)
    out = layer(Tokens(x, None, task="b"))
    down, up = kernels(layer, "b")
    torch.testing.assert_close(out.x, x + torch.nn.functional.gelu(x @ down.mT) @ up.mT)
    assert not torch.allclose(layer(Tokens(x, None, task="a")).x, out.x)


@torch.inference_mode()
def test_lite_makes_every_width_of_one_template():
    layers = placed("polyhistor_lite:reduction=4,scale=2")
    template = layers[0].hyper[0].generators["template"]
    assert (template.dim, template.width) == (8, 2)
    for layer, dim in zip(layers, (16, 16, 32, 32, 48, 48, 64, 64), strict=True):
        assert isinstance(layer, Scaled)
        assert layer.down.shape == (dim // 8, dim // 8)
        assert layer.up.shape == (dim // 8, dim // 8)
        down, up = kernels(layer)
        assert (down.shape, up.shape) == ((dim // 4, dim), (dim, dim // 4))
        assert not up.any()
        t_down, _ = layer.written(Tokens(torch.zeros(1), None, task="default"))
        torch.testing.assert_close(down[2:4, :8], layer.down[1, 0] * t_down)


def test_a_width_that_scale_does_not_divide_has_smaller_kernels():
    for scale, want in ((3, 16), (4, 4), (64, 1)):
        layers = placed(f"polyhistor_lite:scale={scale},reduction=4")
        assert layers[0].hyper[0].generators["template"].dim == want


@torch.inference_mode()
def test_any_size_and_an_image_alone():
    for spec in (Polyhistor(), PolyhistorLite()):
        model, x = made(WINDOWS), image((97, 131), batch=3)
        adapt(model, spec)
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)
        torch.testing.assert_close(model(x)[1:2], model(x[1:2]), rtol=1e-4, atol=1e-5)
