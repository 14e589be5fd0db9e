import shutil
from functools import partial

import lightning as L
import pytest
import torch
from classify_parts import CLASSES, Colours, Noisy, tiny, trainer
from lightning.pytorch import Callback
from torch import nn
from torch.nn import functional as F

from patchloom.data.modules import ShapesData
from patchloom.train.callbacks.checkpoints import Checkpoints, PlainFiles
from patchloom.train.classify import Classify
from patchloom.train.ema import Ema
from patchloom.train.evaluation.confusion import draw_confusion
from patchloom.train.evaluation.metrics import metrics
from patchloom.train.objectives.losses import Binary, CrossEntropy, Distil
from patchloom.train.objectives.mixing import Mixing
from patchloom.train.optim import Constant, Cosine
from patchloom.vision import zoo


def sgd(groups):
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def adamw(groups):
    return torch.optim.AdamW(groups, lr=0.01, weight_decay=0.05, fused=True)


def test_learns_and_judges_by_the_average(tmp_path):
    torch.manual_seed(0)
    module, data = (
        Classify(
            tiny(),
            optimizer=adamw,
            schedule=Cosine(warmup_epochs=1),
            ema=Ema(0.99),
            mixing=Mixing(0.2, 0.0, off_epoch=4),
        ),
        Colours(),
    )
    t = trainer(tmp_path, max_epochs=12)
    t.fit(module, data)
    assert t.callback_metrics["val/top1"] > 0.9
    image, target = data.set.tensors
    module.eval()
    with torch.no_grad():
        averaged, plain = module.ema(image), module.model(image)
        assert torch.equal(module(image), averaged)
        assert not torch.equal(averaged, plain)
    result = t.validate(module, data, verbose=False)[0]
    assert result["val/top1"] == pytest.approx((averaged.argmax(1) == target).float().mean().item())
    assert result["val/top5"] == pytest.approx(
        (averaged.topk(5).indices == target[:, None]).any(1).float().mean().item()
    )
    assert result["val/loss"] == pytest.approx(F.cross_entropy(averaged, target).item(), rel=1e-5)


def test_the_head_follows_the_data_and_its_names_travel(tmp_path):
    module, data = Classify(tiny(num_classes=3), schedule=Constant()), Colours(classes=["b", "a", "d", "c", "e"])
    t = trainer(tmp_path)
    t.fit(module, data)
    assert module.model.num_classes == 5
    assert module.classes == ["b", "a", "d", "c", "e"]
    assert "val/top5" not in t.callback_metrics  # of five classes one is always right
    t.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["patchloom"]
    assert saved["classes"] == ["b", "a", "d", "c", "e"]
    assert saved["preprocessing"]["mean"] == list(module.model.default_cfg["mean"])
    assert zoo.rebuild(saved["model"]).num_classes == 5


def test_a_checkpoint_is_tested_by_a_fresh_module(tmp_path):
    data = Colours()
    module, t = Classify(tiny(), optimizer=adamw, ema=Ema()), trainer(tmp_path, max_epochs=2)
    t.fit(module, data)
    t.save_checkpoint(tmp_path / "a.ckpt")
    expected = t.test(module, data, verbose=False)
    fresh = Classify(tiny(num_classes=3), ema=Ema())  # its head is reset before the weights arrive
    assert (
        trainer(tmp_path).test(fresh, data, ckpt_path=str(tmp_path / "a.ckpt"), verbose=False, weights_only=True)
        == expected
    )
    chances = torch.cat(
        trainer(tmp_path).predict(fresh, data.val_dataloader(), ckpt_path=str(tmp_path / "a.ckpt"), weights_only=True)
    )
    assert (chances.argmax(1) == data.set.tensors[1]).float().mean() == pytest.approx(expected[0]["test/top1"])
    torch.testing.assert_close(chances.sum(1), torch.ones(len(chances)))
    with pytest.raises(ValueError, match=r"average of the weights and model\.ema is unset"):
        trainer(tmp_path).test(Classify(tiny()), data, ckpt_path=str(tmp_path / "a.ckpt"), verbose=False)


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        (CLASSES[::-1], "in another order"),
        ([*CLASSES[1:], "pink"], "without red and with unknown pink"),
        (CLASSES[:7], "8 classes, the data has 7, without black"),
    ],
)
def test_other_classes_are_refused(tmp_path, classes, says):
    t = trainer(tmp_path)
    t.fit(Classify(tiny()), Colours(length=16))
    t.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=says):
        trainer(tmp_path).test(
            Classify(tiny()), Colours(length=16, classes=classes), ckpt_path=str(tmp_path / "a.ckpt"), verbose=False
        )


def test_wrong_data_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"has 1 class \(all\): a classifier needs at least two"):
        trainer(tmp_path).fit(Classify(tiny()), Colours(classes=["all"]))
    with pytest.raises(ValueError, match="the model tells 3 classes apart, the data has 8: give the checkpoint"):
        trainer(tmp_path).test(Classify(tiny(3)), Colours(), verbose=False)
    with pytest.raises(ValueError, match="needs the end of the run"):
        trainer(tmp_path, max_epochs=-1).fit(Classify(tiny()), Colours())
    torch.save({"state_dict": tiny().state_dict(), "pytorch-lightning_version": "2.6.0"}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="not written by patchloom"):
        trainer(tmp_path).test(Classify(tiny()), Colours(), ckpt_path=str(tmp_path / "other.ckpt"), verbose=False)


def test_the_average_follows_optimiser_steps_not_batches(tmp_path):
    torch.manual_seed(0)
    module, seen = Classify(tiny(), optimizer=sgd, schedule=Constant(), ema=Ema(0.5, warmup=False)), []
    start = {k: v.clone() for k, v in module.model.state_dict().items()}
    module.on_train_batch_end = lambda *_: seen.append({k: v.clone() for k, v in module.model.state_dict().items()})
    trainer(tmp_path, limit_train_batches=6, accumulate_grad_batches=3).fit(module, Colours())
    for name, value in module.ema.module.state_dict().items():
        torch.testing.assert_close(
            value, (0.5 * start[name] + 0.5 * seen[2][name]) * 0.5 + 0.5 * seen[5][name], msg=name
        )


def test_schedule_and_layer_decay_reach_the_optimiser(tmp_path):
    rates = []
    module = Classify(
        Noisy(), optimizer=sgd, schedule=Cosine(min_lr=0.0, warmup_epochs=1, warmup_lr=0.0), layer_decay=0.5
    )
    module.on_train_batch_end = lambda *_: rates.append(
        {g["lr_scale"]: g["lr"] for g in module.optimizers().param_groups}
    )
    module.on_save_checkpoint = lambda checkpoint: None
    trainer(tmp_path, max_epochs=2, limit_train_batches=4).fit(module, Colours())
    assert [r[1.0] for r in rates[3:]] == pytest.approx(
        [0.1 * x for x in (1.0, 0.853553, 0.5, 0.146447, 0.0)], abs=1e-6
    )
    assert all(r[0.5] == pytest.approx(r[1.0] / 2) for r in rates)


def test_torchs_own_schedulers_step_by_epoch(tmp_path):
    module = Classify(tiny(), optimizer=sgd, schedule=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.1))
    trainer(tmp_path, max_epochs=2, limit_train_batches=3).fit(module, Colours())
    assert module.optimizers().param_groups[0]["lr"] == pytest.approx(0.001)


def test_many_labels(tmp_path):
    from torchmetrics.functional.classification import multilabel_average_precision

    data = Colours(many=True)
    module, t = Classify(tiny(), loss=Binary(weights="balanced"), mixing=Mixing()), trainer(tmp_path)
    t.fit(module, data)
    image, target = data.set.tensors
    present = target.sum(0).float()
    torch.testing.assert_close(module.loss.weights, (len(target) - present) / present)
    result = t.test(module, data, verbose=False)[0]
    module.eval()
    with torch.no_grad():
        chance = module(image).sigmoid()
    assert result["test/map"] == pytest.approx(multilabel_average_precision(chance, target, 8).item(), abs=1e-6)
    assert set(result) == {"test/loss", "test/map", "test/f1"}


def test_distillation_trains_towards_the_teacher(tmp_path):
    torch.manual_seed(0)

    class Judge(nn.Module):
        num_classes, default_cfg = 8, tiny().default_cfg

        def forward(self, image):
            return (
                torch.eye(8)[image.mean((1, 2, 3)).gt(0).long()] * 20
            )  # class 0 or 1 by brightness, whatever the target

    module = Classify(tiny(), loss=Distil(Judge(), weight=1.0), optimizer=adamw)
    trainer(tmp_path, max_epochs=8).fit(module, data := Colours())
    image = data.set.tensors[0]
    with torch.no_grad():
        assert (module.eval()(image).argmax(1) == Judge()(image).argmax(1)).float().mean() > 0.8


def test_balanced_weights_need_counts(tmp_path):
    data = Colours()
    module = Classify(tiny(), loss=CrossEntropy(weights="balanced"))
    trainer(tmp_path, limit_train_batches=1).fit(module, data)
    assert module.loss.weights.tolist() == [1.0] * 8
    loaders = Classify(tiny(), loss=CrossEntropy(weights="balanced"))
    with pytest.raises(ValueError, match="has no class_counts"):
        trainer(tmp_path).fit(loaders, data.train_dataloader())


def test_channels_last_changes_memory_not_numbers(tmp_path):
    results = []
    for channels_last in (False, True):
        torch.manual_seed(0)
        module = Classify(tiny(), optimizer=sgd, channels_last=channels_last)
        t = trainer(tmp_path, limit_train_batches=3)
        t.fit(module, Colours())
        results.append(t.callback_metrics["val/loss"])
    convolution = next(m for m in module.modules() if isinstance(m, nn.Conv2d))
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_metrics_count_every_image_once():
    judge = metrics(7, "one", confusion=True)
    g = torch.Generator().manual_seed(0)
    logits, target = torch.randn(50, 7, generator=g), torch.randint(7, (50,), generator=g)
    for part in (slice(0, 32), slice(32, 50)):
        judge.update(logits[part], target[part])
    values = judge.compute()
    assert values["top5"] == pytest.approx((logits.topk(5).indices == target[:, None]).any(1).float().mean().item())
    assert values["loss"] == pytest.approx(F.cross_entropy(logits, target).item(), rel=1e-6)
    matrix = judge.confusion.compute()
    assert matrix.sum() == 50
    assert matrix.trace() / 50 == pytest.approx(values["top1"].item())
    assert all(matrix[i].sum() == (target == i).sum() for i in range(7))  # rows are the true classes
    judge.reset()
    assert judge.confusion.compute().sum() == 0


@pytest.mark.parametrize("count", [2, 10, 30, 300])
def test_the_confusion_picture(tmp_path, count):
    from PIL import Image

    matrix = torch.randint(0, 9, (count, count), generator=torch.Generator().manual_seed(0))
    matrix[0] = 0  # a class without images
    path = draw_confusion(matrix, [f"class {i}" for i in range(count)], tmp_path / "run" / "confusion.png")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) >= 500
        assert max(picture.size) < 2400


def test_the_test_draws_it_into_the_run_folder(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    t = trainer(tmp_path, logger=CSVLogger(tmp_path, name="", version="run"))
    t.test(Classify(tiny()), Colours(), verbose=False)
    assert (tmp_path / "run" / "confusion.png").is_file()


class KeepAt(Callback):
    """Copies last.ckpt, as it lies there when the given optimiser step is over."""

    def __init__(self, step: int, folder):
        self.step, self.folder = step, folder

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == self.step:
            shutil.copy(self.folder / "last.ckpt", self.folder / "kept.ckpt")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_taken_up_in_mid_epoch_ends_bit_for_bit_the_same(tmp_path, workers):
    """Dropout, mixing, the average, fused AdamW, schedule, moving batch statistics, order and drawing of the images:
    5 steps an epoch, taken up after 7."""

    def go(folder, resume=None):
        L.seed_everything(
            1 if resume is None else 2, verbose=False
        )  # what the checkpoint brings must not come from the seed
        saving = Checkpoints(every_n_steps=7)
        t = trainer(
            folder,
            max_epochs=3,
            callbacks=[saving.resume, saving, KeepAt(7, folder)],
            plugins=[PlainFiles()],
            enable_checkpointing=True,
        )
        module = Classify(
            Noisy(10), optimizer=adamw, schedule=Cosine(warmup_steps=3), ema=Ema(0.9), mixing=Mixing(off_epoch=2)
        )
        module.on_save_checkpoint = partial(save_without_model, module)  # Noisy is none of the zoo's
        t.fit(
            module,
            ShapesData(
                40,
                9,
                batch_size=8,
                workers=workers,
                seed=3,
                preprocessing={**Noisy.default_cfg, "input_size": (3, 32, 32)},
            ),
            ckpt_path=resume,
            weights_only=True,
        )
        return t, module

    (tmp_path / "b").mkdir()
    first, module = go(tmp_path)
    second, other = go(tmp_path / "b", str(tmp_path / "kept.ckpt"))
    assert first.global_step == second.global_step == 15
    state, again = module.state_dict(), other.state_dict()
    assert any(k.startswith("ema.module.") for k in state)
    assert set(state) == set(again)
    assert [k for k in state if not torch.equal(state[k], again[k])] == []
    assert first.callback_metrics == second.callback_metrics
    a, b = (
        torch.load(folder / "last.ckpt", weights_only=True)["optimizer_states"][0]["state"]
        for folder in (tmp_path, tmp_path / "b")
    )
    assert all(torch.equal(a[i]["exp_avg"], b[i]["exp_avg"]) for i in a)


def save_without_model(module, checkpoint):
    checkpoint["patchloom"] = {
        "format": 1,
        "model": {},
        "classes": module.classes,
        "preprocessing": module.preprocessing,
        "recipe": "",
        "mixing_seed": module.mixing_seed,
    }
