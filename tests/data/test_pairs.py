"""Pictures with captions: drawn ones keep combinations from training, files give one caption an epoch."""

import json
from pathlib import Path

import pytest
import torch
from contrast_parts import PICTURES
from PIL import Image

from patchloom.data.pairs import HELD, CaptionFiles, PairedShapes
from patchloom.data.questions import named


def test_drawn_pictures_and_what_they_show() -> None:
    data = PairedShapes(40, 20, 20, batch_size=10, workers=0, preprocessing=PICTURES)
    data.setup("fit")
    data.setup("test")
    held = [named(pair) for pair in HELD]
    seen = {}
    for split in ("train", "val", "test"):
        said, images = [], []
        for x, captions in getattr(data, f"{split}_dataloader")():
            assert x.shape[1:] == (3, 32, 32)
            said += captions
            images += list(x)
        seen[split] = said
        assert len(said) == {"train": 40, "val": 20, "test": 20}[split]
        assert sum(" of " in c or " above " in c or " below " in c for c in said) == len(said) / 2
        shown = [any(h in c for h in held) for c in said]
        assert all(shown) if split == "test" else not any(shown)
    data.teardown()


def test_every_epoch_draws_anew_and_the_same_again() -> None:
    data = PairedShapes(4, 2, 2, batch_size=4, workers=0, preprocessing=PICTURES)
    data.setup("fit")
    loader = data.train_dataloader()
    epochs = [next(iter(loader)) for _ in range(2)]
    assert not torch.equal(epochs[0][0], epochs[1][0])
    again = PairedShapes(4, 2, 2, batch_size=4, workers=0, preprocessing=PICTURES)
    again.setup("fit")
    x, captions = next(iter(again.train_dataloader()))
    assert captions == epochs[0][1]
    torch.testing.assert_close(x, epochs[0][0])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i in range(4):
        Image.new("RGB", (40, 30), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    lines = [{"image": f"{i}.png", "captions": [f"picture {i}", f"number {i}"]} for i in range(4)]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    coco = {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(2)],
        "annotations": [{"image_id": i, "caption": f"picture {i} {n}"} for i in range(2) for n in range(3)],
    }
    (tmp_path / "captions_val.json").write_text(json.dumps(coco))
    return tmp_path


def test_files(root: Path) -> None:
    data = CaptionFiles(
        str(root), "captions.jsonl", val="captions_val.json", batch_size=4, workers=0, augment=None,
        preprocessing=PICTURES,
    )  # fmt: skip
    data.setup("fit")
    loader = data.train_dataloader()
    epochs = [sorted(next(iter(loader))[1]) for _ in range(2)]
    assert set(epochs[0]) | set(epochs[1]) == {f"{w} {i}" for w in ("picture", "number") for i in range(4)}
    _, said = next(iter(data.val_dataloader()))
    assert said == [[f"picture {i} {n}" for n in range(3)] for i in range(2)]


def test_a_part_is_held_out_whole(root: Path) -> None:
    data = CaptionFiles(str(root), "captions.jsonl", val_fraction=0.25, workers=0, preprocessing=PICTURES)
    data.setup("fit")
    names = [{source.name(i) for i in range(len(source))} for source in (data.splits.train, data.splits.val) if source]
    assert len(names[0]) == 3
    assert len(names[1]) == 1
    assert not names[0] & names[1]
    assert "held out for validation" in data.splits.notes[0]


def test_what_is_no_file_of_captions(root: Path) -> None:
    (root / "questions.jsonl").write_text(
        json.dumps({"image": "0.png", "conversations": [
            {"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"},
            {"from": "human", "value": "c?"}, {"from": "gpt", "value": "d"},
        ]})
    )  # fmt: skip
    for options, says in (
        ({"train": "questions.jsonl"}, "has questions: captions of a picture are due"),
        ({}, "no file of captions is named"),
    ):
        with pytest.raises(ValueError, match=says):
            CaptionFiles(str(root), **options, preprocessing=PICTURES).splits  # noqa: B018
    with pytest.raises(FileNotFoundError, match="captionz"):
        CaptionFiles(str(root), "captionz.jsonl", preprocessing=PICTURES).splits  # noqa: B018
    with pytest.raises(ValueError, match="at least 2"):
        PairedShapes(1)
