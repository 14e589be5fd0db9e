"""What commands make of adapters: fit, eval, predict, bench and `patchloom adapters`."""

import json
import math
import signal
from pathlib import Path

import pytest
import torch
from adapter_run_parts import Shifts, network
from classify_parts import CLASSES
from fit_parts import RECIPE, differences, error_line, patchloom, recipe, run_folder
from PIL import Image
from safetensors.torch import load_file

from patchloom.data.shapes import Shapes
from patchloom.train import cli
from patchloom.train.running import checkpoint
from patchloom.vision.adapters import adapt, adapter_of, switch
from patchloom.vision.adapters.files import read_card, save_adapter
from patchloom.vision.adapters.trunk import digest
from patchloom.vision.model import Classifier


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A trained backbone, and a run with an adapter on it."""
    folder = tmp_path_factory.mktemp("runs")
    done = patchloom("fit", "-c", recipe(folder), "--trainer.max_epochs", "1", "--test", "false", cwd=folder)
    assert done.returncode == 0, done.stderr
    base = run_folder(folder)
    other = folder / "adapted"
    other.mkdir()
    text = RECIPE.replace("{class_path: fit_parts.small}", "{class_path: patchloom.train.saved.adapted.trained, "
                          f"init_args: {{spec: {base}}}}}")  # fmt: skip
    done = patchloom("fit", "-c", recipe(other, "tuned", text), "--adapter", "lora:r=2", "--json", cwd=other)
    assert done.returncode == 0, done.stderr
    (folder / "told.json").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return {"folder": folder, "base": base, "run": run_folder(other)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory, runs) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    classes, shapes = read_card(runs["run"] / "adapter").classes, Shapes(20, (32, 32), "class", 0, "test")
    for i in range(20):
        sample = shapes.draw(i)
        (folder / classes[sample.label]).mkdir(exist_ok=True)
        Image.fromarray(sample.image).save(folder / classes[sample.label] / f"{i}.png")
    return folder


def said(capsys, *words: object) -> str:
    assert cli.main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def refused(capsys, *words: object) -> str:
    assert cli.main([str(word) for word in words]) == 1
    return capsys.readouterr().err


@pytest.mark.slow
def test_the_run_tells_and_keeps_its_adapter(runs):
    told, folder = json.loads((runs["folder"] / "told.json").read_text()), runs["run"] / "adapter"
    assert told["adapter"].endswith("/adapter")
    assert {p.name for p in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    err = (runs["folder"] / "stderr").read_text()
    assert "parameters learn (" in err
    assert "lora:r=2" in err
    assert "Warning" not in err
    card = read_card(folder)
    assert card.words == "lora:r=2"
    assert card.trunk == digest(checkpoint.load_model(str(runs["base"]))[0])
    content = checkpoint.read(runs["run"] / "last.ckpt")
    own = [n for n in content["state_dict"] if n.startswith("model.") and ("lora_" in n or n.startswith("model.head"))]
    assert len(content["optimizer_states"][0]["state"]) == len(own)


@pytest.mark.slow
def test_killed_and_resumed_with_an_adapter(tmp_path):
    strike = f"callbacks: [{{class_path: fit_parts.Strike, init_args: {{step: 17, number: {int(signal.SIGKILL)}}}}}]"
    struck = RECIPE.replace("log_every_n_steps: 1}", f"log_every_n_steps: 1, {strike}}}")
    ends = []
    for name, text in (("whole", RECIPE), ("struck", struck)):
        (tmp_path / name).mkdir()
        line = ("fit", "-c", recipe(tmp_path / name, "small", text), "--adapter", "bias", "--test", "false")
        done = patchloom(*line, cwd=tmp_path / name)
        assert done.returncode == (0 if name == "whole" else -signal.SIGKILL), done.stderr
        ends.append(run_folder(tmp_path / name))
    line = ("fit", "--resume", ends[1], "--test", "false", "--trainer.callbacks", "null")
    done = patchloom(*line, cwd=tmp_path / "struck")
    assert done.returncode == 0, done.stderr
    assert differences(*ends) == []
    a, b = (load_file(end / "adapter" / "adapter_model.safetensors") for end in ends)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[n], b[n]) for n in a)
    done = patchloom("fit", "--resume", ends[1], "--adapter", "norm", "--trainer.max_epochs", 4, cwd=tmp_path)
    assert "the checkpoint was trained with adapter bias, the model has norm: set the same" in error_line(done)


def test_wrong_words_on_the_line_are_one_line(tmp_path):
    done = patchloom("fit", "-c", recipe(tmp_path), "--adapter", "lorra:r=2", cwd=tmp_path)
    assert "adapter 'lorra' in 'lorra:r=2' is not known; did you mean lora" in error_line(done)
    assert not list(tmp_path.rglob("config.yaml"))


def test_eval_and_predict_take_it(runs, photos, capsys):
    """On the backbone, from the run's folder or its own, and as the run's checkpoint: one answer."""
    line = ("eval", "folder", "--data", photos, "--json", "--workers", "0")
    results = [
        json.loads(said(capsys, *line[:2], model, *line[2:], *more))
        for model, more in (
            (runs["run"], ()),
            (runs["base"], ("--adapter", runs["run"])),
            (runs["base"], ("--adapter", runs["run"] / "adapter")),
        )
    ]
    assert results[0]["acc1"] == results[1]["acc1"] == results[2]["acc1"]
    picture = next(photos.rglob("*.png"))
    tops = [
        json.loads(said(capsys, "predict", model, picture, "--json", "--workers", "0", *more))[0]["top"]
        for model, more in ((runs["run"], ()), (runs["base"], ("--adapter", runs["run"])))
    ]
    assert [t["class"] for t in tops[0]] == [t["class"] for t in tops[1]]
    assert [t["probability"] for t in tops[0]] == pytest.approx([t["probability"] for t in tops[1]], abs=1e-5)
    widths = [
        json.loads(said(capsys, "features", model, photos, "--json", "--out", runs["folder"] / "f.safetensors", *more))
        for model, more in ((runs["run"], ()), (runs["base"], ("--adapter", runs["run"])))
    ]
    assert widths[0]["width"] == widths[1]["width"]


def test_what_cannot_be_is_refused(runs, photos, capsys, tmp_path):
    picture, adapter = next(photos.rglob("*.png")), runs["run"] / "adapter"
    err = refused(capsys, "predict", "cct_7_3x1_32", picture, "--adapter", adapter)
    assert "is an adapter of 1 x Pool of 8, 1 x Pool of 16, and not of cct_7_3x1_32" in err
    err = refused(capsys, "predict", adapter, picture)
    assert "which is no published variant; give the adapter to what it was trained on: MODEL --adapter" in err
    err = refused(capsys, "predict", runs["base"], picture, "--adapter", "lora:r=2")
    assert "no adapter in lora:r=2: no such folder" in err
    err = refused(capsys, "predict", runs["base"], picture, "--adapter", adapter, "--random-weights")
    assert "it was trained on others; leave the option out" in err
    save_adapter(wrong := fitted(), tmp_path / "other", classes=CLASSES)
    assert wrong.num_classes == 5
    err = refused(capsys, "predict", runs["base"], picture, "--adapter", tmp_path / "other")
    assert "is an adapter of 1 x Pool of 16, 2 x Pool of 32, and this model is 1 x Pool of 8, 1 x Pool of 16" in err


def fitted() -> Classifier:
    model = network()
    adapt(model, Shifts())
    return model


def test_list_and_show(runs, capsys):
    listed = {row["name"]: row for row in json.loads(said(capsys, "adapters", "list", "--json"))}
    assert {"probe", "lora", "bias", "norm"} <= listed.keys()
    assert all(row["what"] for row in listed.values())
    assert listed["lora"]["options"]["r"] == "8"
    assert all(len(line) < 130 for line in said(capsys, "adapters", "list").splitlines())
    assert "alpha" in said(capsys, "adapters", "show", "lora")
    (row,) = json.loads(said(capsys, "adapters", "list", runs["folder"], "--json"))
    assert (row["words"], row["num_classes"]) == ("lora:r=2", 10)
    assert "lora:r=2" in said(capsys, "adapters", "list", runs["folder"])
    shown = json.loads(said(capsys, "adapters", "show", runs["run"], "--json"))
    assert shown["trunk"] == row["trunk"]
    assert sum(math.prod(shape) for shape in shown["tensors"].values()) == shown["parameters"]
    assert row["backbone"] in said(capsys, "adapters", "show", runs["run"])
    text = said(capsys, "adapters", "show", "lora:r=4", "--model", "deit_tiny_patch16_224")
    assert "parameters learn" in text
    assert "lora_A" in text
    assert "no adapter is saved below" in refused(capsys, "adapters", "list", Path(__file__).parent)
    assert "did you mean lora" in refused(capsys, "adapters", "show", "lorra")


def test_merge_makes_a_plain_model(runs, capsys, tmp_path, monkeypatch):
    out = tmp_path / "merged.safetensors"
    for words in (
        (runs["run"],),
        (runs["run"], "--model", runs["base"]),
        (runs["run"] / "adapter", "--model", runs["base"]),
    ):
        assert said(capsys, "adapters", "merge", *words, "--out", out).strip() == str(out)
        merged, classes, _ = checkpoint.load_model(str(out))
        whole, names, _ = checkpoint.load_model(str(runs["run"]))
        assert adapter_of(merged) is None
        assert merged.state_dict().keys() == checkpoint.load_model(str(runs["base"]))[0].state_dict().keys()
        x = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(merged(x), whole(x), rtol=1e-5, atol=1e-5)
        assert classes == names
    assert "the weights are written as .safetensors" in refused(
        capsys, "adapters", "merge", runs["run"], "--out", tmp_path / "a.ckpt"
    )
    assert "no adapter is on, so there is none to merge" in refused(
        capsys, "adapters", "merge", runs["base"], "--out", out
    )


def test_bench_takes_settings_and_folders(runs, capsys):
    line = ("--train", "--batch", "2", "--size", "32", "--repeats", "1", "--no-memory", "--json", "--channels-last")
    for model, adapter in (("cct_7_3x1_32", "lora:r=4"), (runs["base"], "lora:r=4"), (runs["base"], runs["run"])):
        told = json.loads(said(capsys, "bench", model, "--adapter", adapter, *line))
        assert 0 < told["trainable"] < told["parameters"] / 2


def test_several_folders_on_one_model(runs):
    """What the issue promises: one frozen backbone, adapters switched without reading again."""
    from patchloom.vision.adapters.files import load_adapter

    model, classes, _ = checkpoint.load_model(str(runs["base"]))
    x = torch.randn(2, 3, 32, 32)
    bare = model(x)
    for name in ("a", "b"):
        load_adapter(model, runs["run"] / "adapter", name)
    whole = checkpoint.load_model(str(runs["run"]))[0](x)
    switch(model, "a")
    torch.testing.assert_close(model(x), whole, rtol=1e-6, atol=1e-6)
    switch(model, None)
    assert torch.equal(model(x), bare)
    assert len(classes) == 10


@pytest.mark.slow
def test_two_processes(tmp_path):
    """The frozen part takes no part in the exchange of gradients; the adapter that is kept is the same for both."""
    line = ("--trainer.max_steps", 4, "--trainer.devices", 2, "--trainer.strategy", "ddp", "--json")
    done = patchloom("fit", "-c", recipe(tmp_path), "--adapter", "lora:r=2", *line, cwd=tmp_path, limit=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("parameters learn (") == 1
    told = json.loads(done.stdout)
    assert told["test"]
    assert read_card(tmp_path / told["adapter"]).words == "lora:r=2"
