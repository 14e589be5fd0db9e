"""The small models that the demo trains at a button."""

import time

import pytest

from patchloom.train.demo.limits import Refused
from patchloom.train.demo.shelf import Shelf
from patchloom.train.demo.starters import STARTERS, Trainer

SHRUNK = (
    "--trainer.max_epochs", "1", "--data.train_length", "64", "--data.val_length", "16", "--data.test_length", "16",
    "--data.workers", "0", "--trainer.accelerator", "cpu",
)  # fmt: skip


def test_there_is_one_for_each_tab():
    said = " ".join(starter.text for starter in STARTERS)
    for task in ("classification", "token view", "detection", "segmentation", "generation by class", "chat"):
        assert task in said


def test_what_nobody_offered_is_not_trained(tmp_path):
    trainer = Trainer(tmp_path)
    assert trainer.state() == "Nothing is being trained."
    for recipe in ("imagenet/swin_t", "../../x", None, 3, ["shapes/cct"], "shapes/cct --x"):
        with pytest.raises(Refused, match="choose one"):
            trainer.begin(recipe)
    assert trainer.process is None
    trainer.end()


def test_the_line_that_trains(tmp_path):
    from patchloom.train.cli import Parser
    from patchloom.train.commands import fit

    for starter in STARTERS:
        words = Trainer(tmp_path).command(starter)[3:]
        assert words[0] == "fit"
        parser = Parser(prog="fit")
        parser.set_defaults(command="fit")
        fit.add_arguments(parser)
        args, rest = parser.parse_known_args(words[1:])
        assert args.config == [starter.recipe]
        assert rest == [
            "--trainer.default_root_dir", str(tmp_path), "--trainer.max_time", f"00:00:{starter.minutes:02}:00"
        ]  # fmt: skip


@pytest.mark.slow
def test_a_model_is_trained_and_offered(tmp_path):
    trainer, shelf = Trainer(tmp_path / "runs", SHRUNK), Shelf(tmp_path / "runs", device="cpu")
    assert shelf.entries() == []
    assert "is being trained" in trainer.begin("shapes/cct")
    with pytest.raises(Refused, match="one at a time"):
        trainer.begin("shapes/vit")
    end = time.monotonic() + 300
    while trainer.running and time.monotonic() < end:
        time.sleep(0.5)
    assert "is trained" in trainer.state()
    assert "val/" in trainer.state()
    time.sleep(2.1)
    (entry,) = shelf.entries()
    assert entry.kind == "classify"
    assert entry.name.startswith("shapes/cct/")


@pytest.mark.slow
def test_what_runs_ends_with_the_demo(tmp_path):
    trainer = Trainer(tmp_path / "runs", [*SHRUNK, "--trainer.max_epochs", "500"])
    trainer.begin("shapes/cct")
    time.sleep(3)
    trainer.end()
    assert not trainer.running
    assert "ended early: terminated" in trainer.state()


@pytest.mark.slow
def test_what_fails_says_why(tmp_path):
    trainer = Trainer(tmp_path / "runs", ["--data.train_lenth", "3"])
    trainer.begin("shapes/cct")
    trainer.process.wait(120)
    assert "train_lenth" in trainer.state()
