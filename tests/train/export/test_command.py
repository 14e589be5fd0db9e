"""`patchloom export`: files for other runtimes, compared with the network before they are kept, and their cards."""

import hashlib
import json
import subprocess
import sys

import onnx
import pytest
import torch
from export_parts import answer, attentive, card, disturbed, saved

from patchloom.train import cli
from patchloom.train.export import command as export
from patchloom.vision.adapters import adapt
from patchloom.vision.adapters import adapter as adapter_in_words
from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.generation.dit import DiT
from patchloom.vision.heads.detection import FCOS
from patchloom.vision.heads.semantic import SemanticFpn
from patchloom.vision.mixers.pool import Pool
from patchloom.vision.model import Classifier
from patchloom.vision.pyramid import Pyramid
from patchloom.vision.stem import Patchify


def said(capsys, *words):
    status = cli.main(["export", *map(str, words)])
    told = capsys.readouterr()
    assert status == 0, told.err
    return told.out


def refused(capsys, *words):
    assert cli.main(["export", *map(str, words)]) == 1
    return capsys.readouterr().err


def maps(stages=(8, 16)) -> Pyramid:
    torch.manual_seed(0)
    return Pyramid(Backbone([Stage(Pool(), dim, 1) for dim in stages]))


def test_a_file_for_every_size_with_its_cards(tmp_path, capsys):
    model, out = attentive(), tmp_path / "net.onnx"
    run = saved(model, tmp_path / "run")
    told = json.loads(said(capsys, run, "--format", "onnx", "--dynamic", "--out", out, "--json"))
    assert told == card(out)
    assert told["classes"] == ["ant", "bee", "cat"]
    assert told["preprocessing"]["input_size"] == [3, 32, 32]
    assert told["license"] is None
    assert told["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert [c["difference"] <= c["allowed"] for c in told["compared"]] == [True] * 3
    sizes = {(c["height"], c["width"]) for c in told["compared"]}
    assert len(sizes) == 3
    assert any(h % 8 and w % 8 and h != w for h, w in sizes)
    for size in ((5, 3, 24, 67), (1, 3, 32, 32)):
        x = torch.randn(size)
        torch.testing.assert_close(answer(out, x)[0], model(x), atol=1e-5, rtol=1e-5)
    inside = {p.key: p.value for p in onnx.load(out).metadata_props}
    assert json.loads(inside["patchloom"])["model"] == str(run)
    assert "ant; bee; cat" in out.with_suffix(".md").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.json", "net.md", "net.onnx", "run"]


def test_an_exported_program_needs_torch_only(tmp_path, capsys):
    model, out = attentive(), tmp_path / "net.pt2"
    said(capsys, saved(model, tmp_path / "run"), "--format", "exported-program", "--out", out)
    x = torch.randn(1, 3, 32, 32)
    torch.save(x, tmp_path / "x.pt")
    answered = tmp_path / "y.pt"
    code = (
        "import sys, torch\n"
        f"y = torch.export.load({str(out)!r}).module()(torch.load({str(tmp_path / 'x.pt')!r}))\n"
        f"assert not any(name.startswith('patchloom') for name in sys.modules); torch.save(y, {str(answered)!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    torch.testing.assert_close(torch.load(answered), model(x), atol=1e-5, rtol=1e-5)


def test_adapters_go_into_the_weights_and_plugins_into_the_graph(tmp_path, capsys):
    model, out = attentive(depth=2), tmp_path / "net.onnx"
    adapt(model, adapter_in_words("lora:r=2"))
    disturbed(model)
    x = torch.randn(1, 3, 32, 32)
    want = model(x)
    told = json.loads(
        said(capsys, saved(model, tmp_path / "run"), "--tokens", "tome:r=2", "--fold", "--out", out, "--json")
    )
    assert told["adapter"] == "lora:r=2"
    assert told["tokens"] == ["tome:r=2"]
    got = answer(out, x)[0]
    assert not any("lora" in i.name for i in onnx.load(out).graph.initializer)
    assert 1e-5 < (got - want).abs().max() < want.abs().max()  # merged tokens change the answer a little


@pytest.mark.parametrize("form", ["onnx", pytest.param("exported-program", marks=pytest.mark.slow)])
def test_half_precision_stays_within_the_networks_own_error(tmp_path, capsys, form):
    dtype = "float16" if form == "onnx" else "bfloat16"
    out = tmp_path / f"net{export.FORMATS[form]}"
    told = json.loads(said(capsys, saved(attentive(), tmp_path / "run"), "--format", form, "--dtype", dtype,
                           "--out", out, "--json"))  # fmt: skip
    assert told["dtype"] == dtype
    assert all(0 < c["difference"] <= c["allowed"] < 0.1 for c in told["compared"])


@pytest.mark.slow
def test_a_segmenter_and_the_maps_below_it(tmp_path, capsys):
    model, out = disturbed(SemanticFpn(maps(), 4, width=8)), tmp_path / "net.onnx"
    run = saved(model, tmp_path / "run", ("a", "b", "c", "d"))
    said(capsys, run, "--dynamic", "--out", out)
    x = torch.randn(1, 3, 45, 70)
    torch.testing.assert_close(answer(out, x)[0], model(x), atol=1e-4, rtol=1e-4)
    said(capsys, run, "--features", "--dynamic", "--out", tmp_path / "maps.onnx")
    for got, want in zip(answer(tmp_path / "maps.onnx", x), model.backbone(x), strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_denoiser_takes_images_times_and_classes(tmp_path, capsys):
    model = disturbed(DiT(1, 48, 2, size=(16, 16), num_classes=5))
    out = tmp_path / "net.onnx"
    said(capsys, saved(model, tmp_path / "run", tuple("abcde")), "--dynamic", "--out", out)
    given = torch.randn(2, 4, 24, 16), torch.tensor([3.0, 700.0]), torch.tensor([1, 4])
    torch.testing.assert_close(answer(out, *given)[0], model(*given), atol=1e-4, rtol=1e-4)


def test_a_file_that_differs_is_not_kept(tmp_path, capsys, monkeypatch):
    out = tmp_path / "net.onnx"
    out.write_text("the old one")
    run = saved(attentive(), tmp_path / "run")
    honest = export.runner
    monkeypatch.setattr(export, "runner", lambda *a: lambda given: [y + 1e-3 for y in honest(*a)(given)])
    assert "it was not kept" in refused(capsys, run, "--out", out)
    monkeypatch.setattr(export, "runner", lambda *a: lambda given: [y[:, :2] for y in honest(*a)(given)])
    assert "(1, 2)" in refused(capsys, run, "--out", out)
    monkeypatch.setattr(export, "runner", lambda *a: lambda given: [y * torch.nan for y in honest(*a)(given)])
    assert "nan" in refused(capsys, run, "--out", out)
    assert out.read_text() == "the old one"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "run"]


def test_who_cannot_be_one_file_for_every_size_says_so(tmp_path, capsys):
    from patchloom.vision.mixers.retention import Retain
    from patchloom.vision.mixers.scanned import Scanned
    from patchloom.vision.orders import Order

    mixer = Scanned(Retain(2, "softmax"), Order("zigzag"))
    model = disturbed(Classifier(Backbone([Stage(mixer, 16, 1)], Patchify(8)), 3, img_size=32))
    error = refused(capsys, saved(model, tmp_path / "run"), "--dynamic", "--out", tmp_path / "net.onnx")
    assert "cannot be one file for every size" in error
    assert "leave out --dynamic" in error


@pytest.mark.parametrize(("words", "error"), [
    (["--dtype", "bfloat16"], "onnxruntime computes in it on no CPU"),
    (["--out", "net.pt2"], "ends in .onnx"),
    (["--format", "exported-program", "--out", "net.onnx"], "ends in .pt2"),
    (["--out", "nowhere/net.onnx"], "no folder nowhere"),
    (["--tokens", "tomme"], "tomme"),
    (["--random-weights"], "it has weights of its own"),
])  # fmt: skip
def test_wrong_words(tmp_path, capsys, monkeypatch, words, error):
    monkeypatch.chdir(tmp_path)
    assert error in refused(capsys, saved(attentive(), tmp_path / "run"), *words)


def test_detectors_and_unpublished_names(tmp_path, capsys):
    run = saved(FCOS(maps((8, 16, 32, 64)), 3, dim=32), tmp_path / "run")
    assert "is a detector" in refused(capsys, run, "--out", tmp_path / "net.onnx")
    assert "--random-weights" in refused(capsys, "fmvit_own", "--out", tmp_path / "net.onnx")
    assert "no model 'swin_tini'" in refused(capsys, "swin_tini", "--out", tmp_path / "net.onnx")


def test_a_tiny_epsilon_stays(tmp_path):
    """Which onnxscript takes for a zero."""

    class Ratio(torch.nn.Module):
        def forward(self, x):
            return x / (x + 1e-8)

    x = torch.tensor([[1e-9, 1e-8, 1.0]])
    program = torch.export.export(Ratio(), (x,))
    export.keep_small(program)
    torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "net.onnx")
    torch.testing.assert_close(answer(tmp_path / "net.onnx", x)[0], torch.tensor([[1 / 11, 0.5, 1.0]]))
