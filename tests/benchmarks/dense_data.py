"""How many varied pictures a second one worker process prepares for detection and segmentation.

    python tests/benchmarks/dense_data.py [--data ../shared/data] [--rows instance …] [--size 512] [--seconds 10]

Prints one JSON object a row: `images_per_second`, by the clock, from one worker process whose batches this one only
takes; `cpu_images_per_second`, by that process's processor time, which says more on a busy machine; objects a picture.
The issue's bound is 40 at 512 pixels. `stock` varies as `instance` does, by albumentations' own scaling and cropping.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import albumentations as A
import cv2
import torch

from patchloom.data.dense_modules import (
    Albumented,
    CocoData,
    Colour,
    DenseImages,
    LargeScaleJitter,
    PennFudanData,
    SegmentationData,
    SemanticCrop,
    ShortestSide,
)

IMAGENET = {"input_size": (3, 224, 224), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def jitter(size: int) -> LargeScaleJitter:
    return LargeScaleJitter(size=(size, size), colour=Colour())


def stock(size: int) -> Albumented:
    steps = [
        A.LongestMaxSize(size),
        A.RandomScale((-0.9, 1.0), p=1),
        A.PadIfNeeded(size, size),
        A.RandomCrop(size, size),
        A.HorizontalFlip(p=0.5),
        Colour().step(),
    ]
    return Albumented(steps)


def rows(root: Path, size: int) -> dict[str, DenseImages]:
    """Each row's data, made when it is asked for."""
    settings = {"batch_size": 8, "preprocessing": IMAGENET}
    coco, people, roads = str(root / "coco_mini"), str(root / "penn_fudan"), str(root / "camvid_mini")
    whole = ShortestSide(shortest=(size,), longest=2 * size)
    crop = SemanticCrop(size=(size, size), shortest=size, longest=4 * size, colour=Colour())
    return {
        "boxes": CocoData(coco, "detection", augment=jitter(size), **settings),
        "instance": CocoData(coco, "instance", augment=jitter(size), **settings),
        "panoptic": CocoData(coco, "panoptic", augment=jitter(size), **settings),
        "shortest": CocoData(coco, "instance", augment=whole, **settings),
        "bccd": CocoData(str(root / "bccd"), augment=jitter(size), **settings),
        "penn_fudan": PennFudanData(people, augment=jitter(size), **settings),
        "camvid": SegmentationData(roads, augment=crop, **settings),
        "stock": CocoData(coco, "instance", augment=stock(size), **settings),
    }


def rate(data: DenseImages, seconds: float) -> tuple[float, float, float]:
    """Pictures a second by the clock, after one epoch to warm up, and by the worker's processor time; objects a
    picture."""
    data.setup("fit")
    loader, before = data.train_dataloader(), worker_time()
    total = count = objects = 0
    start = float("inf")
    while time.perf_counter() - start < seconds:
        for images, targets in loader:
            total += len(images)
            if start < float("inf"):
                count += len(images)
                objects += sum(len(t["boxes"]) for t in targets) if isinstance(targets, list) else 0
        start = min(start, time.perf_counter())
    clock = time.perf_counter() - start
    loader.close()  # it has now been waited for, and its time is known
    return count / clock, total / (worker_time() - before), objects / count


def worker_time() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--rows", nargs="*", metavar="ROW", help="(all)")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    made = rows(args.data, args.size)
    for name in args.rows or made:
        made[name].workers = 1
        clock, cpu, objects = rate(made[name], args.seconds)
        numbers = {"images_per_second": round(clock, 1), "cpu_images_per_second": round(cpu, 1)}
        print(json.dumps({"row": name, "size": args.size, **numbers, "objects": round(objects, 1)}), flush=True)


if __name__ == "__main__":
    main()
