"""PyramidTNT: what its description states. There is no record of it."""

import pytest
import torch
from torch.nn.functional import conv2d

from patchloom.vision.mixers.pooled_attention import PooledAttention
from patchloom.vision.stems.pyramid_tnt import MergeWords, cut
from patchloom.vision.tokens import Tokens
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model, model_info

FACTS = {  # millions of parameters, GMACs, side of the image
    "pyramid_tnt_ti": (10.6, 0.6, 192), "pyramid_tnt_s": (32.0, 3.3, 256), "pyramid_tnt_m": (85.0, 8.2, 256),
    "pyramid_tnt_b": (157, 16.0, 256),
}  # fmt: skip


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", FACTS)
def test_size_is_about_as_stated(name):
    millions, gmacs, side = FACTS[name]
    info = model_info(name)
    assert info.input == (3, side, side)
    assert info.parameters / 1e6 == pytest.approx(millions, rel=0.007)
    assert info.macs / 1e9 == pytest.approx(gmacs, abs=0.05)


def test_words_stand_where_the_description_has_them():
    model = create_model("pyramid_tnt_s", device="meta")
    worded = [[hasattr(b, "inner") for b in s.blocks] for s in model.backbone.stages]
    assert worded == [[True, False], [True] * 2 + [False] * 6, [True] + [False] * 3, [True, False]]
    assert model.backbone.strides == [8, 16, 32, 64]
    assert model.backbone.channels == [128, 256, 512, 512]


def test_blocks_of_a_stage_share_their_positions():
    model = create_model("pyramid_tnt_ti")
    tables = [[b.mixer.table for b in s.blocks] for s in model.backbone.stages]
    assert all(t is stage[0] for stage in tables for t in stage)
    assert [tuple(stage[0].shape) for stage in tables] == [
        (1, 2, 576, 36), (1, 4, 144, 36), (1, 8, 36, 36), (1, 8, 9, 9)
    ]  # fmt: skip
    other = create_model("pyramid_tnt_ti", img_size=256)
    report = load_published(other, model.state_dict())
    assert len(report.resized) == sum(map(len, tables))


def test_words_are_cut_from_their_patch():
    m = numbers(2, 8, 12, 5)
    words = cut(m, 2, 3)
    assert words.shape == (12, 16, 5)
    assert torch.equal(words[6 + 3 + 1].view(4, 4, 5), m[1, 4:, 4:8])  # second image, second row, second column


@torch.inference_mode()
def test_words_of_four_patches_are_merged_alone():
    down = MergeWords(6, 10, 3, 7).eval()
    t = Tokens(numbers(1, 15, 6), (3, 5), inner=numbers(15, 16, 3, seed=1))
    out = down(t)
    assert (out.grid, out.x.shape, out.inner.shape) == ((2, 3), (1, 6, 10), (6, 16, 7))
    w = down.word_norm(t.inner).view(3, 5, 4, 4, 3)
    joined = torch.cat([torch.cat([w[0, 2], w[0, 3]], 1), torch.cat([w[1, 2], w[1, 3]], 1)])  # 8 8 c
    want = conv2d(joined.permute(2, 0, 1)[None], down.word_conv.weight, down.word_conv.bias, 2, 1)
    torch.testing.assert_close(out.inner[1], want[0].flatten(1).mT, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_pooled_attention_written_out():
    mixer = PooledAttention(8, 2, 2, (4, 6)).eval()
    t = Tokens(numbers(2, 24, 8), (4, 6))
    pooled = t.map().view(2, 2, 2, 3, 2, 8).mean((2, 4)).flatten(1, 2)
    k, v = mixer.kv(mixer.norm(mixer.reduce(pooled))).chunk(2, -1)
    q, k, v = (x.unflatten(-1, (2, 4)).transpose(1, 2) for x in (mixer.q(t.x), k, v))
    want = (q @ k.mT / 2 + mixer.table).softmax(-1) @ v
    torch.testing.assert_close(mixer(t), mixer.proj(want.transpose(1, 2).flatten(2)), rtol=1e-4, atol=1e-5)
    odd = Tokens(numbers(2, 15, 8), (3, 5))
    assert mixer(odd).shape == (2, 15, 8)
    assert mixer.resized((3, 5)).shape == (1, 2, 15, 6)
