"""Tables of sizes: what torch computes of them in a graph is what numpy computes beforehand."""

import numpy as np
import pytest
import torch

from patchloom.kernels import distance_bias, dtcwt
from patchloom.kernels.pool import means
from patchloom.kernels.sizes import kept, modulo, table
from patchloom.vision.mixers import decomposed, factorized, gaussian_mask, manhattan, relative, rotary, sliced, window
from patchloom.vision.stems import resformer

TABLES = [
    (window.offsets, (7, 7)), (window.offsets, (7, 3)), (window.apart, (9, 14, 7, 3, True)),
    (window.apart, (14, 21, 7, 3, False)), (window.apart, (5, 9, 4, 0, True)), (relative.offsets, (3, 5)),
    (decomposed.offsets, (6,)), (factorized.window_places, (17, 2)), (factorized.window_places, (1, 2)),
    (rotary.turns_of, (11, 8)), (manhattan.turns_of, (11, 8)), (manhattan.penalties, (9, 3, 2.0, 4.0)),
    (resformer.sines, (3, 5, 16)), (gaussian_mask.distance, (4, 13)), (gaussian_mask.log_distance, (4, 13)),
    (gaussian_mask.offsets, (6,)), (distance_bias.places, (5, 4, 2)), (dtcwt.reflected, (7, 6)),
    (dtcwt.reflected, (2, 9)), (sliced.spread, (35,)),
]  # fmt: skip


@pytest.mark.parametrize(("make", "sizes"), TABLES, ids=lambda v: getattr(v, "__qualname__", str(v)))
def test_torch_computes_what_numpy_does(make, sizes):
    want, got = make(*sizes), make(*sizes, xp=torch)
    assert isinstance(want, np.ndarray)
    assert got.dtype == torch.from_numpy(want).dtype
    torch.testing.assert_close(got, torch.from_numpy(want), rtol=1e-5, atol=1e-6)
    assert torch.equal(table(make, *sizes), torch.from_numpy(want))
    assert kept(make, *sizes) is kept(make, *sizes)


def test_windows_that_shift_keep_strangers_apart():
    assert set(np.unique(window.apart(8, 8, 4, 2, True))) == {0, -100}
    assert set(np.unique(window.apart(5, 8, 4, 0, True))) == {0, -np.inf}
    assert window.apart(8, 8, 4, 0, True) is None


@pytest.mark.parametrize("size", [(6, 8), (7, 9), (1, 3)])
def test_means_at_the_edge_are_of_what_is_there(size):
    class Open(torch.nn.Module):
        def forward(self, x):
            return means(x, 2)

    x = torch.randn(2, 3, *size)
    want = torch.nn.functional.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    assert torch.equal(means(x, 2), want)
    if min(size) > 1:
        sides = {axis: torch.export.Dim(n, min=3, max=99) for axis, n in ((2, "h"), (3, "w"))}
        program = torch.export.export(Open(), (torch.randn(2, 3, 10, 13),), dynamic_shapes=(sides,))
        torch.testing.assert_close(program.module()(x), want)


def test_remainders():
    assert modulo(np.arange(-3, 3), 4, np).tolist() == [1, 2, 3, 0, 1, 2]
    assert modulo(torch.arange(-3, 3), 4, torch).tolist() == [1, 2, 3, 0, 1, 2]
