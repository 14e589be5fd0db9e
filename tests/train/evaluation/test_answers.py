"""A real talker is asked by `eval pope`, `eval vqa` and `eval caption`: the same answers as in a chat, and kept."""

import json
from pathlib import Path
from typing import Any

import pytest
from dialogue_parts import INKS, save_talk, talk, talking
from generation_parts import fit
from PIL import Image

from patchloom.train.cli import main
from patchloom.train.saved.talker import Talker, load_talker


@pytest.fixture(scope="module")
def run(tmp_path_factory: Any) -> Path:
    """A checkpoint of a talker after a step, and pictures with questions, captions and answers."""
    folder = save_talk(tmp_path_factory.mktemp("talk"))
    trainer = fit(
        talking(lr=1e-2), talk(folder, turns=1), folder, max_epochs=1, limit_train_batches=1, limit_val_batches=0
    )
    trainer.save_checkpoint(folder / "last.ckpt")
    rows = {
        "coco_pope_random.json": [
            {"question_id": i, "image": f"{name}.png", "text": "is it red?", "label": "yes" if name == "red" else "no"}
            for i, name in enumerate(INKS, 1)
        ],
        "vqa.jsonl": [
            {"question_id": i, "image": f"{name}.png", "question": "what colour is it?", "answer": name}
            for i, name in enumerate(INKS, 1)
        ],
        "captions.jsonl": [{"image": f"{name}.png", "captions": [f"it is {name}"]} for name in INKS],
    }
    for file, lines in rows.items():
        (folder / file).write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture(scope="module")
def talker(run: Path) -> Talker:
    return load_talker(run / "last.ckpt", device="cpu")


@pytest.mark.parametrize(
    ("task", "data", "asked", "given"),
    [
        ("pope", ["--data", "coco_pope_random.json"], "is it red?", "--answers"),
        ("vqa", ["--questions", "vqa.jsonl"], "what colour is it?", "--results"),
        ("caption", ["--captions", "captions.jsonl", "--ask", "what is it?"], "what is it?", "--results"),
    ],
)
def test_a_model_is_asked_and_its_answers_are_kept(
    task: str, data: list[str], asked: str, given: str, run: Path, talker: Talker, tmp_path: Path, capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(run)
    kept = tmp_path / "kept.json"
    line = ["eval", task, *data, "--json"]
    capsys.readouterr()
    assert main([*line, "--checkpoint", "last.ckpt", "--write-answers", str(kept), "--batch", "3", "--most", "4"]) == 0
    found = json.loads(capsys.readouterr().out)
    text = kept.read_text()
    rows = json.loads(text) if text.startswith("[") else [json.loads(row) for row in text.splitlines()]
    said = [row.get("answer", row.get("caption")) for row in rows]
    pictures = [Image.open(run / f"{name}.png").convert("RGB") for name in INKS]
    assert said == [talker.answer(asked, [picture], most=4) for picture in pictures]
    if task == "caption":
        line = ["eval", task, *data[:2], "--json"]
    assert main([*line, given, str(kept)]) == 0
    again = json.loads(capsys.readouterr().out)
    names = {"pope": ["mean"], "vqa": ["overall"], "caption": ["metrics", "pictures"]}[task]
    assert {n: again[n] for n in names} == {n: found[n] for n in names}


def test_a_model_that_does_not_talk(run: Path, tmp_path: Path, capsys: Any) -> None:
    line = ["eval", "vqa", "--questions", str(run / "vqa.jsonl"), "--checkpoint"]
    assert main([*line, str(tmp_path / "nothing.ckpt")]) == 1
    assert "nothing.ckpt" in capsys.readouterr().err
    assert main([*line, str(run / "last.ckpt"), "--prompt", "no place"]) == 2
    assert "holds {} once" in capsys.readouterr().err


def test_a_picture_that_cannot_be_read(run: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "red.png").write_bytes(b"no picture")
    Image.new("RGB", (9, 9)).save(tmp_path / "blue.png")
    rows = [{"question_id": n, "image": f"{n}.png", "question": "?", "answer": "x"} for n in ("red", "blue")]
    (tmp_path / "vqa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    line = ["eval", "vqa", "--questions", str(tmp_path / "vqa.jsonl"), "--checkpoint", str(run / "last.ckpt"), "--json"]
    capsys.readouterr()
    assert main(line) == 1
    assert "red.png" in capsys.readouterr().err
    assert main([*line, "--on-error", "skip"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["overall"]["questions"] == 1
    assert "1 of 2 are left out" in found["notes"][0]
