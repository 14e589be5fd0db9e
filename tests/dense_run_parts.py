"""Small detectors and segmenters as a recipe names them, a run of theirs, and a folder of pictures in COCO's layout."""

import json

import lightning as L
import numpy as np
import torch
from PIL import Image
from vision_tiny import tiny_pyramid

from patchloom.data.dense_modules import DrawnData
from patchloom.train.detect import Detect
from patchloom.vision.heads.detection import FCOS, MaskRCNN
from patchloom.vision.heads.mask2former import Mask2Former
from patchloom.vision.heads.mask_losses import MaskLosses
from patchloom.vision.heads.mask_tasks import InstanceSegmenter, PanopticSegmenter, SemanticSegmenter, Sure
from patchloom.vision.heads.semantic import SemanticFpn, UPerNet


def fcos(classes=10, name="swin_tiny", **options):
    return FCOS(tiny_pyramid(name), classes, dim=64, **options)


def mask_rcnn(classes=10, name="swin_tiny", **options):
    return MaskRCNN(tiny_pyramid(name), classes, dim=32, hidden=32, **options)


def upernet(classes=11, name="swin_tiny", **options):
    return UPerNet(tiny_pyramid(name), classes, **{"width": 16, "auxiliary": 8} | options)


def semantic_fpn(classes=11, name="swin_tiny", **options):
    return SemanticFpn(tiny_pyramid(name), classes, **{"width": 16, "out": 8} | options)


def mask2former(classes, name="swin_tiny"):
    return Mask2Former(tiny_pyramid(name), classes, queries=10, dim=32, heads=4, encoder_depth=2, decoder_depth=1)


def instances_by_masks(classes=10, **options):
    return InstanceSegmenter(mask2former(classes), MaskLosses(points=64), **options)


def semantic_by_masks(classes=11, **options):
    return SemanticSegmenter(mask2former(classes), MaskLosses(points=64), **options)


def panoptic_by_masks(classes=3, **options):
    """Of which every query that is no nothing is a segment, as of a network that has learnt."""
    limits = {"limits": Sure(score=0.0, overlap=0.0)}
    return PanopticSegmenter(mask2former(classes), losses=MaskLosses(points=64), **limits | options)


def drawn(semantic=False, **options):
    lengths = {"train_length": 4, "val_length": 2, "test_length": 6}
    return DrawnData(**{"size": (64, 96), "semantic": semantic, "batch_size": 2, "workers": 0} | lengths | options)


def trainer(folder, steps=2, **options):
    return L.Trainer(
        **{
            "max_steps": steps, "limit_val_batches": 1, "limit_test_batches": 1, "accelerator": "cpu", "logger": False,
            "default_root_dir": folder, "enable_progress_bar": False, "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        } | options
    )  # fmt: skip


def fitted(module, folder, steps=2, data=None, **options):
    """The trainer, after a few steps; last.ckpt is in the folder."""
    torch.manual_seed(0)
    made = trainer(folder, steps, **options)
    made.fit(module, drawn(not isinstance(module, Detect)) if data is None else data)
    made.save_checkpoint(folder / "last.ckpt")
    return made


def coco_folder(
    root, splits=("train", "val"), count=4, size=(96, 128), categories=((7, "circle"), (3, "square")), side=44
):
    """Pictures with a filled square each, COCO's ids and names in an order of their own."""
    (root / "annotations").mkdir(parents=True)
    (root / "images").mkdir()
    h, w = size
    for s, split in enumerate(splits):
        images, rows = [], []
        for i in range(count):
            number = 100 * (s + 1) + i
            picture = np.full((h, w, 3), 90, np.uint8)
            x, y, tall = 8 + 7 * i % 24, 10 + 3 * i % 12, side - 4
            picture[y : y + tall, x : x + side] = (200, 40 * i % 256, 30)
            Image.fromarray(picture).save(root / "images" / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "height": h, "width": w})
            polygon = [x, y, x + side, y, x + side, y + tall, x, y + tall]
            rows.append({"id": number, "image_id": number, "category_id": categories[i % len(categories)][0],
                         "bbox": [x, y, side, tall], "area": side * tall, "iscrowd": 0,
                         "segmentation": [polygon]})  # fmt: skip
        content = {"images": images, "annotations": rows,
                   "categories": [{"id": i, "name": name} for i, name in categories]}  # fmt: skip
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def panoptic_folder(
    root, splits=("train", "val"), count=4, size=(64, 96),
    categories=((7, "circle", 1), (3, "square", 1), (9, "sky", 0)),
):  # fmt: skip
    """Pictures of two squares, each a thing, on ground that is stuff above and void at the lower edge; COCO's layout of
    panoptic annotations, categories (id, name, thing)."""
    (root / "annotations").mkdir(parents=True)
    (root / "images").mkdir()
    h, w = size
    stuff = next(i for i, _, thing in categories if not thing)
    for s, split in enumerate(splits):
        (root / "annotations" / f"panoptic_{split}").mkdir()
        images, rows = [], []
        for i in range(count):
            number, ids = 100 * (s + 1) + i, np.full((h, w), 300)
            ids[-8:] = 0
            for k in (0, 1):
                ids[8 + i % 4 * 2 : h // 2 + i % 4 * 2, 4 + w // 2 * k : w // 2 - 8 + w // 2 * k] = 7 + k
            picture = np.full((h, w, 3), 90, np.uint8)
            picture[ids == 7], picture[ids == 8] = (200, 40, 30), (30, 40, 200)
            Image.fromarray(picture).save(root / "images" / f"{number}.png")
            colours = np.stack([ids % 256, ids // 256, 0 * ids], -1).astype(np.uint8)
            Image.fromarray(colours).save(root / "annotations" / f"panoptic_{split}" / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "height": h, "width": w})
            listed = [(300, stuff), *((7 + k, categories[(i + k) % len(categories)][0]) for k in (0, 1))]
            segments = [{"id": n, "category_id": c, "iscrowd": 0, "area": int((ids == n).sum())} for n, c in listed]
            rows.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
        named = [{"id": i, "name": name, "isthing": thing} for i, name, thing in categories]
        content = {"images": images, "annotations": rows, "categories": named}
        (root / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(content))
    return root


def fake_ade20k(root, classes=3, published=True, count=20):
    """Pictures with maps of classes as ADE20K has them (class k is written as k + 1), or from 0 in folders of masks."""
    splits = ("training", "validation") if published else ("train", "test")
    maps = "annotations" if published else "masks"
    for split in splits:
        for kind in ("images", maps):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            r = np.random.default_rng(i)
            Image.fromarray(r.integers(0, 255, (48, 80, 3), dtype=np.uint8)).save(root / "images" / split / f"{i}.png")
            found = r.integers(0, classes + published, (6, 10), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            Image.fromarray(found).save(root / maps / split / f"{i}.png")
    names = {"classes": [f"class {k}" for k in range(classes)], "ignore_index": 255}
    (root / "classes.json").write_text(json.dumps(names))
    return root
