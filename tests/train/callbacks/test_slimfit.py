"""SlimFit's scheduler: what rests at which step, exact resumption, and what does not fit."""

import lightning.pytorch as L
import pytest
import torch
from classify_parts import Colours, tiny, trainer
from processes import two_processes
from torch.optim.lr_scheduler import ConstantLR

from patchloom.data.modules import ShapesData
from patchloom.train.callbacks.checkpoints import Checkpoints, PlainFiles
from patchloom.train.callbacks.slimfit import SlimFit
from patchloom.train.classify import Classify
from patchloom.train.ema import Ema
from patchloom.vision.adapters import adapt
from patchloom.vision.adapters.probe import Probe
from patchloom.vision.adapters.slimfit import KeptNorm, candidates
from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.mixers.attention import Global
from patchloom.vision.model import Classifier


def vit(size: int = 8) -> Classifier:
    torch.manual_seed(1)
    return Classifier(Backbone([Stage(Global(2), 16, 2)], patch=size // 2), 8, img_size=size)


class Look(L.Callback):
    """What rested, what moved and the layers, at each step; distances after it."""

    def __init__(self, slim: SlimFit, stop: int | None = None) -> None:
        self.slim, self.stop, self.before = slim, stop, None
        self.resting, self.moved, self.distances, self.kept = [], [], [], []

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        self.resting.append({n for n, p in module.model.named_parameters() if not p.requires_grad})
        self.kept.append(any(isinstance(m, KeptNorm) for m in module.modules()))
        assert all((p.grad is None) is (not p.requires_grad) for p in module.model.parameters())
        self.before = {n: p.detach().clone() for n, p in module.model.named_parameters()}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if self.before is None:
            return
        now = dict(module.model.named_parameters())
        self.moved.append({n for n, old in self.before.items() if not torch.equal(old, now[n])})
        self.before = None
        self.distances.append(dict(self.slim.distances))
        if trainer.global_step == self.stop:
            trainer.should_stop = True


def run(folder, slim=None, module=None, stop=None, ckpt_path=None, data=None, **options):
    L.seed_everything(4, verbose=False)
    slim = SlimFit(0.75) if slim is None else slim
    module = Classify(vit(), ema=Ema(0.9)) if module is None else module
    look = Look(slim, stop)
    saves = Checkpoints(every_n_steps=1, monitor=None)
    callbacks = [slim, look, saves.resume, saves]
    given = {
        "callbacks": callbacks,
        "plugins": [PlainFiles()],
        "max_epochs": 2,
        "enable_checkpointing": True,
        **options,
    }
    t = trainer(folder, **given)
    t.fit(
        module, Colours(length=64, batch_size=8) if data is None else data, ckpt_path=ckpt_path
    )  # eight steps an epoch
    return module, look, slim


@pytest.mark.parametrize("layers", [False, True])
def test_the_slowest_rest(layers, tmp_path):
    module, look, _ = run(tmp_path, SlimFit(0.75, layers))
    weights = set(candidates(module.model))
    count = int(0.75 * len(weights))
    random = torch.rand(len(weights), generator=torch.Generator().manual_seed(0)) * 1e7
    before = dict(zip(candidates(module.model), random.tolist(), strict=True))
    assert len(look.resting) == 16
    for resting, moved, after in zip(look.resting, look.moved, look.distances, strict=True):
        assert resting == set(sorted(before, key=before.get)[:count])
        assert not moved & resting  # no decay, no momentum
        assert {n for n in before if before[n] != after[n]} == weights - resting
        before = after
    assert set.union(*look.moved) == set(dict(module.model.named_parameters()))  # in turn all have learnt
    assert set(look.kept) == {layers}
    assert all(p.requires_grad for p in module.model.parameters())  # and all is as it was
    assert not any(isinstance(m, KeptNorm) for m in module.modules())


def test_distances_are_relative_updates(tmp_path):
    first = vit()
    before = {n: p.detach().clone() for n, p in first.named_parameters()}
    module, look, _ = run(tmp_path, module=Classify(first), max_epochs=None, max_steps=1)
    for name in set(candidates(module.model)) - look.resting[0]:
        now = module.model.get_parameter(name).detach()
        assert look.distances[0][name] == pytest.approx(float(((before[name] - now) / before[name]).abs().mean()))


def test_it_learns(tmp_path):
    module, *_ = run(
        tmp_path, SlimFit(0.5), Classify(vit(), optimizer=lambda p: torch.optim.AdamW(p, lr=0.01)), max_epochs=6
    )
    assert float(module.trainer.callback_metrics["val/top1"]) > 0.8


@pytest.mark.parametrize("step", [3, 8, 11])
def test_a_resumed_run_is_the_same_bit_for_bit(step, tmp_path):
    def shapes(folder, slim, **options):
        data = ShapesData(train_length=64, val_length=16, batch_size=8, workers=0)  # its loader goes on where it was
        return run(folder, slim, Classify(vit(32), ema=Ema(0.9)), data=data, **options)

    whole, look, slim = shapes(tmp_path / "whole", SlimFit(0.75))
    _, first, _ = shapes(tmp_path / "cut", SlimFit(0.75), stop=step)
    rest, second, fresh = shapes(tmp_path / "cut", SlimFit(0.75), ckpt_path=str(tmp_path / "cut" / "last.ckpt"))
    assert first.resting + second.resting == look.resting
    assert fresh.distances == slim.distances
    theirs = whole.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in rest.state_dict().items())


def test_a_set_rests_until_gradients_are_accumulated(tmp_path):
    _, look, _ = run(tmp_path, accumulate_grad_batches=3, max_epochs=1)
    assert len(look.resting) == 3
    assert sum(a != b for a, b in zip(look.distances, look.distances[1:], strict=False)) == 2


def test_a_step_that_moves_nothing_tells_nothing(tmp_path):
    still = Classify(vit(), optimizer=lambda p: torch.optim.SGD(p, lr=0.0), schedule=ConstantLR)
    _, look, _ = run(tmp_path, module=still, max_epochs=1)
    assert all(resting == look.resting[0] for resting in look.resting)


def test_the_model_is_as_it_was_after_an_error(tmp_path):
    class Breaks(Classify):
        def training_step(self, batch, index):
            if index == 2:
                raise RuntimeError("broken")
            return super().training_step(batch, index)

    module = Breaks(vit())
    with pytest.raises(RuntimeError, match="broken"):
        run(tmp_path, module=module)
    assert all(p.requires_grad for p in module.model.parameters())
    assert not any(isinstance(m, KeptNorm) for m in module.modules())


def test_what_does_not_fit_is_refused(tmp_path):
    for frozen in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"frozen={frozen}"):
            SlimFit(frozen)
    model = vit()
    adapt(model, Probe())
    with pytest.raises(ValueError, match="frozen below probe"):
        run(tmp_path, module=Classify(model))
    bare = tiny()
    bare.backbone.requires_grad_(False)
    with pytest.raises(ValueError, match="Classifier has 0 weights to choose from"):
        run(tmp_path, module=Classify(bare))
    _, _, slim = run(tmp_path / "one", max_epochs=None, max_steps=1)
    with pytest.raises(ValueError, match="do not have the same weights to freeze"):
        run(tmp_path / "two", slim, Classify(tiny()))


def shapes_run(strategy, devices, folder):
    slim = SlimFit(0.75, layers=False)  # a norm keeps the largest values of a process's images, not of the whole batch
    module = Classify(vit(32), optimizer=lambda p: torch.optim.SGD(p, lr=0.05))
    L.seed_everything(3, verbose=False)
    data = ShapesData(train_length=64, val_length=16, batch_size=16 // devices, workers=0)
    trainer(folder, devices=devices, strategy=strategy, callbacks=[slim]).fit(module, data)
    return module.state_dict(), slim.distances


@pytest.mark.slow
def test_two_processes_freeze_the_same(tmp_path):
    (first, distances), (second, others) = two_processes(shapes_run, tmp_path, "ddp_find_unused_parameters_true")
    one, expected = shapes_run("auto", 1, tmp_path)
    assert distances == others == pytest.approx(expected, rel=1e-4)
    for name, value in one.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5, msg=name)
    with pytest.raises(AssertionError, match=r"use --trainer\.strategy ddp_find_unused_parameters_true"):
        two_processes(shapes_run, tmp_path, "ddp")
