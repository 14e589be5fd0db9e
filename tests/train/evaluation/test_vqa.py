"""`patchloom eval vqa`: VQAv2's normalisation and accuracy, and exact match."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from real_data import real

from patchloom.train.cli import main
from patchloom.train.evaluation.vqa_words import exact_match, normalised, vqa_accuracy

SAME = {
    "The dog": "dog", "two dogs": "2 dogs", "dont know": "don't know", "yes.": "yes", "Yes!": "yes", "3.5": "3.5",
    "1,000": "1000", "black/white": "black white", "t-shirt": "t shirt", "a  lot\nof\tit": "lot of it", "none": "0",
    "what's that?": "what's that", "10:30": "10:30", "its' an apple": "its' apple", "U.S.": "us", '"stop"': "stop",
}  # fmt: skip


@pytest.mark.parametrize("said", SAME)
def test_normalisation(said: str) -> None:
    assert normalised(said) == SAME[said]
    assert normalised(normalised(said)) == normalised(said)


@pytest.mark.parametrize("agreed", range(11))
def test_accuracy_is_the_mean_over_nine_of_ten_people(agreed: int) -> None:
    people = ["Yes"] * agreed + [f"other {i}" for i in range(10 - agreed)]
    subsets = [sum(normalised(p) == "yes" for p in nine) for nine in combinations(people, 9)]
    assert vqa_accuracy("yes.", people) == pytest.approx(sum(min(1, n / 3) for n in subsets) / 10)


def test_known_accuracies() -> None:
    assert vqa_accuracy("two", ["2"] * 3 + ["3"] * 7) == pytest.approx(0.9)
    assert vqa_accuracy("two", ["2"] * 1 + ["3"] * 9) == pytest.approx(0.3)
    assert vqa_accuracy("a cat", ["the cat"] * 4 + ["dog"] * 6) == 1
    assert exact_match("A chair, lamp", ["chair lamp"])
    assert not exact_match("chair", ["chair, lamp"])


def official(root: Path) -> tuple[Path, Path]:
    """Files in VQAv2's own form, of two questions."""
    people = {1: ["blue"] * 8 + ["red"] * 2, 2: ["2"] * 2 + ["3"] * 8}
    asked = [{"question_id": i, "image_id": 10 + i, "question": f"question {i}?"} for i in people]
    truth = [
        {
            "question_id": i, "image_id": 10 + i, "answer_type": ("other", "number")[i - 1], "question_type": "what",
            "multiple_choice_answer": words[0],
            "answers": [{"answer": w, "answer_confidence": "yes", "answer_id": n} for n, w in enumerate(words, 1)],
        }
        for i, words in people.items()
    ]  # fmt: skip
    (root / "questions.json").write_text(json.dumps({"data_subtype": "val2014", "questions": asked}))
    (root / "annotations.json").write_text(json.dumps({"annotations": truth}))
    return root / "questions.json", root / "annotations.json"


def vqa(capsys: Any, *line: object, status: int = 0) -> Any:
    assert main(["eval", "vqa", *map(str, line), "--json"]) == status
    said = capsys.readouterr()
    return said.err if status else json.loads(said.out)


def test_official_files(tmp_path: Path, capsys: Any) -> None:
    questions, annotations = official(tmp_path)
    results = tmp_path / "results.json"
    results.write_text(json.dumps([{"question_id": 1, "answer": "Blue"}, {"question_id": 2, "answer": "two"}]))
    line = ["--questions", questions, "--annotations", annotations, "--results", results]
    found = vqa(capsys, *line)
    assert found["overall"] == {"vqa": pytest.approx(80), "exact": 100, "questions": 2}
    assert found["per_answer_type"]["number"]["vqa"] == pytest.approx(60)
    assert found["per_question_type"]["what"]["questions"] == 2
    assert main(["eval", "vqa", *map(str, line), "--per-question-type"]) == 0
    assert "what" in capsys.readouterr().out
    assert "name VQA's annotations too" in vqa(capsys, *line[:2], *line[4:], status=1)
    results.write_text(json.dumps([{"question_id": 1, "answer": "Blue"}]))
    assert "1 of 2 have no answer" in vqa(capsys, *line, status=1)
    assert vqa(capsys, *line, "--partial")["overall"]["questions"] == 1
    results.write_text(json.dumps([{"question_id": 7, "answer": "Blue"}]))
    assert "the first to 7" in vqa(capsys, *line, status=1)


def test_a_model_is_asked_about_pictures_by_coco_s_names(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions, annotations = official(tmp_path)
    (tmp_path / "val2014").mkdir()
    for i in (11, 12):
        Image.new("RGB", (8, 8)).save(tmp_path / "val2014" / f"COCO_val2014_{i:012}.jpg")

    class Sayer:
        def answers(self, asked: Any, *, batch: int, most: int) -> Any:
            assert (batch, most) == (16, 3)
            return iter(["blue" for _ in asked])

    monkeypatch.setattr("patchloom.train.saved.talker.load_talker", lambda spec, device: Sayer())
    line = ["--questions", questions, "--annotations", annotations, "--images", tmp_path / "val2014"]
    kept = tmp_path / "kept.json"
    found = vqa(capsys, *line, "--checkpoint", "RUN", "--most", "3", "--write-answers", kept)
    assert found["overall"] == {"vqa": pytest.approx(50), "exact": 50, "questions": 2}
    assert vqa(capsys, *line[:4], "--results", kept)["overall"] == found["overall"]


def test_single_answers_have_no_agreement(tmp_path: Path, capsys: Any) -> None:
    data = real("daquar_mini") / "vqa_test.jsonl"
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    results = tmp_path / "results.jsonl"
    results.write_text(
        "".join(json.dumps({"question_id": r["question_id"], "answer": r["answer"]}) + "\n" for r in rows)
    )
    found = vqa(capsys, "--questions", data, "--results", results)
    assert found["overall"] == {"vqa": None, "exact": 100, "questions": len(rows)}
    assert "single answer" in found["notes"][0]
