"""Dialogues of files: LLaVA's, VQA's, COCO's and JSON lines; what is wrong is named with its place."""

import json
from pathlib import Path

import pytest
import torch
from dialogue_parts import SEEN, save_talk, talk
from PIL import Image
from real_data import real

from patchloom.data.dialogue_files import DialogueFiles, read_dialogues
from patchloom.data.questions import CAPTION, Turn
from patchloom.data.read import UnreadableImage


def written(path: Path, content) -> Path:
    lines = path.suffix == ".jsonl"
    path.write_text("\n".join(map(json.dumps, content)) if lines else json.dumps(content))
    return path


def test_llavas_conversations(tmp_path):
    said = [
        {"from": "system", "value": "be brief"},
        {"from": "human", "value": "<image>\nwhat is it?"},
        {"from": "gpt", "value": "a cat"},
        {"from": "human", "value": "sure?"},
        {"from": "gpt", "value": "yes"},
    ]
    content = [{"id": "7", "image": "a.jpg", "conversations": said}, {"id": "8", "conversations": said[1:3]}]
    for name in ("a.json", "a.jsonl"):
        first, second = read_dialogues(written(tmp_path / name, content))
        assert first.images == ("a.jpg",)
        assert first.dialogue.system == "be brief"
        assert first.dialogue.turns == (Turn("<image>\nwhat is it?", "a cat"), Turn("sure?", "yes"))
        assert second.images == ()
        assert second.dialogue.id == "8"


def test_vqa_questions_and_annotations(tmp_path):
    questions = {"data_subtype": "val2014", "questions": [{"question_id": 70, "image_id": 7, "question": "what?"}]}
    answers = [{"answer": a} for a in ("cat", "dog", "dog")]
    truth = {
        "question_id": 70, "answers": answers, "multiple_choice_answer": "cat", "answer_type": "other"
    }  # fmt: skip
    asked = written(tmp_path / "q.json", questions)
    (entry,) = read_dialogues(asked, written(tmp_path / "a.json", {"annotations": [truth]}))
    assert entry.images == ("COCO_val2014_000000000007.jpg",)
    assert entry.dialogue.turns == (Turn("what?", "cat", "other", ("cat", "dog", "dog")),)
    assert read_dialogues(asked)[0].dialogue.turns == (Turn("what?", ""),)
    with pytest.raises(ValueError, match=r"question 0: question_id 70 has no answer in .*b.json"):
        read_dialogues(asked, written(tmp_path / "b.json", {"annotations": []}))


def test_cocos_captions(tmp_path):
    content = {
        "images": [{"id": 3, "file_name": "x.jpg"}],
        "annotations": [{"image_id": 3, "caption": "a cat"}, {"image_id": 3, "caption": "one cat"}],
    }
    (entry,) = read_dialogues(written(tmp_path / "c.json", content))
    assert entry.images == ("x.jpg",)
    assert [t.answer for t in entry.dialogue.turns] == ["a cat", "one cat"]
    assert entry.dialogue.turns[0].others == ("a cat", "one cat")
    content["annotations"].append({"image_id": 4, "caption": "?"})
    with pytest.raises(ValueError, match="annotation 2: a caption, and the image_id of a listed picture"):
        read_dialogues(written(tmp_path / "c.json", content))


def test_captions_are_told_one_an_epoch(tmp_path):
    save_talk(tmp_path)
    written(tmp_path / "c.jsonl", [{"image": "red.png", "captions": ["a", "b", "c"]}])
    data = DialogueFiles(str(tmp_path), "c.jsonl", "c.jsonl", preprocessing=SEEN, workers=0)
    data.setup()
    assert [data.splits.train.load(0, epoch)[1].turns[0].answer for epoch in range(4)] == ["a", "b", "c", "a"]
    judged = data.splits.val.load(0, 0)[1].turns
    assert [(t.question, t.others) for t in judged] == [(CAPTION, ("a", "b", "c"))]


def test_questions_of_a_picture_share_a_dialogue(tmp_path):
    data = talk(tmp_path, turns=2, prompt="{} in one {short} word.")
    data.setup()
    images, dialogues = next(iter(data.train_dataloader()))
    assert [len(d.turns) for d in dialogues] == [2] * 4
    assert all(t.question.endswith(" in one {short} word.") for d in dialogues for t in d.turns)
    assert [tuple(x.shape for x in own) for own in images] == [((3, 16, 16),)] * 4
    assert [len(d.turns) for d in next(iter(data.val_dataloader()))[1]] == [1] * 4


def test_pictures_that_are_held_out_take_their_questions_along(tmp_path):
    data = talk(tmp_path, val=None, val_fraction=0.3)
    data.setup()
    train, val = ({e.images for e in s.entries} for s in (data.splits.train, data.splits.val))
    assert not train & val
    assert len(data.splits.train) + len(data.splits.val) == 8
    assert data.splits.test is data.splits.val


def test_pictures_keep_their_size_where_they_are_to_be_cut(tmp_path):
    data = talk(tmp_path, keep=True)
    data.setup()
    (image,) = next(iter(data.val_dataloader()))[0][0]
    assert image.shape == (3, 18, 20)
    assert image.dtype == torch.float32
    assert float(image.max()) <= 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", [{"image": "a.png"}], r"a.jsonl:1: has image; conversations, question and answer, or captions"),
        ("a.jsonl", [["x"]], "a.jsonl:1: a list, where an object"),
        ("a.jsonl", [{"image": "a.png", "question": "x", "answers": []}], "a.jsonl:1: question 'x' has no answer"),
        ("a.json", [{"conversations": [{"from": "human", "value": "x"}]}], "entry 0: the dialogue has no answer"),
        ("a.json", [{"conversations": [{"from": "gpt", "value": "x"}]}], "'x' of assistant is out of turn"),
        ("a.json", [{"conversations": [{"from": "cat", "value": "x"}]}], "from human or gpt"),
        ("a.json", {"cats": 1}, "neither a list of dialogues"),
    ],
)
def test_what_is_wrong_is_named(name, content, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        read_dialogues(written(tmp_path / name, content))


def test_files_that_are_none(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json: no JSON"):
        read_dialogues(tmp_path / "a.json")
    (tmp_path / "a.jsonl").write_text('{"image": "x"\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:1: no JSON"):
        read_dialogues(tmp_path / "a.jsonl")
    with pytest.raises(FileNotFoundError, match=r"b\.json"):
        read_dialogues(tmp_path / "b.json")
    with pytest.raises(ValueError, match="no file of dialogues is named"):
        DialogueFiles(str(tmp_path), preprocessing=SEEN).setup()
    with pytest.raises(ValueError, match=r"holds \{\} once"):
        DialogueFiles(str(tmp_path), prompt="what?")


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_an_unreadable_picture_stops_or_is_left_out(on_error, tmp_path):
    data = talk(tmp_path, on_error=on_error)
    (tmp_path / "green.png").write_bytes(b"no picture")
    data.setup()
    if on_error == "stop":
        with pytest.raises(UnreadableImage, match=r"green\.png"):
            list(data.val_dataloader())
        return
    batches = list(data.val_dataloader())
    assert sum(len(b[1]) for b in batches) == 6
    assert [Path(file).name for file in data.skipped] == ["green.png"]


@pytest.mark.parametrize(
    ("name", "files", "count"),
    [("daquar_mini", ("vqa_train.jsonl", "vqa_test.jsonl"), (1026, 229)),
     ("flickr8k_mini", ("captions_train.jsonl", "captions_test.jsonl"), (69, 11))],
)  # fmt: skip
def test_real_photographs_and_sentences(name, files, count):
    data = DialogueFiles(str(real(name)), files[0], None, files[1], val_fraction=0, batch_size=4, workers=0,
                         preprocessing={**SEEN, "crop_mode": "squash"})  # fmt: skip
    data.setup()
    assert (len(data.splits.train), len(data.splits.test)) == count
    images, dialogues = next(iter(data.test_dataloader()))
    assert all(own[0].shape == (3, 16, 16) for own in images)
    assert all(d.turns[0].answer for d in dialogues)
    assert Image.open(data.splits.train.name(0)).size[0] > 16
