"""LLaVA-MoLE against what its authors' code computes, and the laws of adapters on a language model's decoder."""

import pytest
import torch
from golden import golden
from multimodal_parts import IMAGE, images_in, small_decoder, small_vlm
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from patchloom.multimodal.decoder import Decoder
from patchloom.multimodal.llava import load
from patchloom.multimodal.plugins import attached, plugin
from patchloom.multimodal.splice import Sample
from patchloom.vision.adapters import AdapterError, adapt, adapter, adapter_of, counts, merge, own_state, unadapted
from patchloom.vision.adapters.mole import MixtureMlp, Mole, balance, form_of, one_hot, routed
from patchloom.vision.zoo import create_model

NAMES = (
    (r"original_module\.(gate|up|down)_proj\.weight", r"\1.base.weight"),
    (r"moe_(gate|up|down)\.(\d)\.lora_A", r"\1.down.\2.weight"),
    (r"moe_(gate|up|down)\.(\d)\.lora_B", r"\1.up.\2.weight"),
    (r"router\.(weight|bias)", r"router.\1"),
)
SPELT = "mole:experts=3,r=4,alpha=8,dropout=0"


def recorded(dense: bool) -> tuple[golden.Record, MixtureMlp]:
    record = golden.load("llava_mole/moe_mlp")
    c = record.meta["config"]
    base = LlamaMLP(LlamaConfig(hidden_size=c["d_model"], intermediate_size=c["mlp_width"], num_attention_heads=2))
    form = form_of(base)
    assert form is not None
    made = MixtureMlp(form, Mole(c["num_experts"], c["lora_rank"], c["lora_alpha"], dense=dense)).eval()
    load(made, record.state_dict(), NAMES, ())
    return record, made


@torch.inference_mode()
def test_record() -> None:
    record, sparse = recorded(False)
    x = record.input()
    with routed(sparse) as routes:
        record.compare("sparse", sparse(x), 1e-5)
    p = routes.logits[0].softmax(-1)
    record.compare("routing", p, 1e-5)
    record.compare("choice", one_hot(p), 0)
    record.compare("balance", balance([p])[None], 1e-5)
    record.compare("dense", recorded(True)[1](x), 1e-5)


def test_balance_counts_real_tokens_of_all_layers_together() -> None:
    p = [torch.rand(2, 5, 3).softmax(-1) for _ in range(2)]
    real = torch.tensor([[True] * 5, [True, True, False, False, False]])
    want = 0.0
    for i, n in ((0, 5), (1, 2)):
        both = torch.cat([each[i, :n] for each in p])
        want += float((both.mean(0) * one_hot(both).mean(0)).sum()) / 2
    assert float(balance(p, real)) == pytest.approx(want, rel=1e-5)
    torch.testing.assert_close(balance(p), balance(p, torch.ones(2, 5, dtype=torch.bool)))
    even = torch.eye(4)[None] * 20
    assert float(balance([even.softmax(-1)])) == pytest.approx(1 / 4, rel=1e-5)
    with pytest.raises(ValueError, match="no router spoke"), routed(nn.Linear(2, 2)) as routes:
        routes.loss()


def answers(n: int = 3) -> list[Sample]:
    ids = torch.tensor([1, 95, 7, 9, 11, 13])
    return [Sample(ids[: 6 - i], (torch.randn(3, 32, 32),), ids[: 6 - i].masked_fill(ids[: 6 - i] == 95, -100))
            for i in range(n)]  # fmt: skip


@pytest.mark.parametrize(("dense", "saved"), [(False, True), (True, False)])
def test_laws_in_a_language_model(dense: bool, saved: bool) -> None:
    vlm, samples = small_vlm(), answers()
    names = list(vlm.state_dict())
    with torch.no_grad():
        before = vlm(samples).logits
    remove = adapt(vlm.decoder, adapter(SPELT + ",dense=true" * dense))
    assert isinstance(adapter_of(vlm), Mole)
    with torch.no_grad():
        torch.testing.assert_close(vlm(samples).logits, before)  # B is zero
    trained, every = counts(vlm.decoder)
    assert 0 < trained < every
    vlm.train()
    assert not vlm.decoder.layers[0].self_attn.training
    vlm.decoder.grad_checkpointing = saved
    own = [p for p in vlm.decoder.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(own, 0.5)
    for step in range(2):
        optimizer.zero_grad()
        vlm.loss(samples).backward()
        if step == 1:
            learned = {n: p for n, p in vlm.decoder.named_parameters() if p.requires_grad}
            used = {n for n, p in learned.items() if p.grad is not None and bool(p.grad.any())}
            if dense:
                assert used == set(learned)
            assert all("down." in n or "up." in n for n in set(learned) - used)  # of experts that no token took
            for i in range(3):
                for part in (
                    "router",
                    *(f"{layer}.{way}" for layer in ("gate", "up", "down") for way in ("up", "down")),
                ):
                    assert any(f"layers.{i}.mlp.{part}." in n for n in used), part
        optimizer.step()
    changed = vlm(samples).logits
    assert not torch.allclose(changed, before, atol=1e-4)
    with unadapted(vlm.decoder), torch.no_grad():
        torch.testing.assert_close(vlm(samples).logits, before)
    with pytest.raises(AdapterError, match="cannot be merged"):
        merge(vlm.decoder)
    remove()
    assert list(vlm.state_dict()) == names
    with torch.no_grad():
        torch.testing.assert_close(vlm(samples).logits, before)


def test_gradients_are_the_same_under_checkpointing() -> None:
    decoder, x = small_decoder(), torch.randn(2, 9, 32)
    adapt(decoder, adapter(SPELT))
    for name, p in decoder.named_parameters():
        if ".up." in name and p.requires_grad:
            nn.init.normal_(p, std=0.1)
    found = []
    for saved in (False, True):
        decoder.grad_checkpointing = saved
        decoder.zero_grad()
        with routed(decoder) as routes:
            y = decoder(images_in(x, [])).x
        loss = y.square().mean() + routes.loss()
        assert len(routes.logits) == 3
        loss.backward()
        assert len(routes.logits) == 3
        found.append({n: p.grad.clone() for n, p in decoder.named_parameters() if p.grad is not None})
    assert set(found[0]) == set(found[1])
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, msg=name)


def test_lora_of_a_decoder_stands_around_its_attention_and_merges() -> None:
    decoder, x = small_decoder(), images_in(torch.randn(2, 9, 32), [])
    adapt(decoder, adapter("lora:r=4"))
    assert {n.split("layers.0.")[1].split(".lora")[0] for n in own_state(decoder) if "layers.0." in n} == {
        f"self_attn.{p}_proj" for p in "qkvo"
    }
    for name, p in decoder.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.1)
    with torch.no_grad():
        y = decoder(x).x
        unmerge = merge(decoder)
        torch.testing.assert_close(decoder(x).x, y, rtol=1e-4, atol=1e-5)
        unmerge()
    adapt(decoder, adapter("lora:r=4,targets=mlps"), "other")
    assert all(".mlp." in n for n in own_state(decoder))


@torch.inference_mode()
def test_in_images_half_precision_and_generation() -> None:
    model = create_model("deit_tiny_patch16_224", num_classes=4, img_size=32).eval()
    x = torch.randn(2, 3, 40, 56)
    before = model(x)
    adapt(model, adapter(SPELT))
    torch.testing.assert_close(model(x), before)
    decoder = small_decoder().bfloat16()
    adapt(decoder, adapter(SPELT))
    y = decoder.bfloat16()(images_in(torch.randn(1, 1, 32, dtype=torch.bfloat16), []))
    assert y.x.dtype == torch.bfloat16


def test_what_cannot_be() -> None:
    import transformers

    opt = transformers.OPTConfig(vocab_size=96, hidden_size=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=4,
                                 word_embed_proj_dim=32)  # fmt: skip
    with pytest.raises(AdapterError, match="no MLP here"):
        adapt(Decoder(transformers.OPTForCausalLM(opt)), Mole())
    with pytest.raises(AdapterError, match="narrower than r=64"):
        adapt(small_decoder(), Mole(r=64))
    for wrong in ({"experts": 1}, {"alpha": 0}, {"dropout": 1}, {"balance": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Mole(**wrong)


def test_layers_that_read_different_tokens_have_no_balance() -> None:
    vlm = small_vlm()
    adapt(vlm.decoder, adapter(SPELT))
    ids = torch.tensor([1, IMAGE, 5, 6, 7])
    with (
        attached(vlm, plugin("dpvr:k=1")),
        pytest.raises(ValueError, match=r"one layer read 4 tokens .*, others 20, .* take off the plugin"),
    ):
        vlm.loss([Sample(ids, (torch.randn(3, 32, 32),), ids)])
