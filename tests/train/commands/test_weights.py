"""patchloom weights list, get and check: files made here, and a server on this machine."""

import hashlib
import json
import shutil
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import timm
import torch
from safetensors.torch import save_file

from patchloom.train.cli import main
from patchloom.vision import tables
from patchloom.vision.cache import local_path

VARIANT = "deit_tiny_patch16_224"  # small, and its authors' names are timm's


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The authors' file as they lay it out, with other numbers in it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("published") / "deit_tiny_patch16_224-a1311bcf.pth"
    torch.save({"model": timm.create_model(VARIANT).state_dict()}, path)
    return path


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHLOOM_HOME", str(tmp_path / "home"))
    for name in ("PATCHLOOM_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


@pytest.fixture
def served(published, home, monkeypatch):
    """The table names a server here, and the digest of the file above."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=published.parent))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    own = replace(
        tables.WEIGHTS[VARIANT][0], url=f"http://127.0.0.1:{server.server_port}/{published.name}", sha256=digest[:8]
    )
    monkeypatch.setitem(tables.WEIGHTS, VARIANT, (own, *tables.WEIGHTS[VARIANT][1:]))
    yield own
    server.shutdown()
    server.server_close()


@pytest.fixture
def weights(capsys):
    """Runs `patchloom weights …`: (status, stdout, stderr)."""

    def run(*line):
        status = main(["weights", *map(str, line)])
        return status, *capsys.readouterr()

    return run


def refused(result, *parts):
    status, out, err = result
    assert (status, out) == (1, "")
    assert err.startswith("patchloom: error: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


def test_get_downloads_once_and_prints_the_path(weights, served, home):
    status, out, err = weights("get", VARIANT)
    assert (status, err) == (0, "")
    assert out == f"{local_path(served)}\n"
    assert local_path(served).is_file()
    shutil.rmtree(home / "checkpoints" / ".locks")
    assert weights("get", f"{VARIANT}.fb_in1k", VARIANT)[1] == out * 2


def test_get_looks_at_all_names_before_it_fetches(weights, served):
    refused(weights("get", VARIANT, "deit_tinny_patch16_224"), "deit_tiny_patch16_224")
    assert not local_path(served).exists()


def test_offline_is_one_line_that_says_what_would_do(weights, served, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(weights("get", VARIANT), served.url, str(local_path(served)), f"patchloom weights get {VARIANT}.fb_in1k")
    refused(weights("check", VARIANT), served.url)


def test_list_shows_what_is_cached(weights, served, published):
    status, out, _ = weights("list", VARIANT)
    assert status == 0
    assert " *" not in out.partition("\n")[2]
    assert "fb_in1k_hf" in out
    assert "apache-2.0" in out
    assert "72.2" in out
    weights("get", VARIANT)
    rows = json.loads(weights("list", "deit_tiny_*", "--json")[1])
    assert {row["name"] for row in rows if row["cached"]} == {f"{VARIANT}.fb_in1k"}
    mine = next(row for row in rows if row["cached"])
    assert mine["bytes"] == published.stat().st_size
    assert mine["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert (mine["source"], mine["num_classes"], mine["metrics"]) == ("published", 1000, {"top1": 72.2})


def test_list_of_everything_and_of_nothing(weights, home):
    status, out, err = weights("list", "--json")
    assert (status, err) == (0, "")
    assert len(json.loads(out)) == sum(map(len, tables.WEIGHTS.values()))
    assert max(map(len, weights("list")[1].splitlines())) < 150
    refused(weights("list", "swin_tinny"), "did you mean swin_tiny")
    refused(weights("list", "nothing*"), "patchloom weights list")


def test_check_of_a_name_downloads_verifies_and_loads(weights, served, published):
    status, out, _ = weights("check", VARIANT, "--json")
    assert status == 0
    result = json.loads(out)
    assert result["path"] == str(local_path(served))
    assert result["sha256"] == hashlib.sha256(published.read_bytes()).hexdigest()
    assert result["verified"] is True
    assert result["matched"] == len(timm.create_model(VARIANT).state_dict())
    assert result["fresh"] == result["dropped"] == []
    local_path(served).write_bytes(published.read_bytes()[:-1] + b"?")
    refused(weights("check", VARIANT), "sha256", served.sha256, "delete it")


def test_check_of_a_file(weights, served, published, tmp_path):
    status, out, _ = weights("check", published)
    assert status == 0
    assert out.splitlines()[2].startswith("matched")
    mine = tmp_path / "mine.safetensors"
    save_file(torch.load(published, weights_only=True)["model"], mine)
    refused(weights("check", mine), str(mine), "--model NAME")
    status, out, _ = weights("check", mine, "--model", VARIANT)
    assert status == 0
    assert "nothing known to compare with" in out
    refused(weights("check", mine, "--model", "deit_tinny_patch16_224"), "deit_tiny_patch16_224")
    refused(weights("check", tmp_path / "missing.pth", "--model", VARIANT), "missing.pth")


def test_check_of_a_file_with_two_sets_of_weights(weights, published, home, tmp_path):
    state = torch.load(published, weights_only=True)["model"]
    both = tmp_path / "both.pth"
    torch.save({"model": {}, "net": state, "state_dict": state, "state_dict_ema": state}, both)
    refused(weights("check", both, "--model", VARIANT), "state_dict, state_dict_ema", "--wrapper")
    assert weights("check", both, "--model", VARIANT, "--wrapper", "net")[0] == 0
    refused(weights("check", both, "--model", VARIANT, "--wrapper", "nett"), "'nett'", "state_dict_ema")
    refused(weights("check", VARIANT, "--wrapper", "net"), "--wrapper is for a file")


@pytest.mark.parametrize("fault", ["missing", "extra", "shape"])
def test_check_names_the_tensor_that_does_not_fit(weights, published, home, tmp_path, fault):
    state = dict(torch.load(published, weights_only=True)["model"])
    if fault == "missing":
        del state["blocks.3.attn.proj.bias"]
    elif fault == "extra":
        state["blocks.3.attn.stranger"] = torch.zeros(1)
    else:
        state["blocks.3.attn.proj.bias"] = torch.zeros(7)
    mine = tmp_path / "mine.pth"
    torch.save(state, mine)
    refused(weights("check", mine, "--model", VARIANT), "3", "stranger" if fault == "extra" else "bias")


def test_check_of_a_detectors_file(weights, home, tmp_path):
    """Its backbone, under its prefix, into the dense form; the rest of the detector is left out."""
    state = timm.create_model("convnext_tiny").state_dict()
    depths, theirs = (3, 3, 9, 3), {}
    for i, depth in enumerate(depths):
        for k, part in enumerate(("0", "1")):
            source = f"stem.{k}" if i == 0 else f"stages.{i}.downsample.{k}"
            theirs |= {f"downsample_layers.{i}.{part}.{p}": state[f"{source}.{p}"] for p in ("weight", "bias")}
        theirs |= {f"norm{i}.{p}": torch.ones(96 * 2**i) for p in ("weight", "bias")}
        for j in range(depth):
            block = f"stages.{i}.blocks.{j}"
            theirs[f"stages.{i}.{j}.gamma"] = state[f"{block}.gamma"]
            for ours, name in (("conv_dw", "dwconv"), ("norm", "norm"), ("mlp.fc1", "pwconv1"), ("mlp.fc2", "pwconv2")):
                theirs |= {f"stages.{i}.{j}.{name}.{p}": state[f"{block}.{ours}.{p}"] for p in ("weight", "bias")}
    path = tmp_path / "mask_rcnn_convnext_tiny_1k_3x.pth"
    rest = {"rpn_head.rpn_cls.weight": torch.ones(3)}
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in theirs.items()} | rest, "meta": {"epoch": 36}}, path)
    status, out, err = weights("check", path, "--json")
    assert status == 0, err
    result = json.loads(out)
    assert (result["model"], result["matched"]) == ("convnext_tiny", len(theirs))
    assert result["fresh"] == result["dropped"] == []


def test_a_usage_error_is_status_2(weights):
    assert weights("gett", VARIANT)[0] == 2
    assert weights("get")[0] == 2
