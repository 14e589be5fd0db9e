"""What a diffusion run shows while it goes on: sheets of samples, and alarms of gradients."""

import logging

import lightning as L
import numpy as np
import pytest
import torch
from generation_parts import RECIPE, Caption, Numbers, denoiser
from PIL import Image

from patchloom.train.callbacks.alarm import Alarm, GradientAlarm, GradientSpike
from patchloom.train.callbacks.samples import Samples
from patchloom.train.cli import main
from patchloom.train.diffuse import Diffuse
from patchloom.train.grid import draw_grid
from patchloom.train.running import checkpoint


def fit(module, data, folder, callbacks=(), **options) -> L.Trainer:
    from lightning.pytorch.loggers import CSVLogger

    trainer = L.Trainer(
        accelerator="cpu", logger=CSVLogger(folder, name="", version=""), enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1,
        callbacks=list(callbacks), **options,
    )  # fmt: skip
    trainer.fit(module, data)
    return trainer


def module(**options) -> Diffuse:
    torch.manual_seed(0)
    return Diffuse(options.pop("model", None) or denoiser(), **options)


def test_sheets_come_when_due_and_show_the_classes(tmp_path):
    made = module(samples=Samples(every_n_steps=3, rows=4, columns=2, steps=2))
    fit(made, Numbers(), tmp_path, max_epochs=2)
    assert sorted(p.name for p in tmp_path.glob("samples_*")) == [f"samples_{n:07}.png" for n in (3, 6, 8)]
    sheet = np.asarray(Image.open(tmp_path / "samples_0000008.png"))
    assert sheet.shape[0] == 4 * 66 + 2
    assert sheet.shape[1] >= 2 * 66 + 2


def test_sheets_do_not_touch_the_run(tmp_path):
    states = []
    for i, samples in enumerate((None, Samples(every_n_steps=2, rows=2, columns=2, steps=2, guidance=2.0))):
        made = module(samples=samples)
        torch.manual_seed(1)
        fit(made, Numbers(), tmp_path / str(i), max_epochs=2)
        assert made.model.training
        states.append(made.state_dict())
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())


def test_sheets_of_captions_take_those_of_the_data(tmp_path):
    made = module(
        model=denoiser(num_classes=None, text=(3, 8)), text=Caption(), samples=Samples(0, rows=3, columns=2, steps=2)
    )
    fit(made, Numbers(captions=True), tmp_path, max_epochs=1)
    assert Image.open(tmp_path / "samples_0000004.png").height == 3 * 66 + 2


@pytest.mark.parametrize(
    ("samples", "says"),
    [({"steps": 2000}, "steps 2000: that is more than the schedule has"), ({"sampler": "dimm"}, "no sampler 'dimm'")],
)
def test_settings_of_sheets_are_looked_at_before_the_first_step(samples, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        fit(module(samples=Samples(**samples)), Numbers(), tmp_path, max_epochs=1)


class Spike(L.Callback):
    """The gradient of one parameter a thousandfold at a step."""

    def __init__(self, step: int):
        self.step = step

    def on_after_backward(self, trainer, module):
        if trainer.global_step == self.step:
            module.model.final.linear.weight.grad += 1000


@pytest.mark.parametrize("action", ["warn", "skip", "stop"])
def test_a_gradient_far_above_the_usual_is_told(action, tmp_path, caplog):
    made = module(samples=None, ema=None, alarm=Alarm(factor=20, action=action, warmup=5))
    spike = Spike(6)
    kept = {}

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            kept[trainer.global_step] = {k: v.clone() for k, v in module.model.state_dict().items()}

    with caplog.at_level(logging.WARNING, "patchloom.train"):
        if action == "stop":
            with pytest.raises(GradientSpike, match=r"step 7: gradient of norm .* in model.final.linear.weight"):
                fit(made, Numbers(), tmp_path, [spike, Keep()], max_epochs=2)
            return
        trainer = fit(made, Numbers(), tmp_path, [spike, Keep()], max_epochs=2)
    said = [r.getMessage() for r in caplog.records if "gradient of norm" in r.getMessage()]
    assert len(said) == 1
    assert "step 7: gradient of norm" in said[0]
    assert "100% of it in model.final.linear.weight" in said[0]
    same = all(torch.equal(v, kept[6][k]) for k, v in kept[7].items())
    assert same == (action == "skip")
    assert trainer.callback_metrics["train/alarms"] == 1


def test_the_alarm_knows_what_is_usual_after_a_resume():
    alarm = GradientAlarm(Alarm())
    alarm.seen, alarm.usual, alarm.alarms = 120, -1.5, 2
    other = GradientAlarm(Alarm())
    other.load_state_dict(alarm.state_dict())
    assert (other.seen, other.usual, other.alarms) == (120, -1.5, 2)
    checkpoint.check_plain(alarm.state_dict())


@pytest.mark.parametrize("wrong", [{"factor": 1}, {"action": "scream"}, {"warmup": 0}, {"share": 0.0}])
def test_wrong_alarms_are_refused(wrong):
    with pytest.raises(ValueError, match="alarm"):
        Alarm(**wrong)


def test_a_grid_is_what_it_was_given(tmp_path):
    images = torch.randint(0, 255, (5, 3, 80, 100), dtype=torch.uint8)
    draw_grid(images, 2, tmp_path / "g.png")
    sheet = np.asarray(Image.open(tmp_path / "g.png"))
    assert sheet.shape == (3 * 82 + 2, 2 * 102 + 2, 3)
    assert np.array_equal(sheet[84:164, 104:204], images[3].permute(1, 2, 0).numpy())
    with pytest.raises(ValueError, match="2 titles for 3 rows"):
        draw_grid(images, 2, tmp_path / "g.png", ["a", "b"])


def test_a_run_tells_where_its_sheets_are(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(RECIPE.replace("max_epochs: 3", "max_epochs: 2"))
    assert main(["fit", "-c", "small.yaml", "--test", "false"]) == 0
    (run,) = (tmp_path / "runs" / "small").iterdir()
    assert (run / "samples_0000020.png").is_file()
    assert not (run / "predictions.png").exists()
    assert "samples_0000020.png" in capsys.readouterr().out
