"""`patchloom eval fid`: folders, arrays and statistics are judged alike, and unlike protocols are kept apart."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classify_parts import tiny
from PIL import Image

from patchloom.train.cli import main
from patchloom.train.evaluation import fid_extract
from patchloom.train.evaluation.fid_numbers import Moments, frechet_distance, inception_score, precision_recall
from patchloom.train.running import checkpoint
from patchloom.train.running.checkpoint import header, preprocessing_of
from patchloom.train.saved.judge import load
from patchloom.vision.generation.dit import DiT
from patchloom.vision.generation.gaussian import Gaussian
from patchloom.vision.inception import Inception
from patchloom.vision.parts import plain

Capture = pytest.CaptureFixture[str]


def pictures(count: int, seed: int, size: tuple[int, int] = (16, 16), shade: int = 0) -> np.ndarray:
    r = np.random.default_rng(seed)
    base = r.integers(0, 200, (count, 1, 1, 3)) + r.integers(0, 55, (count, *size, 3)) - shade
    return base.clip(0, 255).astype(np.uint8)


def folder(root: Path, array: np.ndarray) -> Path:
    root.mkdir(parents=True)
    for i, picture in enumerate(array):
        Image.fromarray(picture).save(root / f"{i:04}.png")
    return root


@pytest.fixture
def judge(tmp_path: Path) -> Path:
    """A checkpoint of a classifier whose features depend on the colours."""
    torch.manual_seed(0)
    model = tiny().eval()
    model.set_input_size(16)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    head = header(model, [str(i) for i in range(8)], preprocessing_of(model) | {"crop_pct": 1.0})
    checkpoint.save({"patchloom": head, "state_dict": state}, tmp_path / "judge.ckpt")
    return tmp_path / "judge.ckpt"


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    return folder(tmp_path / "real", pictures(50, 0)), folder(tmp_path / "made", pictures(40, 1, shade=60))


def fid(capsys: Capture, *line: object, ok: bool = True) -> Any:
    """The JSON of a line that works, else the error."""
    status = main(["eval", "fid", *map(str, line), "--json", "--workers", "0"])
    said = capsys.readouterr()
    assert (status == 0) == ok, said.err
    return json.loads(said.out) if ok else said.err


def test_numbers_are_those_of_the_features(judge: Path, sets: tuple[Path, Path], capsys: Capture) -> None:
    found = fid(capsys, "--real", sets[0], "--generated", sets[1], "--features", judge)
    told = {}
    model = load(str(judge))
    for root in sets:
        files = sorted(root.iterdir())
        told[root] = [
            torch.cat([y for _, y in model.outputs(files, batch=16, pre_logits=pre)]) for pre in (True, False)
        ]
    (real, _), (made, logits) = (told[root] for root in sets)
    assert found["frechet_distance"] == pytest.approx(frechet_distance(Moments.of(made), Moments.of(real)), rel=1e-5)
    assert "fid" not in found  # which is of Inception only
    assert found["inception_score"] == pytest.approx(inception_score(logits)[0], rel=1e-5)
    assert (found["precision"], found["recall"]) == pytest.approx(precision_recall(made, real))
    assert found["frechet_distance"] > 0.1
    assert found["protocol"]["count"] == 40
    assert found["protocol"]["real_count"] == 50
    assert found["protocol"]["size"] == "16x16"
    assert any("sampler, steps, guidance, decoder" in note for note in found["notes"])


def test_statistics_and_arrays_give_the_same(
    judge: Path, sets: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    real, made = sets
    want = fid(capsys, "--real", real, "--generated", made, "--features", judge)
    kept = tmp_path / "real.npz"
    assert main(["eval", "fid", "--real", str(real), "--save-statistics", str(kept), "--features", str(judge)]) == 0
    np.savez(tmp_path / "made.npz", arr_0=pictures(40, 1, shade=60))
    capsys.readouterr()
    for line in ((kept, made), (real, tmp_path / "made.npz"), (kept, tmp_path / "made.npz")):
        found = fid(capsys, "--real", line[0], "--generated", line[1], "--features", judge)
        for name in ("frechet_distance", "inception_score", "precision", "recall"):
            assert found[name] == pytest.approx(want[name], rel=1e-5), (line, name)
        assert found["protocol"] == want["protocol"]
    with np.load(kept) as file:
        np.savez(tmp_path / "bare.npz", mu=file["mu"], sigma=file["sigma"], about=file["about"], count=file["count"])
    bare = fid(capsys, "--real", tmp_path / "bare.npz", "--generated", made, "--features", judge)
    assert bare["frechet_distance"] == pytest.approx(want["frechet_distance"])
    assert "precision" not in bare
    assert any("no features" in note for note in bare["notes"])


def test_unlike_protocols_are_not_compared(
    judge: Path, sets: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    real, made = sets
    statement = {"sampler": "ddim", "steps": 50, "guidance": 1.5, "decoder": "none", "seed": 3}
    (made / "protocol.json").write_text(json.dumps(statement))
    other = folder(tmp_path / "other", pictures(40, 2, shade=20))
    line = ("--real", real, "--features", judge)
    first = fid(capsys, *line, "--generated", made, "--out", tmp_path / "a.json")
    assert first["protocol"]["steps"] == "50"
    assert first["seed"] == 3
    same = ("--sampler", "ddim", "--steps", "50", "--guidance", "1.5", "--decoder", "none", "--seed", "4")
    second = fid(capsys, *line, "--generated", other, *same, "--compare", tmp_path / "a.json", "--out", tmp_path / "b")
    assert second["compared"][0]["frechet_distance"] == first["frechet_distance"]
    both = fid(capsys, "--compare", tmp_path / "a.json", tmp_path / "b")
    assert both["frechet_distance"] == second["frechet_distance"]

    def refused(*changed: object) -> str:
        return fid(capsys, *line, "--generated", other, *changed, "--compare", tmp_path / "a.json", ok=False)

    assert "steps 250, not 50" in refused(*same[:2], "--steps", "250", *same[4:])
    assert "guidance not stated, not 1.5" in refused(*same[:4], *same[6:])
    assert "count 30, not 40" in refused(*same, "--count", "30")
    assert "size 8x8, the middle of each, not 16x16" in refused(*same, "--size", "8")
    assert "--steps 20, but" in fid(capsys, *line, "--generated", made, "--steps", "20", ok=False)
    fid(capsys, *line, "--generated", other, *same[:2], "--out", tmp_path / "c.json")
    assert "cannot be compared" in fid(capsys, "--compare", tmp_path / "a.json", tmp_path / "c.json", ok=False)
    (tmp_path / "d.json").write_text("{}")
    assert "is no result" in fid(capsys, "--compare", tmp_path / "a.json", tmp_path / "d.json", ok=False)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds an untrained Inception under the name of the reference's file."""
    monkeypatch.setenv("PATCHLOOM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = tmp_path / "home" / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth"
    file.parent.mkdir(parents=True)
    torch.save(Inception().state_dict(), file)
    return file


def test_the_reference_extractor(
    weights: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its weights a refusal that says what to do, and so with another file in their place; with them (random
    ones here, their digest not looked at) the number is called FID."""
    real, made = folder(tmp_path / "real", pictures(2, 0)), folder(tmp_path / "made", pictures(2, 1))
    line = ("--real", real, "--generated", made, "--metrics", "fid")
    assert "sha256" in fid(capsys, *line, ok=False)
    monkeypatch.setattr(fid_extract, "verify", lambda path, weights: "")
    found = fid(capsys, *line)
    assert found["fid"] >= 0
    assert "frechet_distance" not in found
    assert found["protocol"]["extractor"] == "inception.fid_2015 (6726825d)"
    assert any("2 pictures for 2,048 features" in note for note in found["notes"])
    weights.unlink()
    said = fid(capsys, *line, ok=False)
    assert "pt_inception-2015-12-05-6726825d.pth" in said
    assert "--features NAME" in said


@pytest.mark.slow
def test_equals_torch_fidelity_from_the_files_on(
    weights: Path, sets: tuple[Path, Path], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fid_extract, "verify", lambda path, weights: "")
    fidelity = pytest.importorskip("torch_fidelity")
    found = fid(capsys, "--real", sets[0], "--generated", sets[1], "--metrics", "fid,is")
    theirs = fidelity.calculate_metrics(
        input1=str(sets[1]), input2=str(sets[0]), cuda=False, fid=True, isc=True, verbose=False, cache=False,
        feature_extractor_weights_path=str(weights),
    )  # fmt: skip
    # untrained features are nearly constant: the distance is a difference of far larger numbers
    assert found["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert found["inception_score"] == pytest.approx(theirs["inception_score_mean"], rel=1e-5)


def test_pictures_of_several_sizes(judge: Path, tmp_path: Path, capsys: Capture, monkeypatch: Any) -> None:
    """The reference takes pictures as they are, so they are of one size; a classifier has its own crop."""
    real, made = folder(tmp_path / "r", pictures(8, 0)), folder(tmp_path / "m", pictures(8, 1, (20, 24)))
    fid(capsys, "--real", real, "--generated", made, "--features", judge, "--metrics", "fid")
    monkeypatch.setattr(fid_extract, "load_inception", Inception)
    said = fid(capsys, "--real", real, "--generated", made, ok=False)
    assert "r has 16x16" in said
    assert "m has 20x24" in said
    assert "--size" in said


def test_wrong_input(judge: Path, sets: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    real, made = sets

    def refused(*line: object) -> str:
        return fid(capsys, *line, "--features", judge, ok=False)

    assert "holds 40 pictures" in refused("--real", real, "--generated", made, "--count", "41")
    assert "no file or folder" in refused("--real", tmp_path / "nowhere", "--generated", made)
    (tmp_path / "empty").mkdir()
    assert "no pictures in it" in refused("--real", tmp_path / "empty", "--generated", made)
    np.savez(tmp_path / "x.npz", mu=np.zeros(3), sigma=np.zeros((4, 4)))
    assert "mu is (3,) and sigma (4, 4)" in refused("--real", tmp_path / "x.npz", "--generated", made)
    np.savez(tmp_path / "y.npz", mu=np.zeros(4), sigma=np.zeros((4, 4)))
    assert "does not say whose features" in refused("--real", tmp_path / "y.npz", "--generated", made)
    np.savez(tmp_path / "z.npz", other=np.zeros(3))
    assert "it has other" in refused("--real", tmp_path / "z.npz", "--generated", made)
    np.savez(tmp_path / "f.npz", arr_0=np.zeros((3, 4, 4, 3), np.float32))
    assert "arr_0 is float32" in refused("--real", real, "--generated", tmp_path / "f.npz")
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    assert "is no .npz file" in refused("--real", tmp_path / "broken.npz", "--generated", made)
    assert "there is no 'kid'" in refused("--real", real, "--generated", made, "--metrics", "fid,kid")
    np.savez(tmp_path / "u.npz", arr_0=np.zeros((3, 4, 4, 3), np.uint8))
    for there in (made, tmp_path / "u.npz"):
        for option in ("--captions", "--adapter"):
            assert f"{option} x: " in refused("--real", real, "--generated", there, option, "x")
    assert "name --real" in refused()
    (made / "0003.png").write_bytes(b"damaged")
    assert "0003.png" in refused("--real", real, "--generated", made)
    some = fid(capsys, "--real", real, "--generated", made, "--features", judge, "--on-error", "skip")
    assert some["protocol"]["count"] == 39
    assert any("1 of 40" in note for note in some["notes"])


def test_a_run_makes_the_pictures(judge: Path, sets: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    """As many of each class as may be, by the protocol that `generate` writes too: the same numbers from its files."""
    torch.manual_seed(0)
    model = DiT(1, 16, 2, patch=4, in_channels=3, size=(16, 16), num_classes=3, learn_variance=False)
    how = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    head = header(model, ["a", "b", "c"], how) | {"process": plain(Gaussian(variance="large")), "text": None}
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    checkpoint.save({"patchloom": head, "state_dict": state}, tmp_path / "run.ckpt")
    settings = ("--sampler", "ddim", "--steps", "3", "--guidance", "1.5", "--seed", "5")
    line = ("--real", sets[0], "--features", judge)
    found = fid(capsys, *line, "--generated", tmp_path / "run.ckpt", *settings, "--count", "12", "--batch", "5")
    assert found["seed"] == 5
    made = ["generate", "--checkpoint", str(tmp_path / "run.ckpt"), "--classes", "a,b,c,a,b,c,a,b,c,a,b,c"]
    assert main([*made, "--count", "1", *settings, "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    again = fid(capsys, *line, "--generated", tmp_path / "out")
    assert again["protocol"] == found["protocol"]
    assert again["frechet_distance"] == pytest.approx(found["frechet_distance"], rel=1e-4)
    assert again["protocol"]["steps"] == "3"
    assert "text model" in fid(capsys, *line, "--generated", tmp_path / "run.ckpt", "--captions", "x.txt", ok=False)
    said = fid(capsys, *line, "--generated", tmp_path / "run.ckpt", "--steps", "2000", ok=False)
    assert "2000" in said


def test_statistics_of_another_extractor(judge: Path, sets: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    kept = tmp_path / "real.npz"
    assert main(["eval", "fid", "--real", str(sets[0]), "--save-statistics", str(kept), "--features", str(judge)]) == 0
    capsys.readouterr()
    content = checkpoint.read(judge)
    content["state_dict"] = {name: value + 0.01 for name, value in content["state_dict"].items()}
    checkpoint.save(content, tmp_path / "other.ckpt")
    said = fid(capsys, "--real", kept, "--generated", sets[1], "--features", tmp_path / "other.ckpt", ok=False)
    assert "holds statistics of extractor" in said
