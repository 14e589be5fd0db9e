"""patchloom generate: images by class, one seed for each whatever the batch, sheets, inpainting, panels, latents."""

import json
import re

import numpy as np
import pytest
import torch
from generation_parts import awake, save_autoencoder, save_pictures, save_run
from PIL import Image

from patchloom.data.latents import LatentsData
from patchloom.train.cli import main
from patchloom.train.saved.load_maker import load_maker
from patchloom.train.saved.maker import MakeSettings
from patchloom.vision.generation.autoencoder import Autoencoder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("run") / "last.ckpt", awake(), average=True)


def files(folder):
    return {p.name: np.asarray(Image.open(p)).astype(int) for p in sorted(folder.glob("*.png"))}


def generate(run, *words, status=0):
    assert main(["generate", "--checkpoint", run, "--device", "cpu", "--steps", "3", *map(str, words)]) == status


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "heun", "dpm++"])
def test_an_image_depends_on_its_seed_and_not_on_its_batch(run, sampler):
    maker = load_maker(run)
    settings = MakeSettings(sampler=sampler, steps=3, guidance=1.5, seed=4)
    labels = [1, 2, 3, 4, 5]
    ours, alone = (torch.cat(list(maker.images(labels, settings, batch=b))).int() for b in (5, 2))
    assert ours.shape == (5, 3, 32, 32)
    assert (ours - alone).abs().max() <= 1  # products of another size round otherwise
    assert torch.equal(ours, torch.cat(list(maker.images(labels, settings, batch=5))).int())
    first = next(maker.images(labels[:1], settings)).int()
    assert (first - ours[:1]).abs().max() <= 1
    other = next(maker.images(labels, MakeSettings(sampler=sampler, steps=3, guidance=1.5, seed=5)))
    assert (other.int() - ours).abs().float().mean() > 5
    assert (ours[0] - ours[1]).abs().float().mean() > 5


def test_files_sheet_and_protocol(run, tmp_path, capsys):
    words = ["--classes", "star,4", "--count", 3, "--guidance", 2, "--seed", 9, "--json"]
    generate(run, *words, "--out", tmp_path / "out", "--grid", tmp_path / "grid.png")
    said = json.loads(capsys.readouterr().out)
    assert said["images"] == 6
    protocol = json.loads((tmp_path / "out" / "protocol.json").read_text())
    assert protocol == {**said["protocol"], "count": 6}
    expected = {"sampler": "ddpm", "steps": 3, "guidance": 2.0, "seed": 9, "decoder": "none", "size": [32, 32]}
    assert {k: protocol[k] for k in expected} == expected
    assert protocol["weights"] == "ema"
    there = files(tmp_path / "out")
    assert list(there) == [f"{i:06}.png" for i in range(6)]
    sheet = np.asarray(Image.open(tmp_path / "grid.png")).astype(int)
    assert sheet.shape[0] == 2 * 66 + 2
    right = sheet[:, -(3 * 66 + 2) :]
    for i, (row, column) in enumerate((r, c) for r in range(2) for c in range(3)):
        cell = right[row * 66 + 2 : row * 66 + 66, column * 66 + 2 : column * 66 + 66]
        assert np.array_equal(cell[::2, ::2], there[f"{i:06}.png"])


def test_the_average_or_the_weights_themselves(run, tmp_path):
    for weights in ("ema", "raw"):
        generate(run, "--classes", "star", "--count", 2, "--out", tmp_path / weights, "--weights", weights)
    ema, raw = (files(tmp_path / w)["000000.png"] for w in ("ema", "raw"))
    assert np.abs(ema - raw).mean() > 0.5
    assert json.loads((tmp_path / "raw" / "protocol.json").read_text())["weights"] == "raw"


def test_any_size_is_made(run, tmp_path):
    generate(run, "--classes", "star", "--count", 1, "--size", "24x41", "--out", tmp_path / "out")
    assert files(tmp_path / "out")["000000.png"].shape == (24, 41, 3)


def test_what_is_known_stays(run, tmp_path):
    known = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 10:30] = 255
    for name, array in (("known", known), ("mask", mask)):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    hole = ["--inpaint", tmp_path / "known.png", "--mask", tmp_path / "mask.png"]
    generate(run, "--classes", "star", "--count", 2, "--out", tmp_path / "out", *hole)
    for made in files(tmp_path / "out").values():
        assert np.array_equal(made[mask == 0], known[mask == 0])
        assert np.abs(made[mask > 0] - known[mask > 0]).mean() > 20
    Image.fromarray(mask[:16]).save(tmp_path / "small.png")
    generate(run, "--classes", "star", "--grid", tmp_path / "g.png", *hole[:3], tmp_path / "small.png", status=1)


def test_panels_are_made_beside_those_that_are_given(run, tmp_path):
    given = np.random.default_rng(0).integers(0, 255, (32, 16, 3), np.uint8)
    Image.fromarray(given).save(tmp_path / "left.png")
    panels = ["--panels", "1x2", "--given", tmp_path / "left.png"]
    generate(run, "--classes", "star", "--count", 2, "--out", tmp_path / "out", *panels)
    there = files(tmp_path / "out")
    assert list(there) == ["000000_1.png", "000000_2.png", "000001_1.png", "000001_2.png"]
    assert np.array_equal(there["000001_1.png"], given)
    assert there["000001_2.png"].shape == (32, 16, 3)
    assert np.abs(there["000001_2.png"] - given).mean() > 20


def test_latents_are_decoded_by_their_own_autoencoder(tmp_path, capsys):
    vae = save_autoencoder(tmp_path / "vae")
    pictures = save_pictures(tmp_path / "pictures", {"train": 2})
    assert main(["latents", str(pictures), str(tmp_path / "lat"), "--vae", vae, "--size", "32"]) == 0
    data = LatentsData(str(tmp_path / "lat"), workers=0)
    data.setup("fit")
    model = awake(in_channels=4, size=(8, 8), patch=2, num_classes=2)
    run = save_run(tmp_path / "last.ckpt", model, data.preprocessing["latents"], classes=["cat", "dog"])
    generate(run, "--classes", "cat", "--count", 1, "--out", tmp_path / "out")
    assert files(tmp_path / "out")["000000.png"].shape == (32, 32, 3)
    assert json.loads((tmp_path / "out" / "protocol.json").read_text())["decoder"] == vae
    maker = load_maker(run)
    seen = []
    decode = Autoencoder.decode
    maker.autoencoder.decode = lambda z: seen.append(z) or decode(maker.autoencoder, z)
    next(maker.images([0], MakeSettings(steps=3)))
    assert seen[0].shape == (1, 4, 8, 8)
    other = save_autoencoder(tmp_path / "other", seed=1)
    capsys.readouterr()
    generate(run, "--classes", "cat", "--grid", tmp_path / "g.png", "--vae", other, status=1)
    assert "are latents of autoencoder" in capsys.readouterr().err
    generate(run, "--classes", "cat", "--size", "30", "--grid", tmp_path / "g.png", status=1)
    assert "multiples of 4" in capsys.readouterr().err


def test_a_network_without_conditions_and_in_grey(tmp_path, capsys):
    run = save_run(tmp_path / "last.ckpt", awake(num_classes=None, in_channels=1), classes=[])
    generate(run, "--count", 3, "--out", tmp_path / "out")
    there = files(tmp_path / "out")
    assert len(there) == 3
    assert all(np.array_equal(x[..., 0], x[..., 2]) for x in there.values())
    generate(run, "--classes", "star", "--grid", tmp_path / "g.png", status=1)
    assert "takes no classes" in capsys.readouterr().err
    generate(run, "--guidance", 2, "--grid", tmp_path / "g.png", status=1)
    assert "guidance needs a null class" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--classes", "star,10"], r"class 10 is out of range: DiT has 0 \.\. 9"),
        (["--classes", "-1"], r"class -1 is out of range"),
        (["--classes", "stra"], "no class 'stra'; did you mean star"),
        (["--steps", "2000"], "steps 2000: that is more than the schedule has, which is 1000"),
        (["--sampler", "heunn"], "no sampler 'heunn': ddpm, ddim"),
        (["--guidance-channels", "3"], "guidance channels 3 without guidance"),
        (["--eta", "1", "--sampler", "ddpm"], "eta=1 is DDIM's"),
        (["--captions", "a star"], "DiT takes classes, and got captions"),
        (["--vae", "x"], "makes pixels; leave it out"),
        (["--text", "x"], "DiT takes no captions; leave it out"),
        (["--panels", "3x1"], "a canvas of 32 x 32 cannot be cut into 3 x 1 panels"),
    ],
)
def test_wrong_lines_are_refused_by_name(run, tmp_path, capsys, words, says):
    out = ["--out", tmp_path / "out"] if "--panels" in words else ["--grid", tmp_path / "g.png"]
    generate(run, *out, *words, status=1)
    assert re.search(says, capsys.readouterr().err)
    assert not (tmp_path / "g.png").exists()


def test_guidance_without_a_null_class_is_refused(tmp_path, capsys):
    run = save_run(tmp_path / "last.ckpt", awake(dropout=0.0))
    generate(run, "--classes", "star", "--grid", tmp_path / "g.png", "--count", 1)
    generate(run, "--classes", "star", "--grid", tmp_path / "g.png", "--guidance", 2, status=1)
    assert "guidance needs a null class, and DiT was trained without one" in capsys.readouterr().err


def test_places_are_looked_at_before_work(run, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    generate(run, "--out", tmp_path / "full", status=1)
    generate(run, "--grid", tmp_path / "g.jpg", status=1)
    generate(run, "--grid", tmp_path / "none" / "g.png", status=1)
    said = capsys.readouterr().err
    assert all(text in said for text in ("is not empty", "written as .png", "there is no folder"))
    generate(run, status=2)
    generate(run, "--grid", tmp_path / "g.png", "--inpaint", "x.png", status=2)
    Image.new("RGB", (32, 32)).save(tmp_path / "x.png")
    assert main(["predict", run, str(tmp_path / "x.png")]) == 1
    assert "makes images, it judges none: patchloom generate" in capsys.readouterr().err
