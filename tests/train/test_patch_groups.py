"""Which patches a token holds, layer by layer, and the picture of it."""

import numpy as np
import pytest
import torch
from token_parts import vit
from torch import Tensor

from patchloom.train.patch_groups import DARK, groups_of, paint, watch
from patchloom.vision.tokens import Tokens


def test_groups_are_the_tokens_of_patches() -> None:
    x = torch.zeros(1, 5, 2)
    assert groups_of(Tokens(x, (2, 2), (0,)), None).tolist() == [1, 2, 3, 4]
    source = torch.tensor([[1, 1, -1, 3]])
    assert groups_of(Tokens(x, None, (0,), source=source), None).tolist() == [1, 1, -1, 3]
    policy = torch.tensor([1.0, 1, 0, 1, 0])[None, :, None]
    assert groups_of(Tokens(x, (2, 2), (0,), policy=policy), None).tolist() == [1, -1, 3, -1]
    spread = torch.tensor([[[0.1, 0.9], [0, 0], [-2, 1], [0.4, 0.6]]])
    assert groups_of(Tokens(x, None, spread=spread), None).tolist() == [1, -1, 0, 1]
    assert groups_of(Tokens(x, (2, 2)), torch.tensor([[0, 0, 1, 1]])).tolist() == [0, 0, 1, 1]


def test_a_picture_shows_what_happened_to_each_patch() -> None:
    pixels = np.random.default_rng(0).random((16, 24, 3))
    out = paint(pixels, np.array([[0, 0, 1], [-1, -1, 2]]))
    merged, dropped = pixels[:8, :16], pixels[8:, :16]
    np.testing.assert_allclose(out[1:7, 1:15], np.broadcast_to(merged.mean((0, 1)), (6, 14, 3)))
    np.testing.assert_allclose(out[9:, :16], DARK * dropped[1:])
    assert (out[8, :16] == 1).all()  # the line between a group and what is not of it
    assert (out[:8, 16] == 1).all()
    np.testing.assert_array_equal(out[:8, 17:], pixels[:8, 17:])
    np.testing.assert_array_equal(out[8:, 16:], pixels[8:, 16:])


@pytest.mark.parametrize(
    ("tokens", "dropped", "merged"),
    [("tome:r=1", False, True), ("evit:fuse=false", True, False), ("window_merge:side=4", False, True)],
)
def test_layers_are_watched(tokens: str, dropped: bool, merged: bool) -> None:
    layers = watch(vit(tokens=tokens), torch.randn(1, 3, 64, 64))
    assert [layer.block for layer in layers] == [f"stage 0, block {i}" for i in range(12)]
    last = layers[-1].summary()
    assert last["patches"] == 16
    assert (last["dropped"] > 0, last["merged"] > 0) == (dropped, merged)
    assert last["tokens"] == 17 - last["dropped"] - (last["merged"] - last["groups"])


@torch.inference_mode()
def test_watching_leaves_the_model_as_it_was() -> None:
    model, x = vit(tokens="tome:r=1"), torch.randn(1, 3, 64, 64)
    before: Tensor = model(x)
    watch(model, x)
    assert torch.equal(model(x), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
