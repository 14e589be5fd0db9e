"""Several images in one canvas: which rows and columns, what panels are called, and that cutting undoes composing."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from patchloom.data.panels import Layout, PanelsData

PIXELS = {"input_size": (3, 32, 64), "mean": (0.5,) * 3, "std": (0.5,) * 3}


def picture(seed: int, size: tuple[int, int] = (40, 36)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8))


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [
        (2, (1, 1), (1, 2)), (3, (1, 1), (1, 3)), (4, (1, 1), (2, 2)), (6, (1, 1), (2, 3)), (12, (1, 1), (3, 4)),
        (2, (1, 2), (2, 1)), (3, (512, 1536), (3, 1)), (6, (1, 2), (3, 2)), (5, (1, 1), (1, 5)),
    ],
)  # fmt: skip
def test_the_canvas_is_as_square_as_may_be(count, size, expected):
    assert Layout.of(count, size) == Layout(*expected)


@pytest.mark.parametrize(
    ("layout", "tags"),
    [
        ((1, 2), "[LEFT] [RIGHT]"),
        ((3, 1), "[TOP] [MIDDLE] [BOTTOM]"),
        ((2, 2), "[TOP-LEFT] [TOP-RIGHT] [BOTTOM-LEFT] [BOTTOM-RIGHT]"),
        ((1, 4), "[PANEL-1] [PANEL-2] [PANEL-3] [PANEL-4]"),
    ],
)
def test_panels_are_called_by_their_place(layout, tags):
    made = Layout(*layout)
    assert " ".join(made.tags()) == tags
    captions = [f"view {i}" for i in range(made.count)]
    expected = " ".join(f"{tag} {text}" for tag, text in zip(tags.split(), captions, strict=True))
    assert made.caption(captions, "one thing.") == f"one thing. {expected}"
    with pytest.raises(ValueError, match=f"1 panels for a canvas of {layout[0]} x {layout[1]}"):
        made.caption(["one"])


def test_cutting_undoes_composing():
    layout = Layout(2, 3)
    panels = [picture(i, (16, 20)) for i in range(6)]
    canvas = torch.from_numpy(np.array(layout.composed(panels, (32, 60)))).permute(2, 0, 1)
    for part, panel in zip(layout.cut(canvas), panels, strict=True):
        assert np.array_equal(part.permute(1, 2, 0).numpy(), np.asarray(panel))
    with pytest.raises(ValueError, match="a canvas of 32 x 61 cannot be cut into 2 x 3 panels"):
        layout.cut(canvas.new_zeros(3, 32, 61))
    with pytest.raises(ValueError, match="panels 1 x 1: at least two"):
        Layout(1, 1)


def test_what_is_not_given_is_grey_and_to_be_made():
    layout = Layout(2, 2)
    canvas, keep = layout.canvas([picture(0, (8, 8)), picture(1, (8, 8))], (16, 16))
    assert keep[:8].all()
    assert not keep[8:].any()
    assert (canvas[:, 8:] == 127).all()
    assert np.array_equal(canvas[:, :8, 8:].permute(1, 2, 0).numpy(), np.asarray(picture(1, (8, 8))))


def write(root, name: str, sets: list) -> None:
    for i in range(4):
        picture(i).save(root / f"{i}.png")
    (root / name).write_text("\n".join(json.dumps(s) for s in sets) + "\n")


def test_sets_come_as_canvases_with_captions(tmp_path):
    sets = [
        {"images": ["0.png", "1.png"], "captions": ["a cat", "the cat asleep"], "caption": "a cat twice."},
        {"images": ["2.png", "3.png"]},
    ]
    write(tmp_path, "panels.jsonl", sets)
    data = PanelsData(str(tmp_path), batch_size=2, workers=0, preprocessing=PIXELS)
    data.setup("fit")
    (x, captions), *rest = data.train_dataloader()
    assert rest == []
    assert x.shape == (2, 3, 32, 64)
    assert -1 <= x.min() < x.max() <= 1
    at = captions.index("a cat twice. [LEFT] a cat [RIGHT] the cat asleep")
    assert captions[1 - at] == "[LEFT] [RIGHT]"
    expected = np.array(Layout(1, 2).composed([picture(0), picture(1)], (32, 64))) / 127.5 - 1
    torch.testing.assert_close(x[at], torch.from_numpy(expected).float().permute(2, 0, 1))
    assert data.classes == []
    assert data.val_dataloader() == []


def test_splits_are_files(tmp_path):
    for split, first in (("train", 0), ("val", 2)):
        write(tmp_path, f"panels_{split}.jsonl", [{"images": [f"{first}.png", f"{first + 1}.png"]}])
    data = PanelsData(str(tmp_path), batch_size=1, workers=0, preprocessing=PIXELS)
    data.setup("fit")
    assert len(data.train_dataloader()) == len(data.val_dataloader()) == 1


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("{", {}, r"panels.jsonl:1: no JSON"),
        ('{"imges": []}', {}, r"panels.jsonl:1: unknown 'imges': did you mean images"),
        ('{"images": ["0.png"]}', {}, r"1 images and 1 captions: as many, at least two"),
        ('{"images": ["0.png", "1.png"], "captions": ["a"]}', {}, r"2 images and 1 captions"),
        ("", {}, "no sets of images in it"),
        ('{"images": ["0.png", "1.png"]}', {"rows": 1, "columns": 3}, "sets of 2 images, and 3 is wanted for all"),
        ('{"images": ["0.png", "1.png"]}', {"rows": 1}, "rows = 1, columns = None: give both or none"),
        ('{"images": ["0.png", "1.png", "2.png"]}', {}, "a canvas of 32 x 64 cannot be cut into 1 x 3 panels"),
    ],
)
def test_wrong_files_are_refused_by_line(tmp_path, text, options, says):
    (tmp_path / "panels.jsonl").write_text(text)
    with pytest.raises(ValueError, match=says):
        PanelsData(str(tmp_path), preprocessing=PIXELS, **options).setup("fit")


def test_an_empty_folder_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"it has no panels.jsonl, nor panels_train.jsonl"):
        PanelsData(str(tmp_path), preprocessing=PIXELS).setup("fit")
