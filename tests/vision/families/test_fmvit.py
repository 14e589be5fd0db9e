"""FMViT: parts that fold exactly; a network of our own of them. No record exists: nothing of it is published."""

import pytest
import torch
from plain import fmvit as plain
from torch import nn

from patchloom.vision.fold import fold
from patchloom.vision.layers import Linear
from patchloom.vision.mixers.frequency import Frequencies
from patchloom.vision.reparam import Branches, identity_kernel, regrouped
from patchloom.vision.zoo import create_model, model_info


def numbers(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def shaken(module):
    """With statistics and affine numbers that are not 0 and 1."""
    torch.manual_seed(1)
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(m.running_mean, std=0.3)
            nn.init.uniform_(m.running_var, 0.5, 2)
            nn.init.normal_(m.weight, m.weight.mean().item(), 0.1)
            nn.init.normal_(m.bias, std=0.3)
    return module.eval()


@pytest.mark.parametrize(
    ("convolutions", "stride", "identity", "out", "groups"),
    [
        ([(3, 4), (3, 12), (1, 4)], 1, True, 12, 4),
        ([(3, 1), (1, 1)], 1, True, 12, 1),  # RepVGG
        ([(3, 1), (1, 1)], 2, False, 24, 1),
        ([(5, 6), (3, 4), (1, 12)], 1, True, 12, 2),
        ([(1, 1), (1, 2), (1, 4)], 1, True, 12, None),
        ([(1, 2), (1, 4)], 1, False, 8, None),
        ([(1, 12)], 1, True, 12, None),
        ([(3, 12)], 2, False, 24, 12),
    ],
)
@torch.inference_mode()
def test_branches_fold_into_one_layer(convolutions, stride, identity, out, groups):
    module = shaken(Branches(12, out, convolutions, stride, identity=identity, act="relu")).double()
    folded, m = fold(module), numbers(2, 7, 9, 12, dtype=torch.float64)
    layers = [x for x in folded.modules() if isinstance(x, nn.Conv2d | nn.Linear | nn.modules.batchnorm._BatchNorm)]
    assert len(layers) == 1
    assert type(layers[0]) is Linear if groups is None else layers[0].groups == groups
    # norms give their constants in float32, so doubles too agree to its precision
    torch.testing.assert_close(folded(m), module(m), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fold(folded)(m), folded(m), rtol=0, atol=0)


@torch.inference_mode()
def test_a_group_convolution_is_a_wider_one_with_zeros():
    x, weight = numbers(1, 12, 5, 5), numbers(24, 2, 3, 3)
    want = nn.functional.conv2d(x, weight, padding=1, groups=6)
    for to in (1, 2, 3, 6):
        got = nn.functional.conv2d(x, regrouped(weight, 6, to, 5), padding=2, groups=to)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for groups in (1, 4, 12):
        assert torch.equal(nn.functional.conv2d(x, identity_kernel(12, groups, 3, x), padding=1, groups=groups), x)


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="in 6 groups is no 3x3 one in 4"):
        regrouped(numbers(24, 2, 3, 3), 6, 4, 3)
    with pytest.raises(ValueError, match="identity=True takes"):
        Branches(4, 8, [(1, 1)], identity=True)
    with pytest.raises(ValueError, match="kernels must be odd"):
        Branches(4, 4, [(2, 1)])
    with pytest.raises(ValueError, match="got none"):
        Branches(4, 4, [])
    with pytest.raises(ValueError, match="heads and groups of 32"):
        Frequencies().build(32, 0)


@torch.inference_mode()
def test_equals_the_plain_form_and_its_folded_form():
    torch.manual_seed(0)
    theirs, ours, x = plain.build().eval(), shaken(create_model("fmvit_own")), numbers(2, 3, 97, 131)
    theirs.load_state_dict(ours.state_dict())
    want, folded = theirs(x), ours.fold()
    torch.testing.assert_close(ours(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
    torch.testing.assert_close(folded(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in folded.modules())


def test_size_of_the_network():
    info = model_info("fmvit_own")
    assert info.parameters == info.trainable == 22_289_448
    folded = create_model("fmvit_own").fold()
    assert sum(p.numel() for p in folded.parameters()) < 14e6


@pytest.mark.parametrize("size", [(97, 131), (160, 288), (64, 64)])
@torch.inference_mode()
def test_any_size_goes(size):
    assert create_model("fmvit_own").eval()(numbers(1, 3, *size)).isfinite().all()
