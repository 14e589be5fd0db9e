"""Pictures a second out of class folders and out of shards: `python tests/benchmarks/shard_speed.py [--pictures N]`.

JPEG files of 256 x 256 pixels in the page cache, so what is compared is the way through the reader, not the disk: one
epoch of training pictures, in alternation, medians. It prints too what a shard costs to open.
"""

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path
from statistics import median

from PIL import Image

from patchloom.data.modules import FolderData
from patchloom.data.shapes import Shapes
from patchloom.data.shard_files import scan
from patchloom.data.shards import ShardsData
from patchloom.train.cli import main

CFG = {"input_size": (3, 224, 224), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "crop_pct": 1.0}


def write(root: Path, pictures: int) -> None:
    shapes = Shapes(pictures, (256, 256), "class", 0, "train")
    for i in range(pictures):
        sample = shapes.draw(i)
        file = root / "train" / shapes.classes[sample.label] / f"{i:06d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sample.image).save(file, quality=90)


def rate(data: FolderData | ShardsData, pictures: int) -> float:
    data.setup("fit")
    loader = data.train_dataloader()
    start = time.perf_counter()
    seen = sum(len(images) for images, _ in loader)
    spent = time.perf_counter() - start
    data.teardown()
    assert seen > pictures * 0.9
    return seen / spent


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    logging.getLogger("patchloom.data").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder) / "files", Path(folder) / "shards"
        write(root, args.pictures)
        start = time.perf_counter()
        main(["shards", str(root), str(out), "--shard", "512"])
        told = {"packed_per_second": round(args.pictures / (time.perf_counter() - start))}
        start = time.perf_counter()
        entries = scan(out / "train-000000.tar")
        told["milliseconds_to_open_a_shard"] = round(1e3 * (time.perf_counter() - start), 1)
        told["pictures_of_it"] = len(entries)
        for workers in args.workers:
            common = {"batch_size": 50, "workers": workers, "preprocessing": CFG, "augment": None}
            rates: dict[str, list[float]] = {"files": [], "shards": []}
            for _ in range(args.rounds):
                rates["files"].append(
                    rate(FolderData(str(root), val_fraction=0.0, cache=False, **common), args.pictures)
                )
                rates["shards"].append(rate(ShardsData(str(out), **common), args.pictures))
            told[f"workers_{workers}"] = {name: round(median(found)) for name, found in rates.items()}
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    run()
