"""The network of the reference FID computes what torch-fidelity's port of it computes, stretching of the image too."""

from pathlib import Path

import pytest
import torch
from torch import nn

from patchloom.vision.inception import Inception, prepare, stretch
from patchloom.vision.tables import find_weights, name_of


def lively() -> Inception:
    """Random weights that keep the activations alive through all eleven blocks."""
    network = Inception().eval()
    for m in network.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight)
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.uniform_(-0.2, 0.2)
            m.running_var.uniform_(0.5, 2)
    return network


@pytest.mark.parametrize("size", [(45, 70), (299, 299), (400, 301)])
def test_equals_torch_fidelity(tmp_path: Path, size: tuple[int, int]) -> None:
    theirs_of = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    network = lively()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    theirs = theirs_of("x", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(tmp_path / "w.pth"))
    image = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    with torch.inference_mode():
        expected, found = theirs(image), network(prepare(image))
    assert expected[0].std() > 0.01
    for e, f in zip(expected, found, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-5, atol=1e-5 * float(e.abs().max()))


def test_stretching_has_no_offset() -> None:
    x = torch.arange(6.0).view(1, 1, 1, 6)
    y = stretch(x, 3)[0, 0, 0]
    assert y[0] == 0
    torch.testing.assert_close(y, (torch.arange(299) * 6 / 299).clamp(max=5.0))


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"float32 \(1, 3, 8, 8\): uint8"):
        prepare(torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"uint8 \(B, 3, H, W\)"):
        prepare(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


def test_its_weights_have_a_name() -> None:
    variant, weights = find_weights("inception")
    assert name_of(weights) == f"{variant}.fid_2015"
    assert find_weights("inception.fid_2015") == (variant, weights)
