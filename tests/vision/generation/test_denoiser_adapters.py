"""Adapters and token plugins on denoisers: one frozen network, several data sets, switching."""

import copy

import pytest
import torch
from golden import golden
from recorded import loaded

from patchloom.vision.adapters import adapt, adapter, counts, merge, own_state, switch, unadapted
from patchloom.vision.adapters.affine import Affiner
from patchloom.vision.adapters.files import load_adapter, save_adapter
from patchloom.vision.backbone import Stage
from patchloom.vision.generation.adaln import AdaLNZero
from patchloom.vision.generation.dit import DiT
from patchloom.vision.generation.meta_denoiser import MetaDenoiser
from patchloom.vision.mixers.attention import Global
from patchloom.vision.mixers.window import Window
from patchloom.vision.plugins import attach, attached, hosts_of, plugin
from patchloom.vision.stem import Merge2x2

METHODS = ("diffscaler:r=4", "lora:r=4", "lora:r=4,targets=all", "ssf", "bias", "adaptformer", "dora:r=4")


def plain(kind="dit"):
    torch.manual_seed(0)
    if kind == "dit":
        model = DiT(2, 32, 2, 2, 3, (8, 8), num_classes=5)
    else:
        block = AdaLNZero()
        stages = [Stage(Window(2, 4), 16, 1, block=block), Stage(Global(2), 32, 1, block=block, down=Merge2x2())]
        model = MetaDenoiser(stages, 1, 3, (8, 8), num_classes=5)
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(std=0.05)
    return model.eval()


def batch(classes=5):
    g = torch.Generator().manual_seed(1)
    x, t = torch.randn(4, 3, 8, 8, generator=g), torch.rand(4, generator=g) * 999
    return x, t, torch.randint(classes, (4,), generator=g)


def learn(model, given, steps=2):
    own = [p for p in model.parameters() if p.requires_grad]
    for _ in range(steps):
        for p in own:
            p.grad = None
        model(*given).square().mean().backward()
        with torch.no_grad():
            for p in own:
                if p.grad is not None:
                    p -= 0.1 * p.grad.sign()


@pytest.mark.parametrize("kind", ["dit", "pyramid"])
@pytest.mark.parametrize("method", METHODS)
def test_one_network_two_data_sets(method, kind, tmp_path):
    """Two adapters, the second for other classes: each starts as the network, learns, and leaves the rest alone."""
    model, given = plain(kind), batch()
    frozen = {n: v.clone() for n, v in model.state_dict().items()}
    with torch.no_grad():
        before = model(*given)
        adapt(model, adapter(method), "fruit")
        assert torch.equal(model(*given), before) or (model(*given) - before).abs().max() < 1e-6
        adapt(model, adapter(method), "birds")
    model.reset_classifier(9)
    other = (*given[:2], torch.tensor([8, 0, 3, 9]))
    assert torch.equal(model.labels.table.weight, frozen["labels.table.weight"][-1].expand(10, -1))
    with torch.no_grad():
        birds = model(*other)
    switch(model, "fruit")
    learn(model.train(), given)
    model.eval()
    with torch.no_grad():
        fruit = model(*given)
        assert (fruit - before).abs().max() > 1e-3
        assert model.num_classes == 5
        switch(model, "birds")
        assert model.num_classes == 9
        assert torch.equal(model(*other), birds)
        switch(model, None)
        assert torch.equal(model(*given), before)
        with unadapted(model):
            assert all(torch.equal(v, frozen[n]) for n, v in model.state_dict().items())
        switch(model, "fruit")
        assert torch.equal(model(*given), fruit)
        save_adapter(model, tmp_path / "fruit")
        other_model = plain(kind)
        load_adapter(other_model, tmp_path / "fruit")
        torch.testing.assert_close(other_model.eval()(*given), fruit)


def test_labels_of_another_data_set_are_saved_with_their_adapter(tmp_path):
    model = plain()
    adapt(model, adapter("diffscaler:r=2"))
    model.reset_classifier(9)
    model.labels.table.weight.data.normal_()
    save_adapter(model, tmp_path)
    again = plain()
    load_adapter(again, tmp_path)
    assert again.num_classes == 9
    assert torch.equal(again.labels.table.weight, model.labels.table.weight)


def test_conditions_are_dropped_below_an_adapter():
    """The trunk evaluates while an adapter learns; classes are dropped all the same, as in the base's training."""
    model, given = plain().train(), batch()
    adapt(model, adapter("diffscaler:r=2"))
    assert model.training
    assert not model.backbone.training
    y = torch.zeros(2000, dtype=torch.long)
    assert (model.thinned(y) == 5).float().mean().item() == pytest.approx(0.1, abs=0.03)
    model(*given)


def test_every_layer_has_an_affiner_of_the_published_size():
    model = plain()
    trunk = sum(p.numel() for p in model.parameters())
    adapt(model, adapter("diffscaler:r=2"))
    inside = [m for m in model.modules() if isinstance(m, Affiner)]
    layers = [n for n, m in plain().named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    assert len(inside) == len(layers) == 1 + 2 + 2 * 5 + 2
    added = sum(2 * len(m.a) + 2 * (len(m.a) + m.down.weight.shape[1]) for m in inside)  # 2 out + r (in + out)
    labels = model.labels.table.weight.numel()
    assert counts(model) == (added + labels, trunk - labels + added + labels)


def test_an_affined_network_is_still_the_authors():
    record = golden.load("dit/dit_s_8_256")
    model, given = loaded("dit_s_8_256", record), record.input()
    remove = adapt(model, adapter("diffscaler:r=8"))
    with torch.inference_mode():
        record.compare("output", model(given["x"], given["t"], given["y"]), 1e-5)
    assert {n.partition(".")[0] for n in own_state(model)} == {"labels", "backbone", "final", "time_embedding"}
    remove()
    assert all(p.requires_grad for p in model.parameters())


def test_a_lora_merges():
    model, given = plain(), batch()
    adapt(model, adapter("lora:r=4,targets=all"))
    learn(model.train(), given)
    model.eval()
    with torch.no_grad():
        want = model(*given)
        unmerge = merge(model)
        torch.testing.assert_close(model(*given), want, rtol=1e-4, atol=1e-5)
        unmerge()


def test_blocks_on_the_way_up_are_hosts():
    hosts = hosts_of(plain("pyramid"))
    assert [(h.stage, h.index, h.dim, h.depth) for h in hosts] == [(0, 0, 16, 1), (1, 0, 32, 1), (2, 0, 16, 1)]


@torch.inference_mode()
def test_tokens_are_merged_and_come_back():
    model, given = plain(), batch()
    want = model(*given)
    with attached(model, plugin("tome:r=3")):
        got = model(*given)
    assert got.shape == want.shape
    assert 0 < (got - want).norm() / want.norm() < 0.5
    assert torch.equal(model(*given), want)


def test_copies_are_apart():
    model, given = plain(), batch()
    adapt(model, adapter("lora:r=2"))
    other = copy.deepcopy(model)
    learn(other.train(), given)
    with torch.no_grad():
        assert (other.eval()(*given) - model(*given)).abs().max() > 1e-4


def test_a_plugin_that_cannot_be_put_names_the_block():
    with pytest.raises(ValueError, match=r"backbone\.stages\.0\.blocks\.0: .* needs a full grid"):
        attach(plain("pyramid"), plugin("tome:r=3"))
