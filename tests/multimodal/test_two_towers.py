"""Two towers: unit vectors, padding that says nothing, gradients everywhere, description, and named classes."""

import math

import pytest
import torch
from contrast_parts import small_pair
from torch import nn

from patchloom.multimodal.text import TextEncoder
from patchloom.multimodal.text_tower import TextTower
from patchloom.multimodal.two_towers import TwoTowers, ZeroShot
from patchloom.vision.description import describe, rebuild
from patchloom.vision.zoo import create_model

CAPTIONS = ["a red circle left of a blue square", "a star", "a pink bolt"]


def test_vectors_are_of_unit_length_at_any_size() -> None:
    pair = small_pair().eval()
    for size in ((32, 32), (40, 24), (33, 47)):
        image, text = pair(torch.randn(2, 3, *size), CAPTIONS)
        assert image.shape == (2, 16)
        assert text.shape == (3, 16)
        for vectors in (image, text):
            torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(vectors)))


def test_a_caption_is_the_same_alone_and_beside_longer_ones() -> None:
    text = small_pair().eval()
    torch.testing.assert_close(text.of_texts(CAPTIONS)[1], text.of_texts(CAPTIONS[1:2])[0])


def test_the_order_of_words_counts() -> None:
    """Though tokens are averaged, they have looked at each other and know their places."""
    text = small_pair().eval()
    one, other = text.of_texts(["a red circle left of a blue square", "a blue square left of a red circle"])
    assert (one - other).abs().max() > 1e-4


def test_every_parameter_learns_and_again_under_checkpointing() -> None:
    pair, x = small_pair(), torch.randn(3, 3, 32, 32)
    found = []
    for on in (False, True):
        pair.set_grad_checkpointing(on)
        pair.zero_grad()
        image, text = pair(x, CAPTIONS)
        loss = torch.nn.functional.cross_entropy(pair.scale * image @ text.mT, torch.arange(3))
        loss.backward()
        assert [n for n, p in pair.named_parameters() if p.grad is None or not p.grad.any()] == []
        found.append({name: p.grad.clone() for name, p in pair.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], msg=name)


def test_the_scale_is_clamped() -> None:
    pair = small_pair()
    assert pair.scale.item() == pytest.approx(1 / 0.07, rel=1e-5)
    for value, scale in ((9.0, 100.0), (-3.0, 1.0)):
        with torch.no_grad():
            pair.log_scale.fill_(value)
        pair.clamp_()
        assert pair.scale.item() == pytest.approx(scale, rel=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_it_is_rebuilt_from_its_description(frozen: bool) -> None:
    pair = small_pair().eval()
    if frozen:
        pair = TwoTowers(pair.tower, TextEncoder("words:width=16,depth=1,heads=2", 12), 8).eval()
        assert not [name for name in pair.state_dict() if name.startswith("text.")]
    again = rebuild(describe(pair)).eval()
    again.load_state_dict(pair.state_dict())
    x = torch.randn(1, 3, 32, 32)
    for one, other in zip(pair(x, CAPTIONS), again(x, CAPTIONS), strict=True):
        torch.testing.assert_close(one, other)


def test_bfloat16_is_near() -> None:
    pair, x = small_pair().eval(), torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        low = pair(x, CAPTIONS)
    for one, other in zip(pair(x, CAPTIONS), low, strict=True):
        assert other.dtype == torch.float32
        assert (one * other).sum(-1).min() > 0.999


def test_named_classes() -> None:
    pair = small_pair().eval()
    classes, prompts = ["star", "bolt", "ring"], ["a {}", "one {} here"]
    network = ZeroShot(pair, classes, prompts)
    x = torch.randn(4, 3, 32, 32)
    vectors = pair.of_texts([p.format(c) for c in classes for p in prompts]).view(3, 2, -1).mean(1)
    cosine = nn.functional.cosine_similarity(pair.of_images(x)[:, None], vectors[None], dim=-1)
    torch.testing.assert_close(network(x), pair.scale * cosine)
    for wrong, says in (((["star", "star"], prompts), "each once"), ((classes, ["a star"]), "holds {} once")):
        with pytest.raises(ValueError, match=says):
            ZeroShot(pair, *wrong)


def test_what_cannot_be() -> None:
    pair = small_pair()
    for make, says in (
        (lambda: TwoTowers(nn.Linear(2, 2), pair.text), "Linear is no Tower"),
        (lambda: TwoTowers(pair.tower, nn.Linear(2, 2)), "Linear is no TextTower"),
        (lambda: TwoTowers(pair.tower, pair.text, temperature=0.001), "at least 0.01"),
        (lambda: ZeroShot(pair, ["star", "ring"], ()), "something must be said of each class"),
        (lambda: TextTower("words:vocabulary=9"), "N at least 100"),
        (lambda: TextTower(length=1), "at least two tokens"),
        (lambda: pair.of_texts("a star"), "a list of strings"),
        (lambda: pair.of_texts([]), "at least one"),
    ):
        with pytest.raises(ValueError, match=says):
            make()
    with pytest.raises(FileNotFoundError, match="no tokenizer '/nowhere'"):
        TextTower("/nowhere")


def test_long_captions_are_cut_and_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    text = TextTower("words:vocabulary=512", 16, 1, 2, length=4)
    for _ in range(2):
        states, mask = text(["a b c d e f", "a"])
        assert states.shape == (2, 4, 16)
        assert mask.tolist() == [[True] * 4, [True] * 3 + [False]]
    assert [r.message for r in caplog.records] == [
        "captions of more than 4 tokens are cut: one has 8; a larger length keeps them whole"
    ]


def test_a_published_tower_stands_beside_words() -> None:
    pair = TwoTowers(create_model("swin_tiny", num_classes=0), TextTower(width=16, depth=1, heads=2), 8)
    assert pair.default_cfg["input_size"] == (3, 224, 224)
    assert pair.see.in_features == 768
    assert math.isclose(pair.scale.item(), 1 / 0.07, rel_tol=1e-5)
