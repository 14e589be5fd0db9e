"""Words one after the other: the same as without a cache, alone as in a batch, with full and with bounded caches."""

import pytest
import torch
from multimodal_parts import IMAGE, small_tokenizer, small_vlm

from patchloom.multimodal.generate import Greedy, Sampled, generate, steps, streamed
from patchloom.multimodal.plugins import attached, plugin
from patchloom.multimodal.policies import BoundedCache, HeavyHitters, Keyformer, NoisyCache
from patchloom.multimodal.splice import Sample
from patchloom.multimodal.stream import Stream
from patchloom.multimodal.vlm import VisionLanguage


def three() -> list[Sample]:
    torch.manual_seed(3)
    picture, wide = torch.randn(3, 32, 32), torch.randn(3, 24, 40)
    return [
        Sample(torch.tensor([1, IMAGE, 5, 6, 7]), (picture,)),
        Sample(torch.tensor([1, 8, 9])),
        Sample(torch.tensor([1, IMAGE, 5, IMAGE, 9]), (picture, wide)),
    ]


@torch.inference_mode()
def without_cache(vlm: VisionLanguage, sample: Sample, most: int) -> list[int]:
    words: list[int] = []
    for _ in range(most):
        ids = torch.cat([sample.ids, torch.tensor(words, dtype=torch.long)])
        words.append(int(vlm([sample._replace(ids=ids)]).logits[0, -1].argmax()))
    return words


def test_a_cache_changes_no_word() -> None:
    vlm, samples = small_vlm(), three()
    want = [without_cache(vlm, s, 7) for s in samples]
    assert [w.tolist() for w in generate(vlm, samples, most=7)] == want
    for i, s in enumerate(samples):
        assert generate(vlm, [s], most=7)[0].tolist() == want[i]


def test_it_stops_where_it_is_told() -> None:
    vlm, samples = small_vlm(), three()
    whole = [w.tolist() for w in generate(vlm, samples, most=7)]
    stop = whole[0][3]
    got = [w.tolist() for w in generate(vlm, samples, most=7, stop=(stop,))]
    assert got == [w[: w.index(stop)] if stop in w else w for w in whole]
    calls = 0
    for _ in steps(vlm, samples, most=7):
        calls += 1
        if calls == 2:
            break
    assert calls == 2
    with pytest.raises(ValueError, match="most=0"):
        generate(vlm, samples, most=0)


def test_prompt_and_words_fit_into_the_context() -> None:
    vlm = small_vlm(max_position_embeddings=24)
    assert len(generate(vlm, three()[:1], most=4)[0]) == 4
    with pytest.raises(ValueError, match=r"a prompt of 20 tokens, up to 16 .*, and 5 more .* context of 24"):
        generate(vlm, three()[:1], most=5)


def test_the_same_seed_draws_the_same_words() -> None:
    vlm, samples = small_vlm(), three()
    a, b, c = (generate(vlm, samples, most=12, choose=Sampled(2.0, seed=s)) for s in (1, 1, 2))
    assert [w.tolist() for w in a] == [w.tolist() for w in b] != [w.tolist() for w in c]
    cold = generate(vlm, samples, most=6, choose=Sampled(top_k=1))
    assert [w.tolist() for w in cold] == [w.tolist() for w in generate(vlm, samples, most=6, choose=Greedy())]


def test_nuclei_and_shortlists() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(4000, 1)
    for options, share in (
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.5}, [1, 0, 0, 0]),
        ({"top_p": 0.9}, [0.526, 0.316, 0.158, 0]),
        ({"temperature": 1e-3}, [1, 0, 0, 0]),
    ):
        drawn = Sampled(**options)(logits)
        got = torch.bincount(drawn, minlength=4) / len(drawn)
        torch.testing.assert_close(got, torch.tensor(share, dtype=torch.float32), atol=0.03, rtol=0)
    for wrong in ({"temperature": 0}, {"top_p": 0}, {"top_k": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Sampled(**wrong)


def test_text_streams() -> None:
    tokenizer = small_tokenizer()
    vlm = small_vlm(vocab_size=len(tokenizer))
    vlm.image_token = tokenizer.convert_tokens_to_ids("<image>")
    sample = Sample(torch.tensor([1, vlm.image_token, 6]), (torch.randn(3, 16, 16),))
    pieces = list(streamed(vlm, sample, tokenizer, most=6))
    words = generate(vlm, [sample], most=6)[0]
    assert "".join(pieces) == tokenizer.decode(words, skip_special_tokens=True)
    assert len(pieces) > 1


def test_fastv_reads_fewer_from_the_prompt_on() -> None:
    vlm, samples = small_vlm(), three()
    with attached(vlm, plugin("fastv:k=1,r=0")):
        assert [w.tolist() for w in generate(vlm, samples, most=5)] == [
            w.tolist() for w in generate(small_vlm(), samples, most=5)
        ]
    with attached(vlm, plugin("fastv:k=1,r=0.5")):
        batch = [w.tolist() for w in generate(vlm, samples, most=5)]
        assert batch == [generate(vlm, [s], most=5)[0].tolist() for s in samples]


@pytest.mark.parametrize("policy", [HeavyHitters, Keyformer])
def test_a_budget_that_is_never_reached_changes_nothing(policy: type[HeavyHitters]) -> None:
    vlm, samples = small_vlm(), three()
    want = [w.tolist() for w in generate(vlm, samples, most=6)]
    assert [w.tolist() for w in generate(vlm, samples, most=6, policy=policy(budget=60, recent=60))] == want


@torch.inference_mode()
@pytest.mark.parametrize("policy", [HeavyHitters(12, 4), Keyformer(12, 4)])
def test_a_bounded_cache_holds_the_last_and_the_heaviest(policy: HeavyHitters) -> None:
    vlm, samples = small_vlm(), three()
    decoder = vlm.decoder
    stream = vlm.splice(samples, side="left")
    cache = policy.cache(decoder, 8)
    decoder(stream, cache)
    n = stream.x.shape[1]
    for step in range(6):
        for layer in cache.layers:
            assert isinstance(layer, BoundedCache)
            assert layer.k is not None
            assert layer.place is not None
            assert layer.k.shape[2] == layer.length == 12
            last = torch.arange(n + step - 4, n + step)
            there = (layer.place[..., None] == last).any(2).all(-1)  # the last four
            assert bool(there[0::2].all())  # of the short prompt between them some are padding
            assert bool((layer.place.sort(-1).values.diff(dim=-1) > 0).all())  # no token is there twice
        word = torch.tensor([[5], [6], [7]])
        place = stream.place[:, -1:] + 1 + step
        one = type(stream)(decoder.embed(word), place, torch.zeros_like(word), past=n + step)
        assert decoder(one, cache).x.isfinite().all()
    assert cache.memory() == 3 * 2 * 3 * decoder.groups * 12 * 8 * 4


@torch.inference_mode()
def test_worth_is_the_attention_received() -> None:
    """Of H2O, by the whole matrix of attention: sums over queries, the largest of the older tokens stay."""
    vlm = small_vlm(layers=1)
    sample = Sample(torch.arange(3, 23))
    stream = vlm.splice([sample])
    cache = HeavyHitters(8, 3).cache(vlm.decoder, 4)
    vlm.decoder(stream, cache)
    layer = vlm.decoder.layers[0]
    turned = vlm.decoder.entered(stream)
    theirs = vlm.decoder.lm.model.layers[0]
    x = theirs.input_layernorm(turned.x)
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    q, k = (p(x).view(1, 20, -1, 8).transpose(1, 2) for p in (layer.self_attn.q_proj, layer.self_attn.k_proj))
    q, k = apply_rotary_pos_emb(q, k, *turned.rotary)
    score = (q @ k.repeat_interleave(2, 1).mT / 8**0.5).masked_fill(
        ~torch.ones(20, 20, dtype=torch.bool).tril(), -torch.inf
    )
    worth = score.softmax(-1).sum(2).view(1, 2, 2, 20).sum(2)  # B g M
    kept = worth[..., :17].topk(5, -1).indices.sort(-1).values
    held = cache.layers[0]
    assert isinstance(held, BoundedCache)
    assert held.place is not None
    assert held.worth is not None
    assert torch.equal(held.place, torch.cat([kept, torch.arange(17, 20).expand(1, 2, 3)], -1))
    torch.testing.assert_close(held.worth, worth.gather(-1, held.place))


@torch.inference_mode()
def test_keyformers_temperature_rises_with_the_words_and_not_with_the_prompt() -> None:
    vlm = small_vlm(layers=1)
    stream = vlm.splice([Sample(torch.arange(65) % 90 + 3)])  # the last of its blocks has one query
    cache = Keyformer(70, 8).cache(vlm.decoder, 4)
    vlm.decoder(stream, cache)
    held = cache.layers[0]
    assert isinstance(held, NoisyCache)
    assert held.step == 0
    one = Stream(vlm.decoder.embed(torch.tensor([[5]])), torch.tensor([[65]]), torch.zeros(1, 1).long(), past=65)
    vlm.decoder(one, cache)
    assert held.step == 1


def test_wrong_policies() -> None:
    with pytest.raises(ValueError, match="recent=9, budget=8"):
        HeavyHitters(8, 9)
    with pytest.raises(ValueError, match=r"tau=0\.5"):
        Keyformer(8, 4, tau=0.5)
    vlm = small_vlm()
    cache = HeavyHitters(8, 4).cache(vlm.decoder, 4)
    with torch.inference_mode():
        stream = vlm.splice([Sample(torch.arange(3, 13))])
        vlm.decoder(stream, cache)
        with pytest.raises(ValueError, match="10 tokens at once behind a bounded cache"):
            vlm.decoder(type(stream)(stream.x, stream.place + 10, stream.image, past=10), cache)
