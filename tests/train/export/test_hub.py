"""`patchloom push` and `pull`: the hub's layout in folders, and through huggingface_hub, without a network."""

import json
from pathlib import Path

import pytest
import torch
from export_parts import attentive, disturbed, saved
from safetensors.torch import load_file

from patchloom.train import cli
from patchloom.train.export import hub
from patchloom.train.running import checkpoint
from patchloom.vision.adapters import adapt
from patchloom.vision.adapters import adapter as adapter_in_words
from patchloom.vision.adapters.files import save_adapter


@pytest.fixture
def run(tmp_path) -> Path:
    return saved(attentive(), tmp_path / "run")


def said(capsys, *words):
    status = cli.main([str(w) for w in words])
    told = capsys.readouterr()
    assert status == 0, told.err
    return told.out


def refused(capsys, *words):
    assert cli.main([str(w) for w in words]) == 1
    return capsys.readouterr().err


def test_a_model_comes_back_as_it_went(tmp_path, capsys, run):
    place, out = tmp_path / "repository", tmp_path / "model"
    assert json.loads(said(capsys, "push", run, place, "--license", "MIT", "--json"))["place"] == str(place)
    assert sorted(p.name for p in place.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((place / "config.json").read_text())
    assert (config["label_names"], config["num_classes"], config["license"]) == (["ant", "bee", "cat"], 3, "MIT")
    assert (place / "README.md").read_text().startswith('---\nlibrary_name: "patchloom"\nlicense: "mit"\n')
    assert said(capsys, "pull", place, "--out", out) == f"{out}\n"
    model, classes, preprocessing = checkpoint.load_model(str(out))
    assert classes == ["ant", "bee", "cat"]
    assert preprocessing == checkpoint.load_model(str(run))[2]
    x = torch.randn(2, 3, 40, 32)
    assert torch.equal(model(x), attentive()(x))
    assert set(load_file(place / "model.safetensors")) == set(attentive().state_dict())


def test_the_average_is_what_is_pushed(tmp_path, capsys, run):
    content = checkpoint.read(run / "best.ckpt")
    averaged = {f"ema.module.{n.removeprefix('model.')}": t + 1 for n, t in content["state_dict"].items()}
    checkpoint.save({**content, "state_dict": content["state_dict"] | averaged}, run / "best.ckpt")
    said(capsys, "push", run, tmp_path / "repository")
    got, plain = load_file(tmp_path / "repository" / "model.safetensors"), attentive().state_dict()
    assert all(torch.equal(got[name], plain[name] + 1) for name in plain)


def test_a_model_with_an_adapter_and_an_adapter_alone(tmp_path, capsys):
    model = attentive()
    model.name = "own"
    adapt(model, adapter_in_words("lora:r=2"))
    disturbed(model)
    x = torch.randn(1, 3, 32, 32)
    want = model(x)
    said(capsys, "push", saved(model, tmp_path / "run"), tmp_path / "whole")
    said(capsys, "pull", tmp_path / "whole", "--out", tmp_path / "model")
    assert torch.equal(checkpoint.load_model(str(tmp_path / "model"))[0](x), want)
    folder = save_adapter(model, tmp_path / "adapter", classes=["ant", "bee", "cat"])
    said(capsys, "push", folder, tmp_path / "alone")
    said(capsys, "pull", tmp_path / "alone", "--out", tmp_path / "got")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "got" / name).read_bytes() == (folder / name).read_bytes()
    assert "- adapter" in (tmp_path / "got" / "README.md").read_text()
    said(capsys, "push", folder, tmp_path / "whole")  # where a model was
    assert {p.name for p in (tmp_path / "whole").iterdir()} == {p.name for p in (tmp_path / "alone").iterdir()}


def test_what_is_damaged_or_of_others_is_refused_and_nothing_changes(tmp_path, capsys, run):
    place, out = tmp_path / "repository", tmp_path / "model"
    said(capsys, "push", run, place)
    said(capsys, "pull", place, "--out", out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    whole = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "damaged" in refused(capsys, "pull", place, "--out", out)
    (place / "model.safetensors").write_bytes(whole)
    config = json.loads((place / "config.json").read_text())
    for said_there, error in (
        ({"library_name": "timm", "architecture": "resnet50"}, "a repository of timm"),
        ({**config, "patchloom": {**config["patchloom"], "classes": ["x"]}}, "describe different networks"),
        ([], "a repository of others"),
    ):
        (place / "config.json").write_text(json.dumps(said_there))
        assert error in refused(capsys, "pull", place, "--out", out)
    (place / "config.json").write_text("{")
    assert "is no JSON" in refused(capsys, "pull", place, "--out", out)
    (place / "config.json").unlink()
    assert "has no config.json" in refused(capsys, "pull", place, "--out", out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert not list(tmp_path.glob(".model*"))


def test_places(tmp_path, capsys, run, monkeypatch):
    assert hub.Place.of("owner/name", "main") == hub.Place(None, "owner/name", "main")
    assert hub.Place.of("./name") == hub.Place(Path("name"))
    for words in ("a/b/c", "a b", "owner/..", "https://x.y/z"):
        with pytest.raises(hub.HubError, match="neither a folder"):
            hub.Place.of(words)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    assert "holds something else" in refused(capsys, "push", run, tmp_path / "full")
    assert "holds something else" in refused(capsys, "pull", run, "--out", tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    (tmp_path / "theirs").mkdir()
    for text in ('{"model_type": "llava"}', "{"):
        (tmp_path / "theirs" / "config.json").write_text(text)
        assert "holds something else" in refused(capsys, "push", run, tmp_path / "theirs")
    assert "no model.safetensors and config.json" in refused(capsys, "pull", run, "--out", tmp_path / "m")
    assert "for the hub" in refused(capsys, "push", run, tmp_path / "x", "--private")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "this is offline" in refused(capsys, "push", run, "owner/name")
    assert "not in the cache" in refused(capsys, "pull", "owner/name", "--out", tmp_path / "m")


def test_the_hub_gets_and_gives_the_same_files(tmp_path, capsys, run, monkeypatch):
    """huggingface_hub's two calls, with a folder behind them."""
    import shutil

    import huggingface_hub

    for name in ("PATCHLOOM_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    there, asked = tmp_path / "hub", []

    class Api:
        def create_repo(self, repository, *, private, exist_ok):
            asked.append((repository, private, exist_ok))

        def upload_folder(self, *, repo_id, folder_path, revision, commit_message):
            asked.append((repo_id, revision, commit_message))
            shutil.copytree(folder_path, there)
            return f"https://huggingface.co/{repo_id}"

    def snapshot(repository, *, revision, allow_patterns, **_):
        (there / "evil.py").write_text("raise SystemExit")
        assert "evil.py" not in allow_patterns
        return str(there)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    told = said(capsys, "push", run, "owner/ants", "--private", "--message", "first")
    assert told == "https://huggingface.co/owner/ants\n"
    assert asked == [("owner/ants", True, True), ("owner/ants", None, "first")]
    monkeypatch.chdir(tmp_path)
    assert said(capsys, "pull", "owner/ants", "--revision", "main") == "ants\n"
    assert not (tmp_path / "ants" / "evil.py").exists()
    assert checkpoint.load_model("ants")[1] == ["ant", "bee", "cat"]
