"""A hundred training steps under bfloat16 autocast go as in float32, on real photographs."""

from collections.abc import Iterator

import pytest
import torch
from real_data import real
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from patchloom.vision.zoo import create_model

STEPS, LAST = 100, 20


def batches(root) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The same shuffled batches of 16 photographs of 96 pixels each time, over and over."""
    see = v2.Compose([
        v2.Resize(96), v2.CenterCrop(96), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    photos = ImageFolder(str(root / "train"), see)
    g = torch.Generator().manual_seed(0)
    while True:
        yield from DataLoader(photos, 16, shuffle=True, drop_last=True, generator=g)


def losses(name: str, root, half: bool) -> list[float]:
    torch.manual_seed(0)
    model = create_model(name, num_classes=5, img_size=96).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4, weight_decay=0.05)
    found = []
    for _, (image, label) in zip(range(STEPS), batches(root), strict=False):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = torch.nn.functional.cross_entropy(model(image), label)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vim_tiny", "vmamba_tiny_s1l8"])
def test_bfloat16_trains_as_float32_does(name):
    root = real("flower_photos_mini")
    full, half = (losses(name, root, on) for on in (False, True))
    a, b = (sum(found[-LAST:]) / LAST for found in (full, half))
    print(f"\n{name}, the last {LAST} of {STEPS} steps: {a:.4f} in float32, {b:.4f} under autocast ({b / a - 1:+.2%})")
    assert all(loss == loss for loss in half)
    assert a < sum(full[:LAST]) / LAST  # it learns
    assert abs(b / a - 1) < 0.03
