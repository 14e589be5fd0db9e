"""Panoptic quality against its definition in plain loops and torchmetrics; patchloom eval panoptic."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from real_data import real
from torchmetrics.detection import PanopticQuality

from patchloom.data.coco_panoptic import read_segment_ids
from patchloom.train.cli import main
from patchloom.train.evaluation.dense_metrics import PanopticScores
from patchloom.train.evaluation.panoptic_quality import Panorama, Segment, compare, drawn, mean, nothing, qualities

Capture = pytest.CaptureFixture[str]
K = 4


def panorama(r: np.random.Generator, crowds: bool, size: tuple[int, int] = (24, 30), cells: int = 9) -> Panorama:
    """Random patches of segments; some pixels void, some segments crowds."""
    seeds = r.random((cells, 2)) * size
    y, x = np.mgrid[: size[0], : size[1]]
    nearest = ((y - seeds[:, 0, None, None]) ** 2 + (x - seeds[:, 1, None, None]) ** 2).argmin(0)
    ids = np.r_[0, r.choice(2**24, cells - 1, replace=False) + 1][nearest]
    segments = {
        int(i): Segment(int(r.integers(K)), crowds and bool(r.random() < 0.2)) for i in np.unique(ids) if i != 0
    }
    return Panorama(ids, segments)


def disturbed(r: np.random.Generator, true: Panorama) -> Panorama:
    """The same with shifted borders, merged segments and wrong categories; no crowds."""
    ids = np.roll(true.ids, tuple(r.integers(-3, 4, 2)), (0, 1))
    listed = sorted(true.segments)
    if len(listed) > 2:
        ids = np.where(ids == listed[0], listed[1], ids)
    segments = {
        i: Segment(int(r.integers(K)) if r.random() < 0.2 else true.segments[i].category)
        for i in np.unique(ids).tolist()
        if i != 0
    }
    return Panorama(ids, segments)


def plainly(true: Panorama, found: Panorama) -> dict[int, list[float]]:
    """category -> [iou, matched, extra, missed], by the text of the paper and of COCO's rules."""
    out = {k: [0.0, 0, 0, 0] for k in range(K)}
    void = true.ids == 0
    done_true, done_found = set(), set()
    for i, a in true.segments.items():
        for j, b in found.segments.items():
            if a.crowd or a.category != b.category:
                continue
            here, there = true.ids == i, found.ids == j
            both = (here & there).sum()
            iou = both / (here.sum() + there.sum() - both - (void & there).sum())
            if iou > 0.5:
                out[a.category][0] += iou
                out[a.category][1] += 1
                done_true.add(i)
                done_found.add(j)
    for i, a in true.segments.items():
        out[a.category][3] += not a.crowd and i not in done_true
    for j, b in found.segments.items():
        there = found.ids == j
        excused = void & there
        for i, a in true.segments.items():
            if a.crowd and a.category == b.category:
                excused = excused | ((true.ids == i) & there)
        out[b.category][2] += j not in done_found and excused.sum() / there.sum() <= 0.5
    return out


@pytest.mark.parametrize("seed", range(8))
def test_the_definition_in_plain_loops(seed: int) -> None:
    r = np.random.default_rng(seed)
    true = panorama(r, crowds=True)
    found = disturbed(r, true)
    ours = compare(true, found, K)
    for k, expected in plainly(true, found).items():
        assert [float(v[k]) for v in vars(ours).values()] == pytest.approx(expected)


def test_torchmetrics_over_several_pictures() -> None:
    """Without crowds, which it does not know, and without void in what was found, which it excuses unlike COCO."""
    r = np.random.default_rng(0)
    theirs = PanopticQuality(
        things={1, 2}, stuffs={3, 4}, allow_unknown_preds_category=True, return_per_class=True, return_sq_and_rq=True
    )
    ours = PanopticScores([True, True, False, False])
    for _ in range(12):
        true = panorama(r, crowds=False)
        found = disturbed(r, true)
        found.ids[found.ids == 0] = min(found.segments)
        for p in (true, found):  # torchmetrics merges segments of one category of stuff
            for i, s in p.segments.items():
                first = min(j for j, t in p.segments.items() if t.category == s.category)
                if s.category > 1:
                    p.ids[p.ids == i] = first
            for i in set(p.segments) - set(np.unique(p.ids).tolist()):
                del p.segments[i]
        theirs.update(coloured(found), coloured(true))
        ours.update(true, found)
    expected = theirs.compute()  # (K, 3)
    found = ours.categories()
    assert [(q.pq, q.sq, q.rq) for q in found] == [pytest.approx(row.tolist(), rel=1e-5) for row in expected]
    numbers = ours.compute()
    assert float(numbers["pq"]) == pytest.approx(float(expected[:, 0].mean()), rel=1e-5)
    assert float(numbers["pq_things"]) == pytest.approx(float(expected[:2, 0].mean()), rel=1e-5)
    assert float(numbers["pq_stuff"]) == pytest.approx(float(expected[2:, 0].mean()), rel=1e-5)


def coloured(p: Panorama) -> torch.Tensor:
    """(1, H, W, 2): category from 1 (0 is void), instance."""
    category = np.zeros_like(p.ids)
    for i, s in p.segments.items():
        category[p.ids == i] = s.category + 1
    return torch.from_numpy(np.stack((category, p.ids), -1))[None]


def test_nothing_is_no_number() -> None:
    assert qualities(nothing(3)) == [None] * 3
    assert mean([None]) is None


def test_a_picture_that_does_not_fit_its_list() -> None:
    ids = np.array([[0, 1], [1, 2]])
    metric = PanopticScores([True])
    with pytest.raises(ValueError, match=r"the truth: segments \[2\] are drawn and not listed"):
        metric.update(Panorama(ids, {1: Segment(0)}), Panorama(ids, {1: Segment(0), 2: Segment(0)}))
    with pytest.raises(ValueError, match=r"the prediction: segments \[7\] are listed and not drawn"):
        metric.update(Panorama(ids, {1: Segment(0), 2: Segment(0)}), Panorama(ids, {i: Segment(0) for i in (1, 2, 7)}))


def test_masks_become_a_panorama() -> None:
    masks = np.zeros((3, 4, 5), bool)
    masks[0, :2], masks[1, 1:, 1:], masks[2, 2:] = True, True, True
    found = drawn(masks, [2, 0, 1], [False, True, False])
    assert found.segments == {1: Segment(2), 2: Segment(0, True), 3: Segment(1)}
    assert found.ids.tolist() == [[1, 1, 1, 1, 1], [1, 2, 2, 2, 2], [3] * 5, [3] * 5]
    assert found.fault() is None
    masks[2] = True
    assert drawn(masks, [2, 0, 1]).segments == {3: Segment(1)}


# ---- the command


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """true.json and found.json with their folders of PNG files: four pictures of two sizes."""
    r = np.random.default_rng(1)
    documents: list[dict[str, Any]] = [{"images": [], "annotations": [], "categories": []} for _ in range(2)]
    documents[0]["categories"] = [{"id": 5 + 3 * k, "name": f"kind {k}", "isthing": int(k < 2)} for k in range(K)]
    for i in range(4):
        true = panorama(r, crowds=True, size=(24, 30) if i % 2 else (33, 21))
        documents[0]["images"].append(
            {"id": i, "file_name": f"{i}.jpg", "height": true.ids.shape[0], "width": true.ids.shape[1]}
        )
        for document, p, name in zip(documents, (true, disturbed(r, true)), ("true", "found"), strict=True):
            (tmp_path / name).mkdir(exist_ok=True)
            draw(p.ids, tmp_path / name / f"{i}.png")
            parts = [
                {"id": j, "category_id": 5 + 3 * s.category, "iscrowd": int(s.crowd)} for j, s in p.segments.items()
            ]
            document["annotations"].append({"image_id": i, "file_name": f"{i}.png", "segments_info": parts})
    for document, name in zip(documents, ("true", "found"), strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    return tmp_path / "true.json", tmp_path / "found.json"


def draw(ids: np.ndarray, file: Path) -> None:
    Image.fromarray(np.stack((ids % 256, ids // 256 % 256, ids // 65536), -1).astype(np.uint8)).save(file)


def judged(capsys: Capture, annotations: Path, results: Path, *more: str) -> dict[str, Any]:
    assert (
        main(["eval", "panoptic", "--annotations", str(annotations), "--results", str(results), "--json", *more]) == 0
    )
    return json.loads(capsys.readouterr().out)


def refused(capsys: Capture, annotations: Path, results: Path) -> str:
    assert main(["eval", "panoptic", "--annotations", str(annotations), "--results", str(results)]) == 1
    return capsys.readouterr().err


def load(folder: Path, row: dict[str, Any]) -> Panorama:
    parts = {s["id"]: Segment((s["category_id"] - 5) // 3, bool(s["iscrowd"])) for s in row["segments_info"]}
    return Panorama(read_segment_ids(folder / row["file_name"]), parts)


def test_the_command_adds_up_pictures(files: tuple[Path, Path], capsys: Capture) -> None:
    documents = [json.loads(file.read_text()) for file in files]
    sums = {k: np.zeros(4) for k in range(K)}
    for a, b in zip(documents[0]["annotations"], documents[1]["annotations"], strict=True):
        for k, counts in plainly(load(files[0].with_suffix(""), a), load(files[1].with_suffix(""), b)).items():
            sums[k] += counts
    quality = [iou / (m + e / 2 + f / 2) for iou, m, e, f in sums.values()]
    ours = judged(capsys, *files)
    assert [ours["per_category"][f"kind {k}"]["pq"] for k in range(K)] == pytest.approx(quality)
    assert ours["all"]["pq"] == pytest.approx(np.mean(quality))
    assert ours["things"]["pq"] == pytest.approx(np.mean(quality[:2]))
    assert ours["stuff"]["pq"] == pytest.approx(np.mean(quality[2:]))
    assert main(["eval", "panoptic", "--annotations", str(files[0]), "--results", str(files[1]), "--per-category"]) == 0
    assert f"{100 * np.mean(quality):.1f}" in capsys.readouterr().out


def test_real_annotations_against_themselves(capsys: Capture) -> None:
    file = real("coco_mini") / "annotations" / "panoptic_val2017.json"
    ours = judged(capsys, file, file)
    assert (ours["all"]["pq"], ours["images"]) == (1, 16)
    assert ours["notes"] == []  # the areas of the file are those of its PNG files


def test_wrong_input(files: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    true, found = files
    good = json.loads(found.read_text())

    def changed(change: Any) -> Path:
        document = copy.deepcopy(good)
        change(document)
        found.write_text(json.dumps(document))
        return found

    error = refused(capsys, true, changed(lambda d: d["annotations"].pop(1)))
    assert "no segments for 1 of 4 images (1.jpg)" in error
    error = refused(capsys, true, changed(lambda d: d["annotations"][0]["segments_info"][0].update(category_id=99)))
    assert "1 segments are of categories that" in error
    assert "category_id 99" in error
    error = refused(capsys, true, changed(lambda d: d["annotations"][2]["segments_info"].pop()))
    assert "1 PNG files don't fit their lists, the first:" in error
    assert "drawn and not listed" in error
    error = refused(capsys, true, changed(lambda d: d["annotations"].append(d["annotations"][0])))
    assert "1 image ids stand there more than once" in error
    assert "no list 'annotations'" in refused(capsys, true, changed(lambda d: d.pop("annotations")))
    changed(lambda d: d["annotations"].append({"image_id": 70, "file_name": "", "segments_info": []}))
    assert any("1 images of the results are not annotated" in n for n in judged(capsys, true, found)["notes"])
    draw(np.zeros((5, 6), int), tmp_path / "found" / "0.png")
    assert "5x6 pixels, the image has 33x21" in refused(capsys, true, found)
    (tmp_path / "found" / "0.png").unlink()
    assert "0.png" in refused(capsys, true, found)
