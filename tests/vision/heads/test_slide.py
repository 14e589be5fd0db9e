"""Sliding windows over an image, against every window by itself."""

import pytest
import torch
import torch.nn.functional as F
from semantic_parts import CLASSES, SIZE, image, small, stirred

from patchloom.vision.heads.slide import Slide


def brute(model, x, size, stride):
    """Pixel by pixel: the mean over the windows that hold it."""
    h, w = x.shape[-2:]
    total, count = 0, 0
    for y0 in sorted({min(y, max(0, h - size[0])) for y in range(0, h, stride[0])}):
        for x0 in sorted({min(y, max(0, w - size[1])) for y in range(0, w, stride[1])}):
            found = model(x[..., y0 : y0 + size[0], x0 : x0 + size[1]])
            sides = (x0, w - x0 - found.shape[-1], y0, h - y0 - found.shape[-2])
            total, count = total + F.pad(found, sides), count + F.pad(torch.ones_like(found), sides)
    return total / count


@pytest.mark.parametrize(
    ("size", "stride"), [((64, 64), (43, 43)), ((32, 48), (32, 48)), ((500, 40), (500, 33)), ((300, 300), (100, 100))]
)
@torch.no_grad()
def test_windows_cover_the_image(size, stride):
    model, x = stirred(small()), image((97, 131), 1)
    slide = Slide(size, stride)
    torch.testing.assert_close(slide(model, x), brute(model, x, size, stride), rtol=1e-4, atol=1e-5)
    if min(size) >= 300:
        torch.testing.assert_close(slide(model, x), model(x))
    elements = torch.arange(97.0 * 131).view(1, 1, 97, 131)
    torch.testing.assert_close(slide(lambda part: part, elements), elements)


@torch.no_grad()
def test_a_model_slides_in_evaluation_only():
    model, x = stirred(small(slide=Slide(64, 48))), image((97, 131), 1)
    torch.testing.assert_close(model(x), model.slide(model.whole, x))
    assert not torch.allclose(model(x), model.whole(x))
    assert len(list(model.slide.windows(97, 131))) == 2 * 3
    model.train().slide = Slide(1, 1)  # which no backbone takes as an image: nobody asks
    assert model(image()).shape == (2, CLASSES, *SIZE)
