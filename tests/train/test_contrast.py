"""`Contrast`: the loss by hand, processes as one batch, runs by the command line, and what judges them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from contrast_parts import small_run
from PIL import Image
from processes import two_processes
from real_data import real
from recipe_parts import KINDS

from patchloom.train.cli import main
from patchloom.train.contrast import Contrast, each, info_nce
from patchloom.train.running import checkpoint
from patchloom.train.saved.matcher import load_matcher

CONTRASTS = sorted(n for n, kind in KINDS.items() if kind == "patchloom.train.contrast.Contrast")
SMALL = [
    *("--data.train_length", "8", "--data.val_length", "4", "--data.test_length", "4", "--data.batch_size", "4"),
    *("--data.workers", "0", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"),
    *("--trainer.log_every_n_steps", "1"),
]


def test_the_loss_by_hand() -> None:
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    text = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    scale = torch.tensor(2.0)
    logits = 2.0 * image @ text.mT
    rows = -(logits.log_softmax(1).diagonal().mean() + logits.log_softmax(0).diagonal().mean()) / 2
    assert info_nce(image, text, scale, image, text).item() == pytest.approx(rows.item())
    halves = [info_nce(image[i : i + 1], text[i : i + 1], scale, image, text, i) for i in range(2)]
    assert torch.stack(halves).mean().item() == pytest.approx(rows.item())  # two processes, a row each


def test_equal_captions_push_nobody_away() -> None:
    """Of two pictures with the same caption neither is drawn from it: the text's own gradient is none."""
    image = torch.nn.functional.normalize(torch.tensor([[1.0, 0.2], [1.0, 0.2]]), dim=-1)
    text = torch.tensor([1.0, 0.0], requires_grad=True)
    both = text.expand(2, 2)
    info_nce(image, both, torch.tensor(5.0), image, both).backward()
    assert text.grad is not None
    assert text.grad.abs().max() < 1e-6


@pytest.mark.slow
def test_two_processes_learn_and_are_judged_as_one(tmp_path: Path) -> None:
    (first, weights), (second, copy) = two_processes(small_run, tmp_path)
    one, expected = small_run(1, tmp_path)
    for name in ("val/recall", "val/i2t_r1", "val/i2t_r5", "val/t2i_r1", "val/t2i_r5"):
        assert first[name] == second[name] == pytest.approx(one[name], abs=1e-6), name
    moved = 0
    for name, value in expected.items():
        assert torch.equal(weights[name], copy[name]), name
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5, msg=name)
        moved += 1
    assert moved > 20


@pytest.fixture(scope="module")
def run(tmp_path_factory: Any) -> Path:
    """Of the packaged recipe for drawn pictures, two steps."""
    root = tmp_path_factory.mktemp("runs")
    line = ["fit", "-c", "shapes/clip", *SMALL, "--trainer.default_root_dir", str(root), "--json"]
    assert main(line) == 0
    return next(root.glob("shapes/clip/*/best.ckpt")).parent


def test_a_run_is_kept_whole(run: Path) -> None:
    saved = checkpoint.read(run / "last.ckpt")
    assert saved["global_step"] == 2
    _, pair, held = load_matcher(str(run))
    assert len(held) == 10
    assert ("circle", "red") in held
    assert pair.scale.item() == pytest.approx(1 / 0.07, rel=0.01)
    header = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "train/scale", "val/recall", "val/i2t_r1", "val/t2i_r5"} <= set(header)


def judged(capsys: Any, *line: object, status: int = 0) -> Any:
    capsys.readouterr()
    assert main(["eval", *map(str, line), "--json"]) == status
    said = capsys.readouterr()
    return said.err if status else json.loads(said.out)


def test_classes_that_are_only_named(run: Path, tmp_path: Path, capsys: Any) -> None:
    found = judged(capsys, "zeroshot", run, "--drawn", 2)
    assert found["pictures"] == 20
    assert [r["classes"] for r in found["results"]] == [100, 10]
    assert all(0 <= r["acc1"] <= r["acc5"] <= 100 for r in found["results"])
    assert found["results"][1]["chance"] == 10
    for name in ("red_circle", "blue_star"):
        (tmp_path / "test" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (70, 60), (200, 30 * i, 0)).save(tmp_path / "test" / name / f"{i}.png")
    line = ["zeroshot", run, "--data", tmp_path, "--workers", 0]
    found = judged(capsys, *line, "--prompts", "a {}", "one {}")
    assert found["pictures"] == 4
    assert found["results"][0]["acc1"] in (25, 50, 75)
    assert found["results"][0]["acc5"] == 100
    assert main(["eval", *map(str, line)]) == 0
    assert "Acc@1 / chance" in capsys.readouterr().out
    assert "holds {} once" in judged(capsys, *line, "--prompts", "a star", status=2)
    assert "--split x goes with --data" in judged(capsys, "zeroshot", run, "--drawn", 2, "--split", "x", status=2)


def test_pictures_are_told_apart_by_texts(run: Path, tmp_path: Path, capsys: Any) -> None:
    Image.new("RGB", (70, 60), (200, 30, 0)).save(tmp_path / "a.png")
    capsys.readouterr()
    line = ["predict", str(run), str(tmp_path / "a.png"), "--json"]
    assert main([*line, "--named", "a red circle", "a blue star"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert {t["class"] for t in found["top"]} == {"a red circle", "a blue star"}
    assert sum(t["probability"] for t in found["top"]) == pytest.approx(1, abs=1e-5)
    assert main(line) == 1
    assert "predict --named" in capsys.readouterr().err
    assert main([*line, "--named", "a star", "--size", "32"]) == 2
    assert main([*line, "--named", "a star"]) == 1
    assert "at least two" in capsys.readouterr().err


def test_real_photographs_and_sentences(run: Path, capsys: Any) -> None:
    captions = real("flickr8k_mini") / "captions_test.jsonl"
    found = judged(capsys, "retrieval", "--checkpoint", run, "--captions", captions, "--workers", 0)
    assert (found["image_to_text"]["queries"], found["text_to_image"]["queries"]) == (11, 55)
    assert found["text_to_image"]["chance"]["r1"] == pytest.approx(1 / 11)
    missing = ["--captions", captions, "--images", run]
    assert "11 pictures are not in" in judged(capsys, "retrieval", "--checkpoint", run, *missing, status=1)


def test_others_say_what_it_is_for(run: Path, tmp_path: Path, capsys: Any) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert main(["features", str(run), str(tmp_path), "--out", str(tmp_path / "out.safetensors")]) != 0
    assert "matches pictures with texts" in capsys.readouterr().err
    assert "a contrastive run" in judged(capsys, "zeroshot", "swin_tiny", "--drawn", 2, status=1)


@pytest.mark.slow
def test_a_run_is_judged_again(run: Path, capsys: Any) -> None:
    capsys.readouterr()
    assert main(["validate", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["validation"]
    assert {"val/recall", "val/i2t_r1", "val/loss"} <= set(found)


@pytest.mark.slow
def test_a_run_goes_on(run: Path, tmp_path: Path) -> None:
    again = shutil.copytree(run, tmp_path / "run")
    assert main(["fit", "--resume", str(again), "--trainer.max_epochs", "2", "--json"]) == 0
    assert checkpoint.read(again / "last.ckpt")["global_step"] == 4


def test_recipes_are_these() -> None:
    assert CONTRASTS == ["flickr8k/clip", "shapes/clip"]


@pytest.mark.slow
def test_photographs_train_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = real("flickr8k_mini")
    line = ["fit", "-c", "flickr8k/clip", "--data.root", str(root), "--trainer.limit_train_batches", "1"]
    more = [
        "--data.batch_size",
        "4",
        "--data.workers",
        "0",
        "--trainer.max_epochs",
        "1",
        "--trainer.accelerator",
        "cpu",
    ]
    assert main([*line, *more, "--trainer.default_root_dir", str(tmp_path), "--json"]) == 0
    assert list(tmp_path.glob("flickr8k/clip/*/best.ckpt"))


def test_only_two_towers_learn_so_and_of_captions() -> None:
    with pytest.raises(ValueError, match=r"Linear is none of patchloom\.multimodal\.two_towers\.TwoTowers"):
        Contrast(torch.nn.Linear(2, 2))
    for captions in (torch.tensor([1, 2]), ["a star", ""], [["a"], []]):
        with pytest.raises(ValueError, match="where captions are due"):
            each(captions)
