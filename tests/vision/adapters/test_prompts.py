"""Visual prompt tuning: where prompts stand, what they meet in windows and between stages, and beside token plugins."""

import re
from copy import deepcopy

import pytest
import torch
from plugin_parts import image, made, pyramid
from torch import Tensor, nn
from vision_tiny import tiny_classifier

from patchloom.kernels.attend import attend
from patchloom.kernels.windows import unwindow, windows
from patchloom.vision.adapters import AdapterError, adapt, adapter, counts, in_words, own_state
from patchloom.vision.adapters.files import save_adapter, start_from
from patchloom.vision.adapters.prompts import Away, Prompts, Vpt
from patchloom.vision.mixers.window import WindowAttention
from patchloom.vision.plugins import attach, hosts_of, plugin
from patchloom.vision.stem import Merge2x2
from patchloom.vision.tokens import Tokens
from patchloom.vision.zoo import create_model

VIT, SWIN, CVT = "global attention, class token", "shifted windows", "attention of convolved tokens"
TAKING = (  # kinds that have prompts somewhere
    VIT, SWIN, CVT, "global attention, class and distillation token", "global attention, no special token",
    "separable convolutions, then attention", "tokens of tokens", "tokens inside tokens",
    "attention with local positions", "causal attention", "linear attention", "searched heads, residual pooling",
    "attention under Gaussian masks", "selective scan, both ways", "retention",
)  # fmt: skip


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seen(model: nn.Module, x: Tensor) -> list[tuple[int, tuple[int, ...], Tensor]]:
    """What each block's mixer takes: how many tokens, where special ones stand, the tokens."""
    found = []
    hooks = [
        h.mixer.register_forward_pre_hook(lambda _, a: found.append((a[0].x.shape[1], a[0].special, a[0].x)))
        for h in hosts_of(model)
    ]
    with torch.inference_mode():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def prompts(model: nn.Module) -> list[Prompts]:
    return [m for m in model.modules() if isinstance(m, Prompts)]


# ----------------------------------------------------------------------------------------------------- where they stand


@pytest.mark.parametrize("deep", [False, True])
def test_behind_the_class_token(deep):
    model, x = made(VIT), image((96, 64))
    adapt(model, Vpt(3, deep))
    assert len(prompts(model)) == (2 if deep else 1)
    assert [(n, special) for n, special, _ in seen(model, x)] == [(1 + 3 + 24, (0, 1, 2, 3))] * 2
    first, second = hosts_of(model)
    t = model.backbone.stem(x)
    want = torch.cat([t.x[:, :1], prompts(model)[0].prompts.expand(2, -1, -1), t.x[:, 1:]], 1)
    torch.testing.assert_close(seen(model, x)[0][2], first.block.norm1(want))
    out = first.block.run(Tokens(want, t.grid, (0, 1, 2, 3)))
    if deep:
        out.x[:, 1:4] = prompts(model)[1].prompts
    torch.testing.assert_close(seen(model, x)[1][2], second.block.norm1(out.x))


@pytest.mark.parametrize(
    ("kind", "front", "special"),
    [
        (VIT, False, (0, 1, 2)),
        (VIT, True, (2, 0, 1)),
        ("global attention, class and distillation token", False, (0, 1, 2, 3)),
        ("global attention, class and distillation token", True, (2, 3, 0, 1)),
        ("causal attention", False, (18, 0, 1)),
        ("selective scan, both ways", False, (10, 0, 1)),
        (SWIN, False, (0, 1)),
    ],
)
def test_the_class_token_is_found_wherever_it_stands(kind, front, special):
    model, x = made(kind), image()
    adapt(model, Vpt(2, front=front))
    assert seen(model, x)[-1][1] == special
    for size in ((64, 64), (96, 64)):
        features = model.forward_features(image(size))
        torch.testing.assert_close(model.forward_head(features), model(image(size)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", TAKING)
@pytest.mark.parametrize("chosen", [Vpt(3, deep=False), Vpt(3, project=4)], ids=["shallow", "projected"])
def test_they_learn_and_leave_no_trace(kind, chosen):
    model, x = made(kind), image((96, 64))
    names, before, special = list(model.state_dict()), model(x), model.special
    maps = model.forward_intermediates(x, intermediates_only=True)
    remove = adapt(model, chosen)
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    still = {n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    assert still <= {"head_patches.weight", "head_patches.bias"}  # that no answer depends on, with or without prompts
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    model.eval()
    torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-5, atol=1e-6)
    assert [m.shape for m in model.forward_intermediates(x, intermediates_only=True)] == [m.shape for m in maps]
    remove()
    assert list(model.state_dict()) == names
    assert torch.equal(model(x), before)
    assert model.special == special


def test_every_stage_begins_anew_where_the_step_takes_patches_only():
    model = made(CVT)
    adapt(model, Vpt(2, deep=False))
    assert [(h.stage, type(h.block.before_block), type(h.block.after_block)) for h in hosts_of(model)] == [
        (0, Prompts, Away), (1, Prompts, type(None)), (1, type(None), Away), (2, Prompts, type(None)),
        (2, type(None), type(None)),
    ]  # fmt: skip
    assert [n for n, *_ in seen(model, image())] == [258, 66, 66, 19, 19]
    assert [len(t.special) for t in model.backbone(image())] == [0, 0, 3]


def test_only_stages_that_take_them_have_prompts():
    model = made("separable convolutions, then attention")
    adapt(model, Vpt(2))
    assert [h.stage for h in hosts_of(model) if h.block.before_block is not None] == [2, 2, 3, 3]


def test_prompts_go_through_swin_and_are_averaged_with_the_patches():
    model = made(SWIN)
    adapt(model, Vpt(3, deep=False))
    assert [n for n, *_ in seen(model, image((96, 64)))] == [387, 387, 99, 99, 27, 27, 9, 9]
    features = model.forward_features(image((96, 64)))
    torch.testing.assert_close(model(image((96, 64))), model.head(features.mean(1)))


@torch.inference_mode()
def test_tokens_that_were_reduced_are_whole_behind_the_stage():
    """Where prompts are taken away before the step: what stands for each patch is found again."""
    model, x = made("searched heads, residual pooling"), image((96, 64))
    attach(model, plugin("tome:r=1"))
    adapt(model, Vpt(2))
    for t in model.backbone.walk(x, [(0, 1), (1, 1)])[1]:
        full = t.restored()
        assert t.special == full.special == (0,)
        counted = torch.stack([(t.source == i).sum(1) for i in range(t.x.shape[1])], 1)
        assert torch.equal(counted[:, 1:], t.size[:, 1:, 0].long())
        assert not (t.source == 0).any()
        torch.testing.assert_close(full.x[:, 1:], t.x.gather(1, t.source[..., None].expand(-1, -1, t.x.shape[2])))


# -------------------------------------------------------------------------------------------------------------- windows


@torch.inference_mode()
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("size", [(8, 8), (6, 11), (5, 4), (3, 9)])
def test_prompts_stand_in_every_window(size, shift, dense):
    mixer, (h, w), s = WindowAttention(8, 2, 4, shift, dense), size, 4
    t = Tokens(normal(2, 3 + h * w, 8), size, (0, 1, 2))
    if not dense and min(size) <= s:
        s, shift = min(size), 0
    m = nn.functional.pad(t.map(), (0, 0, 0, -w % s, 0, -h % s)).roll((-shift, -shift), (1, 2))
    there = nn.functional.pad(torch.ones(1, h, w, 1), (0, 0, 0, -w % s, 0, -h % s)).roll((-shift, -shift), (1, 2))
    bias, count = mixer.bias(h, w, s, shift, s), (m.shape[1] // s) * (m.shape[2] // s)
    bias = bias.expand(count, -1, -1, -1)
    outs, got = [], []
    for image_windows, special in zip(windows(m, s).unflatten(0, (2, count)), t.x[:, :3], strict=True):
        for i, (x, real) in enumerate(zip(image_windows, windows(there, s)[..., 0], strict=True)):
            q, k, v = mixer.qkv(torch.cat([special, x])).unflatten(-1, (3, 2, 4)).permute(1, 2, 0, 3)
            wide = torch.zeros(2, 3 + s * s, 3 + s * s)
            wide[:, 3:, 3:] = bias[i]
            if not dense:
                wide[:, :3, 3:] = torch.where(real > 0, 0.0, -torch.inf)
            y = mixer.proj(attend(q[None], k[None], v[None], wide[None])[0].transpose(0, 1).flatten(1))
            outs.append(y[3:])
            got.append(y[:3])
    want = unwindow(torch.stack(outs), m.shape[1], m.shape[2], s).roll((shift, shift), (1, 2))[:, :h, :w].flatten(1, 2)
    y = mixer(t)
    torch.testing.assert_close(y[:, 3:], want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(y[:, :3], torch.stack(got).unflatten(0, (2, count)).mean(1), rtol=1e-5, atol=1e-6)


@torch.inference_mode()
def test_the_step_makes_four_neighbours_of_a_prompt():
    step = Merge2x2().build(8, 12)
    t = Tokens(normal(2, 2 + 15, 8), (3, 5), (0, 1))
    out = step(t)
    assert (out.grid, out.special) == ((2, 3), (0, 1))
    torch.testing.assert_close(out.x[:, :2], step.reduction(step.norm(torch.cat([t.x[:, :2]] * 4, -1))))
    torch.testing.assert_close(out.x[:, 2:], step(Tokens(t.patches(), (3, 5))).x)


def test_special_tokens_elsewhere_are_refused():
    with pytest.raises(ValueError, match=r"special tokens at \(4,\): they are wanted in front of the patches"):
        WindowAttention(8, 2, 2, 0)(Tokens(normal(1, 5, 8), (2, 2), (4,)))


# ------------------------------------------------------------------------------------------------------------- settings


def test_parameters_and_spellings():
    with torch.device("meta"):
        model = create_model("vit_base_patch16_224", num_classes=100)
    head = 768 * 100 + 100
    for words, own in {
        "vpt:n=50": 12 * 50 * 768,
        "vpt:n=10,deep=false": 10 * 768,
        "vpt:n=10,project=24": 12 * 10 * 24 + 25 * 768,
    }.items():
        chosen = adapter(words)
        assert in_words(chosen) == words
        remove = adapt(model, chosen)
        assert counts(model)[0] == own + head
        remove()
    assert in_words(Vpt()) == "vpt"


def test_the_projection_is_one_layer():
    model, x = made(SWIN), image()
    adapt(model, Vpt(2, project=4))
    names = [n for n in own_state(model) if n.endswith("project.weight")]
    assert names == [f"backbone.stages.{i}.blocks.0.before_block.project.weight" for i in range(4)]
    other = deepcopy(model)
    with torch.no_grad():
        for layer in prompts(other):
            if layer.project is not None:
                layer.project.weight.zero_()
                layer.project.bias.zero_()
    assert all(not layer.wide().any() for layer in prompts(other))  # those of the copy go by the copy's
    assert all(layer.wide().any() for layer in prompts(model))
    assert not torch.equal(model(x), other(x))


def test_the_start_is_the_papers():
    model = tiny_classifier("vit_small_patch16_224")
    torch.manual_seed(0)
    adapt(model, Vpt(500))
    bound = (6 / (3 * 16**2 + 16)) ** 0.5
    for layer in prompts(model):
        assert 0.99 * bound < layer.prompts.abs().max() <= bound
        assert layer.prompts.abs().mean().item() == pytest.approx(bound / 2, rel=0.03)


def test_dropout_is_that_of_training():
    model, x = made(VIT), image()
    adapt(model, Vpt(4, dropout=0.5))
    assert torch.equal(model(x), model(x))
    assert not torch.equal(model.train()(x), model(x))
    taken = []
    hosts_of(model)[1].block.norm1.register_forward_pre_hook(lambda _, a: taken.append(a[0][:, 1:5]))
    model(x)
    p = prompts(model)[1].prompts
    assert ((taken[0] == 0) | torch.isclose(taken[0], 2 * p)).all()
    assert not torch.equal(taken[0][0], taken[0][1])


def test_a_pyramid_has_maps_without_prompts():
    model = pyramid(SWIN)
    shapes, remove = [m.shape for m in model(image((80, 48)))], adapt(model, Vpt(2))
    assert [m.shape for m in model(image((80, 48)))] == shapes
    sum(m.square().mean() for m in model(image((80, 48)))).backward()
    assert all(layer.prompts.grad.any() for layer in prompts(model))
    remove()


@pytest.mark.parametrize("kind", [VIT, SWIN, CVT])
def test_half_precision(kind):
    model, x = made(kind), image((96, 64), 1)
    adapt(model, Vpt(2, project=4))
    want = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(x)
    half = deepcopy(model).bfloat16()(x.bfloat16())
    for y in (mixed, half):
        torch.testing.assert_close(y.float(), want, rtol=0.1, atol=0.1)


@torch.inference_mode()
def test_compiled():
    """A window's mixer among them; whole models of every kind are compiled in the laws."""
    model, x = made(VIT), image((96, 64), 1)
    adapt(model, Vpt(2, project=4))
    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(x), model(x), rtol=1e-5, atol=1e-5)
    mixer, t = WindowAttention(8, 2, 4, 2), Tokens(normal(2, 3 + 66, 8), (6, 11), (0, 1, 2))
    torch.testing.assert_close(torch.compile(mixer, backend="aot_eager")(t), mixer(t), rtol=1e-5, atol=1e-5)


def test_wrong_input():
    for words, why in {
        "vpt:n=0": "n=0: at least 1 prompt",
        "vpt:project=0": "project=0: at least 1 channel",
        "vpt:dropout=1": "dropout=1.0: a probability",
    }.items():
        with pytest.raises(ValueError, match=why):
            adapter(words)
    for kind, why in {
        "depthwise convolutions": "stages.3.blocks.1: DepthwiseConv takes no special tokens",
        "identity": "stages.3.blocks.1: NoMixing takes no special tokens",
        "frequencies, then attention": "stages.3.blocks.1: ConvMlp takes no special tokens",
        "sliced attention, repeated": "stages.2.blocks.1.block: SlicedAttention takes no special tokens",
    }.items():
        model = made(kind)
        with pytest.raises(AdapterError, match=re.escape(why)):
            adapt(model, Vpt())
        assert not prompts(model)
    with pytest.raises(AdapterError, match="Linear is no model of this suite"):
        adapt(nn.Linear(2, 2), Vpt())
    model = made(VIT)
    attach(model, plugin("ia_red:groups=2"))
    with pytest.raises(AdapterError, match=r"blocks\.0\.before_block is taken by Interpreter"):
        adapt(model, Vpt())


# --------------------------------------------------------------------------------------- beside others, and their start


@torch.inference_mode()
@pytest.mark.parametrize(
    ("kind", "words", "chosen"),
    [
        (VIT, "tome:r=2", Vpt(3)),
        (VIT, "evit:keep=0.6", Vpt(3)),
        (VIT, "zero_tprune:keep=0.6", Vpt(3)),
        (VIT, "soft_merge:tokens=3", Vpt(3, deep=False)),  # fewer than there are special tokens
        (VIT, "clustering", Vpt(3, deep=False)),
        (SWIN, "clustering:scale=0.5", Vpt(3, deep=False)),
        (SWIN, "window_merge:share=0.4,side=4", Vpt(3)),
        ("selective scan, both ways", "scan_pruning:keep=0.5", Vpt(3)),
    ],
)
def test_prompts_stay_when_patches_go(kind, words, chosen):
    model, x = made(kind), image((96, 64))
    attach(model, plugin(words))
    adapt(model, chosen)
    own = len(hosts_of(model)[-1].special)
    t = model.backbone.last(x)
    assert len(t.special) == own + 3
    first = model.forward_intermediates(x, intermediates_only=True)[0]
    assert first.shape[2:] == model.backbone.stem(x).grid
    torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-5, atol=1e-6)


def test_a_plugin_takes_no_prompt_for_a_class_token():
    model = made("global attention, no special token")
    adapt(model, Vpt(3))
    with pytest.raises(ValueError, match="class token"):
        attach(model, plugin("evit:keep=0.6"))


def test_pretrained_prompts_are_a_start(tmp_path):
    """PVP, https://arxiv.org/abs/2304.13639: what was tuned on a larger set, but for its head, begins the next task."""
    model = made(VIT)
    remove = adapt(model, Vpt(3))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(1)
    want = [layer.prompts.clone() for layer in prompts(model)]
    save_adapter(model, tmp_path)
    remove()
    adapt(model, Vpt(3))
    model.reset_classifier(5)
    head = model.head.weight.clone()
    start_from(model, tmp_path)
    assert all(torch.equal(layer.prompts, w) for layer, w in zip(prompts(model), want, strict=True))
    assert torch.equal(model.head.weight, head)
    assert all(layer.prompts.requires_grad for layer in prompts(model))
