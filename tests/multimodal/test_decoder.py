"""Decoders compute what transformers computes, with padding on either side, a cache, packing and checkpointing."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from multimodal_parts import LLAMA, images_in, small_decoder

from patchloom.multimodal.decoder import ANATOMIES, Decoder
from patchloom.multimodal.stream import Stream, placed

BASE = {**LLAMA, "num_hidden_layers": 3}
CONFIGS: dict[str, Any] = {
    "llama": transformers.LlamaConfig(**BASE),
    "mistral": transformers.MistralConfig(**BASE),
    "qwen2": transformers.Qwen2Config(**BASE),
    "qwen3": transformers.Qwen3Config(**BASE, head_dim=16),
    "phi3": transformers.Phi3Config(**BASE),
    "gemma": transformers.GemmaConfig(**BASE, head_dim=16),
    "olmo2": transformers.Olmo2Config(**BASE),
    "smollm3": transformers.SmolLM3Config(**BASE),
    "opt": transformers.OPTConfig(vocab_size=96, hidden_size=32, ffn_dim=64, num_hidden_layers=3, num_attention_heads=4,
                                  max_position_embeddings=128, word_embed_proj_dim=16),
}  # fmt: skip


def stream_of(decoder: Decoder, ids: torch.Tensor, real: torch.Tensor | None = None) -> Stream:
    place = torch.arange(ids.shape[1]).expand(len(ids), -1) if real is None else placed(real)
    return Stream(decoder.embed(ids), place, torch.zeros_like(ids), real)


def test_every_architecture_is_tried() -> None:
    assert set(CONFIGS) == set(ANATOMIES)


@torch.inference_mode()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers(name: str, side: str) -> None:
    theirs = transformers.AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="eager").eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    ours = Decoder(deepcopy(theirs)).eval()
    ids, real = torch.randint(3, 96, (2, 11)), torch.ones(2, 11, dtype=torch.bool)
    real[0, slice(3) if side == "left" else slice(-3, None)] = False
    want = theirs(input_ids=ids, attention_mask=real.long(), position_ids=placed(real)).logits[real]
    got = ours.logits(ours(stream_of(ours, ids, real)).x)[real]
    assert float((got - want).abs().max() / want.abs().max()) < 1e-5
    alone = ours.logits(ours(stream_of(ours, ids[:1, real[0]])).x)
    torch.testing.assert_close(got[: alone.shape[1]], alone[0], rtol=1e-4, atol=1e-5)
    own = ours.lm(input_ids=ids, attention_mask=real.long(), position_ids=placed(real)).logits[real]
    torch.testing.assert_close(own, want, rtol=1e-4, atol=1e-5)  # transformers' own forward still works
    for path in ours.anatomy.projections:
        assert isinstance(ours.layers[0].get_submodule(path), torch.nn.Linear)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["llama", "opt", "qwen3"])
@pytest.mark.parametrize("pieces", [(8, 1, 1, 1), (6, 3, 2), (11,)])
def test_a_cache_changes_nothing(name: str, pieces: tuple[int, ...]) -> None:
    ours = Decoder(transformers.AutoModelForCausalLM.from_config(CONFIGS[name])).eval()
    ids, real = torch.randint(3, 96, (2, 11)), torch.ones(2, 11, dtype=torch.bool)
    real[1, :4] = False
    whole = stream_of(ours, ids, real)
    want, cache, past, got = ours(whole).x, ours.cache(1), 0, []
    for n in pieces:
        at = slice(past, past + n)
        part = Stream(
            whole.x[:, at], whole.place[:, at], whole.image[:, at], real[:, at] if past == 0 else None, past=past
        )
        got.append(ours(part, cache).x)
        past += n
    torch.testing.assert_close(torch.cat(got, 1)[real], want[real], rtol=1e-4, atol=1e-5)
    assert cache.lengths() == [11] * 3
    assert cache.read == 11
    assert cache.memory() == 3 * 2 * 2 * ours.groups * 11 * (ours.layers[0].self_attn.head_dim) * 4


@torch.inference_mode()
def test_packed_samples_do_not_see_each_other() -> None:
    decoder = small_decoder()
    a, b = torch.randn(1, 7, 32), torch.randn(1, 5, 32)
    both = replace(
        images_in(torch.cat([a, b], 1), []),
        place=torch.tensor([[*range(7), *range(5)]]), segment=torch.tensor([[0] * 7 + [1] * 5]),
    )  # fmt: skip
    y = decoder(both).x
    torch.testing.assert_close(y[:, :7], decoder(images_in(a, [])).x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(y[:, 7:], decoder(images_in(b, [])).x, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="packed"):
        decoder(both, decoder.cache())


def test_checkpointing_gives_the_same_gradients() -> None:
    decoder, x = small_decoder().train(), torch.randn(2, 9, 32)
    found = []
    for saved in (False, True):
        decoder.grad_checkpointing = saved
        decoder.zero_grad()
        decoder(images_in(x, [])).x.square().mean().backward()
        found.append([p.grad.clone() for p in decoder.parameters() if p.grad is not None])
    assert len(found[0]) == len(list(decoder.layers.parameters())) + 1
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@torch.inference_mode()
def test_half_precision_and_a_batch_of_one() -> None:
    decoder = small_decoder().bfloat16()
    y = decoder(images_in(torch.randn(1, 1, 32, dtype=torch.bfloat16), [])).x
    assert y.dtype == torch.bfloat16
    assert y.isfinite().all()


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="'gpt2'; there are llama"):
        Decoder(transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9)))
    decoder = small_decoder(layers=2)
    step = replace(images_in(torch.randn(1, 1, 32), []), past=4)
    with pytest.raises(ValueError, match="whose cache is missing"):
        decoder(step)
    with pytest.raises(ValueError, match="3 layers"):
        decoder(step, small_decoder(layers=3).cache())
    with pytest.raises(ValueError, match="behind 4 others, and the cache has read 0"):
        decoder(step, decoder.cache())
    with pytest.raises(ValueError, match="keeps no graph"):
        decoder(images_in(torch.randn(1, 3, 32), []), decoder.cache())
    short = Decoder(transformers.AutoModelForCausalLM.from_config(transformers.MistralConfig(**BASE, sliding_window=8)))
    with torch.inference_mode():
        assert short(images_in(torch.randn(1, 8, 32), [])).x.shape == (1, 8, 32)
        with pytest.raises(ValueError, match="window of 8"):
            short(images_in(torch.randn(1, 9, 32), []))
