"""A run that trains an adapter: it alone moves and has state, and the run says so."""

import logging

import pytest
import torch
from adapter_run_parts import Nothing, Shift, Shifts, fit, network, saving_fit, sgd
from classify_parts import CLASSES, Colours, trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import nn

from patchloom.train.callbacks.checkpoints import PlainFiles
from patchloom.train.callbacks.learning import Learning
from patchloom.train.classify import Classify
from patchloom.train.ema import Average, Ema
from patchloom.train.learning import learning, summary
from patchloom.train.objectives.mixing import Mixing
from patchloom.train.optim import Constant, parameter_groups
from patchloom.train.running import checkpoint
from patchloom.train.running.checkpoint import load_model
from patchloom.train.saved.adapted import load_adapted, trained
from patchloom.vision.adapters import AdapterError, adapt, adapter_of, counts, own_state, unadapted
from patchloom.vision.adapters.files import save_adapter
from patchloom.vision.adapters.trunk import digest
from patchloom.vision.norm import BatchNorm
from patchloom.vision.zoo import create_model


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_only_the_adapter_learns(tmp_path, norm):
    """The trunk stays in evaluation mode, moves by no bit, has no gradient and no state; the head fits the data."""
    modes: list[dict[type, bool]] = []

    class Look(Learning):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            super().on_before_optimizer_step(trainer, module, optimizer)
            modes.append({type(m): m.training for m in module.model.modules()})
            ours = {id(p) for group in optimizer.param_groups for p in group["params"]}
            assert ours == {id(p) for p in module.model.parameters() if p.requires_grad}
            assert all(p.grad is None for p in module.model.parameters() if id(p) not in ours)

    model = network(norm=norm)
    before = digest(model)
    module = Classify(model, optimizer=sgd, adapter=Shifts(), mixing=Mixing(0.2, 0.0))
    shifts = [m.shift.detach().clone() for m in model.modules() if isinstance(m, Shift)]
    t = fit(tmp_path, module, callbacks=[Look()])
    assert model.num_classes == len(CLASSES)
    assert digest(model) == before
    now = [m.shift for m in model.modules() if isinstance(m, Shift)]
    assert not any(torch.equal(a, b) for a, b in zip(shifts, now, strict=True))
    assert all(mode[Shift] and not mode[nn.LayerNorm if norm == "layer" else BatchNorm] for mode in modes)
    assert len(modes) == t.global_step == 9
    assert len(t.optimizers[0].state) == sum(p.requires_grad for p in model.parameters())
    assert counts(model)[0] < counts(model)[1] / 4


def test_the_average_shares_what_is_frozen(tmp_path):
    model = network()
    adapt(model, Shifts())
    average = Average(model, Ema(0.5))
    pairs = [*zip(average.module.named_parameters(), model.parameters(), strict=True)]
    assert {n for (n, p), q in pairs if p is not q} == {n for n, p in model.named_parameters() if p.requires_grad}
    average.to(torch.float64)
    model.to(torch.float64)
    assert sum(p is q for (_, p), q in pairs) == sum(not p.requires_grad for p in model.parameters())

    module = Classify(network(), optimizer=sgd, adapter=Shifts(), ema=Ema(0.9))
    saving_fit(tmp_path, module)
    other = [n for n, p in module.ema.module.named_parameters() if not torch.equal(p, module.model.get_parameter(n))]
    assert set(other) == {n for n, p in module.model.named_parameters() if p.requires_grad}
    saved, _, _ = checkpoint.load_model(str(tmp_path / "last.ckpt"))
    module.eval()
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(saved(x), module(x))
    plain = sum(p.numel() * p.element_size() for p in module.model.parameters())
    assert (tmp_path / "last.ckpt").stat().st_size < 2 * plain + 60_000  # the trunk is in it once


def test_layer_decay_and_scales_reach_an_adapters_own():
    model = network()
    adapt(model, Shifts())
    scale = {id(p): g["lr_scale"] for g in parameter_groups(model, 0.5) for p in g["params"]}
    names = {n: scale[id(p)] for n, p in model.named_parameters() if p.requires_grad}
    assert names["head.weight"] == 1
    inside = [s for n, s in names.items() if "blocks" in n]
    assert inside == sorted(inside)
    assert inside[0] < inside[-1] == 1  # timm's rule: what is behind the blocks is of the last one's layer
    for group in parameter_groups(model, scales={"head.*": 10.0}):
        heads = {id(p) for p in model.head.parameters()}
        assert group["lr_scale"] == (10 if id(group["params"][0]) in heads else 1)


def test_the_summary_says_what_learns(caplog, tmp_path):
    assert summary(network()) == f"all {sum(p.numel() for p in network().parameters()):,} parameters learn"
    model = network()
    adapt(model, Shifts())
    own, total = counts(model)
    rows = {r.modules: r for r in learning(model)}
    assert rows["backbone.stages.*.blocks.*.ffn.fc2"][1:] == ("shift", 3, 16 + 2 * 32)
    assert rows["head"][1:] == ("weight, bias", 1, 5 * 33)
    text = summary(model)
    assert text.startswith(f"{own:,} of {total:,} parameters learn ({own / total:.2%}), Shifts(heard=1.0)")
    assert sum(r.parameters for r in rows.values()) == own
    assert "and 1 more kinds" in summary(model, most=2)
    with caplog.at_level(logging.INFO, "patchloom.train"):
        fit(tmp_path, Classify(network(), optimizer=sgd, adapter="probe"), callbacks=[Learning()])
    assert any("parameters learn" in r.message and "probe" in r.message for r in caplog.records)


def test_a_run_that_would_train_nothing_stops(tmp_path):
    with pytest.raises(ValueError, match=r"adapter Nothing\(\) would train nothing but the head here"):
        fit(tmp_path, Classify(network(), adapter=Nothing()))
    fit(tmp_path, Classify(network(), adapter="probe"), callbacks=[Learning()])
    deaf = Classify(network(), optimizer=sgd, adapter=Shifts(heard=0.0))
    with pytest.raises(ValueError, match=r"3 of its 3 tensors got no gradient in 2 steps, as .*fc2\.shift: it would"):
        fit(tmp_path, deaf, callbacks=[Learning()])


def test_what_would_break_the_trunk_is_refused(tmp_path):
    swa = StochasticWeightAveraging(0.05, 0.5)
    with pytest.raises(ValueError, match=r"begins the statistics of batch norms anew, and .*norm1 is frozen"):
        fit(tmp_path, Classify(network(norm="batch", classes=8), adapter=Shifts()), 4, callbacks=[swa])
    model = network(classes=8)  # its copy is made before the data is known
    before, swa = digest(model), StochasticWeightAveraging(0.05, 0.5)
    fit(tmp_path, Classify(model, optimizer=sgd, schedule=Constant(), adapter=Shifts()), 4, callbacks=[swa])
    assert digest(model) == before


def test_a_saved_one_is_gone_on_with(tmp_path):
    """Its head too, where the classes are the same; else a fresh one."""
    first = Classify(network(), optimizer=sgd, adapter=Shifts())
    fit(tmp_path, first, 2)
    folder = save_adapter(first.model, tmp_path / "adapter", classes=first.classes)
    again = Classify(network(), adapter=str(folder))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again.model.eval()(x), first.model.eval()(x))
    t = trainer(tmp_path)
    first_result = t.validate(first, Colours(), verbose=False)
    assert trainer(tmp_path).validate(again, Colours(), verbose=False) == first_result
    with pytest.raises(ValueError, match="the checkpoint knows 8 classes, the data has 8"):
        trainer(tmp_path).validate(again, Colours(classes=[f"c{i}" for i in range(8)]), verbose=False)
    head = again.model.head.weight.detach().clone()
    fit(tmp_path, again, limit_train_batches=1)
    assert (again.model.head.weight - head).abs().max() < 0.1
    other = Classify(network(), adapter=str(folder))
    trainer(tmp_path, limit_train_batches=0).fit(other, Colours(classes=[f"c{i}" for i in range(8)]))
    assert not torch.equal(other.model.head.weight, first.model.head.weight)
    shift = [n for n, _ in other.model.named_parameters() if n.endswith("shift")]
    assert all(torch.equal(other.model.get_parameter(n), first.model.get_parameter(n)) for n in shift)


def test_a_checkpoint_holds_all_of_the_model(tmp_path):
    """With its adapter and without; one of another adapter is told in a line."""
    module = Classify(network(), optimizer=sgd, adapter=Shifts())
    saving_fit(tmp_path, module)
    torch.manual_seed(9)
    model, classes, _ = checkpoint.load_model(str(tmp_path / "last.ckpt"))
    x = torch.randn(2, 3, 8, 8)
    assert adapter_of(model) == Shifts()
    assert torch.equal(model(x), module.model.eval()(x))
    assert (classes, model.num_classes) == (CLASSES, 8)
    with unadapted(model):
        assert torch.equal(model(x), network().eval()(x))
    assert digest(model) == digest(network())
    path = str(tmp_path / "last.ckpt")
    for adapter, said in ((None, "none"), ("probe", "probe")):
        t = trainer(tmp_path, plugins=[PlainFiles()])
        with pytest.raises(ValueError, match=rf"trained with adapter Shifts.*, the model has {said}: set the same"):
            t.test(Classify(network(), adapter=adapter), Colours(), ckpt_path=path, verbose=False)
    assert counts(trained(path))[0] == counts(module.model)[0]


@pytest.mark.parametrize("words", ["corda:r=2", "eva:r=2"])
def test_one_that_begins_as_images_have_it_sees_them_first(tmp_path, words):
    module = Classify(network(), optimizer=sgd, adapter=words)
    before = {n: t.clone() for n, t in own_state(module.model).items()}
    trainer(tmp_path, limit_train_batches=0).fit(module, Colours())
    moved = {n for n, t in own_state(module.model).items() if n in before and not t.equal(before[n])}
    begun = {n for n in before if ".lora_A.default" in n or (words.startswith("corda") and ".lora_" in n)}
    assert {n for n in moved if "lora_" in n} == begun
    again = {n: t.clone() for n, t in own_state(module.model).items()}
    if words.startswith("corda"):  # what it has begun as stays, in a second run too
        trainer(tmp_path, limit_train_batches=0).fit(module, Colours())
        assert all(t.equal(again[n]) for n, t in own_state(module.model).items())


def test_on_published_weights_its_folder_is_enough(tmp_path, monkeypatch):
    """By the backbone's name, by a file of its weights, or neither; made for images as it was trained on."""
    import timm

    name, x = "deit_tiny_patch16_224", torch.randn(2, 3, 48, 64)
    weights = timm.create_model(name).state_dict()
    torch.save(weights, file := tmp_path / "weights.pth")
    monkeypatch.setattr("patchloom.vision.download.open_weights", lambda weights_of: weights)
    model = create_model(name, pretrained=True, img_size=(48, 64), num_classes=4, adapter="lora:r=2")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p)) if p.requires_grad else p
    folder = save_adapter(model, tmp_path / "a", classes=list("abcd"))
    for loaded in (load_model(str(folder)), load_adapted(name, folder), load_adapted(f"{name}={file}", folder)):
        assert torch.equal(loaded[0](x), model.eval()(x))
        assert (loaded[1], tuple(loaded[2]["input_size"])) == (list("abcd"), (3, 48, 64))
    with pytest.raises(
        AdapterError, match=r"is an adapter of deit_tiny_patch16_224, and not of deit_small_patch16_224"
    ):
        load_adapted("deit_small_patch16_224", folder)
    weights["blocks.3.mlp.fc1.bias"] += 1e-6
    with pytest.raises(AdapterError, match=r"trained on other weights of deit_tiny.* made with img_size="):
        load_model(str(folder))
