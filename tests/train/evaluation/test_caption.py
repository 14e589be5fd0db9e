"""`patchloom eval caption`: words as Stanford's tokeniser gives them, and the kept library's figures."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from real_data import real

pytest.importorskip("pycocoevalcap", reason="CIDEr and BLEU are pycocoevalcap's: pip install 'patchloom[multimodal]'")

from patchloom.train.cli import main
from patchloom.train.evaluation.caption_score import by_java, score
from patchloom.train.evaluation.caption_words import tokenised, words

STANFORD = {  # what Stanford's tokeniser (CoreNLP 3.4.1, lower case) gives, without the marks that COCO drops
    "A black-and-white dog isn't running.": "a black-and-white dog is n't running",
    "The man's dogs' toys, can't cannot gonna": "the man 's dogs toys ca n't can not gon na",
    'He said "hello there" (in the park) [x]': "he said hello there -lrb- in the park -rrb- -lsb- x -rsb-",
    "1,000 at 5:30 p.m. costs $5.99 & 50% in the U.S.": "1,000 at 5:30 p.m. costs $ 5.99 & 50 % in the u.s.",
    "Wait... what?! no; yes: ok -- fine - done": "wait what ?! no yes ok fine done",
    "rock 'n' roll at 3 o'clock": "rock 'n' roll at 3 o'clock",
    "a man , with a hat .": "a man with a hat",
    "the water 's edge, 1950s cars #12 and/or": "the water 's edge 1950s cars # 12 and/or",
}


@pytest.mark.parametrize("caption", STANFORD)
def test_words_are_stanford_s(caption: str) -> None:
    assert " ".join(words(caption)) == STANFORD[caption]


def flickr(split: str = "test") -> dict[str, list[str]]:
    lines = (real("flickr8k_mini") / f"captions_{split}.jsonl").read_text().splitlines()
    return {row["image"]: row["captions"] for row in map(json.loads, lines)}


@pytest.mark.skipif(shutil.which("java") is None, reason="Stanford's tokeniser is a Java program")
def test_real_captions_are_the_same_words_and_score_alike_with_either_tokenizer() -> None:
    said = {**flickr("train"), **flickr("test")}
    assert tokenised(said) == by_java(said)
    truth = {key: said[1:] for key, said in flickr().items()}
    given = {key: said[0] for key, said in flickr().items()}
    assert score(truth, given).overall == pytest.approx(score(truth, given, "ptb").overall, abs=1e-12)


def test_figures() -> None:
    """BLEU by hand: 5 of 6 words, 3 of 5 pairs; the reference is shorter, so nothing is taken off. CIDEr of a caption
    that says the same is 10 where its words are not those of all pictures."""
    truth = {"a": ["a cat sat on mats"], "b": ["two dogs run over grass"]}
    found = score(truth, {"a": "A cat sat on the mats.", "b": "two dogs run over grass"})
    assert found.overall["BLEU-1"] == pytest.approx(10 / 11)
    assert found.overall["BLEU-2"] == pytest.approx((10 / 11 * (3 + 4) / 9) ** 0.5)
    assert found.each["b"] == pytest.approx(10)
    assert found.overall["CIDEr"] == pytest.approx((found.each["a"] + 10) / 2)
    with pytest.raises(ValueError, match="2 pictures with captions of people, 1 with one"):
        score(truth, {"a": "x"})


def caption(capsys: Any, *line: object, status: int = 0) -> Any:
    assert main(["eval", "caption", *map(str, line), "--json"]) == status
    said = capsys.readouterr()
    return said.err if status else json.loads(said.out)


def test_files(tmp_path: Path, capsys: Any) -> None:
    coco = {
        "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 8, "file_name": "8.jpg"}],
        "annotations": [
            {"image_id": 7, "caption": "a red house on a hill"}, {"image_id": 7, "caption": "a house that is red"},
            {"image_id": 8, "caption": "two boats in the harbour"},
        ],
    }  # fmt: skip
    lines = [{"image": "7.jpg", "captions": ["a red house on a hill", "a house that is red"]},
             {"image": "8.jpg", "captions": ["two boats in the harbour"]}]  # fmt: skip
    (tmp_path / "captions_val.json").write_text(json.dumps(coco))
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    said = ["a red house on a hill", "boats in a harbour"]
    (tmp_path / "by_id.json").write_text(
        json.dumps([{"image_id": i, "caption": c} for i, c in zip((7, 8), said, strict=True)])
    )
    (tmp_path / "by_name.jsonl").write_text(
        "\n".join(json.dumps({"image": f"{i}.jpg", "caption": c}) for i, c in zip((7, 8), said, strict=True))
    )
    first = caption(capsys, "--captions", tmp_path / "captions_val.json", "--results", tmp_path / "by_id.json")
    other = caption(capsys, "--captions", tmp_path / "captions.jsonl", "--results", tmp_path / "by_name.jsonl")
    (tmp_path / "ids.jsonl").write_text("\n".join(map(json.dumps, coco["annotations"])))
    ids = caption(capsys, "--captions", tmp_path / "ids.jsonl", "--results", tmp_path / "by_id.json")
    assert first["metrics"] == other["metrics"] == ids["metrics"]
    assert list(first["metrics"]) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"]
    line = ["--captions", tmp_path / "captions.jsonl", "--results", tmp_path / "by_name.jsonl"]
    assert list(caption(capsys, *line, "--metrics", "cider")["metrics"]) == ["CIDEr"]
    assert "METEOR is a Java program" in caption(capsys, *line, "--metrics", "cider,meteor", status=2)
    assert "no 'wups'" in caption(capsys, *line, "--metrics", "wups", status=2)
    assert "no picture" in caption(capsys, *line[:3], tmp_path / "by_id.json", status=1).replace("pictures", "picture")


def test_java_is_asked_for_by_name(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ValueError, match="there is no java here"):
        score({"a": ["x"]}, {"a": "x"}, "ptb")
