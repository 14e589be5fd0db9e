"""Necks: torchvision's FPN number for number, the simple pyramid by its definition, which of them a backbone gets."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from vision_tiny import tiny_pyramid

from patchloom.vision.heads.fpn import FPN, Coarser
from patchloom.vision.heads.necked import Necked
from patchloom.vision.heads.simple_pyramid import SimplePyramid


def maps(channels=(8, 12, 16), sizes=((21, 13), (11, 7), (6, 4)), batch=2):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(batch, c, *s, generator=g, requires_grad=True) for c, s in zip(channels, sizes, strict=True)]


def test_it_is_torchvision_s():
    torch.manual_seed(0)
    ours, theirs = FPN([8, 12, 16], [4, 8, 16], 6), FeaturePyramidNetwork([8, 12, 16], 6, LastLevelMaxPool())
    names = {"lateral": "inner_blocks", "output": "layer_blocks"}
    state = {}
    for name, value in ours.state_dict().items():
        part, i, leaf = name.split(".")
        state[f"{names[part]}.{i}.0.{leaf}"] = value
    theirs.load_state_dict(state)
    given, same = maps(), maps()
    got = Coarser(6, 16, 32, learned=False)(ours(given))
    want = list(theirs({str(i): m for i, m in enumerate(same)}).values())
    assert len(got) == len(want) == 4
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    for found in (got, want):
        sum((m * m).sum() for m in found).backward()
    for a, b in zip(given, same, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
    assert (ours.channels, ours.strides) == ([6, 6, 6], [4, 8, 16])


def test_any_ratio_of_sizes_and_one_map():
    assert [m.shape[-2:] for m in FPN([8, 16], [4, 16], 6)(maps()[::2])] == [(21, 13), (6, 4)]
    (got,) = FPN([16], [16], 6)(maps()[2:])
    assert got.shape == (2, 6, 6, 4)


def test_coarser_maps_are_half_as_fine_rounded_up():
    torch.manual_seed(0)
    top = torch.randn(1, 6, 7, 5)
    for learned in (False, True):
        more = Coarser(6, 32, 128, learned)
        got = more([top])
        assert more.strides == [64, 128]
        assert [tuple(m.shape[-2:]) for m in got] == [(7, 5), (4, 3), (2, 2)]
    torch.testing.assert_close(got[1], more.convs[0](top))
    torch.testing.assert_close(got[2], more.convs[1](F.relu(got[1])))
    assert Coarser(6, 28, 64, learned=True).strides == [56]
    assert Coarser(6, 64, 64, learned=True).strides == []


def test_the_simple_pyramid_by_definition():
    torch.manual_seed(0)
    neck = SimplePyramid([16, 32], [16, 16], 8)
    assert (neck.channels, neck.strides) == ([8] * 4, [4, 8, 16, 32])
    for p in neck.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x = torch.randn(2, 32, 5, 7)
    got = neck([x[:, :16], x])
    assert [tuple(m.shape) for m in got] == [(2, 8, 20, 28), (2, 8, 10, 14), (2, 8, 5, 7), (2, 8, 3, 4)]

    def norm(m, n):
        mean, var = m.mean(1, keepdim=True), m.var(1, keepdim=True, correction=0)
        return (m - mean) / (var + 1e-6).sqrt() * n.weight.view(-1, 1, 1) + n.bias.view(-1, 1, 1)

    def transposed(m, conv):  # every value spreads over 2 x 2 places of its own
        parts = torch.einsum("bchw,coij->bohiwj", m, conv.weight)
        return parts.flatten(4, 5).flatten(2, 3) + conv.bias.view(-1, 1, 1)

    first, second, third, fourth = neck.levels
    inner = {
        0: (transposed(F.gelu(norm(transposed(x, first[0]), first[1])), first[3]), first[4:]),
        1: (transposed(x, second[0]), second[1:]),
        2: (x, third),
        3: (F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-torch.inf), 2), fourth[1:]),
    }
    for i, (m, (one, norm1, three, norm2)) in inner.items():
        want = norm(F.conv2d(norm(F.conv2d(m, one.weight), norm1), three.weight, padding=1), norm2)
        torch.testing.assert_close(got[i], want, rtol=1e-4, atol=1e-4)


def test_every_parameter_learns():
    neck = SimplePyramid([16], [16], 8)
    sum((m * torch.randn_like(m)).sum() for m in neck([torch.randn(2, 16, 4, 6)])).backward()
    assert not [n for n, p in neck.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize(("name", "finest", "neck", "own", "strides"), [
    ("swin_tiny", 4, FPN, 4, [4, 8, 16, 32, 64]), ("swin_tiny", 8, FPN, 3, [8, 16, 32, 64]),
    ("cvt_13", 4, FPN, 3, [4, 8, 16, 32, 64]), ("vit_base_patch16_224", 4, SimplePyramid, 4, [4, 8, 16, 32, 64]),
    ("vim_tiny", 8, SimplePyramid, 3, [8, 16, 32, 64]),
    ("vit_small_patch32_224", 4, SimplePyramid, 4, [8, 16, 32, 64]),
])  # fmt: skip
def test_a_backbone_gets_the_neck_that_its_strides_ask_for(name, finest, neck, own, strides):
    made = Necked(tiny_pyramid(name), 8, finest, 64, learned=False)
    assert (type(made.neck), made.own, made.strides) == (neck, own, strides)
    side = 2 * made.multiple
    got = made(torch.randn(1, 3, side, 2 * side))
    assert list(got) == [str(i) for i in range(len(strides))]
    for m, s in zip(got.values(), strides, strict=True):
        assert m.shape == (1, 8, -(-side // s), -(-2 * side // s))


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"from fine to coarse; these have strides \[16, 16\].*SimplePyramid"):
        FPN([8, 8], [16, 16])
    with pytest.raises(ValueError, match="3 maps, and this FPN is made for 2"):
        FPN([8, 12], [4, 8], 6)(maps())
    with pytest.raises(ValueError, match=r"channels divide by 4; these have channels \[8, 10\]"):
        SimplePyramid([8, 10], [16, 16])
    with pytest.raises(ValueError, match="a map of stride 4 gives none of stride 16 or coarser"):
        SimplePyramid([8], [4], 8, 16)
    with pytest.raises(ValueError, match=r"strides \[4, 8, 16\]: none is 32 or coarser"):
        Necked(tiny_pyramid("cvt_13"), 8, 32, 64, learned=False)
    with pytest.raises(ValueError, match="Linear does not say its channels and strides"):
        Necked(torch.nn.Linear(3, 3), 8, 4, 64, learned=False)
