"""Biases and norms that learn, affine layers, structured sparse fine-tuning: what they reach, compute and fold into."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from plugin_parts import image, made, pyramid
from torch import nn

from patchloom.vision.adapters import AdapterError, adapt, adapter, counts, merge, own_state, unadapted
from patchloom.vision.adapters.affine import Affiner, DiffScaler, ScaleShift
from patchloom.vision.adapters.partial import NORMS, BiasTuning, NormTuning
from patchloom.vision.adapters.s2ft import S2FT, Columns, Rows
from patchloom.vision.conv import ConvNorm, InvertedBottleneck, LinearNorm
from patchloom.vision.layers import Linear
from patchloom.vision.mixers.attention import SelfAttention
from patchloom.vision.plugins import attach, plugin

KINDS = (
    "global attention, class token", "shifted windows", "separable convolutions", "selective scan, both ways",
    "selective scan, crosswise", "tokens inside tokens", "convolutions, then windows", "simplified linear attention",
    "attention that fades with distance", "pooling, then attention with offsets",
)  # fmt: skip
PLAIN = KINDS[0]
SETTINGS = ("bias", "norm", "ssf", "diffscaler", "s2ft:rows=true")


def tuned(setting: str, kind: str = PLAIN) -> nn.Module:
    model = made(kind)
    adapt(model, adapter(setting))
    return model


def nudge(model: nn.Module) -> None:
    """Its own parameters away from where they do nothing."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn_like(p))


def own(model: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


# --------------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_it_begins_where_the_trunk_is_and_all_that_learns_has_a_gradient(setting, kind):
    model, x = made(kind), image(batch=4)
    with torch.inference_mode():
        plain, names = model(x), list(model.state_dict())
    remove = adapt(model, adapter(setting))
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(x), plain, rtol=2e-6, atol=2e-6 * float(plain.abs().max()))
    optimizer = torch.optim.SGD(own(model).values(), 0.01)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert [n for n, p in own(model).items() if p.grad is None or not p.grad.any()] == []
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    remove()
    with torch.inference_mode():
        assert torch.equal(model.eval()(x), plain)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("kind", [PLAIN, "convolutions, then windows", "selective scan, both ways"])
@pytest.mark.parametrize("setting", ["bias", "norm", "ssf", "s2ft:share=0.3,rows=true"])
@torch.inference_mode()
def test_folded_into_the_weights_it_is_the_same(setting, kind):
    model, x = tuned(setting, kind), image()
    names = {n for n, _ in made(kind).named_modules()}
    nudge(model)
    want = model.eval()(x)
    unmerge = merge(model)
    torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
    assert {n for n, _ in model.named_modules()} == names
    unmerge()
    assert torch.equal(model(x), want)


@pytest.mark.parametrize("setting", SETTINGS)
def test_in_a_pyramid_at_odd_sizes_in_bfloat16_under_checkpointing(setting):
    model = pyramid("shifted windows").bfloat16()
    adapt(model, adapter(setting))
    nudge(model)
    model.set_grad_checkpointing()
    x = image((97, 131), batch=1).bfloat16()
    maps = model.train()(x)
    torch.stack([m.float().square().mean() for m in maps]).sum().backward()
    assert [n for n, p in own(model).items() if p.grad is None or not p.grad.any()] == []
    assert all(m.dtype is torch.bfloat16 for m in maps)
    again = deepcopy(model)
    assert all(torch.equal(a, b) for a, b in zip(again(x), maps, strict=True))


def test_token_plugins_keep_what_is_theirs():
    model = made(PLAIN)
    attach(model, plugin("dynamicvit"))
    for setting in SETTINGS:
        remove = adapt(model, adapter(setting))
        assert not any("before_block" in n or "attending" in n for n in own(model))
        remove()


# ------------------------------------------------------------------------------------------------ biases and norms


def test_biases_and_norms_are_all_that_learns():
    model = tuned("bias")
    assert {n.rsplit(".", 1)[1] for n in own(model) if not n.startswith("head.")} == {"bias"}
    with unadapted(model):
        want = {n for n, _ in model.named_parameters() if n.endswith("bias")}
    assert {n for n in own(model) if not n.startswith("head.")} == want - {"head.bias"}
    model = tuned("norm", "convolutions, then windows")
    norms = {n for n, m in model.named_modules() if isinstance(m, NORMS)}
    assert {n.rpartition(".")[0] for n in own(model)} - {"head"} == norms
    assert not any(m.training for m in model.train().modules() if isinstance(m, NORMS))  # their statistics stay


def test_a_shared_parameter_stays_shared():
    model = made(PLAIN)
    first, second = (model.get_submodule(f"backbone.stages.0.blocks.{i}.norm1") for i in range(2))
    second.bias = first.bias
    remove = adapt(model, adapter("bias"))
    assert second.bias is first.bias
    assert first.bias.requires_grad
    learned = first.bias
    remove()
    assert second.bias is first.bias is not learned


def test_where_there_is_nothing_to_tune_it_says_so():
    with pytest.raises(AdapterError, match="bias: no layer of Conv2d"):
        BiasTuning().place(nn.Conv2d(3, 4, 1, bias=False))
    with pytest.raises(AdapterError, match="norm: no norm of Linear"):
        NormTuning().place(nn.Linear(3, 4))
    with pytest.raises(AdapterError, match="ReLU has no linear layer and no convolution"):
        ScaleShift().place(nn.ReLU())
    with pytest.raises(AdapterError, match="Linear: no mixer and no MLP declares a linear layer proj"):
        S2FT().place(nn.Linear(3, 4))


# ----------------------------------------------------------------------------------------------------- affine layers


def test_an_affiner_is_its_formula():
    torch.manual_seed(0)
    layer = Affiner(Linear(6, 5), 3, 0.5)
    x = torch.randn(2, 7, 6)
    torch.testing.assert_close(layer(x), layer.layer(x), rtol=0, atol=0)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    w, b0 = layer.layer.weight, layer.layer.bias
    want = (1 + layer.a) * (x @ w.T) + b0 + layer.b + 0.5 * (F.relu(x @ layer.down.weight.T) @ layer.up.weight.T)
    torch.testing.assert_close(layer(x), want)
    torch.testing.assert_close(layer.bias, b0 + layer.b)


CONVOLUTIONS = {
    "patches": {"kernel_size": 16, "stride": 16},
    "overlapping": {"kernel_size": 7, "stride": 4, "padding": 2},
    "halving": {"kernel_size": 3, "stride": 2, "padding": 1},
    "by two": {"kernel_size": 2, "stride": 2},
    "no padding": {"kernel_size": 3},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2},
    "wide padding": {"kernel_size": 3, "padding": 3},
    "dilated": {"kernel_size": (5, 3), "dilation": 2, "padding": (4, 2)},
    "same": {"kernel_size": 5, "padding": "same"},
    "pointwise": {"kernel_size": 1, "stride": (2, 1)},
}  # fmt: skip


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("size", [(33, 47), (32, 48)], ids=str)
def test_the_branch_of_a_convolution_reads_the_middle_of_the_patch(name, size):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, **CONVOLUTIONS[name])
    layer, x = Affiner(conv, 4, 1.0), torch.randn(2, 4, *size)
    y = conv(x)
    torch.testing.assert_close(layer(x), y, rtol=0, atol=0)
    with torch.no_grad():
        layer.down.weight.copy_(torch.eye(4)[..., None, None])
        layer.up.weight.normal_()
    seen = layer.middles(x, y)
    assert seen.shape[2:] == y.shape[2:]
    if "wide" not in name:  # there the middle of the first patch lies outside of the image
        depthwise = nn.Conv2d(4, 4, **{**CONVOLUTIONS[name], "groups": 4}, bias=False)
        depthwise.weight.data.zero_()
        k = depthwise.weight.shape
        depthwise.weight.data[:, 0, (k[2] - 1) // 2, (k[3] - 1) // 2] = 1
        torch.testing.assert_close(seen, depthwise(x), rtol=0, atol=0)
    torch.testing.assert_close(layer(x), y + layer.up(seen.relu()))


def test_affine_layers_stand_around_every_layer_once():
    model = tuned("diffscaler:r=4")
    layers = [m for m in model.modules() if type(m) in (Linear, nn.Linear, nn.Conv2d)]
    inside = [m.layer for m in model.modules() if isinstance(m, Affiner)]
    branches = [m for a in model.modules() if isinstance(a, Affiner) for m in (a.down, a.up) if m is not None]
    assert {id(m) for m in layers} == {id(m) for m in (*inside, *branches, model.head)}
    sizes = [(c.weight.shape[1], c.weight.shape[0]) for c in inside]
    head = sum(p.numel() for p in model.head.parameters())
    assert counts(model)[0] - head == sum(2 * out + 4 * (dim + out) for dim, out in sizes)


def test_settings_that_fit_no_model():
    with pytest.raises(ValueError, match="r=0"):
        DiffScaler(r=0)
    with pytest.raises(AdapterError, match=r"r=5000: no layer of Classifier is wider than \d+ channels"):
        DiffScaler(r=5000).place(made(PLAIN))
    with pytest.raises(AdapterError, match="cannot be merged"):
        merge(tuned("diffscaler"))
    for share in (0, 1.5, -1):
        with pytest.raises(ValueError, match="share="):
            S2FT(share)


# ------------------------------------------------------------------------------- structured sparse fine-tuning


def test_what_is_chosen_is_whole_heads_and_runs_of_channels():
    model = tuned("s2ft:share=0.4")
    parts = {n: m for n, m in model.named_modules() if isinstance(m, Columns | Rows)}
    assert all(isinstance(m, Columns) for m in parts.values())
    for host in (m for m in model.modules() if isinstance(m, SelfAttention)):
        width = host.proj.layer.in_features // host.heads
        assert (host.proj.first % width, host.proj.many) == (0, width)  # one head of two
    fc2 = [m for n, m in parts.items() if n.endswith("fc2")]
    assert all(m.many == round(0.4 * m.layer.in_features) for m in fc2)
    assert {(n, m.first) for n, m in parts.items()} == {
        (n, m.first) for n, m in tuned("s2ft:share=0.4").named_modules() if isinstance(m, Columns)
    }
    assert any(
        m.first != parts[n].first for n, m in tuned("s2ft:share=0.4,seed=1").named_modules() if isinstance(m, Columns)
    )


def test_only_those_columns_and_rows_of_the_weights_change():
    model = tuned("s2ft:share=0.25,rows=true")
    nudge(model)
    parts = {n: m for n, m in model.named_modules() if isinstance(m, Columns | Rows)}
    kinds = {n.rsplit(".", 1)[1]: type(m) for n, m in parts.items()}
    assert kinds == {"proj": Columns, "fc2": Columns, "fc1": Rows}
    for m in parts.values():
        changed = (m.plain().weight != m.layer.weight).nonzero()
        axis = int(isinstance(m, Columns))
        assert set(changed[:, axis].tolist()) == set(range(m.first, m.first + m.many))
        assert set(changed[:, 1 - axis].tolist()) == set(range(m.layer.weight.shape[1 - axis]))
    assert {n.rpartition(".")[0] for n in own_state(model) if n.endswith(".d")} == set(parts)


def test_the_whole_share_is_the_whole_matrix():
    model = tuned("s2ft:share=1")
    assert all((m.first, m.many) == (0, m.layer.in_features) for m in model.modules() if isinstance(m, Columns))


def test_little_is_kept_of_what_a_layer_took():
    model, kept = Columns(Linear(64, 32), 8, 4).requires_grad_(False), {}
    model.d.requires_grad_(True)
    x = torch.randn(2, 10, 64)

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(x).sum().backward()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert sum(n for at, n in kept.items() if at not in weights) == 2 * 10 * 4 * 4  # the columns, not what they are of


# -------------------------------------------------------------------- layers that take short cuts over frozen weights


@pytest.mark.parametrize("layer", [LinearNorm(64, 64), ConvNorm(16, 64, 3), InvertedBottleneck(64, 128, 64)], ids=repr)
def test_a_norm_behind_frozen_weights_gets_its_gradient(layer):
    """Nothing before it learns either: the layer is the first that does."""
    layer.eval().requires_grad_(False)
    norms = [m for m in layer.modules() if isinstance(m, NORMS)]
    for m in norms:
        m.requires_grad_(True)
    m = torch.randn(2, 48, 48, 16 if isinstance(layer, ConvNorm) else 64)
    layer(m).square().mean().backward()
    assert all(m.weight.grad.any() and m.bias.grad.any() for m in norms)


@pytest.mark.parametrize("kind", ["attention of convolved tokens", "multigroup convolutions", KINDS[-1]])
@pytest.mark.parametrize("setting", ["ssf", "norm", "s2ft"])
@torch.inference_mode()
def test_what_folds_leaves_layers_with_others_around_them(setting, kind):
    if setting == "s2ft" and kind == "multigroup convolutions":
        with pytest.raises(AdapterError, match="declares a linear layer"):
            tuned(setting, kind)
        return
    model, x = tuned(setting, kind), image()
    nudge(model)
    want = model.eval()(x)
    torch.testing.assert_close(model.fold()(x), want, rtol=2e-5, atol=2e-5 * float(want.abs().max()))
