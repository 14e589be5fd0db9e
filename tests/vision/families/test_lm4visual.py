"""LM4Visual: the authors' numbers, sizes as they count them, a frozen layer out of LLaMA's file or transformers'."""

import pytest
import torch
from golden import golden
from recorded import agree, captured, loaded
from vision_tiny import tiny_classifier

from patchloom.vision.language import LanguageLayers, Spoken, load_language
from patchloom.vision.plugins import attach, plugin
from patchloom.vision.tokens import Tokens
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model, list_models, model_info

LLAMA = 202_387_456
FACTS = {  # parameters, GMACs; without a number of their own: the ViT's beside the layer
    "vit_llama_tiny_patch16_224": (209_677_736, 41.7),
    "vit_llama_small_patch16_224": (227_583_848, 45.4),
    "vit_llama_base_patch16_224": (86_567_656 + LLAMA + 2 * 4096 * 768, None),
    "vit_llama_tiny_patch32_224": (None, None),
    "vit_llama_base_patch32_224": (88_224_232 + LLAMA + 2 * 4096 * 768, None),
}


@pytest.mark.slow
@torch.inference_mode()
def test_matches_the_original() -> None:
    record = golden.load("lm4visual/vit_llama_tiny_patch16_224")
    model = loaded("vit_llama_tiny_patch16_224", record)
    places = {"blocks": "backbone.stages.0.blocks.11", "llama": "neck.norm"}
    agree(record, captured(model, record.input(), places))


@torch.inference_mode()
def test_two_small_layers_match_the_original() -> None:
    record = golden.load("lm4visual/llama_layers_small")
    neck = Spoken(8, LanguageLayers(256, 4, 704, 2)).eval()
    state = record.state_dict()
    holder = torch.nn.Module()
    holder.neck = neck
    load_language(holder, state, layer=0)
    neck.norm.weight.copy_(state["norm.weight"])
    neck.enter = neck.leave = torch.nn.Identity()
    agree(record, {"out": neck(Tokens(record.input(), None)).x})


def test_sizes_are_the_papers() -> None:
    assert set(list_models("vit_llama*")) == set(FACTS)
    for name, (parameters, gmacs) in FACTS.items():
        info = model_info(name)
        assert info.parameters - info.trainable == LLAMA
        assert parameters is None or info.parameters == parameters
        assert gmacs is None or info.macs / 1e9 == pytest.approx(gmacs, rel=0.01)
    assert model_info("vit_llama_base_patch16_224").parameters / 1e6 == pytest.approx(295.2, abs=0.1)


def test_the_layer_is_frozen_and_gradients_flow_through_it() -> None:
    model = tiny_classifier("vit_llama_tiny_patch16_224").train()
    model(torch.randn(2, 3, 64, 48)).square().mean().backward()
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if n.startswith(("neck.blocks.", "neck.norm."))}
    assert all(p.grad is None for n, p in model.named_parameters() if n in frozen)
    assert model.backbone.stages[0].blocks[0].mixer.qkv.weight.grad.any()


@pytest.mark.parametrize("theirs", ["llama", "transformers"])
def test_a_layer_comes_out_of_a_language_models_file(theirs: str) -> None:
    model = tiny_classifier("vit_llama_tiny_patch16_224")
    own = {"attention.wq": (16, 16), "attention.wk": (16, 16), "attention.wv": (16, 16), "attention.wo": (16, 16),
           "feed_forward.w1": (24, 16), "feed_forward.w2": (16, 24), "feed_forward.w3": (24, 16),
           "attention_norm": (16,), "ffn_norm": (16,)}  # fmt: skip
    names = dict(zip(own, own, strict=True))
    if theirs == "transformers":
        names = dict(zip(own, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                               "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj", "input_layernorm",
                               "post_attention_layernorm"), strict=True))  # fmt: skip
    begin = "layers." if theirs == "llama" else "model.layers."
    state = {f"{begin}{i}.{names[n]}.weight": torch.randn(*s) for i in (3, 31) for n, s in own.items()}
    load_language(model, state)
    block = model.neck.blocks[0]
    q, k, v = block.mixer.qkv.weight.chunk(3)
    for ours, name in ((q, "attention.wq"), (k, "attention.wk"), (v, "attention.wv"),
                       (block.ffn.fc2.weight, "feed_forward.w2"), (block.norm2.weight, "ffn_norm")):  # fmt: skip
        torch.testing.assert_close(ours, state[f"{begin}31.{names[name]}.weight"])
    assert bool((model.neck.norm.weight == 1).all())
    with pytest.raises(ValueError, match=r"no weights of layer 30 for mixer\.qkv"):
        load_language(model, state, layer=30)
    state[f"{begin}31.{names['ffn_norm']}.weight"] = torch.zeros(4)
    with pytest.raises(ValueError, match=r"is \(4,\); \(16,\) is wanted"):
        load_language(model, state)
    with pytest.raises(ValueError, match="Linear has 0 necks"):
        load_language(torch.nn.Linear(1, 1), state)


@torch.inference_mode()
def test_merged_tokens_count_in_the_layer_too() -> None:
    neck = Spoken(8, LanguageLayers(16, 2, 24)).eval()
    x = torch.randn(2, 5, 8)
    twice = torch.cat([x, x[:, -1:]], 1)
    size = torch.tensor([1.0, 1, 1, 1, 2]).view(1, 5, 1).expand(2, -1, -1)
    torch.testing.assert_close(neck(Tokens(x, None, size=size)).x, neck(Tokens(twice, None)).x[:, :5])
    model, image = tiny_classifier("vit_llama_tiny_patch16_224").eval(), torch.randn(2, 3, 64, 96)
    before = model(image)
    detach = attach(model, plugin("tome:r=2"))
    assert not torch.allclose(model(image), before)
    detach()
    torch.testing.assert_close(model(image), before)


def test_maps_leave_the_layer_out() -> None:
    state = create_model("vit_llama_tiny_patch16_224", device="meta").state_dict()
    names = [n for n in state if not n.startswith("neck.")]
    pyramid = create_model("vit_llama_tiny_patch16_224", features_only=True, device="meta")
    assert set(pyramid.state_dict()) <= set(names)
    full = golden.load("lm4visual/vit_llama_tiny_patch16_224").meta["state"]
    meta = {k: torch.empty(e["shape"], device="meta") for k, e in full.items()}
    assert not load_published(create_model("vit_llama_tiny_patch16_224", device="meta"), meta).fresh
