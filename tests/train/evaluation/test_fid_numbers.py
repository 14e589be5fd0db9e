"""The Fréchet distance, inception score, precision and recall equal scipy's and torch-fidelity's on given features."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from patchloom.train.evaluation.fid_numbers import Moments, frechet_distance, inception_score, precision_recall


def features(count: int, width: int, seed: int, shift: float = 0.0) -> Tensor:
    """Correlated and skewed, as an extractor's are."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=torch.Generator().manual_seed(7)) / width**0.5
    return (torch.randn(count, width, generator=g) @ mix + shift).relu() * 3


def test_moments_equal_numpy_whatever_the_parts() -> None:
    x = features(1001, 9, 0) + 1e4  # far from zero: sums of squares would lose eight digits
    for found in (Moments.of(x), Moments.of(x.split(100)), Moments.of(iter(x.split([1, 1000])))):
        assert found.count == 1001
        np.testing.assert_allclose(found.mean, x.double().mean(0), rtol=1e-12)
        np.testing.assert_allclose(found.cov, np.cov(x.double().numpy(), rowvar=False), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("counts", "width"), [((300, 500), 16), ((700, 700), 256), ((60, 90), 128), ((60, 300), 128)])
def test_distance_equals_scipy_and_torch_fidelity(counts: tuple[int, int], width: int) -> None:
    """In the last cases there are fewer images than features, so that both covariances, or one, are singular; the same
    comes of the moments alone."""
    from scipy.linalg import sqrtm

    a, b = features(counts[0], width, 1), features(counts[1], width, 2, 0.3)
    m, n = Moments.of(a), Moments.of(b)
    found = frechet_distance(m, n)
    root = np.real(sqrtm(m.cov.numpy() @ n.cov.numpy()))
    scipys = float((m.mean - n.mean).square().sum() + m.cov.trace() + n.cov.trace()) - 2 * np.trace(root)
    assert found == pytest.approx(scipys, rel=1e-6)
    metric = pytest.importorskip("torch_fidelity.metric_fid")
    theirs = metric.fid_statistics_to_metric(*map(metric.fid_features_to_statistics, (a.double(), b.double())), False)
    assert found == pytest.approx(theirs[metric.KEY_METRIC_FID], rel=1e-6)
    assert frechet_distance(n, m) == pytest.approx(found, rel=1e-7)
    assert frechet_distance(replace(m, root=None), replace(n, root=None)) == pytest.approx(found, rel=1e-7)


def test_distance_of_gaussians_is_known() -> None:
    """Diagonal covariances: sum of (m - m')² + (s - s')²."""
    s, t = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([2.0, 2.0, 0.0]).double()
    a = Moments(10, torch.zeros(3).double(), (s**2).diag())
    b = Moments(10, torch.tensor([3.0, 0, 0]).double(), (t**2).diag())
    assert frechet_distance(a, b) == pytest.approx(9 + 1 + 0 + 0.25, rel=1e-12)
    x = Moments.of(features(50, 64, 3))
    assert 0 <= frechet_distance(x, x) < 1e-5 * float(x.cov.trace())


def test_inception_score_equals_torch_fidelity() -> None:
    logits = torch.randn(503, 40, generator=torch.Generator().manual_seed(0)) * 4
    metric = pytest.importorskip("torch_fidelity.metric_isc")
    theirs = metric.isc_features_to_metric(logits)
    mean, deviation = inception_score(logits)
    assert mean == pytest.approx(theirs[metric.KEY_METRIC_ISC_MEAN], rel=1e-10)
    assert deviation == pytest.approx(theirs[metric.KEY_METRIC_ISC_STD], rel=1e-8)


def test_inception_score_has_its_bounds() -> None:
    """1 where all images look alike; the number of classes where each is sure of one and all are as frequent."""
    assert inception_score(torch.zeros(100, 5))[0] == pytest.approx(1)
    sure = 1000 * torch.eye(4).repeat_interleave(200, 0)  # sorted by class: splits are of shuffled images
    assert 3.8 < inception_score(sure)[0] <= 4 + 1e-9


def test_precision_and_recall_equal_torch_fidelity() -> None:
    generated, real = features(150, 12, 4), features(220, 12, 5, 0.2)
    metric = pytest.importorskip("torch_fidelity.metric_prc")
    theirs = metric.calculate_precision_recall_full(generated.double(), real.double())
    found = precision_recall(generated, real)
    assert found == pytest.approx(theirs)
    assert 0.1 < found[0] < 0.99


def test_precision_and_recall_tell_modes_apart() -> None:
    """Only one of two modes is made: all made are real, half of the real ones are covered."""
    mode = features(100, 6, 6)
    assert precision_recall(mode, torch.cat([mode, features(100, 6, 8) + 100])) == pytest.approx((1.0, 0.5))
    assert precision_recall(mode, mode) == (1.0, 1.0)
    assert precision_recall(mode + 1000, mode) == (0.0, 0.0)


def test_what_cannot_be_told_is_refused() -> None:
    x, y = features(20, 4, 0), features(20, 5, 0)
    with pytest.raises(ValueError, match="features of 4 and of 5 numbers"):
        frechet_distance(Moments.of(x), Moments.of(y))
    with pytest.raises(ValueError, match="1 feature vectors have no covariance"):
        Moments.of(x[:1])
    with pytest.raises(ValueError, match="9 images are fewer than the 10 splits"):
        inception_score(torch.zeros(9, 3))
    with pytest.raises(ValueError, match="3 generated images: precision and recall need more than 3"):
        precision_recall(x[:3], x)
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(Moments.of(x * float("inf")), Moments.of(x))
