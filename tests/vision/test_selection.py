"""Weights selected from a larger network."""

import pytest
import torch

from patchloom.vision.mixers.soft_mask import SoftMaskAttention
from patchloom.vision.selection import from_llama, select
from patchloom.vision.zoo import create_model


def llama(dim: int = 1152, hidden: int = 1600, layers: int = 12) -> dict[str, torch.Tensor]:
    g, state = torch.Generator().manual_seed(0), {}
    for i in range(layers):
        at = f"model.layers.{i}."
        for part in "qkvo":
            state[f"{at}self_attn.{part}_proj.weight"] = torch.randn(dim, dim, generator=g).bfloat16()
        for part in ("gate", "up"):
            state[f"{at}mlp.{part}_proj.weight"] = torch.randn(hidden, dim, generator=g).bfloat16()
        state[f"{at}mlp.down_proj.weight"] = torch.randn(dim, hidden, generator=g).bfloat16()
        for norm in ("input_layernorm", "post_attention_layernorm"):
            state[f"{at}{norm}.weight"] = torch.randn(dim, generator=g).bfloat16()
    return state


def test_every_nth_where_it_divides_else_evenly_spread():
    x = torch.arange(12.0).view(2, 6)
    assert select(x, (1, 3)).tolist() == [[0, 2, 4]]
    assert select(x, (2, 4)).tolist() == [[0, 2, 3, 5], [6, 8, 9, 11]]
    assert torch.equal(select(x, (2, 6)), x)
    with pytest.raises(ValueError, match=r"a tensor of \(2, 6\) holds none of \(3, 6\)"):
        select(x, (3, 6))


def test_an_illama_begins_as_a_share_of_llama():
    given, model = llama(), create_model("illama_tiny")
    own = model.state_dict()
    before = {k: v.clone() for k, v in own.items()}
    begun = from_llama(given, own)
    assert all(torch.equal(own[k], before[k]) for k in own)  # a function of what it is given
    model.load_state_dict(begun)
    block = model.backbone.stages[0].blocks[3]
    assert isinstance(block.mixer, SoftMaskAttention)
    layer = {k.removeprefix("model.layers.3."): v.float() for k, v in given.items() if ".layers.3." in k}
    assert torch.equal(
        block.mixer.qkv.weight[::192], torch.stack([layer[f"self_attn.{p}_proj.weight"][0, ::6] for p in "qkv"])
    )
    rows = torch.linspace(0, 1599, 512).round().long()
    assert torch.equal(block.ffn.fc3.weight, layer["mlp.up_proj.weight"][rows][:, ::6])
    assert torch.equal(block.ffn.fc2.weight, layer["mlp.down_proj.weight"][::6][:, rows])
    assert torch.equal(block.norm2.weight, layer["post_attention_layernorm.weight"][::6])
    assert torch.equal(block.mixer.proj.weight, before["backbone.stages.0.blocks.3.mixer.proj.weight"])


def test_what_does_not_fit_is_refused():
    own = create_model("illama_tiny").state_dict()
    with pytest.raises(ValueError, match=r"have no layers\.11\."):
        from_llama(llama(layers=11), own)
    with pytest.raises(ValueError, match="has no blocks of iLLaMA"):
        from_llama(llama(layers=1), {"head.weight": torch.zeros(1)})
