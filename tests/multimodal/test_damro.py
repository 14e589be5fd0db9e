"""DAMRO: which tokens are outliers, what is read beside the prompt, and how both are judged."""

import math

import pytest
import torch
from multimodal_parts import IMAGE, small_vlm

from patchloom.multimodal.generate import Reading, generate
from patchloom.multimodal.plugins import attach, attached, plugin
from patchloom.multimodal.plugins.damro import Contrast, Damro, outlying
from patchloom.multimodal.splice import Sample
from patchloom.multimodal.vlm import VisionLanguage
from patchloom.vision.plugins import SeamError

OUT = Damro(top=3, alpha=1.0, beta=0.01)


def contrast(vlm: VisionLanguage) -> Contrast:
    assert isinstance(vlm.against, Contrast)
    return vlm.against


def attention(vlm: VisionLanguage, image: torch.Tensor) -> torch.Tensor:
    """(n): of the class token in the last block, mean over heads, written out."""
    block = vlm.tower.backbone.stages[0].blocks[-1]
    taken: list[torch.Tensor] = []
    handle = block.norm1.register_forward_hook(lambda _m, _i, y: taken.append(y))
    vlm.tower(image[None])
    handle.remove()
    q, k, _ = block.mixer.qkv(taken[0][0]).chunk(3, -1)
    heads = [(a[:1] @ b.T / math.sqrt(8)).softmax(-1) for a, b in zip(q.split(8, -1), k.split(8, -1), strict=True)]
    return sum(heads)[0, 1:] / len(heads)  # type: ignore[index, return-value]


@torch.inference_mode()
def test_outliers_are_what_the_class_token_looks_at() -> None:
    vlm, images = small_vlm(), [torch.randn(3, 32, 40), torch.randn(3, 24, 32), torch.randn(3, 32, 40)]
    samples = [Sample(torch.tensor([1, IMAGE, 5, IMAGE, 6, 7]), (images[0], images[1])),
               Sample(torch.tensor([1, IMAGE, 8]), (images[2],))]  # fmt: skip
    want = vlm.splice(samples, side="left")
    with attached(vlm, OUT):
        whole, few = contrast(vlm).prompts(vlm, samples)
    torch.testing.assert_close(whole.x, want.x)
    best = [attention(vlm, image).topk(3).indices.sort().values.tolist() for image in images]
    assert few.place[0].tolist() == [0, *[1 + i for i in best[0]], 21, *[22 + i for i in best[1]], 34, 35]
    assert few.real is not None
    assert few.place[1][few.real[1]].tolist() == [0, *[1 + i for i in best[2]], 21]
    assert few.image[1][few.real[1]].tolist() == [0, 1, 1, 1, 0]


@torch.inference_mode()
def test_tiles_are_one_picture_and_the_class_token_is_no_outlier() -> None:
    vlm, tiles = small_vlm(), torch.randn(2, 3, 16, 24)
    vlm.tower.special = True
    with attached(vlm, OUT):
        whole, few = contrast(vlm).prompts(vlm, [Sample(torch.tensor([1, IMAGE, 5]), (tiles,))])
    assert whole.image[0].tolist() == [0, *[1] * 14, 0]
    vlm.tower.special = False
    best = torch.cat([attention(vlm, tile) for tile in tiles]).topk(3).indices.sort().values
    assert few.place[0].tolist() == [0, *[1 + i + 1 + (i >= 6) for i in best.tolist()], 15]


def test_the_contrast_is_what_it_says() -> None:
    made = Contrast(Damro(alpha=0.5, beta=0.1))
    own, other = torch.tensor([[2.0, 1.9, 0.0, -4.0]]), torch.tensor([[5.0, 0.0, 0.0, -9.0]])
    p, q = own.softmax(-1), other.softmax(-1)
    want = (1.5 * p.log() - 0.5 * q.log())[0]
    got = made(own, other)[0]
    torch.testing.assert_close(got[:3], want[:3])
    assert got[3] == -torch.inf  # its p is below a tenth of the largest, however it would be preferred
    assert int(got.argmax()) == 1
    assert int(own.argmax()) == 0


@torch.inference_mode()
def test_words_are_chosen_by_both_readings() -> None:
    vlm, sample = small_vlm(), Sample(torch.tensor([1, IMAGE, 5, 6]), (torch.randn(3, 32, 32),))
    with attached(vlm, OUT):
        made = contrast(vlm)
        readings = [Reading(vlm.decoder, p, vlm.decoder.cache(4)) for p in made.prompts(vlm, [sample])]
        want = []
        for _ in range(4):
            word = made(*(r.logits() for r in readings)).argmax(-1)
            want.append(int(word))
            for r in readings:
                r.add(word)
        assert generate(vlm, [sample], most=4)[0].tolist() == want
    assert readings[1].cache.lengths() == [1 + 3 + 2 + 4] * 3
    assert torch.equal(readings[0].place, readings[1].place)


@torch.inference_mode()
def test_patches_that_the_tower_dropped_are_no_outliers() -> None:
    vlm, sample = small_vlm(), Sample(torch.tensor([1, IMAGE, 5]), (torch.randn(3, 32, 32),))
    with attached(vlm, plugin("evit:keep=0.5,fuse=false,at=1")), attached(vlm, OUT):
        (seen,) = vlm.see(sample.images)
        gone = {i for i, x in enumerate(seen) if torch.equal(x, vlm.connector.layers[1](vlm.connector.act(
            vlm.connector.layers[0].bias)))}  # fmt: skip
        whole, few = contrast(vlm).prompts(vlm, [sample])
        assert whole.image[0].sum() == 16
        assert len(gone) == 8
        assert not gone & {i - 1 for i in few.place[0, 1:-1].tolist()}
        vlm.tower.fewer = True
        with pytest.raises(ValueError, match="16 patches, and the tower hands on 8 tokens: fewer=False"):
            generate(vlm, [sample], most=1)
    with attached(vlm, plugin("tome:r=2")), pytest.raises(SeamError, match="taken by MergeLayer"):
        attach(vlm, OUT)


def test_a_picture_of_few_tokens_is_all_outliers() -> None:
    assert outlying(torch.tensor([0.1, 0.2]), 10).tolist() == [True, True]
    assert outlying(torch.tensor([0.1, 0.4, 0.2]), 2).tolist() == [False, True, True]


def test_it_reads_with_a_context_of_its_own_checks() -> None:
    vlm, sample = small_vlm(), Sample(torch.tensor([1, IMAGE, 5]), (torch.randn(3, 32, 32),))
    attach(vlm, OUT)
    with pytest.raises(ValueError, match="longer than the context of 256"):
        generate(vlm, [sample], most=256)
