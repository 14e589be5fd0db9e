"""BART and T5 read images: what transformers computes without them, padding, adapters for several tasks, learning."""

from typing import Any

import pytest
import torch
import transformers
from multimodal_parts import IMAGE, small_vlm
from torch import nn

from patchloom.multimodal.connectors import Project
from patchloom.multimodal.encoder_decoder import EncoderDecoder
from patchloom.multimodal.splice import Sample
from patchloom.multimodal.text_to_text import TextToText
from patchloom.vision.adapters import AdapterError, adapt, adapter, counts, merge, own_state, unadapted
from patchloom.vision.adapters.tasks import choose, chosen

SIZE: dict[str, Any] = {"vocab_size": 96, "d_model": 32, "decoder_start_token_id": 2, "pad_token_id": 1}
BART = transformers.BartConfig(
    **SIZE, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64, bos_token_id=0, eos_token_id=3, dropout=0.0,
    forced_eos_token_id=None,
)  # fmt: skip
T5 = transformers.T5Config(
    **SIZE, num_layers=2, num_heads=4, d_kv=8, d_ff=48, eos_token_id=3, feed_forward_proj="gated-gelu", dropout_rate=0.0
)
KINDS = {"bart": BART, "t5": T5}


def lm_of(kind: str) -> Any:
    torch.manual_seed(0)
    made = {"bart": transformers.BartForConditionalGeneration, "t5": transformers.T5ForConditionalGeneration}[kind](
        KINDS[kind]
    )
    for parameter in made.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.1)
    return made.eval()


def model_of(kind: str) -> EncoderDecoder:
    return EncoderDecoder(small_vlm().tower, Project(1), TextToText(lm_of(kind)), IMAGE).eval()


def asked() -> tuple[list[Sample], list[torch.Tensor]]:
    g = torch.Generator().manual_seed(2)
    images = [torch.randn(3, 16, 24, generator=g), torch.randn(3, 32, 32, generator=g)]
    ids = [torch.tensor([5, IMAGE, 7, 8]), torch.tensor([IMAGE, 9, 11, 12, 13, 14])]
    return ([Sample(i, (image,)) for i, image in zip(ids, images, strict=True)],
            [torch.tensor([20, 21, 3]), torch.tensor([22, 3])])  # fmt: skip


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_text_alone_is_what_transformers_computes(kind: str) -> None:
    theirs, ours = lm_of(kind), TextToText(lm_of(kind)).eval()
    ids, answer = torch.randint(4, 90, (2, 9)), torch.randint(4, 90, (2, 4))
    real = torch.ones(2, 9, dtype=torch.bool)
    real[1, 6:] = False
    want = theirs(input_ids=ids, attention_mask=real.long(), decoder_input_ids=answer).logits
    got = ours(ours.embed(ids), real, answer)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_batch_are_as_if_alone(kind: str) -> None:
    model, (samples, answers) = model_of(kind), asked()
    both = model(samples, answers)
    assert both.shape == (2, 3, 96)
    words = model.generate(samples, stop=3, most=5)
    for i, (sample, answer) in enumerate(zip(samples, answers, strict=True)):
        torch.testing.assert_close(both[i, : len(answer)], model([sample], [answer])[0], rtol=1e-4, atol=1e-4)
        assert torch.equal(model.generate([sample], stop=3, most=5)[0], words[i])
        said = words[i][:3]
        if len(said):
            assert torch.equal(model([sample], [said])[0].argmax(-1), said)
    other = [samples[0]._replace(images=(torch.randn(3, 16, 24),)), samples[1]]
    changed = model(other, answers)
    assert not torch.allclose(changed[0], both[0], atol=1e-3)
    torch.testing.assert_close(changed[1], both[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", ["single", "multiple", "half"])
def test_laws_of_vl_adapter(kind: str, share: str) -> None:
    model, (samples, answers) = model_of(kind), asked()
    names = list(model.state_dict())
    with torch.no_grad():
        before = model(samples, answers)
    remove = adapt(model.language, adapter(f"vl_adapter:tasks=vqa+caption,share={share},reduction=4"))
    with torch.no_grad():
        torch.testing.assert_close(model(samples, answers), before)
    own = own_state(model.language)
    behind = {n.split(".adapter.")[0] for n in own if ".adapter." in n}
    assert len(behind) == 2 * 2 + 2 * 3  # in each encoder and decoder block
    assert sum("norm" in n and n.endswith("weight") for n in own) == 10
    assert all(not p.requires_grad for n, p in model.language.named_parameters() if n not in own)
    model.language.set_grad_checkpointing()
    model.train()
    assert not any(m.training for n, m in model.language.named_modules() if n.endswith("self_attn"))
    model.language.set_grad_checkpointing(False)
    learning = [p for p in model.language.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, 0.05)
    choose(model.language, "caption")
    for step in range(2):
        optimizer.zero_grad()
        model.loss(samples, answers).backward()
        if step == 1:
            unused = {n for n, p in model.language.named_parameters()
                      if p.requires_grad and (p.grad is None or not bool(p.grad.any()))}  # fmt: skip
            others = {n for n in own if (share != "single" and ".up.0." in n)
                      or (share == "multiple" and ".down.0." in n)}  # fmt: skip
            assert unused == others
        optimizer.step()
    assert chosen(model.language) == "caption"
    model.eval()
    with torch.no_grad():
        caption = model(samples, answers)
        assert not torch.allclose(caption, before, atol=1e-4)
        choose(model.language, "vqa")
        assert torch.allclose(model(samples, answers), caption, atol=1e-6) is (share == "single")
        with unadapted(model.language):
            torch.testing.assert_close(model(samples, answers), before)
        with pytest.raises(AdapterError, match="cannot be merged"):
            merge(model.language)
        remove()
        torch.testing.assert_close(model(samples, answers), before)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["houlsby:reduction=4", "compacter:reduction=4,n=4", "lora:r=4"])
def test_other_adapters_fit_too(kind: str, method: str) -> None:
    model, (samples, answers) = model_of(kind), asked()
    adapt(model.language, adapter(method))
    trained, every = counts(model.language)
    assert 0 < trained < 0.5 * every
    model.loss(samples, answers).backward()
    assert any(bool(p.grad.any()) for p in model.language.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_gives_the_same_gradients(kind: str) -> None:
    found = []
    for saved in (False, True):
        model, (samples, answers) = model_of(kind), asked()
        model.train()
        model.set_grad_checkpointing(saved)
        model.loss(samples, answers).backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert set(found[0]) == set(found[1])
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-4, atol=1e-5)


def test_it_learns_answers_by_its_adapters_alone() -> None:
    model, (samples, answers) = model_of("t5"), asked()
    nn.init.normal_(model.language.lm.shared.weight)  # so that the frozen head can tell words apart
    model.requires_grad_(False)
    adapt(model.language, adapter("vl_adapter:reduction=2"))
    model.connector.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = model.loss(samples, answers)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert [a.tolist() for a in model.eval().generate(samples, stop=3)] == [[20, 21], [22]]


def test_what_cannot_be() -> None:
    model, (samples, answers) = model_of("bart"), asked()
    with pytest.raises(ValueError, match="longer than the context of 64"):
        model([samples[0]._replace(ids=torch.cat([samples[0].ids, torch.full((70,), 5)]))], answers[:1])
    with pytest.raises(ValueError, match="no placeholder"):
        model([samples[0]._replace(ids=torch.tensor([5, 6]))], answers[:1])
    with pytest.raises(ValueError, match="an answer without a word"):
        model(samples, [answers[0], answers[1][:0]])
    with pytest.raises(ValueError, match="most=0"):
        model.generate(samples, 3, 0)
    with pytest.raises(ValueError, match="no encoder-decoder of type 'gpt2'"):
        TextToText(transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9)))
    with pytest.raises(AdapterError, match="parallel=false"):
        adapt(model.language, adapter("adaptformer"))
