"""`Diffuse`: what a run learns, what it is judged by, what it takes and refuses."""

import lightning as L
import pytest
import torch
from generation_parts import Caption, Numbers, denoiser, fit
from torch import nn

from patchloom.data.modules import ShapesData
from patchloom.train.callbacks.guard import Guard, NonFinite
from patchloom.train.diffuse import Diffuse
from patchloom.train.ema import Ema
from patchloom.vision.generation.edm import Edm
from patchloom.vision.generation.flow import Flow
from patchloom.vision.generation.gaussian import Gaussian
from patchloom.vision.generation.process import training_call
from patchloom.vision.parts import plain
from patchloom.vision.zoo import create_model


def module(model: nn.Module | None = None, lr: float = 2e-3, **options) -> Diffuse:
    torch.manual_seed(0)
    options = {"samples": None, "ema": Ema(0.9), **options}
    adam = lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=0.0)  # noqa: E731
    return Diffuse(denoiser() if model is None else model, optimizer=adam, **options)


def test_it_learns_and_its_average_is_judged(tmp_path):
    made, data = module(lr=5e-3), Numbers()
    trainer = fit(made, data, tmp_path, max_epochs=20, check_val_every_n_epoch=20)
    first = trainer.losses[0]
    assert trainer.callback_metrics["val/loss"] < 0.7 * first
    assert set(trainer.callback_metrics) >= {"train/loss", "train/bound", "train/gradient", "val/error", "val/bound"}
    judged = trainer.validate(made, data, verbose=False)[0]["val/loss"]
    assert judged == pytest.approx(float(trainer.callback_metrics["val/loss"]), abs=0)  # the same noise each time
    made.ema.module.load_state_dict({k: torch.zeros_like(v) for k, v in made.ema.module.state_dict().items()})
    zero = trainer.validate(made, data, verbose=False)[0]
    assert zero["val/error"] == pytest.approx(1, abs=0.1)  # a network that answers nothing is off by the noise
    assert zero["val/loss"] != judged


def test_the_defaults_are_those_that_were_published(tmp_path):
    torch.manual_seed(0)
    made = Diffuse(denoiser(), samples=None)
    begun = {k: v.clone() for k, v in made.model.state_dict().items()}
    fit(made, Numbers(), tmp_path, max_epochs=1, limit_train_batches=1)
    group = made.trainer.optimizers[0].param_groups
    assert {g["lr"] for g in group} == {1e-4}
    assert {g["weight_decay"] for g in group} == {0.0}
    assert made.trainer.optimizers[0].defaults["betas"] == (0.9, 0.999)
    for name, mean in made.ema.module.state_dict().items():  # begins as a copy
        expected = 0.9999 * begun[name] + 0.0001 * made.model.state_dict()[name]
        torch.testing.assert_close(mean, expected, atol=1e-7, rtol=1e-5)
    assert made.process == Gaussian()


@pytest.mark.parametrize(
    ("process", "learned"),
    [
        (Gaussian(betas="cosine"), True),
        (Gaussian(predicts="velocity", variance="large"), False),
        (Edm(time="step"), False),
        (Flow(times="logit_normal"), False),
    ],
    ids=str,
)
def test_every_process_trains(process, learned, tmp_path):
    made = module(denoiser(learn_variance=learned), process=process)
    trainer = fit(made, Numbers(), tmp_path, max_epochs=1)
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    assert torch.isfinite(trainer.callback_metrics["val/loss"])
    assert ("train/bound" in trainer.callback_metrics) == learned


def test_half_precision_keeps_its_islands(tmp_path):
    """The loss, the weights and their average stay float32 under bf16-mixed, and the first loss is the same at 1%."""
    found = {}
    for precision in ("32-true", "bf16-mixed"):
        made = module(lr=1e-4)
        seen = []
        hook = made.model.final.register_forward_hook(lambda m, i, o, seen=seen: seen.append(o.dtype))
        loss = made.training_step
        made.training_step = lambda *a, loss=loss, seen=seen: seen.append(loss(*a).dtype) or loss(*a)
        trainer = fit(made, Numbers(), tmp_path, max_epochs=1, limit_train_batches=1, precision=precision)
        hook.remove()
        found[precision] = trainer.losses[0]
        assert {p.dtype for p in made.ema.module.parameters()} | {p.dtype for p in made.model.parameters()} == {
            torch.float32
        }
        assert seen[1] == torch.float32
    assert found["bf16-mixed"] == pytest.approx(found["32-true"], rel=0.01)


def test_captions_go_through_the_encoder(tmp_path):
    model = denoiser(num_classes=None, text=(3, 8))
    made = module(model, text=Caption())
    trainer = fit(made, Numbers(captions=True), tmp_path, max_epochs=1)
    assert torch.isfinite(trainer.callback_metrics["val/loss"])
    assert made.condition(["a", "b"]).shape == (2, 3, 8)
    embeddings = torch.zeros(2, 3, 8)
    assert made.condition(embeddings) is embeddings
    state = made.own_state()["text"]
    assert state == {"spec": "letters", "length": 3, "digest": "letters-3"}
    assert not any(name.startswith("text.") for name in made.state_dict())


def test_conditions_are_left_out_in_training_only():
    made = module(denoiser(dropout=0.5))
    nn.init.normal_(made.model.final.linear.weight)
    nn.init.normal_(made.model.final.modulation.linear.weight)
    x, y, t = torch.zeros(256, 3, 32, 32), torch.ones(256, dtype=torch.int64), torch.full((256,), 500.0)
    with torch.no_grad():
        made.model.train()
        answers = made.model(x, t, y)
        null = made.model.eval()(x[:1], t[:1], made.model.null(y[:1]))
        one = made.model(x[:1], t[:1], y[:1])
    none = (answers - null).abs().amax((1, 2, 3)) < 1e-4
    some = (answers - one).abs().amax((1, 2, 3)) < 1e-4
    assert (none ^ some).all()
    assert 80 < int(none.sum()) < 176


def test_masking_is_for_networks_made_for_it(tmp_path):
    made = module(mask_ratio=0.5)
    with pytest.raises(ValueError, match="was not made to be trained on some of its patches"):
        fit(made, Numbers(), tmp_path, max_epochs=1)
    with pytest.raises(ValueError, match=r"mask_ratio=1.5: a share of the patches below 1"):
        module(mask_ratio=1.5)


def test_a_bad_number_is_traced_to_its_layer(tmp_path):
    class Poison(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == 2:
                layer = module.model.time_embedding.fc2
                layer.register_forward_hook(lambda layer, inputs, output: output / 0)

    with pytest.raises(NonFinite, match=r"time_embedding.fc2 \(Linear\) gives (nan|infinite) values"):
        fit(module(), Numbers(), tmp_path, max_epochs=1, callbacks=[Poison(), Guard()])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: module(nn.Linear(3, 3)), "model: Linear is no denoiser"),
        (lambda: module(process=Gaussian(variance="large")), "takes 3 channels from a network with 3, and DiT gives 6"),
        (lambda: module(process=Edm()), "Edm tells a network 'c_noise', and DiT reads 'step'"),
        (lambda: module(text=Caption()), "text encodes captions as 3 x 8, and DiT takes labels"),
        (lambda: module(denoiser(num_classes=None, text=(4, 8)), text=Caption()), "DiT takes captions of 4 x 8"),
    ],
)
def test_parts_that_do_not_fit_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize(
    ("model", "data", "says"),
    [
        ({}, {"preprocessing": {"input_size": (3, 32, 32)}}, r"mean \(0.485.* takes pixels in \[-1, 1\]"),
        ({"in_channels": 4}, {}, r"gives pictures of 3 channels, DiT takes 4: make it with in_chans=3"),
        ({}, {"captions": True}, "the data gives captions, and the network takes labels: give model.text"),
        ({"num_classes": None, "text": (3, 8)}, {"captions": True}, "the data gives captions, and nobody encodes them"),
    ],
)
def test_data_that_does_not_fit_is_refused(model, data, says, tmp_path):
    pixels = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    with pytest.raises(ValueError, match=says):
        fit(module(denoiser(**model)), Numbers(**{"preprocessing": pixels} | data), tmp_path, max_epochs=1)


def test_pictures_come_as_the_network_takes_them(tmp_path):
    made = module()
    data = ShapesData(train_length=8, val_length=4, batch_size=4, workers=0)
    fit(made, data, tmp_path, max_epochs=1)
    assert data.preprocessing["input_size"] == (3, 32, 32)
    x = torch.cat([x for x, _ in data.train_dataloader()])
    assert -1 <= x.min() < -0.5
    assert 0.5 < x.max() <= 1


def test_another_number_of_classes_makes_fresh_labels(tmp_path):
    made = module()
    null = made.model.labels.table.weight[-1].clone()
    fit(made, Numbers(classes=["a", "b", "c"]), tmp_path, max_epochs=1, limit_train_batches=0)
    assert made.model.num_classes == 3
    assert torch.equal(made.model.labels.table.weight, null.expand(4, -1))  # each as that of no class
    with pytest.raises(ValueError, match="labels=keep, but the data has 3 classes and the network 10"):
        fit(module(labels="keep"), Numbers(classes=["a", "b", "c"]), tmp_path, max_epochs=1)


def test_the_loss_is_that_of_the_process():
    made = module().train()
    x, y = torch.randn(4, 3, 32, 32), torch.arange(4)
    made.model.dropout = 0.0
    torch.manual_seed(5)
    ours = made.losses((x, y)).loss
    torch.manual_seed(5)
    assert torch.equal(ours, Gaussian().loss(training_call(made.model), x, y).loss)


def test_labels_that_are_no_class_are_refused(tmp_path):
    data = Numbers()
    data.labels[9] = -1
    with pytest.raises(ValueError, match=r"class -1 is out of range: DiT has 0 \.\. 9"):
        fit(module(), data, tmp_path, max_epochs=1)


def test_masked_training_learns_of_the_patches_kept(tmp_path):
    """MicroDiT under 75% masking: it trains, its validation sees all patches, and it draws whole images."""
    small = {"dim": 64, "depth": 2, "mixer": (1, 64), "experts": 2, "text": (4, 16)}
    model = create_model("microdit_tiny_2", img_size=(8, 8), **small)
    made = module(model, process=Edm(0.9, -0.6, 1.2), mask_ratio=0.75, lr=1e-3)
    kept = []
    masked = model.masked
    model.masked = lambda *a: kept.append(masked(*a)) or kept[-1]
    trainer = fit(made, Numbers(embedded=(4, 16), channels=4, size=8), tmp_path, max_epochs=1)
    assert len(kept) == 4
    assert all(int(k.sum(1).float().mean()) == 4 for _, k in kept)  # of 4 x 4 patches
    assert torch.isfinite(trainer.callback_metrics["val/loss"])


def test_a_setting_that_a_run_did_not_know_yet_is_its_default():
    old = plain(Flow())
    del old["init_args"]["predicts"]  # as a run wrote it before there was a choice
    still = denoiser(learn_variance=False)
    made = module(still, process=Flow())
    made.take_state({"preprocessing": {}, "process": old, "text": None})
    still.learned_under = old
    assert module(still, process=Flow(), adapter="lora:r=2").process == Flow()
    other = module(denoiser(learn_variance=False), process=Flow(predicts="image"))
    with pytest.raises(ValueError, match=r"trained with process Flow\(.*go on with the settings"):
        other.take_state({"preprocessing": {}, "process": old, "text": None})
