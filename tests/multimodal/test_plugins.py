"""The laws of plugins of a vision-language model: neutral settings, taking off, batches, caches, half precision."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from multimodal_parts import IMAGE, attend_last, images_in, small_decoder, small_vlm

from patchloom.multimodal.connectors import PixelShuffle
from patchloom.multimodal.generate import generate
from patchloom.multimodal.plugins import attach, attached, plugin
from patchloom.multimodal.policies import BoundedCache, HeavyHitters
from patchloom.multimodal.splice import Sample
from patchloom.multimodal.stream import Stream
from patchloom.multimodal.vlm import VisionLanguage
from patchloom.vision.description import describe, rebuild
from patchloom.vision.plugins import SeamError
from patchloom.vision.plugins.merge import Merge

NEUTRAL = {
    "fastv:k=2,r=0": "fastv:k=2,r=0.5",
    "visual_depth:k=4": "visual_depth:k=1",
    "visual_depth:k=4,frozen=true": "visual_depth:k=1,frozen=true",
    "dpvr:k=3": "dpvr:k=1",
    "damro:alpha=0": "damro:top=3,alpha=3,beta=0.001",
    "heavy_hitters": "heavy_hitters:budget=6,recent=2",
    "keyformer": "keyformer:budget=6,recent=2",
    "tome:r=0": "tome:r=5",
}
IN_DECODER = [text for text in NEUTRAL.values() if text.startswith(("fastv", "visual", "dpvr"))]


def whole() -> VisionLanguage:
    return small_vlm(num_hidden_layers=4)


def asked(*words: int, images: int = 1, size: tuple[int, int] = (32, 40)) -> Sample:
    torch.manual_seed(sum(words))
    ids = torch.tensor([1, *[IMAGE] * images, *words])
    return Sample(ids, tuple(torch.randn(3, *size) for _ in range(images)))


def said(vlm: VisionLanguage, samples: list[Sample], most: int = 8) -> list[list[int]]:
    return [ids.tolist() for ids in generate(vlm, samples, most=most)]


def logits(vlm: VisionLanguage, samples: list[Sample]) -> torch.Tensor:
    """Of the words that are chosen, one after the other."""
    found: list[torch.Tensor] = []

    def choose(of_all: torch.Tensor) -> torch.Tensor:
        found.append(of_all)
        return of_all.argmax(-1)

    generate(vlm, samples, most=4, choose=choose)
    return torch.stack(found)


@pytest.mark.parametrize(("neutral", "other"), NEUTRAL.items())
def test_a_neutral_setting_changes_no_token_and_another_does(neutral: str, other: str) -> None:
    vlm, samples = whole(), [asked(5, 6, 7), asked(8, 9, images=2), asked(10, 11, 12, 13, images=0)]
    want, numbers = said(vlm, samples), logits(vlm, samples)
    with attached(vlm, plugin(neutral)):
        assert said(vlm, samples) == want
        assert torch.equal(logits(vlm, samples), numbers)
    with attached(vlm, plugin(other)):
        assert not torch.allclose(logits(vlm, samples), numbers)
    assert torch.equal(logits(vlm, samples), numbers)


@pytest.mark.parametrize("text", NEUTRAL.values())
def test_taken_off_it_leaves_the_model_as_it_was(text: str) -> None:
    vlm = whole()
    names, seams = list(vlm.state_dict()), [str(m) for m in vlm.modules()]
    detach = attach(vlm, plugin(text))
    with pytest.raises(SeamError, match="is taken by"):
        attach(vlm, plugin(text))
    detach()
    detach()
    assert list(vlm.state_dict()) == names
    assert [str(m) for m in vlm.modules()] == seams
    assert vlm.plugins == vlm.decoder.plugins == vlm.tower.plugins == ()


@pytest.mark.parametrize("text", NEUTRAL.values())
def test_it_is_described_and_made_anew(text: str) -> None:
    vlm, samples = whole(), [asked(5, 6, 7)]
    attach(vlm, plugin(text))
    again = rebuild(describe(vlm))
    assert isinstance(again, VisionLanguage)
    again.load_state_dict(vlm.state_dict())
    assert torch.equal(logits(again.eval(), samples), logits(vlm, samples))


@pytest.mark.parametrize("text", [t for t in NEUTRAL.values() if "keyformer" not in t])  # whose noise is a batch's
def test_a_sample_is_answered_alone_as_in_a_batch(text: str) -> None:
    vlm, samples = whole(), [asked(5, 6, 7, 8, 9), asked(8, 9, images=2), asked(10, 11, 12)]
    with attached(vlm, plugin(text)):
        together = logits(vlm, samples)
        for i, sample in enumerate(samples):
            torch.testing.assert_close(logits(vlm, [sample])[:1, 0], together[:1, i], rtol=1e-4, atol=1e-4)
        assert said(vlm, samples) == [said(vlm, [s])[0] for s in samples]


@pytest.mark.parametrize("text", IN_DECODER)
@torch.inference_mode()
def test_rows_of_a_batch_are_reduced_as_if_alone(text: str) -> None:
    decoder = small_decoder(layers=4)
    first, second = images_in(torch.randn(1, 20, 32), [(3, 13)]), images_in(torch.randn(1, 14, 32), [(2, 6), (8, 11)])
    both = attend_last([first, second])
    with attached(decoder, plugin(text)):
        out = decoder(both)
        for i, alone in enumerate((decoder(first), decoder(second))):
            real = torch.ones_like(out.image[i], dtype=torch.bool) if out.real is None else out.real[i]
            assert torch.equal(out.place[i][real], alone.place[0])
            assert torch.equal(out.image[i][real], alone.image[0])
            torch.testing.assert_close(out.x[i][real], alone.x[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text", [t for t in IN_DECODER if "fastv" not in t])
@torch.inference_mode()
def test_a_word_behind_a_cache_is_the_word_of_a_whole_run(text: str) -> None:
    """No text before it looks at the word, so that both read the same."""
    decoder = small_decoder(layers=4)
    x = torch.randn(1, 24, 32)
    step = Stream(x[:, 23:], torch.full((1, 1), 23), torch.zeros(1, 1, dtype=torch.long), past=23)
    with attached(decoder, plugin(text)):
        cache = decoder.cache(1)
        decoder(images_in(x[:, :23], [(3, 17)]), cache)
        got = decoder(step, cache).x[:, -1]
        want = decoder(images_in(x, [(3, 17)]))
    torch.testing.assert_close(got, want.x[:, -1], rtol=1e-4, atol=1e-5)
    few = {"visual_depth:k=1": [24, 10, 10, 10], "dpvr:k=1": [24, 10, 10, 24]}
    assert cache.lengths() == few.get(text, [24] * 4)


@pytest.mark.parametrize("text", [t for t in IN_DECODER if "fastv" not in t])
@torch.inference_mode()
def test_packed_samples_are_as_if_alone(text: str) -> None:
    decoder = small_decoder(layers=4)
    parts = [images_in(torch.randn(1, 9, 32), [(2, 6)]), images_in(torch.randn(1, 7, 32), [(1, 3), (4, 5)])]
    one = Stream(*(torch.cat([getattr(p, n) for p in parts], 1) for n in ("x", "place", "image")))
    packed = replace(one, segment=torch.tensor([[0] * 9 + [1] * 7]))
    with attached(decoder, plugin(text)):
        out, alone = decoder(packed), [decoder(p) for p in parts]
        torch.testing.assert_close(out.x, torch.cat([a.x for a in alone], 1), rtol=1e-4, atol=1e-5)
        assert torch.equal(out.place, torch.cat([a.place for a in alone], 1))


@pytest.mark.parametrize("text", NEUTRAL.values())
def test_half_precision_and_odd_sizes(text: str) -> None:
    vlm = whole().bfloat16()
    sample = asked(5, 6, 7, size=(41, 33))
    sample = sample._replace(images=tuple(x.bfloat16() for x in sample.images))
    with attached(vlm, plugin(text)):
        numbers = logits(vlm, [sample])
    assert not numbers.isnan().any()
    assert len(numbers) == 4


@pytest.mark.parametrize("text", IN_DECODER)
def test_gradients_flow_with_checkpointing_too(text: str) -> None:
    decoder, found = small_decoder(layers=4).train(), []
    for saved in (False, True):
        decoder.grad_checkpointing = saved
        decoder.zero_grad()
        with attached(decoder, plugin(text)):
            torch.manual_seed(1)
            x = torch.randn(1, 16, 32, requires_grad=True)
            decoder(images_in(x, [(2, 12)])).x[:, -1].square().mean().backward()
        grads = [p.grad for p in (decoder.layers[0].self_attn.k_proj.weight, decoder.layers[3].mlp.up_proj.weight, x)]
        assert all(g is not None and bool(g.any()) for g in grads)
        found.append(grads)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_token_plugins_go_into_the_tower() -> None:
    vlm = whole()
    assert plugin("tome:r=5") == Merge(5)
    with attached(vlm, plugin("tome:r=5")):
        assert vlm.tower.plugins == (Merge(5),)
        assert vlm.decoder.plugins == vlm.plugins == ()
        assert [len(t) for t in vlm.see([torch.randn(3, 32, 40)])] == [20]
        vlm.tower.fewer = True
        assert [len(t) for t in vlm.see([torch.randn(3, 32, 40)])] == [20 - 3 * 5]


def test_a_policy_is_a_plugin() -> None:
    vlm = whole()
    with attached(vlm, HeavyHitters(6, 2)):
        assert all(isinstance(c, BoundedCache) for c in vlm.decoder.cache().layers)
        by_plugin = said(vlm, [asked(5, 6, 7)])
    assert not any(isinstance(c, BoundedCache) for c in vlm.decoder.cache().layers)
    by_name = generate(vlm, [asked(5, 6, 7)], most=8, policy=HeavyHitters(6, 2))
    assert by_plugin == [ids.tolist() for ids in by_name]


def test_two_at_once() -> None:
    vlm, samples = whole(), [asked(5, 6, 7), asked(8, 9)]
    with (
        attached(vlm, plugin("fastv:k=1,r=0.5")),
        attached(vlm, plugin("dpvr:k=2")),
        attached(vlm, plugin("damro:top=3")),
    ):
        assert len(said(vlm, samples)) == 2
        assert [type(p).__name__ for p in (*vlm.plugins, *vlm.decoder.plugins)] == ["Damro", "FastV", "DualPath"]
    with attached(vlm, plugin("dpvr:k=2")), pytest.raises(SeamError, match="layer 2 is taken by Branch"):
        attach(vlm, plugin("visual_depth:k=2"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("visual_depth:k=5", "k=5: this decoder has 4 layers"),
        ("dpvr:k=18", "k=18, fuse=-1: this decoder has 4 layers"),
        ("dpvr:k=3,fuse=1", "k=3, fuse=1"),
    ],
)
def test_settings_that_fit_no_such_decoder(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        attach(whole(), plugin(text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("visual_depth:k=-1", "k=-1"),
        ("visual_depth", "lacks k"),
        ("damro:top=0", "top=0"),
        ("damro:alpha=-1", r"alpha=-1\.0"),
        ("damro:beta=0", r"beta=0\.0"),
        ("heavy_hitters:recent=0", "recent=0"),
        ("tom:r=8", "did you mean tome"),
        ("damr", "did you mean damro"),
    ],
)
def test_wrong_settings(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plugin(text)


@pytest.mark.parametrize(
    ("vlm", "words"),
    [
        (lambda: small_vlm(connector=PixelShuffle(2)), "Shuffled makes other tokens than one of each patch"),
        (lambda: small_vlm("poolformer_s12"), "shows no queries and no keys"),
        (lambda: small_vlm("cct_7_3x1_32"), "has no class token"),
        (lambda: small_vlm().decoder, "Decoder is no VisionLanguage"),
    ],
)
def test_damro_refuses_by_name(vlm: Any, words: str) -> None:
    with pytest.raises(SeamError, match=words):
        attach(vlm(), plugin("damro"))
