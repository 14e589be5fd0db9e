"""`PanopticSegment`: training, checkpoints, quality as the official command counts it, and what does not fit."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dense_run_parts import fcos, fitted, mask2former, panoptic_by_masks, panoptic_folder, trainer
from PIL import Image
from vision_tiny import tiny_pyramid

from patchloom.data.dense_modules import CocoData, Fit
from patchloom.train.callbacks.pictures import Pictures
from patchloom.train.cli import main
from patchloom.train.ema import Ema
from patchloom.train.evaluation import segmenter
from patchloom.train.panoptic_segment import PanopticSegment
from patchloom.train.running import checkpoint
from patchloom.vision.adapters import adapter_of
from patchloom.vision.heads.kmax import KMax
from patchloom.vision.heads.kmax_inference import Thresholds
from patchloom.vision.heads.mask_tasks import PanopticSegmenter, Sure


def kmax(**options):
    network = KMax(tiny_pyramid("convnext_tiny"), 3, queries=8)
    return PanopticSegmenter(network, limits=Thresholds(pixel=0.0, thing=0.0, stuff=0.0, free=0.0), **options)


KINDS = {"mask2former": panoptic_by_masks, "kmax": kmax}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return panoptic_folder(tmp_path_factory.mktemp("panoptic") / "set")


def data(root, **options):
    given = {"batch_size": 2, "workers": 0, "augment": None, "resize": Fit(), "task": "panoptic"}
    return CocoData(str(root), **given | options)


@pytest.mark.parametrize("kind", ["mask2former", pytest.param("kmax", marks=pytest.mark.slow)])
def test_it_trains_judges_and_its_checkpoint_is_the_network(kind, root, tmp_path):
    torch.manual_seed(0)
    module = PanopticSegment(KINDS[kind](), ema=Ema(0.5))
    before = {n: p.clone() for n, p in module.model.named_parameters()}
    made = fitted(module, tmp_path, data=data(root))
    moved = [n for n, p in module.model.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) > 0.8 * len(before)
    parts = [v for n, v in made.callback_metrics.items() if n.startswith("train/") and n != "train/loss"]
    assert sum(parts) == pytest.approx(float(made.callback_metrics["train/loss"]), rel=1e-5)
    assert {"val/pq", "val/sq", "val/rq", "val/pq_things", "val/pq_stuff"} <= made.callback_metrics.keys()
    model, classes, _ = checkpoint.load_model(str(tmp_path / "last.ckpt"))
    assert classes == ["circle", "square", "sky"]
    assert model.things == (0, 1)  # as the data said
    image = torch.randn(2, 3, 70, 90)
    with torch.inference_mode():
        for ours, theirs in zip(module.eval()(image), model(image), strict=True):  # both the average of the weights
            assert torch.equal(ours.numbers, theirs.numbers)
            assert ours.segments == theirs.segments


def test_the_numbers_are_those_of_the_official_command(root, tmp_path, capsys):
    """`predict` writes COCO's panoptic format, `eval panoptic` reads it: the run counted the same."""
    torch.manual_seed(0)
    module = PanopticSegment(panoptic_by_masks(), lambda p: torch.optim.AdamW(p, lr=2e-3))
    fitted(module, tmp_path, 30, data(root), limit_val_batches=0)
    found = trainer(tmp_path, limit_val_batches=1.0).validate(module, data(root), verbose=False)[0]
    assert found["val/pq"] > 0.05  # something matches, or there would be nothing to compare
    (photos := tmp_path / "photos").mkdir()
    for i in range(200, 204):
        Image.open(root / "images" / f"{i}.png").save(photos / f"{i}.png")
    annotations = str(root / "annotations" / "panoptic_val.json")
    line = ["predict", str(tmp_path / "last.ckpt"), str(photos), "--workers", "0"]
    assert main([*line, "--out", str(tmp_path / "found"), "--annotations", annotations]) == 0
    drawn, plain = (np.asarray(Image.open(f / "200.png")) for f in (tmp_path / "found", photos))
    assert drawn.shape == plain.shape
    assert (drawn != plain).any()
    capsys.readouterr()
    results = str(tmp_path / "found" / "panoptic.json")
    assert main(["eval", "panoptic", "--annotations", annotations, "--results", results, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    for name, group in (("pq", "all"), ("pq_things", "things"), ("pq_stuff", "stuff")):
        assert said[group]["pq"] == pytest.approx(found[f"val/{name}"], abs=1e-6), name
    judge_by_checkpoint(tmp_path, annotations, said, capsys)
    assert main([*line, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert all(part["class"] in ("circle", "square", "sky") for one in told for part in one["segments"])
    assert main(line) == 0
    assert "share of pixels" in capsys.readouterr().out
    assert main([*line, "--out", str(tmp_path / "found.json")]) == 1
    assert "need a folder: --out DIR" in capsys.readouterr().err


def judge_by_checkpoint(tmp_path, annotations, said, capsys):
    """`eval panoptic --checkpoint` counts what `predict` and `--results` count; what is missing is named."""
    line = ["eval", "panoptic", "--checkpoint", str(tmp_path / "last.ckpt"), "--workers", "0", "--json"]
    images = ["--images", str(tmp_path / "photos")]

    def judged(file):
        assert main([*line, "--annotations", str(file), "--segments", annotations.removesuffix(".json"), *images]) == 0
        return json.loads(capsys.readouterr().out)

    own = judged(annotations)
    assert {**own, "source": said["source"]} == said
    assert main([*line, "--annotations", annotations]) == 0  # the layout of `root` tells where the images are
    assert json.loads(capsys.readouterr().out) == own

    content = json.loads(Path(annotations).read_text())
    for category in content["categories"]:
        category["name"] = category["name"].replace("square", "box")
    (other := tmp_path / "other.json").write_text(json.dumps(content))
    found = judged(other)
    assert "1 of 3 classes of" in found["notes"][0]
    assert "does not know 1 of 3 categories (box): their 3 segments count as missed" in found["notes"][1]
    assert found["per_category"]["box"]["pq"] == 0
    assert found["per_category"]["circle"] == own["per_category"]["circle"]
    for category in content["categories"]:
        category["name"] += "s"
    other.write_text(json.dumps(content))
    more = ["--segments", annotations.removesuffix(".json")]
    assert main([*line, "--annotations", str(other), *more, *images]) == 1
    assert "knows no category of" in capsys.readouterr().err

    whole = (photo := tmp_path / "photos" / "200.png").read_bytes()
    photo.unlink()
    assert main([*line, "--annotations", annotations, *images]) == 1
    assert "1 of 4 images of" in (error := capsys.readouterr().err)
    assert "(200.png): name the right folder (--on-error skip judges the others)" in error
    assert main([*line, "--annotations", annotations, *images, "--on-error", "skip"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 3
    assert any("only the others are judged" in note for note in found["notes"])
    Image.open(tmp_path / "photos" / "201.png").resize((90, 60)).save(photo)
    assert main([*line, "--annotations", annotations, *images]) == 1
    assert "200.png: 60x90 pixels, the image has 64x96" in capsys.readouterr().err
    photo.write_text("no picture")
    assert main([*line, "--annotations", annotations, *images]) == 1
    assert "--on-error skip leaves such files out" in capsys.readouterr().err
    assert main([*line, "--annotations", annotations, *images, "--on-error", "skip"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"][-1].startswith("1 images could not be read; only the others")
    photo.write_bytes(whole)
    for words, message in (
        (["--results", "a.json", "--images", "photos"], "--images goes with --checkpoint"),
        (["--checkpoint", "a", "--result-segments", "b"], "--result-segments goes with --results"),
    ):
        assert main(["eval", "panoptic", "--annotations", annotations, *words]) == 2
        assert message in capsys.readouterr().err


def test_another_network_is_told_from_a_segmenter(monkeypatch):
    judge = SimpleNamespace(spec="runs/cct", model=torch.nn.Linear(1, 1))
    monkeypatch.setattr(segmenter, "load", lambda spec, device: judge)
    with pytest.raises(ValueError, match="runs/cct holds a Linear, which cuts no picture into segments"):
        segmenter.load_segmenter("runs/cct")


def test_an_adapter_and_the_sheet(root, tmp_path):
    pictures = Pictures(predictions=3)
    module = PanopticSegment(panoptic_by_masks(), adapter="lora:r=2")
    fitted(module, tmp_path, 1, data(root), limit_val_batches=0)
    assert adapter_of(checkpoint.load_model(str(tmp_path / "last.ckpt"))[0]) == adapter_of(module.model)
    trainer(tmp_path, limit_test_batches=3, callbacks=[pictures]).test(module, data(root), verbose=False)
    with Image.open(pictures.sheet) as sheet:
        colours = np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)
    assert len(colours) > 10


def test_what_does_not_fit_is_said(root, tmp_path):
    with pytest.raises(ValueError, match="FCOS cuts no picture into segments"):
        PanopticSegment(fcos())
    with pytest.raises(ValueError, match="things: 3 is no class, they are 0 to 2"):
        panoptic_by_masks(things=[0, 3])
    with pytest.raises(ValueError, match="a Mask2Former is held to Sure"):
        panoptic_by_masks(limits=Thresholds())
    with pytest.raises(ValueError, match="a KMax is held to Thresholds"):
        PanopticSegmenter(KMax(tiny_pyramid("convnext_tiny"), 3, queries=8), limits=Sure())
    with pytest.raises(ValueError, match="which classes are things is not said"):
        panoptic_by_masks().eval()(torch.randn(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"the data has 3 classes .* 5 apart"):
        fitted(PanopticSegment(panoptic_by_masks(5)), tmp_path, 1, data(root))
    with pytest.raises(ValueError, match="class square is a thing in the data and no thing to the network"):
        fitted(PanopticSegment(panoptic_by_masks(things=[0])), tmp_path, 1, data(root))
    assert isinstance(PanopticSegmenter(mask2former(3)).limits, Sure)
