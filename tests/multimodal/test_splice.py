"""Placeholders, padding on both sides, packing, labels; and the wrong input that users give."""

import json

import pytest
import torch
from multimodal_parts import IMAGE, small_vlm
from torch import Tensor

from patchloom.multimodal.connectors import PixelShuffle, Project, Resampler
from patchloom.multimodal.plugins import attach, attached, plugin
from patchloom.multimodal.splice import IGNORED, Sample, pack, splice
from patchloom.multimodal.vlm import VisionLanguage, targets
from patchloom.vision.description import describe, rebuild


def sample(text: list[int], images: int = 0, size: tuple[int, int] = (32, 40)) -> Sample:
    ids = torch.tensor(text)
    return Sample(ids, tuple(torch.randn(3, *size) for _ in range(images)), ids.masked_fill(ids < 10, IGNORED))


def three() -> list[Sample]:
    torch.manual_seed(0)
    return [sample([1, IMAGE, 5, 11, 12], 1), sample([1, 5, 13]), sample([IMAGE, 6, IMAGE, 7, 14, 2, 15], 2, (29, 17))]


@torch.inference_mode()
@pytest.mark.parametrize("connector", [Project(1), PixelShuffle(2), Resampler(5, 1, 4)])
def test_a_batch_is_its_samples(connector: object) -> None:
    vlm, samples = small_vlm(connector=connector), three()
    alone = [vlm([s]) for s in samples]
    for options in (
        {"side": "left"},
        {"side": "right"},
        {"rows": [[0, 1], [2]]},
        {"rows": [[2, 0, 1]], "side": "left"},
    ):
        both = vlm(samples, **options)
        found = pieces(both.logits, both.stream, options.get("rows") or [[0], [1], [2]])
        for i, want in enumerate(alone):
            torch.testing.assert_close(found[i], want.logits[0], rtol=1e-4, atol=1e-4)
        learned = both.target[both.target != IGNORED]  # type: ignore[index]
        assert sorted(learned.tolist()) == [11, 12, 13, 14, 15]
    losses = [vlm.loss(samples, **o) for o in ({}, {"side": "left"}, {"rows": [[0, 1], [2]]})]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses[0], losses[2], rtol=1e-5, atol=1e-6)


def pieces(logits: Tensor, stream: object, rows: list[list[int]]) -> dict[int, Tensor]:
    """The logits of each sample, of rows that hold them so."""
    found = {}
    for r, row in enumerate(rows):
        real = torch.ones_like(stream.place[r], dtype=torch.bool) if stream.real is None else stream.real[r]  # type: ignore[attr-defined]
        flat = logits[r][real]
        starts = [*(stream.place[r][real] == 0).nonzero()[:, 0].tolist(), len(flat)]  # type: ignore[attr-defined]
        found |= {i: flat[starts[j] : starts[j + 1]] for j, i in enumerate(row)}
    return found


@torch.inference_mode()
def test_tokens_of_images_stand_where_their_placeholders_did() -> None:
    vlm, (s, *_) = small_vlm(), three()
    (tokens,) = vlm.see(s.images)
    stream = vlm.splice([s])
    n = vlm.spec.count(vlm.tower.grid((32, 40)))
    assert len(tokens) == n == 20
    assert stream.image[0].tolist() == [0] + [1] * n + [0] * 3
    torch.testing.assert_close(stream.x[0, 1 : 1 + n], tokens)
    assert torch.equal(stream.x[0, 1 + n :], vlm.decoder.embed(torch.tensor([5, 11, 12])))
    assert stream.target is not None
    assert stream.target[0].tolist() == [IGNORED] * (n + 1) + [11, 12, IGNORED]
    wide = s._replace(ids=s.ids.repeat_interleave(torch.where(s.ids == IMAGE, n, 1)), labels=None)
    assert torch.equal(vlm.splice([wide]).x, stream.x)


@torch.inference_mode()
def test_fewer_image_tokens_keep_their_targets() -> None:
    vlm, samples = small_vlm(), three()
    with attached(vlm, plugin("fastv:k=1,r=0.5")):
        answer = vlm(samples)
        assert answer.target is not None
        assert answer.target.shape == answer.logits.shape[:2]
        assert sorted(answer.target[answer.target != IGNORED].tolist()) == [11, 12, 13, 14, 15]
        assert torch.equal(answer.target, targets(answer.stream))  # type: ignore[arg-type]
        assert vlm.loss(samples).isfinite()
        with pytest.raises(ValueError, match="packed"):
            vlm.loss(samples, rows=[[0, 1, 2]])


def test_every_part_learns() -> None:
    vlm = small_vlm(level=-2).train()
    for _ in range(2):
        vlm.zero_grad()
        vlm.loss(three()).backward()
    unread = ("tower.backbone.stages.0.blocks.2.",)  # behind the level that is read
    without = [n for n, p in vlm.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [n for n in without if not n.startswith(unread)] == []
    want = [p.grad.clone() for p in vlm.parameters() if p.grad is not None]
    vlm.set_grad_checkpointing()
    vlm.zero_grad()
    vlm.loss(three()).backward()
    for a, b in zip(want, [p.grad for p in vlm.parameters() if p.grad is not None], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [None, "swin_tiny"])
def test_it_says_what_it_is_made_of(name: str | None) -> None:
    vlm = small_vlm(name, connector=PixelShuffle(2), level=-2 if name is None else 1, layers=2)
    attach(vlm, plugin("fastv:k=1,r=0.25"))
    again = rebuild(json.loads(json.dumps(describe(vlm))))
    assert isinstance(again, VisionLanguage)
    again.load_state_dict(vlm.state_dict())
    assert again.decoder.plugins == vlm.decoder.plugins
    with torch.inference_mode():
        assert torch.equal(again.eval()(three()).logits, vlm(three()).logits)


def test_half_precision() -> None:
    vlm = small_vlm().bfloat16()
    samples = [s._replace(images=tuple(i.bfloat16() for i in s.images)) for s in three()]
    assert vlm.loss(samples).isfinite()
    vlm.float().train()
    with torch.autocast("cpu", torch.bfloat16):
        vlm.loss(three()).backward()
    assert all(p.grad.isfinite().all() for p in vlm.parameters() if p.grad is not None)


def test_packing_is_first_fit() -> None:
    rows = pack([5, 9, 4, 1, 10], 10)
    assert sorted(i for r in rows for i in r) == [0, 1, 2, 3, 4]
    assert len(rows) == 3
    assert all(sum([5, 9, 4, 1, 10][i] for i in r) <= 10 for r in rows)
    assert pack([], 10) == []
    with pytest.raises(ValueError, match="11 tokens does not fit into rows of 10"):
        pack([11], 10)


@pytest.mark.parametrize(
    ("ids", "images", "message"),
    [
        ([1, IMAGE, IMAGE, 5], 1, "2 placeholders .* for 1 image of 16 tokens"),
        ([1, IMAGE, IMAGE, IMAGE, 5], 2, "3 placeholders .* for 2 images"),
        ([1, 5], 1, "1 image but no placeholder"),
        ([1, IMAGE, 5], 0, "1 placeholder .* but no image"),
    ],
)
def test_placeholders_and_images_differ(ids: list[int], images: int, message: str) -> None:
    vlm = small_vlm()
    given = Sample(torch.tensor(ids), tuple(torch.randn(3, 32, 32) for _ in range(images)))
    with pytest.raises(ValueError, match="sample 1 has " + message):
        vlm([Sample(torch.tensor([1, 2])), given])


def test_other_wrong_input() -> None:
    vlm = small_vlm(max_position_embeddings=18)
    with pytest.raises(ValueError, match=r"a prompt of 20 tokens, up to 16 of .* than the context of 18"):
        vlm([Sample(torch.tensor([1, IMAGE, 5, 6, 7]), (torch.randn(3, 32, 32),))])
    with pytest.raises(ValueError, match=r"image 0 of shape \(4, 32, 32\)"):
        vlm([Sample(torch.tensor([IMAGE]), (torch.randn(4, 32, 32),))])
    with pytest.raises(ValueError, match="no samples"):
        vlm([])
    with pytest.raises(ValueError, match="sample 1 has no tokens"):
        vlm([Sample(torch.tensor([1])), Sample(torch.zeros(0, dtype=torch.long))])
    with pytest.raises(ValueError, match="side 'middle'"):
        vlm([Sample(torch.tensor([1]))], side="middle")
    with pytest.raises(ValueError, match="do not hold each of the 1 samples once"):
        vlm([Sample(torch.tensor([1]))], rows=[[0, 0]])
    with pytest.raises(ValueError, match="sample 1 has no labels"):
        splice([sample([11]), Sample(torch.tensor([1]))], [[], []], vlm.decoder.embed, IMAGE)
    with pytest.raises(ValueError, match="no labels to learn"):
        vlm.loss([Sample(torch.tensor([1, 5]))])
    with pytest.raises(ValueError, match="no token of this batch is learned"):
        vlm.loss([sample([1, 5])])
    with pytest.raises(ValueError, match="do not stand beside ids"):
        vlm([Sample(torch.tensor([1, 5]), (), torch.tensor([1]))])
