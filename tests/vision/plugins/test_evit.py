from dataclasses import replace

import pytest
import torch
from golden import golden
from plugin_parts import refused
from recorded import agree, loaded
from torch import Tensor

from patchloom.vision.plugins import attach, attached, hosts_of, noting, plugin
from patchloom.vision.plugins.evit import Evit, EvitLayer, class_attention, fused
from patchloom.vision.tokens import Tokens, unmerge
from patchloom.vision.zoo import create_model

RECORDS = {
    "deit_tiny_keep07_fuse": ("deit_tiny_patch16_224", "evit"),
    "deit_small_keep07_fuse": ("deit_small_patch16_224", "evit:keep=0.7,fuse=true,at=3+6+9"),
    "deit_tiny_keep06_drop": ("deit_tiny_patch16_224", "evit:keep=0.6,fuse=false"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_it_is_the_originals(name):
    record = golden.load(f"evit/{name}")
    variant, setting = RECORDS[name]
    model, found = loaded(variant, record), {}
    for host in hosts_of(model):
        if host.place in (3, 6, 9):
            host.block.register_forward_hook(lambda _m, _i, t, p=host.place: found.update({f"tokens{p}": t.x}))
    with torch.inference_mode(), attached(model, plugin(setting)), noting() as notes:
        found["logits"] = model(record.input())
    for place, (_, kept) in zip((3, 6, 9), notes, strict=True):
        found[f"kept{place}"] = kept[:, 1:] - 1  # of the patches
    agree(record, found)


def given(special: tuple[int, ...] = (0,), n: int = 12) -> tuple[Tokens, dict[str, Tensor]]:
    """Tokens on a grid, the patches of which are 3 4, and a probe."""
    t = Tokens(torch.randn(2, n + len(special), 6), (3, 4), special)
    return t, {name: torch.randn(2, 3, t.x.shape[1], 5) for name in ("queries", "keys")}


@pytest.mark.parametrize("special", [(0,), (12,), (0, 1)])
def test_the_row_is_that_of_the_whole_attention(special):
    t, probe = given(special)
    scores = probe["queries"] @ probe["keys"].mT / 5**0.5
    torch.testing.assert_close(class_attention(t, probe), scores.softmax(-1).mean(1)[:, special[0]])
    size = torch.rand(2, t.x.shape[1], 1) + 1
    want = (scores + size.log().mT[:, None]).softmax(-1).mean(1)[:, special[0]]
    torch.testing.assert_close(class_attention(replace(t, size=size), probe), want)


@pytest.mark.parametrize("special", [(0,), (6,), (0, 1)])
def test_the_others_become_one_token_that_stands_for_their_patches(special):
    t, probe = given(special)
    out = EvitLayer(0.5, True)(t, probe)
    k, a, patches = len(special), class_attention(t, probe), [i for i in range(t.x.shape[1]) if i not in special]
    assert out.x.shape[1] == k + 6 + 1
    assert out.special == tuple(range(k))
    assert torch.equal(out.x[:, :k], t.x[:, list(special)])
    back = unmerge(out)
    for image in range(2):
        score = a[image, patches]
        most = score.argsort(descending=True)
        torch.testing.assert_close(out.x[image, k:-1], t.x[image, patches][most[:6]])
        rest = (score[most[6:], None] * t.x[image, patches][most[6:]]).sum(0)
        torch.testing.assert_close(out.x[image, -1], rest)
        torch.testing.assert_close(back[image, most[:6]], t.x[image, patches][most[:6]])
        torch.testing.assert_close(back[image, most[6:]], rest.expand(6, -1))


def test_without_fusion_they_are_gone():
    t, probe = given()
    out = EvitLayer(0.5, False)(t, probe)
    assert out.x.shape[1] == 7
    assert ((out.source == -1).sum(1) == 6).all()
    assert not unmerge(out)[out.source == -1].any()


def test_sizes_add_up_and_what_was_dropped_before_stays_dropped():
    x = torch.randn(1, 7, 4)
    t = Tokens(x, None, (0,), torch.tensor([1.0, 2, 3, 1, 1, 2, 1])[None, :, None], torch.tensor([[1, 1, -1, 2, 3, 6]]))
    out = fused(t, torch.tensor([[0, 2, 6]]), (0,), torch.full((1, 7), 0.5))
    assert out.size[0, :, 0].tolist() == [1, 3, 1, 6]
    assert out.source.tolist() == [[3, 3, -1, 1, 3, 2]]
    torch.testing.assert_close(out.x[0, 3], x[0, [1, 3, 4, 5]].sum(0) / 2)


def test_the_fused_token_passes_a_gradient_to_what_weighs_it():
    t, probe = given()
    probe["queries"].requires_grad_()
    EvitLayer(0.5, True)(t, probe).x[:, -1].sum().backward()
    assert probe["queries"].grad[:, :, 0].any()
    assert not probe["queries"].grad[:, :, 1:].any()


def test_distillation_tokens_stay_and_keeping_all_changes_nothing():
    model = create_model("deit_tiny_distilled_patch16_224", num_classes=10, img_size=64).eval()
    x, seen = torch.randn(2, 3, 64, 64), []
    hosts_of(model)[-1].block.register_forward_hook(lambda _m, _i, t: seen.append(t))
    with torch.inference_mode():
        plain = model(x)
        with attached(model, Evit(1.0)):
            assert torch.equal(model(x), plain)
        with attached(model, Evit(0.5)):
            assert not torch.equal(model(x), plain)
    assert seen[-1].special == (0, 1)
    assert seen[-1].x.shape[1] == 2 + 4  # 16 -> 8 + 1 -> 5 + 1 -> 3 + 1
    assert int(seen[-1].source.max()) == 5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cct_7_3x1_32", r"blocks\.1: SelfAttention has no class token among its tokens"),
        ("vir_small_patch16_224", "Retentive shows no queries and no keys"),
        ("vim_tiny", "MambaMixer shows no queries"),
        ("swin_tiny", r"stages\.3\.blocks\.0: WindowAttention needs a full grid"),
    ],
)
def test_hosts_without_what_it_goes_by_are_refused(name, words):
    refused(name, Evit(), words)


def test_settings():
    assert plugin("evit:keep=0.5,fuse=false,at=2+5") == Evit(0.5, False, (2, 5))
    assert plugin("evit:at=4") == Evit(at=(4,))
    for keep in (0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="above 0 and up to 1"):
            Evit(keep)
    for at in ((), (3, 3), (6, 3), (-1, 2)):
        with pytest.raises(ValueError, match="counted from 0 and rising"):
            Evit(at=at)
    model = create_model("deit_tiny_patch16_224", img_size=32)
    with pytest.raises(ValueError, match=r"has 12 blocks, 0 to 11"):
        attach(model, Evit(at=(3, 12)))
    with attached(model, Evit()):
        assert [h.place for h in hosts_of(model) if h.block.after_mixer is not None] == [3, 6, 9]
