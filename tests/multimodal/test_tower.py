"""Towers of every kind, connectors, tiles and how pictures are prepared."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from multimodal_parts import small_vlm
from PIL import Image

from patchloom.multimodal.connectors import PixelShuffle, Project, Resampler
from patchloom.multimodal.eye import Eye, open_eye
from patchloom.multimodal.tiles import layout, tiled
from patchloom.multimodal.tower import Seen, Tower
from patchloom.vision.plugins import attached
from patchloom.vision.plugins.merge import Merge
from patchloom.vision.zoo import create_model


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "level", "stride", "dim"),
    [
        ("deit_tiny_patch16_224", -2, 16, 192),
        ("swin_tiny", 2, 16, 384),
        ("swin_tiny", -1, 32, 768),
        ("poolformer_s12", 1, 8, 128),
    ],
)
def test_any_backbone(name: str, level: int, stride: int, dim: int) -> None:
    model = create_model(name, num_classes=0).eval()
    tower = Tower(model, level).eval()
    image = torch.randn(2, 3, 65, 96)
    seen = tower(image)
    assert (tower.stride, tower.dim) == (stride, dim)
    assert seen.grid == tower.grid((65, 96))
    assert seen.x.shape == (2, seen.grid[0] * seen.grid[1], dim)
    taps = model.forward_intermediates(image, [level], output_fmt="NLC", intermediates_only=True, norm=False)
    want = taps[0] if level != -1 else model.norm(taps[0])
    torch.testing.assert_close(seen.x, want)


@torch.inference_mode()
def test_levels_side_by_side_and_special_tokens() -> None:
    model = create_model("deit_tiny_patch16_224", num_classes=0).eval()
    image = torch.randn(1, 3, 48, 32)
    a, b, c = (Tower(model, level, special=True)(image) for level in (2, -2, (2, -2)))
    assert (a.special, a.grid, a.x.shape) == (1, (3, 2), (1, 7, 192))
    assert torch.equal(c.x, torch.cat([a.x, b.x], -1))
    with pytest.raises(ValueError, match="strides"):
        Tower(create_model("swin_tiny", num_classes=0), (0, 1))
    with pytest.raises(ValueError, match="out of range"):
        Tower(model, 12)
    with pytest.raises(ValueError, match="Backbone or a Classifier"):
        Tower(torch.nn.Linear(2, 2))  # type: ignore[arg-type]


@torch.inference_mode()
def test_merging_in_the_tower() -> None:
    model = create_model("deit_tiny_patch16_224", num_classes=0).eval()
    image = torch.randn(1, 3, 96, 96)
    plain = Tower(model)(image)
    for fewer in (False, True):
        tower = Tower(model, fewer=fewer)
        with attached(tower, Merge(r=0)):
            torch.testing.assert_close(tower(image).x, plain.x)
        with attached(tower, Merge(r=2)):
            seen = tower(image)
        assert seen.x.shape[1] == (36 - 24 if fewer else 36)
        assert seen.grid == (None if fewer else (6, 6))
        if fewer:
            with pytest.raises(ValueError, match="full grid"):
                PixelShuffle(2).build(192, 8)(seen)
            assert Resampler(4, 1, 8).build(192, 8)(seen).shape == (1, 4, 8)


@pytest.mark.parametrize("connector", [Project(1), Project(3), PixelShuffle(2), PixelShuffle(3, 1), Resampler(7, 2, 4)])
@pytest.mark.parametrize(("grid", "special"), [((4, 6), 0), ((5, 3), 2), ((1, 1), 1)])
def test_connectors(connector: object, grid: tuple[int, int], special: int) -> None:
    module = connector.build(16, 24)  # type: ignore[attr-defined]
    x = torch.randn(2, special + grid[0] * grid[1], 16)
    y = module(Seen(x, grid, special))
    assert y.shape == (2, connector.count(grid, special), 24)  # type: ignore[attr-defined]
    alone = module(Seen(x[1:], grid, special))
    torch.testing.assert_close(y[1:], alone, rtol=1e-4, atol=1e-5)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_pixel_shuffle_takes_neighbours() -> None:
    module = PixelShuffle(2, depth=1).build(1, 4)
    with torch.no_grad():
        module.mlp.layers[0].weight.copy_(torch.eye(4))
        y = module(Seen(torch.arange(16.0).view(1, 16, 1), (4, 4)))
    assert y[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_wrong_connectors() -> None:
    with pytest.raises(ValueError, match="depth=0"):
        Project(0)
    with pytest.raises(ValueError, match="act 'gel'"):
        Project(act="gel")
    with pytest.raises(ValueError, match="act 'gel'"):
        PixelShuffle(act="gel")
    with pytest.raises(ValueError, match="queries=0"):
        Resampler(queries=0)
    with pytest.raises(ValueError, match="heads=5 of a Resampler do not divide the tower's 16 channels"):
        small_vlm(connector=Resampler(heads=5))


def test_tiles() -> None:
    assert layout((100, 100), (50, 50), 4) == (2, 2)
    assert layout((50, 200), (50, 50), 4) == (1, 4)
    assert layout((300, 80), (50, 50), 6) == (4, 1) or layout((300, 80), (50, 50), 6)[0] > 2
    assert layout((20, 30), (50, 50), 6) == (1, 1)
    image = torch.rand(3, 64, 96)
    tiles = tiled(image, 32, 6)
    assert tiles.shape == (7, 3, 32, 32)
    whole = tiles[1:].view(2, 3, 3, 32, 32).permute(2, 0, 3, 1, 4).reshape(3, 64, 96)
    torch.testing.assert_close(whole, image, atol=1e-5, rtol=0)
    with torch.inference_mode():
        assert [len(t) for t in small_vlm().see([tiles, image])] == [7 * 16, 8 * 12]
    with pytest.raises(ValueError, match="most=0"):
        tiled(image, 32, 0)


def test_pictures_are_prepared_as_clip_prepares_them(tmp_path: Path) -> None:
    from transformers import CLIPImageProcessor

    picture = Image.fromarray(np.random.RandomState(0).randint(0, 255, (61, 90, 3), dtype=np.uint8))
    theirs = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    want = theirs(picture, return_tensors="pt")["pixel_values"][0]
    theirs.save_pretrained(tmp_path)
    eye = open_eye(tmp_path)
    assert eye.size == (28, 28)
    got = eye(picture)
    assert got.shape == want.shape
    assert float((got - want).abs().mean()) < 0.02  # resampling and rounding to 8 bits differ by library
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["image_mean"] == list(eye.mean)
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json"):
        open_eye(tmp_path / "none")


@pytest.mark.parametrize(
    ("fit", "shape"), [("pad", (3, 32, 40)), ("stretch", (3, 32, 40)), ("keep", (3, 61, 90)), ("tiles", (5, 3, 32, 40))]
)
def test_other_ways_to_fit(fit: str, shape: tuple[int, ...]) -> None:
    picture = Image.fromarray(np.full((61, 90, 3), 200, dtype=np.uint8))
    assert Eye((32, 40), fit=fit)(picture).shape == shape  # type: ignore[arg-type]


def test_wrong_pictures() -> None:
    with pytest.raises(ValueError, match="RGB of 8 bits"):
        Eye()(Image.new("L", (8, 8)))
    with pytest.raises(ValueError, match="fit='cut'"):
        Eye(fit="cut")  # type: ignore[arg-type]
