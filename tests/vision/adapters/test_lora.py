"""The LoRA house on our models: which layers it reaches, parts of fused ones, beginnings, and what it refuses."""

import sys
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft_parts import bare, stirred
from plugin_parts import image, made
from torch import nn

from patchloom.train.catalogue.compat import KINDS
from patchloom.vision.adapters import (
    AdapterError,
    adapt,
    adapter,
    adapter_of,
    counts,
    in_words,
    merge,
    own_state,
    switch,
)
from patchloom.vision.adapters.lora import AdaLora, Corda, Dora, Eva, Lora, Pissa
from patchloom.vision.adapters.lora_data import needs_data, prepare
from patchloom.vision.adapters.lora_kin import Boft, DeLora, FourierFt, Hra, LnTuning, Miss, Oft, Road, Vera
from patchloom.vision.adapters.lora_split import Split
from patchloom.vision.adapters.peft_names import from_peft, to_peft
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model

SPECS = (
    "lora:r=4", "rslora:r=2,targets=all", "dora:r=4", "pissa:r=4", "olora:r=4", "corda:r=2", "eva:r=2",
    "adalora:r=2,start=3", "vera:r=16", "ia3", "oft:block=8", "boft", "loha:r=2", "lokr:r=2", "hra:r=2", "ln_tuning",
    "fourierft:n=64", "delora:r=2", "road:group=16", "miss:r=8", "lora:r=2,targets=q+v+fc1", "dora:r=2,targets=k",
    "pissa:r=2,targets=q", "ia3:targets=v", "lora:r=2,targets=convolution",
)  # fmt: skip


@pytest.fixture
def x():
    return torch.randn(2, 3, 40, 24, generator=torch.Generator().manual_seed(0))


def steps(model, x, lr=0.01):
    """Two training steps; the names of what learns and got no gradient in the second."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    model.eval()
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    return [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]


@pytest.mark.parametrize("spec", SPECS)
def test_it_starts_as_the_trunk_learns_merges_and_goes(spec, x):
    model, chosen = bare(), adapter(spec)
    assert adapter(in_words(chosen)) == chosen
    before, names = model(x), list(model.state_dict())
    remove = adapt(model, chosen)
    torch.testing.assert_close(model(x), before, atol=2e-6, rtol=2e-6)
    assert steps(model, x) == []
    after = stirred(model)(x)
    assert not torch.allclose(after, before, atol=1e-4)
    unmerge = merge(model)
    torch.testing.assert_close(model(x), after, atol=1e-5, rtol=1e-5)
    assert list(model.state_dict()) == names
    unmerge()
    assert torch.equal(model(x), after)
    remove()
    assert torch.equal(model(x), before)
    assert list(model.state_dict()) == names
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("spec", SPECS)
def test_it_is_checkpointed_copied_and_loaded(spec, x):
    model = bare()
    adapt(model, adapter(spec))
    stirred(model)
    want = model(x)
    torch.testing.assert_close(deepcopy(model)(x), want)
    other = bare()
    adapt(other, adapter(spec))
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), want)
    model(x).sum().backward()
    other.set_grad_checkpointing()
    other.train()(x).sum().backward()
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=name)
    half = model.to(torch.bfloat16)(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.isfinite(half).all()


COMPILED = ("dora:r=4", "pissa:r=4", "lora:r=2,targets=q+v+fc1")


@pytest.mark.slow
@pytest.mark.parametrize("spec", COMPILED)
def test_it_is_compiled(spec, x):
    model = bare()
    adapt(model, adapter(spec))
    want = stirred(model)(x)
    whole = "dora" not in spec  # peft's function for quantised weights breaks that graph
    compiled = torch.compile(model, backend="aot_eager", fullgraph=whole)
    torch.testing.assert_close(compiled(x), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_that_a_family_declares_is_reached(kind):
    model = made(kind)
    x = image()
    before = model(x)
    adapt(model, Lora(1, targets=("all",)))
    torch.testing.assert_close(model(x), before, atol=2e-6, rtol=2e-6)
    dead = [n for n in steps(model, x) if not n.startswith("head_patches")]  # those learn in training with their labels
    assert dead == []
    model, x = model.double(), x.double()  # squares (StarReLU) make 1e-5 of what float32 rounds
    after = model(x)
    merge(model)
    torch.testing.assert_close(model(x), after)


@pytest.mark.parametrize(
    ("name", "targets", "layers"),
    [
        ("deit_tiny_patch16_224", (), {"qkv", "proj"}),
        ("swin_tiny", (), {"qkv", "proj"}),
        ("cvt_13", (), {"q", "k", "v", "proj"}),
        ("convformer_s18", (), {"fc1", "fc2"}),
        ("poolformer_s12", (), {"fc1", "fc2"}),  # no mixer has a layer, so the MLPs
        ("vim_tiny", (), {"in_proj", "x_proj", "dt_proj", "out_proj"}),
        ("vmamba_tiny_s1l8", ("in_proj", "dt_proj"), {"in_proj", "dt_proj"}),
        ("swin_tiny", ("all",), {"qkv", "proj", "fc1", "fc2", "reduction"}),
        ("deit_tiny_patch16_224", ("stem.convolution", "mlps"), {"conv", "fc1", "fc2"}),
    ],
)
def test_presets_are_what_the_modules_declare(name, targets, layers):
    with torch.device("meta"):
        model = create_model(name)
    chosen = Lora(4, targets=targets).chosen(model)
    assert {t.path.rpartition(".")[2] for t in chosen} == layers
    assert all("table" not in t.path and not t.path.startswith("head") for t in chosen)


def test_a_preset_leaves_out_what_the_rank_does_not_fit():
    model = made("selective scan, winding")  # whose step sizes come from one number here
    wide = {t.path.rpartition(".")[2] for t in Lora(4).chosen(model)}
    assert wide == {"in_proj", "x_proj", "out_proj"}
    with pytest.raises(AdapterError, match=r"dt_proj: Linear \(\d+ -> 32\) is narrower than r=4; take r of at most"):
        adapt(model, Lora(4, targets=("dt_proj",)))


def test_parts_of_a_fused_layer_learn_alone(x):
    model = bare()
    fused = model.backbone.stages[0].blocks[0].mixer.qkv
    q, k, v = fused(x[0, 0, :3, :1].expand(3, 48)).chunk(3, -1)
    remove = adapt(model, Lora(2, targets=("q", "v")))
    split = model.backbone.stages[0].blocks[0].mixer.qkv
    assert isinstance(split, Split)
    assert {n.split(".mixer.qkv.")[1].split(".lora")[0] for n in own_state(model) if "qkv" in n} == {"q", "v"}
    assert not any("base_layer" in n for n in own_state(model))  # nothing of the trunk is held twice
    stirred(model)
    q2, k2, v2 = split(x[0, 0, :3, :1].expand(3, 48)).chunk(3, -1)
    torch.testing.assert_close(k2, k)
    assert not torch.allclose(q2, q)
    assert not torch.allclose(v2, v)
    remove()
    assert model.backbone.stages[0].blocks[0].mixer.qkv is fused


def test_a_copy_has_rows_of_its_own_weight():
    model = bare()
    adapt(model, Lora(2, targets=("q",)))
    split = deepcopy(model).backbone.stages[0].blocks[0].mixer.qkv
    with torch.no_grad():
        split.base_layer.weight.fill_(3.0)
    assert (split.q.base_layer.weight == 3).all()
    assert (split.k.weight == 3).all()
    assert not (model.backbone.stages[0].blocks[0].mixer.qkv.k.weight == 3).any()


@pytest.mark.parametrize("kind", ["pooling, then attention with offsets", "convolutions, then windows",
                                  "attention that fades with distance", "tokens inside tokens, in a pyramid",
                                  "shifted windows"])  # fmt: skip
def test_parts_are_found_in_every_fused_layer(kind):
    model, x = made(kind), image()
    before = model(x)
    adapt(model, Lora(1, targets=("k",)))
    assert steps(model, x) == []
    stirred(model)
    after = model(x)
    assert not torch.allclose(after, before)
    merge(model)
    torch.testing.assert_close(model(x), after, atol=1e-5, rtol=1e-5)


def test_a_beginning_out_of_the_weight_leaves_the_weight(x):
    model = bare()
    before = {n: p.clone() for n, p in model.named_parameters()}
    adapt(model, Pissa(4, targets=("qkv", "fc1")))
    layer = model.backbone.stages[0].blocks[0].mixer.qkv
    u, s, v = torch.linalg.svd(layer.base_layer.weight, full_matrices=False)
    torch.testing.assert_close(layer.get_delta_weight("default"), u[:, :4] * s[:4] @ v[:4])
    assert torch.equal(layer.base_layer.weight, before["backbone.stages.0.blocks.0.mixer.qkv.weight"])
    fixed = [n for n in own_state(model) if ".start" in n]
    assert fixed
    assert not any(dict(model.named_parameters())[n].requires_grad for n in fixed)


@pytest.mark.parametrize(
    "chosen", [Corda(3), Corda(3, mode="kpm", targets=("q",)), Eva(3), Eva(2, targets=("v", "fc2"))]
)
def test_images_say_where_it_begins(chosen, x):
    model = bare()
    before = model(x)
    adapt(model, chosen)
    assert needs_data(model)
    first = {n: t.clone() for n, t in own_state(model).items()}
    prepare(model, [x, x[:1].flip(-1)])
    torch.testing.assert_close(model(x), before, atol=5e-6, rtol=5e-6)
    changed = {
        n.split(".lora_")[1].partition(".")[0] for n, t in own_state(model).items() if not torch.equal(t, first[n])
    }
    assert changed == ({"A", "B"} if isinstance(chosen, Corda) else {"A"})
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert steps(model, x) == []
    plain = bare()
    adapt(plain, Lora(2))
    assert not needs_data(plain)


def test_eva_follows_what_goes_in(x):
    model = bare()
    block = model.backbone.stages[0].blocks[0]
    heard = []
    hook = block.mixer.qkv.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0].flatten(0, 1)))
    model(x)
    hook.remove()
    adapt(model, Eva(3))
    prepare(model, [x])
    a = block.mixer.qkv.lora_A["default"].weight
    want = torch.linalg.svd(heard[0], full_matrices=False)[2][:3]
    torch.testing.assert_close((a @ want.T).abs(), torch.eye(3), atol=1e-4, rtol=0)


def test_adapters_of_the_house_take_turns(x):
    model = bare()
    bare_output = model(x)
    adapt(model, Lora(2), "one")
    one = stirred(model)(x)
    adapt(model, Vera(8, targets=("q", "fc1")), "two")
    two = stirred(model)(x)
    assert not torch.allclose(one, two)
    for name, want in (("one", one), ("two", two), (None, bare_output), ("two", two)):
        switch(model, name)
        assert torch.equal(model(x), want)


def test_its_numbers_are_few():
    model = bare()
    adapt(model, Lora(2))
    head = 48 * 10 + 10
    assert counts(model)[0] == head + 2 * (2 * (48 + 144) + 2 * (48 + 48))
    assert all(t.numel() < 1000 for t in own_state(model).values())
    vera = bare()
    adapt(vera, Vera(256))
    assert not any("vera_A" in n or "vera_B" in n for n in own_state(vera))  # drawn from the seed, in no file


REFUSED = [
    (Lora(49), r"qkv: Linear \(48 -> 144\) is narrower than r=49; take r of at most 48; .*fits none of its \d+ layers"),
    (Lora(49, targets=("fc1",)), r"blocks\.0\.ffn\.fc1: Linear \(48 -> 192\) is narrower than r=49"),
    (Lora(targets=("query",)), "no layer is called 'query'.*there are convolution, fc1, fc2, k, proj, q, qkv, v, all"),
    (Lora(targets=("qvk",)), "did you mean qkv"),
    (Lora(targets=("head",)), "no layer is called 'head'"),
    (Lora(targets=("qkv", "k")), r"mixer\.qkv: .* wants both all of it and its part 'k'"),
    (Pissa(targets=("convolution",)), "is no linear layer, as init=pissa needs"),
    (Oft(32), "qkv: Linear is 48 wide, which block=32 does not divide; take one of 2, 4, 6, 8, 12, 16, 24, 48; oft"),
    (Boft(10), "which block=10 does not divide"),
    (Road(group=64), "which group=64 does not divide"),
    (FourierFt(10**6), "fewer than n=1000000"),
    (Vera(targets=("convolution",)), "no layer is called 'convolution'"),
    (Miss(64), "narrower than r=64"),
    (LnTuning(targets=("qkv",)), "no layer is called 'qkv'.*there are norm1, norm2"),
]


@pytest.mark.parametrize(("chosen", "words"), REFUSED)
def test_what_does_not_fit_is_refused_and_changes_nothing(chosen, words):
    model = bare()
    layers = dict(model.named_modules())
    with pytest.raises(AdapterError, match=words):
        adapt(model, chosen)
    assert dict(model.named_modules()) == layers
    assert all(p.requires_grad for p in model.parameters())
    assert adapter_of(model) is None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Lora(0), "r=0: it takes at least 1"),
        (lambda: Lora(dropout=1.0), "dropout=1.0: from 0 to below 1"),
        (lambda: Lora(init="pissa", dora=True), "init=pissa takes A and B out of the weight, and dora=true"),
        (lambda: AdaLora(8, 8), "start=8: ranks fall from it to r=8"),
        (lambda: AdaLora(begin=0.5, end=0.5), "begin=0.5, end=0.5: shares"),
        (lambda: Hra(3), "r=3: reflections begin as pairs that cancel"),
        (lambda: Boft(3), "block=3: an even number"),
        (lambda: Road(group=3), "group=3: an even number"),
        (lambda: Vera(0), "r=0: it takes at least 1"),
        (lambda: adapter("lora:rank=4"), "option 'rank' of adapter 'lora'"),
    ],
)
def test_settings_that_fit_no_model(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_without_peft_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(AdapterError, match=r"need peft .*: pip install 'patchloom\[train\]'"):
        adapt(bare(), Lora(2))


def test_weights_that_it_began_with_do_not_change(x):
    model = bare()
    state = model.state_dict()
    for chosen in (Dora(2), Pissa(2), DeLora(2)):
        remove = adapt(model, chosen)
        with pytest.raises(ValueError, match=r"began with the weights that the model has now; take it off, load these"):
            load_published(model, state, source="ours")
        remove()
    adapt(model, Lora(2))
    load_published(model, state, source="ours")


def test_a_pyramid_has_its_own_norms(x):
    torch.manual_seed(0)
    model = create_model("swin_tiny", features_only=True, dense=True)
    before = [m.detach() for m in model.eval()(x)]
    adapt(model, Lora(2, targets=("q", "fc2")))
    config, state = to_peft(stirred(model))
    after = model(x)
    assert sorted(config["modules_to_save"]) == [f"norms.{i}" for i in range(4)]
    torch.manual_seed(0)
    other = create_model("swin_tiny", features_only=True, dense=True).eval()
    kept = ("r", "target_modules", "modules_to_save", "rank_pattern", "alpha_pattern")
    theirs = get_peft_model(deepcopy(other), LoraConfig(**{k: config[k] for k in kept}))
    set_peft_model_state_dict(theirs, state)
    from_peft(other, config, state)
    for a, b, c, d in zip(after, other(x), theirs.eval()(x), before, strict=True):
        torch.testing.assert_close(b, a, atol=1e-4, rtol=1e-4)  # eight blocks of other sums in float32
        torch.testing.assert_close(c, a, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(a, d)


@pytest.mark.parametrize("spec", SPECS)
def test_it_runs_under_autocast(spec, x):
    model = bare()
    adapt(model, adapter(spec))
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    assert torch.isfinite(out).all()
    out.float().square().mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_settings_are_values():
    assert replace(Lora(4), targets=("q",)) == Lora(4, targets=("q",))
    assert isinstance(adapter("lora:r=4,targets=q+v").targets, tuple)
    assert not isinstance(Lora(4), nn.Module)
