"""Varied scenes stay true: masks lie on their objects, boxes around their masks, keypoints on their dots; what is lost
is counted."""

import albumentations as A
import numpy as np
import pytest
from albumentations.core.type_definitions import Targets

from patchloom.data.augment import Albumented, Colour, Fit, LargeScaleJitter, SemanticCrop, ShortestSide, crop, part
from patchloom.data.plain_scenes import DrawnScenes
from patchloom.data.scene import IGNORE, Category, Scene, objects, tight_boxes
from patchloom.data.shapes import Shapes

COLOURS = np.array([(250, 20, 20), (20, 250, 20), (20, 20, 250), (250, 250, 20)], np.uint8)
NAMES = ("nose", "left_eye", "right_eye", "left_ear", "right_ear")
WAYS = {
    "jitter": LargeScaleJitter(size=(61, 87), scale=(0.5, 2.0)),
    "jitter_small": LargeScaleJitter(size=(61, 87), scale=(0.3, 0.6)),
    "shortest": ShortestSide(shortest=(50, 64, 97), longest=140),
    "semantic": SemanticCrop(size=(48, 64), most=0.9),
    "whole": Fit(shortest=55, longest=70),
    "as_it_is": Fit(),
    "own": Albumented([A.VerticalFlip(p=0.5), A.Transpose(p=0.5), A.RandomCrop(50, 60, p=1), A.Resize(75, 66)]),
}


def blocks(height=96, width=130):
    """Four rectangles of plain colours that do not touch, grey ground; each with five keypoints on black dots."""
    image = np.full((height, width, 3), 120, np.uint8)
    boxes = [(8, 6, 40, 30), (60, 10, 110, 41), (15, 50, 52, 88), (70, 55, 121, 90)]
    masks, points = np.zeros((4, height, width), np.uint8), np.zeros((4, len(NAMES), 3), np.float32)
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        image[y0:y1, x0:x1], masks[i, y0:y1, x0:x1] = COLOURS[i], 1
        for k in range(len(NAMES)):
            points[i, k] = x0 + 4 + 5 * k, y0 + 4 + 3 * k, 2
    numbers = (masks * np.arange(1, 5, dtype=np.uint8)[:, None, None]).sum(0, dtype=np.uint8)
    return Scene(image, 7, objects(boxes, [1, 2, 1, 2], masks=masks, keypoints=points), numbers)


def categories():
    return [Category(1, "face", keypoints=NAMES), Category(2, "stone", keypoints=NAMES)]


@pytest.mark.parametrize("name", WAYS)
def test_masks_boxes_and_the_map_lie_on_their_objects(name):
    vary, scene, seen = WAYS[name].build(categories()), blocks(), 0
    for seed in range(12):
        made, dropped = vary(scene, seed)
        h, w = made.size
        found = made.objects
        assert made.image.shape == (h, w, 3)
        assert made.semantic.shape == (h, w)
        assert found.masks.shape == (len(found), h, w)
        assert len(found) + sum(dropped.values()) == 4
        assert found.boxes.min(initial=0) >= 0
        assert (found.boxes <= [w, h, w, h]).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        assert np.abs(found.boxes - tight_boxes(found.masks)).max(initial=0) <= 1
        for mask in found.masks.astype(bool):
            colour = np.median(made.image[mask], 0)
            which = int(np.abs(COLOURS.astype(int) - colour).sum(1).argmin())
            assert np.abs(COLOURS[which].astype(int) - colour).max() <= 8
            close = (np.abs(made.image.astype(int) - COLOURS[which]).max(-1) < 60).sum()
            assert 0.75 < (mask.sum() + 8) / (close + 8) < 1.34  # all of that colour, but for the border and the dots
            assert np.array_equal(made.semantic == which + 1, mask)
        seen += len(found)
    assert seen > 20


@pytest.mark.parametrize("name", WAYS)
def test_areas_follow(name):
    """Annotated areas, here of whole rectangles, become those of what is left."""
    vary, scene = WAYS[name].build(categories()), blocks()
    for seed in range(8):
        found = vary(scene, seed)[0].objects
        assert np.allclose(found.area, found.masks.sum((1, 2)), rtol=0.15, atol=12)


@pytest.mark.parametrize("name", [n for n in WAYS if n != "jitter_small"])
def test_keypoints_stay_on_their_dots(name):
    """Each keypoint of a picture with one white dot is where the dot went, and absent where the dot is gone."""
    vary, hits = WAYS[name].build(), 0
    for seed in range(40):
        x, y = 20 + 2 * seed, 75 - seed
        image = np.zeros((96, 130, 3), np.uint8)
        image[y - 4 : y + 5, x - 4 : x + 5] = 255
        scene = Scene(image, 0, objects([(2, 2, 128, 94)], [1], keypoints=[[[x, y, 2]]]))
        made, _ = vary(scene, seed)
        weight = made.image[..., 0].astype(float)
        (px, py, seen) = made.objects.keypoints[0, 0]
        if weight.sum() < 255 * 8:
            continue
        centre = (
            (weight.sum(0) @ np.arange(made.size[1])) / weight.sum(),
            (weight.sum(1) @ np.arange(made.size[0])) / weight.sum(),
        )
        if seen and 9 < centre[0] < made.size[1] - 10 and 9 < centre[1] < made.size[0] - 10:
            assert np.hypot(px - centre[0], py - centre[1]) < 0.6
            hits += 1
    assert hits >= 5


def test_left_and_right_change_places_in_a_mirror():
    scene = blocks()
    flip = Albumented([A.HorizontalFlip(p=1)]).build(categories())
    made = flip(scene, 0)[0].objects
    before, after = scene.objects.keypoints, made.keypoints
    for k, partner in enumerate([0, 2, 1, 4, 3]):
        assert np.allclose(after[:, k, 0], 129 - before[:, partner, 0])
        assert np.allclose(after[:, k, 1], before[:, partner, 1])
    turned = Albumented([A.HorizontalFlip(p=1), A.VerticalFlip(p=1)]).build(categories())(scene, 0)[0].objects
    assert np.allclose(turned.keypoints[..., 0], 129 - before[..., 0])  # turned by 180 degrees: left is left
    absent = before.copy()
    absent[0, 1] = 0
    made = flip(Scene(scene.image, 0, objects(scene.objects.boxes, [1, 2, 1, 2], keypoints=absent)), 0)[0].objects
    assert made.keypoints[0, 2].tolist() == [0, 0, 0]


def test_boxes_as_exact_as_float_is():
    scene = blocks()
    boxes = scene.objects.boxes + np.array([0.25, 0.5, -0.25, 0.125], np.float32)
    made = Fit(shortest=192).build()(Scene(scene.image, 0, objects(boxes, [1, 2, 1, 2])), 0)[0]
    assert made.size == (192, 260)
    assert np.allclose(made.objects.boxes, boxes * 2, atol=1e-4)
    assert np.allclose(made.objects.area, (boxes[:, 2:] - boxes[:, :2]).prod(1) * 4, rtol=1e-5)
    same = Fit().build()(scene, 0)[0]
    assert same.image is scene.image or np.array_equal(same.image, scene.image)
    assert np.allclose(same.objects.boxes, scene.objects.boxes, atol=1e-4)
    assert np.array_equal(same.objects.masks, scene.objects.masks)


def test_what_is_lost_is_counted_by_reason():
    image = np.zeros((100, 100, 3), np.uint8)
    boxes = [(0, 0, 40, 40), (70, 70, 90, 90), (49, 10, 90, 30), (10, 10, 11, 30), (30, 30, 60, 60)]
    masks = np.zeros((5, 100, 100), np.uint8)
    for m, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        m[y0:y1, x0:x1] = 1
    masks[4, :50, :50] = 0  # what is left of this box has no mask
    scene = Scene(image, 0, objects(boxes, [1] * 5, masks=masks))
    step = [A.Crop(0, 0, 50, 50)]
    made, dropped = Albumented(step, min_side=1.5, min_visible=0.1).build()(scene, 0)
    assert dropped == {"outside": 1, "mask": 1, "small": 2}
    assert made.objects.boxes.tolist() == [[0, 0, 40, 40]]
    bare = Scene(image, 0, objects(boxes, [1] * 5))
    assert Albumented(step, min_side=0.5, min_visible=0.1).build()(bare, 0)[1] == {"outside": 1, "hidden": 1}
    assert Albumented(step, min_side=0).build()(bare, 0)[1] == {"outside": 1}


def test_a_cut_box_shrinks_to_what_is_left_of_its_mask():
    masks = np.zeros((1, 100, 100), np.uint8)
    masks[0, 20:30, 10:40] = masks[0, 20:80, 60:90] = 1
    scene = Scene(np.zeros((100, 100, 3), np.uint8), 0, objects([(10, 20, 90, 80)], [1], masks=masks))
    made = Albumented([A.Crop(0, 0, 50, 100)]).build()(scene, 0)[0]
    assert made.objects.boxes.tolist() == [[10, 20, 40, 30]]
    masks[0, :, :50] = 0  # nothing of its mask is left, and with min_side 0 it is kept as it is
    made, dropped = Albumented([A.Crop(0, 0, 50, 100)], min_side=0).build()(scene, 0)
    assert made.objects.boxes.tolist() == [[10, 20, 50, 80]]
    assert dropped == {}
    assert Albumented([A.Crop(0, 0, 50, 100)]).build()(scene, 0)[1] == {"mask": 1}


def test_a_turned_box_shrinks_to_its_mask():
    scene = blocks()
    made = Albumented([A.Rotate((30, 30), p=1)]).build()(scene, 0)[0].objects
    assert len(made) == 4
    assert np.abs(made.boxes - tight_boxes(made.masks)).max() < 1  # never beyond the box around the turned one
    bare = Scene(scene.image, 0, objects(scene.objects.boxes, [1] * 4))
    around = Albumented([A.Rotate((30, 30), p=1)]).build()(bare, 0)[0].objects
    assert (around.boxes[:, :2] <= made.boxes[:, :2] + 1).all()
    assert (around.boxes[:, 2:] >= made.boxes[:, 2:] - 1).all()


@pytest.mark.parametrize("name", WAYS)
def test_no_objects_at_all(name):
    empty = objects([], [], masks=np.zeros((0, 96, 130), np.uint8), keypoints=np.zeros((0, 5, 3)))
    made, dropped = WAYS[name].build(categories())(Scene(blocks().image, 0, empty), 3)
    assert dropped == {}
    assert made.objects.boxes.shape == (0, 4)
    assert made.objects.masks.shape == (0, *made.size)
    assert made.objects.keypoints.shape == (0, 5, 3)
    alone, _ = WAYS[name].build()(Scene(blocks().image, 0), 3)
    assert np.array_equal(alone.image, made.image)


def test_draws_depend_on_the_seed_alone():
    scene, vary = blocks(), LargeScaleJitter(size=(64, 64), colour=Colour(probability=1)).build()
    first = [vary(scene, seed)[0] for seed in (5, 6)]
    vary(scene, 99)
    again = [LargeScaleJitter(size=(64, 64), colour=Colour(probability=1)).build()(scene, s)[0] for s in (5, 6)]
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.image, b.image)
        assert np.array_equal(a.objects.boxes, b.objects.boxes)
    assert first[0].image.shape != first[1].image.shape or not np.array_equal(first[0].image, first[1].image)


def test_steps_do_not_share_their_draws():
    """Mirroring and colour fall together as often as they fall apart: one generator goes through all steps."""
    image = np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 3, (48, 1, 3))
    vary = ShortestSide(shortest=(48,), hflip=0.5, colour=Colour(0.5, 0, 0, 0, probability=0.5)).build()
    seen = np.zeros((2, 2), int)
    for seed in range(200):
        made = vary(Scene(image, 0), seed)[0].image.astype(int)
        mirrored = made[0, 0, 0] > made[0, -1, 0]
        seen[int(mirrored), int(not np.array_equal(made[:, ::-1] if mirrored else made, image))] += 1
    assert seen.min() > 25


def test_scales_are_drawn_from_the_whole_span():
    how, r = LargeScaleJitter(size=(64, 64), scale=(0.1, 2.0)), np.random.default_rng(0)
    windows = [how.window(r, 480, 640, None) for _ in range(500)]
    factors = np.array([w.width / (w.x1 - w.x0) for w in windows]) / 0.1
    assert factors.min() < 0.15
    assert factors.max() > 1.9
    assert max(w.height for w in windows) <= 64
    assert len({w.x0 for w in windows}) > 50
    ends = {(w.x0, w.x1) for w in windows if w.width == 64}
    assert min(x0 for x0, _ in ends) < 20
    assert max(x1 for _, x1 in ends) > 620


@pytest.mark.parametrize(("side", "factor", "most"), [(1, 0.01, 64), (640, 0.001, 64), (7, 30.0, 64), (97, 0.66, 64)])
def test_part_of_a_side(side, factor, most):
    for seed in range(20):
        start, stop, length = part(np.random.default_rng(seed), side, factor, most)
        assert 0 <= start < stop <= side
        assert 1 <= length <= most
    window = crop(np.random.default_rng(0), side, 50, factor, (most, most))
    assert window.height == length


def test_a_crop_is_not_of_one_class():
    semantic = np.zeros((200, 200), np.uint8)
    semantic[:, 150:], semantic[:20] = 1, IGNORE
    scene, dull = Scene(np.zeros((200, 200, 3), np.uint8), 0, semantic=semantic), [0, 0]
    for i, most in enumerate((0.75, 1.0)):
        vary = SemanticCrop(size=(64, 64), scale=(1, 1), most=most).build()
        for seed in range(60):
            counts = np.bincount(vary(scene, seed)[0].semantic.ravel(), minlength=2)[:2]
            dull[i] += counts.max() > 0.75 * counts.sum()
    assert dull[0] < dull[1] / 3


def test_normalising_is_left_to_the_module():
    with pytest.raises(ValueError, match=r"make a ndarray of float32, \(96, 130, 3\) of a picture: leave normalising"):
        Albumented([A.Normalize()]).build()(blocks(), 0)


def test_wrong_arguments():
    for make, says in [
        (lambda: LargeScaleJitter(size=(0, 4)), r"size = \(0, 4\)"),
        (lambda: LargeScaleJitter(scale=(2, 1)), r"scale = \(2, 1\)"),
        (lambda: SemanticCrop(hflip=2), "hflip = 2"),
        (lambda: ShortestSide(shortest=()), "shortest = "),
    ]:
        with pytest.raises(ValueError, match=says):
            make()


def test_drawn_scenes():
    """The drawn pictures in boxes-and-masks mode, varied."""
    source = DrawnScenes(Shapes(6, (96, 128), "boxes"))
    assert [c.id for c in source.categories] == list(range(1, 11))
    vary = LargeScaleJitter(size=(64, 64), scale=(0.6, 1.6)).build()
    for i in range(6):
        scene = source.load(i)
        assert np.array_equal(scene.objects.boxes, tight_boxes(scene.objects.masks))
        assert scene.objects.labels.min() >= 1
        made, _ = vary(scene, i)
        assert np.abs(made.objects.boxes - tight_boxes(made.objects.masks)).max(initial=0) <= 1.5
    maps = DrawnScenes(Shapes(6, (96, 128), "boxes"), semantic=True)
    assert maps.classes[:2] == ["ground", "circle"]
    scene = maps.load(2)
    assert set(np.unique(scene.semantic).tolist()) == {0, *source.load(2).objects.labels.tolist()}
    with pytest.raises(ValueError, match="of task boxes"):
        DrawnScenes(Shapes(6))


def test_crops_carry_all_that_scenes_have():
    from patchloom.data.windows import CropScaled

    assert {Targets.IMAGE, Targets.MASK, Targets.BBOXES, Targets.KEYPOINTS} <= set(CropScaled._targets)
