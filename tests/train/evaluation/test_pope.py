"""`patchloom eval pope`: the official reading of answers and the official numbers, split by split."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from real_data import real
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from patchloom.train.cli import main
from patchloom.train.evaluation.pope import Counts, counted, says_yes

SAYING = (
    "yes",
    "Yes, there is a dog.",
    "No",
    "no, there is none.",
    "There is not a dog.",
    "Yes. There is no cat.",
    "maybe",
)
MEANT = (True, True, False, False, False, True, True)


def questions(root: Path, split: str, count: int = 12) -> Path:
    rows = [
        {"question_id": i, "image": f"{i // 6}.png", "text": f"Is there a {split} {i} in the image?",
         "label": ("yes", "no")[i % 2]}
        for i in range(1, count + 1)
    ]  # fmt: skip
    return written(root / f"coco_pope_{split}.json", rows)


def written(path: Path, rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pope(capsys: Any, *line: object, status: int = 0) -> Any:
    assert main(["eval", "pope", *map(str, line), "--json"]) == status
    said = capsys.readouterr()
    return said.err if status else json.loads(said.out)


@pytest.mark.parametrize(("answer", "meant"), [*zip(SAYING, MEANT, strict=True)])
def test_answers_are_read_as_officially(answer: str, meant: bool) -> None:
    assert says_yes(answer) is meant


def test_rates_are_scikit_learns() -> None:
    r = np.random.default_rng(0)
    truth, said = r.integers(0, 2, 500), r.integers(0, 2, 500)
    found = counted([("no", "yes")[t] for t in truth], [("No, none", "yes")[s] for s in said]).rates()
    precision, recall, f1, _ = precision_recall_fscore_support(truth, said, average="binary")
    expected = {
        "accuracy": accuracy_score(truth, said), "precision": precision, "recall": recall, "f1": f1,
        "yes_ratio": said.mean(),
    }  # fmt: skip
    assert found == pytest.approx(expected)


def test_what_divides_by_nothing_is_said_to_be_nothing() -> None:
    assert Counts(0, 0, 3, 3).rates() == {
        "accuracy": 0.5, "precision": None, "recall": 0.0, "f1": None, "yes_ratio": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize("split", ["random", "popular"])
def test_the_real_questions(split: str, tmp_path: Path, capsys: Any) -> None:
    """Always yes, always no, and all right, whose numbers are known beforehand: half of the answers are yes."""
    data = real("pope")
    rows = [json.loads(line) for line in (data / f"coco_pope_{split}.json").read_text().splitlines()]
    right = written(tmp_path / "right.jsonl", [{"question_id": r["question_id"], "answer": r["label"]} for r in rows])
    found = pope(capsys, "--data", data, "--answers", f"{split}={right}")["splits"][split]
    assert [found[name] for name in ("accuracy", "precision", "recall", "f1", "yes_ratio")] == [1, 1, 1, 1, 0.5]
    always = written(tmp_path / "yes.jsonl", [{"question": r["text"], "answer": "Yes, it is."} for r in rows])
    found = pope(capsys, "--data", data / f"coco_pope_{split}.json", "--answers", always)["splits"][split]
    assert (found["tp"], found["fp"], found["tn"], found["fn"]) == (1500, 1500, 0, 0)
    assert found["f1"] == pytest.approx(2 / 3)


def test_a_file_finds_its_split(tmp_path: Path, capsys: Any) -> None:
    for split in ("random", "popular"):
        questions(tmp_path, split)
    rows = [{"question_id": i, "text": "yes"} for i in range(1, 13)]
    bare, named = written(tmp_path / "a" / "mine.jsonl", rows), written(tmp_path / "a" / "of_popular.jsonl", rows)
    assert "may be of any of these splits" in pope(capsys, "--data", tmp_path, "--answers", bare, status=2)
    assert list(pope(capsys, "--data", tmp_path, "--answers", named)["splits"]) == ["popular"]
    both = pope(capsys, "--data", tmp_path, "--answers", named, f"random={bare}")
    assert both["mean"]["accuracy"] == 0.5
    told = [{**row, "question": f"Is there a random {row['question_id']} in the image?"} for row in rows]
    told_file = written(tmp_path / "a" / "told.jsonl", told)
    assert list(pope(capsys, "--data", tmp_path, "--answers", told_file)["splits"]) == ["random"]
    assert "of another split" in pope(capsys, "--data", tmp_path, "--answers", f"popular={told_file}", status=1)
    assert "no split 'rare'" in pope(capsys, "--data", tmp_path, "--answers", f"rare={bare}", status=2)


def test_answers_that_do_not_fit(tmp_path: Path, capsys: Any) -> None:
    data = questions(tmp_path, "random")
    rows = [{"question_id": i, "answer": "no"} for i in range(1, 13)]
    for changed, says in (
        (rows[:-1], "have no answer in"),
        ([*rows, {"question_id": 99, "answer": "no"}], "the first to 99"),
        ([*rows, rows[0]], "question_id 1 is there twice"),
        ([{"question_id": 1}, *rows[1:]], "answer or text"),
        ([{"answer": "no"}] * 3, "as many are due"),
    ):
        file = written(tmp_path / "answers.jsonl", changed)
        assert says in pope(capsys, "--data", data, "--answers", file, status=1)
    (tmp_path / "gqa_pope_random.json").write_bytes(data.read_bytes())
    assert "gqa_pope_random.json are both of random" in pope(capsys, "--data", tmp_path, "--answers", file, status=1)
    file = written(tmp_path / "answers.jsonl", rows[:-2])
    found = pope(capsys, "--data", data, "--answers", file, "--partial")
    assert found["splits"]["random"]["questions"] == 10
    assert "not the official numbers" in found["notes"][0]
    (tmp_path / "broken.jsonl").write_text('{"question_id": 1, "answer": "yes"}\n{"question_id": 2')
    assert "broken.jsonl:2: no JSON" in pope(capsys, "--data", data, "--answers", tmp_path / "broken.jsonl", status=1)


class Sayer:
    """Stands in for a model: answers by the question, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[Image.Image, ...]]] = []

    def answers(self, asked: Any, *, batch: int, most: int | None = None) -> Any:
        self.asked += asked
        return iter(["no" if "random" in question else "yes" for question, _ in asked])


def test_a_model_is_asked(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("random", "popular"):
        questions(tmp_path, split)
    (tmp_path / "images").mkdir()
    for i in range(2):
        Image.new("RGB", (8, 8), (100 * i, 0, 0)).save(tmp_path / "images" / f"{i}.png")
    sayer = Sayer()
    monkeypatch.setattr("patchloom.train.saved.talker.load_talker", lambda spec, device: sayer)
    line = ["--data", tmp_path, "--checkpoint", "RUN", "--prompt", "{} Say yes or no.", "--batch", "5"]
    assert "1 pictures are not in" in pope(capsys, *line, status=1)
    found = pope(capsys, *line, "--on-error", "skip", "--write-answers", tmp_path / "kept.jsonl")
    assert found["splits"]["random"]["yes_ratio"] == 0
    assert found["splits"]["popular"]["yes_ratio"] == 1
    assert found["splits"]["popular"]["questions"] == 11  # the last one's picture is missing
    assert sayer.asked[0][0] == "Is there a popular 1 in the image? Say yes or no."
    assert {picture.size for _, pictures in sayer.asked for picture in pictures} == {(8, 8)}
    again = pope(capsys, "--data", tmp_path, "--answers", tmp_path / "kept_popular.jsonl", "--partial")
    assert again["splits"]["popular"]["tp"] == found["splits"]["popular"]["tp"]
    assert "--batch goes with --checkpoint" in pope(
        capsys, "--data", tmp_path, "--answers", "x", "--batch", "2", status=2
    )
