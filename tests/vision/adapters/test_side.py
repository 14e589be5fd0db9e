"""Hierarchical side-tuning: the authors' numbers, what reaches the trunk, and how it stands in for a backbone."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from golden import golden
from plugin_parts import image, made, pyramid
from recorded import agree, captured
from torch import Tensor, nn

from patchloom.vision.adapters import AdapterError, adapt, adapter, counts, own_state, switch, unadapted
from patchloom.vision.adapters.side import Hst
from patchloom.vision.adapters.side_network import SideNetwork
from patchloom.vision.families.vit import vit
from patchloom.vision.model import Classifier
from patchloom.vision.plugins import attach, plugin
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model, describe, rebuild

PLACES = {f"stage{i + 1}": f"backbone.levels.{i}.norm" for i in range(4)} | {
    "backbone_tokens": "backbone.trunk.stages.0.blocks.11"
}
PLAIN, WINDOWS, VIM, VIR = (
    "global attention, class token", "shifted windows", "selective scan, both ways", "retention",
)  # fmt: skip


def recorded_model(name: str) -> Classifier:
    """The ViT of a record, bare."""
    network = vit("base", 16, 224) if name == "vit_base_patch16_224" else vit("tiny", 16, 96)
    if name == "vit_tiny_96":
        stage = network.stages[0]
        network = replace(network, stages=(replace(stage, dim=96, mixer=replace(stage.mixer, heads=3)),))
    model = Classifier(
        network.backbone(3, 0.0), 10 if "tiny" in name else 100, network.head, img_size=network.size
    )  # fmt: skip
    model.family = "vit"
    return model


@pytest.mark.parametrize(("name", "meta"), [("vit_tiny_96", 2), ("vit_base_patch16_224", 1)])
def test_it_is_the_authors(name, meta):
    record = golden.load(f"hst/{name}")
    model = recorded_model(name)
    adapt(model, Hst(meta=meta))
    report = load_published(model.eval(), record.state_dict())
    assert report.fresh == []
    assert report.dropped == ["norm.weight", "norm.bias"]  # which nothing reads
    agree(record, captured(model, record.input(), PLACES))
    assert counts(model)[1] + 2 * model.backbone.trunk.channels[-1] == record.meta["parameters"]


def test_it_has_the_published_size():
    model = create_model("vit_base_patch16_224", num_classes=100, device="meta")
    with torch.device("meta"):
        adapt(model, adapter("hst"))
    assert counts(model)[0] / 1e6 == pytest.approx(0.78, abs=0.01)


def kept(model: nn.Module, x: Tensor) -> int:
    """Bytes that a forward keeps for the backward pass, weights apart."""
    found: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(t: Tensor) -> Tensor:
        if (where := t.untyped_storage().data_ptr()) not in weights:
            found[where] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(x).square().mean().backward()
    return sum(found.values())


def four_blocks(ratio: float = 4.0) -> Classifier:
    """The first blocks of a ViT-B."""
    network = vit("base", 16, 64)
    stage = replace(network.stages[0], depth=4, ratio=ratio)
    return Classifier(replace(network, stages=(stage,)).backbone(3, 0.0), 7, network.head, img_size=64)


def test_no_gradient_enters_a_fixed_trunk_and_nothing_of_it_is_kept():
    model, x, seen = four_blocks().train(), image(batch=4), []
    full = kept(model, x)
    model.zero_grad()
    adapt(model, adapter("hst:fixed=true"))
    model.train()
    for block in model.backbone.trunk.stages[0].blocks:
        block.register_forward_hook(lambda _m, _i, t: seen.append(t.x.requires_grad))
    fixed = kept(model, x)
    assert seen == [False] * 4
    assert all(p.grad is None for p in model.backbone.trunk.parameters())
    assert all(p.grad is None for p in model.backbone.tokens)
    assert [n for n in own_state(model) if n.startswith("backbone.trunk.")] == []
    assert fixed < full / 2

    wider = four_blocks(ratio=6.0).train()
    adapt(wider, adapter("hst:fixed=true"))
    assert kept(wider.train(), x) == fixed  # whatever the trunk computes inside
    learning = four_blocks().train()
    adapt(learning, adapter("hst"))
    assert kept(learning.train(), x) > 2 * fixed


@pytest.mark.parametrize(
    ("kind", "setting"),
    [(PLAIN, "hst"), (PLAIN, "hst:fixed=true"), (WINDOWS, "hst:meta=0"), (VIM, "hst:meta=2"), (VIR, "hst"),
     ("attention of convolved tokens", "hst:meta=0"), ("tokens of tokens", "hst")],
)  # fmt: skip
def test_two_steps_reach_everything_that_learns_and_nothing_else(kind, setting):
    model = made(kind)
    adapt(model, adapter(setting))
    model.train()
    own = {n: p for n, p in model.named_parameters() if p.requires_grad}
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD(own.values(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(image(batch=4)).square().mean().backward()
        optimizer.step()
    assert [n for n, p in own.items() if p.grad is None or not p.grad.any()] == []
    assert all(torch.equal(model.get_parameter(n), value) for n, value in frozen.items())
    assert any("backbone.trunk." in n for n in own) is ("fixed" not in setting)
    assert all(not m.training for m in model.backbone.trunk.modules() if list(m.children()))


@pytest.mark.parametrize("size", [(64, 64), (97, 131)], ids=str)
@pytest.mark.parametrize(("kind", "setting"), [(PLAIN, "hst"), (WINDOWS, "hst:meta=0"), (VIM, "hst")])
@torch.inference_mode()
def test_a_pyramid_comes_out_at_any_size(kind, setting, size):
    model = pyramid(kind)
    bare = deepcopy(model)
    many = len(bare(image(size)))
    remove = adapt(model, adapter(setting))
    maps = model.eval()(image(size))
    assert model.channels == [32, 48, 64, 72][-many:]
    assert model.strides == [4, 8, 16, 32][-many:]
    assert [m.shape[1] for m in maps] == model.channels
    grids = model.backbone.grids(size)[-many:]
    assert [tuple(m.shape[2:]) for m in maps] == grids
    assert all(m.isfinite().all() for m in maps)
    assert all(model.get_submodule(name) for name in model.feature_info.module_name())
    torch.testing.assert_close([m[:1] for m in maps], model(image(size)[:1]), rtol=1e-4, atol=1e-5)
    remove()
    torch.testing.assert_close(model(image(size)), bare(image(size)), rtol=0, atol=0)
    assert (model.channels, model.strides) == (bare.channels, bare.strides)


@torch.inference_mode()
def test_taken_off_and_switched_the_model_is_what_it_was():
    model, x = made(PLAIN), image()
    names, plain, settings = list(model.state_dict()), model(x), dict(vars(model))
    remove = adapt(model, adapter("hst"), "one")
    model.eval()
    first = model(x)
    assert first.shape == plain.shape
    assert not torch.allclose(first, plain)
    adapt(model, adapter("hst:meta=2"), "two")
    assert not torch.allclose(model.eval()(x), first)
    switch(model, "one")
    assert torch.equal(model(x), first)
    with unadapted(model):
        assert torch.equal(model(x), plain)
        assert list(model.state_dict()) == names
    switch(model, "two")
    remove()
    switch(model, None)
    assert torch.equal(model(x), plain)
    assert all(vars(model)[n] == v for n, v in settings.items() if n in ("spec", "num_features", "global_pool"))


@torch.inference_mode()
def test_it_has_the_methods_of_a_classifier():
    model, x = made(PLAIN), image((96, 64))
    adapt(model, adapter("hst"))
    model.eval()
    last, maps = model.forward_intermediates(x)
    assert [tuple(m.shape) for m in maps] == [(2, 32, 24, 16), (2, 48, 12, 8), (2, 64, 6, 4), (2, 72, 3, 2)]
    torch.testing.assert_close(model.forward_head(last), model(x))
    assert [tuple(m.shape) for m in model.forward_intermediates(x, 2, intermediates_only=True)] == [
        (2, 64, 6, 4), (2, 72, 3, 2),
    ]  # fmt: skip
    model.set_input_size((96, 64))
    assert model.default_cfg["pool_size"] == (3, 2)
    model.get_submodule(model.default_cfg["first_conv"])
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    again = rebuild(describe(model))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(x), model(x))
    assert torch.equal(deepcopy(model)(x), model(x))


def test_checkpointing_gives_the_same_gradients():
    grads = []
    for on in (False, True):
        model = made(PLAIN)
        model.set_grad_checkpointing(on)
        torch.manual_seed(0)
        adapt(model, adapter("hst"))
        model.train()(image()).square().mean().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("kind", [PLAIN, VIM, VIR, "global attention, no special token"])
def test_meta_tokens_stand_before_the_class_token(kind):
    model = made(kind)
    bare = model.backbone.stem(image())
    adapt(model, adapter("hst:meta=2"))
    t = model.backbone.begun(image())
    where = model.backbone.where(t)
    assert t.x.shape[1] == bare.x.shape[1] + 2
    torch.testing.assert_close(torch.cat([t.x[:, : where.start], t.x[:, where.stop :]], 1), bare.x)
    if bare.special:
        assert t.special[0] == where.stop  # the class token, next to them
        assert torch.equal(t.x[:, t.special[0]], bare.x[:, bare.special[0]])
    assert torch.equal(t.patches(), bare.patches())


@torch.inference_mode()
def test_token_plugins_act_inside_the_trunk():
    model, x = made(PLAIN), image()
    detach = attach(model, plugin("tome:r=4"))
    adapt(model, adapter("hst"))
    reduced = model.eval()(x)
    assert reduced.isfinite().all()
    t = model.backbone.begun(x)
    for place in range(2):
        t = model.backbone.advanced(t, place)
    assert t.x.shape[1] == model.backbone.begun(x).x.shape[1] - 8
    torch.testing.assert_close(t.x[:, model.backbone.where(t)].shape, (2, 1, 16))
    detach()
    assert not torch.allclose(model(x), reduced)


@torch.inference_mode()
def test_the_trunks_own_file_still_loads_below_it():
    source, model = create_model("deit_tiny_patch16_224", num_classes=7), create_model("deit_tiny_patch16_224")
    model.reset_classifier(7)
    adapt(model, adapter("hst"))
    load_published(model, source.state_dict())
    with unadapted(model):
        torch.testing.assert_close(model.eval()(image()), source.eval()(image()))


def test_which_blocks_the_stages_read():
    def reads(depths: list[int], **settings: object) -> list[tuple[int, ...]]:
        return [level.reads for level in Hst(**settings).levels(depths)]

    assert reads([12]) == [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11)]
    assert reads([24]) == [(1, 3, 5), (7, 9, 11), (13, 15, 17), (19, 21, 23)]
    assert reads([24], at=(2, 5, 8, 11)) == reads([12])  # as published for ViT-L
    assert reads([2]) == [(0,), (0,), (1,), (1,)]
    assert reads([2, 2, 6, 2]) == [(0, 1), (2, 3), (5, 7, 9), (10, 11)]
    assert reads([1, 2, 10]) == [(0, 1, 2), (3, 4, 5), (6, 8, 9), (10, 11, 12)]


def test_bfloat16():
    model = made(PLAIN).bfloat16()
    adapt(model, adapter("hst"))
    out = model.train()(image().bfloat16())
    out.float().square().mean().backward()
    assert out.dtype is torch.bfloat16
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("compile_with", ["eager", "aot_eager"])
@pytest.mark.slow
def test_compiled_is_the_same(compile_with):
    model, x = made(PLAIN), image()
    adapt(model, adapter("hst:fixed=true"))
    model.eval()
    torch.testing.assert_close(torch.compile(model, backend=compile_with)(x), model(x), rtol=1e-4, atol=1e-5)


def test_it_refuses_by_name():
    with pytest.raises(AdapterError, match=r"stages\.0\.blocks\.0: WindowAttention takes a full grid.*meta=0"):
        adapt(made(WINDOWS), adapter("hst"))
    with pytest.raises(AdapterError, match="Linear is no model of this suite"):
        adapt(nn.Linear(2, 2), adapter("hst"))
    with pytest.raises(ValueError, match=r"at=\(2, 5, 8, 11\): the trunk has 2 blocks"):
        adapt(made(PLAIN), Hst(at=(2, 5, 8, 11)))
    for name, wrong in (("at", (1, 2)), ("at", (3, 2, 1, 0)), ("heads", (2, 4, 8, 5)), ("meta", -1), ("depth", 0)):
        with pytest.raises(ValueError, match=f"{name}="):
            Hst(**{name: wrong})
    model = made(WINDOWS)
    assert not isinstance(model.backbone, SideNetwork)
    assert model.adapters is None
