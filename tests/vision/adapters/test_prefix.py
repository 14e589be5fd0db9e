"""Prefixes and NTK-attention's states in the attention of every kind that lets somebody else attend."""

import pytest
import torch
from golden import golden
from plugin_parts import image, made
from torch import Tensor, nn

from patchloom.kernels.ntk_attention import phi
from patchloom.vision.adapters import AdapterError, adapt, adapter, counts, in_words
from patchloom.vision.adapters.ntk import Ntk, NtkAttention
from patchloom.vision.adapters.prefix import Prefix, PrefixAttention
from patchloom.vision.mixers.attention import SelfAttention
from patchloom.vision.mixers.window import WindowAttention
from patchloom.vision.plugins import attach, hosts_of, plugin
from patchloom.vision.tokens import Tokens
from patchloom.vision.zoo import create_model

ATTENDING = {  # kinds, and the blocks of their tiny forms that attend
    "global attention, class token": 2,
    "global attention, no special token": 2,
    "shifted windows": 8,
    "attention of convolved tokens": 5,
    "separable convolutions, then attention": 4,
    "attention with local positions": 2,
    "tokens inside tokens": 2,
    "tokens inside tokens, in a pyramid": 8,
    "windows and whole maps": 2,
    "convolutions, then windows": 6,
    "pooling, then attention with offsets": 1,
    "convolutions, then relative attention": 1,
}


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_the_authors_numbers():
    """Attention before its last projection; their keys and values stand behind the first token, which is the same."""
    record = golden.load("adapters/ast_attention")
    state = {n.removeprefix("prefix."): v for n, v in record.state_dict().items() if n.startswith("prefix.")}
    c = record.meta["config"]
    mixer = SelfAttention(c["hidden_size"], c["heads"])
    mixer.attending = PrefixAttention(c["prefix_num_tokens"] // 2, c["hidden_size"], c["hidden_size"])
    mixer.proj = nn.Identity()
    names = ("query", "key", "value")
    with torch.no_grad():
        for kind in ("weight", "bias"):
            getattr(mixer.qkv, kind).copy_(torch.cat([state.pop(f"{n}.{kind}") for n in names]))
        mixer.attending.keys.copy_(state.pop("key_tokens")[0])
        mixer.attending.values.copy_(state.pop("value_tokens")[0])
    assert not state
    record.compare("prefix", mixer(Tokens(record.input(), None)), 1e-5)


@pytest.mark.parametrize(("kind", "count"), ATTENDING.items())
@pytest.mark.parametrize("chosen", [Prefix(3), Ntk()])
def test_every_attention_has_its_own_and_learns(kind, count, chosen):
    model, x = made(kind), image((96, 64))
    before = model(x)
    remove = adapt(model, chosen)
    layers = [m for m in model.modules() if isinstance(m, PrefixAttention | NtkAttention)]
    assert len(layers) == count
    if isinstance(chosen, Ntk):
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=2e-6)  # zero states: a softmax rounded otherwise
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert all(p.grad.any() for layer in layers for p in layer.parameters())
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    model.eval()
    assert not torch.allclose(model(x), before, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-5, atol=1e-6)
    remove()
    assert torch.equal(model(x), before)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(8, 8), (6, 10), (5, 3)])
@pytest.mark.parametrize("shift", [0, 2])
def test_windows_have_their_prefix_in_each(size, shift):
    """A prefix of one key that nobody likes changes nothing; one that all like gives its value alone."""
    torch.manual_seed(0)
    mixer = WindowAttention(8, 2, 4, shift)
    t, layer = Tokens(normal(2, size[0] * size[1], 8), size), PrefixAttention(1, 8, 8)
    mixer.qkv.bias[:8] = 1
    plain = mixer(t)
    mixer.attending = layer
    layer.keys.fill_(-1e4)
    torch.testing.assert_close(mixer(t), plain, rtol=1e-5, atol=1e-6)
    layer.keys.fill_(1e4)
    torch.testing.assert_close(mixer(t), mixer.proj(layer.values).expand(2, t.x.shape[1], -1), rtol=1e-5, atol=1e-6)


@torch.inference_mode()
def test_ntk_is_its_formula_under_sizes_of_merged_tokens():
    mixer, layer = SelfAttention(8, 2), NtkAttention(2, 8, 8)
    for p in layer.parameters():
        p.copy_(torch.randn_like(p))
    mixer.attending, mixer.proj = layer, nn.Identity()
    x, size = normal(1, 5, 8), torch.tensor([1.0, 2, 1, 3, 1])[None, :, None]
    q, k, v = mixer.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    near, seen = (q @ k.mT / 2).exp() * size.mT[:, None], phi(q)
    want = (near @ v + seen @ layer.sum_kv) / (near.sum(-1, keepdim=True) + seen @ layer.sum_k.abs())
    torch.testing.assert_close(mixer(Tokens(x, None, size=size)), want.transpose(1, 2).flatten(2))


def test_parameters_and_spellings():
    with torch.device("meta"):
        model = create_model("deit_small_patch16_224", num_classes=10)
    head = 384 * 10 + 10
    for words, each in (("prefix:n=10", 2 * 10 * 384), ("ntk", 384 * 64 + 384)):
        chosen = adapter(words)
        assert in_words(chosen) == words
        remove = adapt(model, chosen)
        assert counts(model)[0] == 12 * each + head
        remove()


def test_wrong_input():
    with pytest.raises(ValueError, match="n=0: at least 1 key and value"):
        Prefix(0)
    for chosen in (Prefix(), Ntk()):
        with pytest.raises(AdapterError, match=r"stages\.3\.blocks\.1: DepthwiseConv has no seam 'attending'"):
            adapt(made("depthwise convolutions"), chosen)
    model = made("global attention, class token")
    attach(model, plugin("ia_red:groups=2"))
    with pytest.raises(AdapterError, match=r"blocks\.0\.mixer\.attending is taken by PairMask"):
        adapt(model, Ntk())
    assert all(h.mixer.attending is not None for h in hosts_of(model))


@torch.inference_mode()
def test_beside_token_plugins():
    model, x = made("global attention, class token"), image()
    attach(model, plugin("tome:r=2"))
    merged = model(x)
    adapt(model, Ntk())
    torch.testing.assert_close(model(x), merged, rtol=1e-4, atol=2e-6)
