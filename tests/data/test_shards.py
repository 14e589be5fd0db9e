"""Shards: what was packed is what is read, in an order that keeps few files in use and that processes can share."""

import functools
import http.server
import io
import json
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from patchloom.data.loader import Order
from patchloom.data.read import UnreadableImage
from patchloom.data.shard_files import ShardIndex, scan
from patchloom.data.shards import Shards, ShardsData
from patchloom.train.cli import main

CFG = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "crop_pct": 1.0}
CLASSES = ["ash", "birch", "elm"]


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (value, 255 - value, 7)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def trees(tmp_path_factory) -> Path:
    """90 pictures for training and 14 for validation, each of a colour of its own."""
    root = tmp_path_factory.mktemp("trees")
    for split, count, first in (("train", 90, 0), ("val", 14, 150)):
        for i in range(count):
            file = root / split / CLASSES[i % 3] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(first + i))
    return root


@pytest.fixture(scope="module")
def packed(trees, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "out"
    assert main(["shards", str(trees), str(out), "--shard", "8"]) == 0
    return out


def data(root: Path | str, **options) -> ShardsData:
    options = {"batch_size": 8, "workers": 0, "preprocessing": CFG, "lanes": 2, "mix": 2, "augment": None} | options
    return ShardsData(str(root), **options)


def colours(loader) -> list[tuple[int, int]]:
    """(red, class) of each picture, in order."""
    return [
        (round((float(x[0, 0, 0]) + 1) * 127.5), int(y))
        for images, targets in loader
        for x, y in zip(images, targets, strict=True)
    ]


def test_every_picture_comes_once_with_its_class(packed):
    module = data(packed)
    module.setup()
    assert module.classes == CLASSES
    assert sorted(colours(module.val_dataloader())) == [(150 + i, i % 3) for i in range(14)]
    first, second = (colours(module._loader("train", module.splits.train, train=False)) for _ in range(2))
    assert first == second
    assert sorted(first) == [(i, i % 3) for i in range(90)]
    loader = module.train_dataloader()
    epochs = [colours(loader), colours(loader)]
    assert epochs[0] != epochs[1]
    assert [len(set(epoch)) for epoch in epochs] == [88, 88]  # whole batches


def test_packing_again_writes_nothing_and_mends_what_is_broken(trees, packed, capsys):
    shard = packed / "train-000003.tar"
    before, times = shard.read_bytes(), {path.name: path.stat().st_mtime_ns for path in packed.glob("*.tar")}
    shard.write_bytes(before[:512])
    main(["shards", str(trees), str(packed), "--shard", "8", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["pictures"] == {"train": 90, "val": 14}
    assert told["shards"] == 14
    assert shard.read_bytes() == before
    assert {name: t for name, t in times.items() if (packed / name).stat().st_mtime_ns != t}.keys() == {shard.name}


def test_webdataset_reads_ours_and_we_read_its(packed, tmp_path, capsys):
    urls = [str(path) for path in sorted(packed.glob("val-*.tar"))]
    rows = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("png", "cls"))
    assert sorted((np.asarray(image)[0, 0, 0], target) for image, target in rows) == [
        (150 + i, i % 3) for i in range(14)
    ]
    for split in ("train", "validation"):
        with webdataset.ShardWriter(str(tmp_path / f"wds-{split}-%04d.tar"), maxcount=5, verbose=0) as writer:
            for i in range(12):
                writer.write({"__key__": f"n{i}/{i:04d}", "png": png(i), "cls": i % 2, "json": {"i": i}})
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    assert main(["shards", "--index", str(tmp_path), "--classes", str(tmp_path / "names.txt")]) == 0
    module = data(tmp_path)
    module.setup()
    assert module.classes == ["one", "two"]
    assert sorted(colours(module.val_dataloader())) == [(i, i % 2) for i in range(12)]
    assert len(module.splits.train) == 12


@pytest.mark.parametrize("lanes", [1, 2, 3, 7])
def test_the_order_is_of_all_pictures_and_uses_few_shards(lanes, packed):
    shards = Shards(
        [(f"train-{i:06d}.tar", 8 if i < 11 else 2) for i in range(12)], CLASSES, str(packed), lanes, 2, packed, 0
    )
    order = shards.arrange(5)
    assert sorted(order.tolist()) == list(range(90))
    assert not torch.equal(order, shards.arrange(6))
    assert torch.equal(order, shards.arrange(5))
    of = torch.from_numpy(np.searchsorted(shards.ends, order.numpy(), "right"))
    in_use = [set(of[i : i + 8].tolist()) for i in range(0, 80, 8)]
    assert max(map(len, in_use)) <= lanes * 3
    assert len(shards.arrange(None)) == 90


def test_two_processes_read_shards_of_their_own_and_what_one_reads():
    shards = [(f"{i}.tar", 10) for i in range(16)]
    source = Shards.__new__(Shards)
    source.ends, source.lanes, source.mix = np.cumsum([10] * 16), 4, 2
    one = Order(160, 8, shuffle=True, seed=1, even=True, arrange=source.arrange)
    two = [Order(160, 4, shuffle=True, seed=1, even=True, world=2, rank=r, arrange=source.arrange) for r in (0, 1)]
    for both, alone in zip(zip(*map(list, two), strict=True), one, strict=True):
        assert sorted(both[0] + both[1]) == sorted(alone)
    used = [{index // 10 for batch in order for _, index in batch} for order in two]
    assert len(shards) == len(used[0] | used[1])
    assert not used[0] & used[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_where_it_stopped(workers, packed):
    module = data(packed)
    module.setup()
    whole = [images for images, _ in module.train_dataloader()]
    begun = data(packed, workers=workers)
    begun.setup()
    loader = begun.train_dataloader()
    passing = iter(loader)
    for _ in range(4):
        next(passing)
    state, of_data = loader.state_dict(), begun.state_dict()
    begun.teardown()
    resumed = data(packed, workers=workers)
    resumed.setup()
    resumed.load_state_dict(of_data)
    loader = resumed.train_dataloader()
    loader.load_state_dict(state)
    rest = [images for images, _ in loader]
    resumed.teardown()
    assert len(rest) == len(whole) - 4
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[4:], strict=True))
    other = data(packed, lanes=3)
    other.setup()
    with pytest.raises(ValueError, match="lanes or mix are not those of the checkpoint"):
        other.load_state_dict(of_data)


class Quiet(http.server.SimpleHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012

    def log_message(self, *args) -> None:
        Quiet.asked.append(self.path)


def test_shards_are_streamed_and_the_longest_unused_leave(packed, tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(packed)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        size = (packed / "train-000000.tar").stat().st_size
        module = data(address, cache=str(tmp_path), room=4.5 * size / 2**30, workers=0)
        module.setup()
        here = data(packed)
        here.setup()
        assert colours(module.train_dataloader()) == colours(here.train_dataloader())
        assert 0 < sum(path.stat().st_size for path in tmp_path.rglob("*.tar")) <= 4.5 * size
        assert not list(tmp_path.rglob("*.part"))
        fetched = [path for path in Quiet.asked if path.endswith(".tar")]
        assert len(set(fetched)) == 12
        assert len(fetched) <= 13  # twice only the one that a lane ends in
    finally:
        server.shutdown()
        server.server_close()
    lost = data(address, cache=str(tmp_path / "new"))
    with pytest.raises(ConnectionError, match=r"cannot fetch http://127.0.0.1:\d+/shards.json"):
        lost.setup()


def test_what_is_wrong_is_named(packed, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match=r"no shards\.json in"):
        data(tmp_path).setup()
    index = ShardIndex.of((packed / "shards.json").read_text(), "")
    (tmp_path / "shards.json").write_text(index.text())
    with pytest.raises(FileNotFoundError, match=r"no shard .*train-000000.tar \(12 of 12 are missing\)"):
        data(tmp_path).setup()
    for text, why in (("{", "no index of shards"), ('{"classes": [], "splits": {"holdout": []}}', "a split holdout")):
        with pytest.raises(ValueError, match=why):
            ShardIndex.of(text, "x.json")

    def shards(content: bytes, count: int = 8) -> Shards:
        (tmp_path / "one.tar").write_bytes(content)
        return Shards([("one.tar", count)], CLASSES, str(tmp_path), 1, 1, tmp_path, 0)

    whole = (packed / "train-000000.tar").read_bytes()
    assert shards(whole).load(0)[0].size == (16, 16)
    with pytest.raises(UnreadableImage, match="holds 8 pictures and the index says 9"):
        shards(whole, 9).load(0)
    with pytest.raises(UnreadableImage, match=r"one.tar: no tar file"):
        shards(b"\x89PNG" * 300).load(0)
    cut = shards(whole[: scan(packed / "train-000000.tar")[5].offset + 9], 6)
    with pytest.raises(UnreadableImage, match=r"one\.tar"):
        cut.load(5)
    copy = pickle.loads(pickle.dumps(shards(whole)))
    assert copy.load(3)[1] == shards(whole).load(3)[1]
    with pytest.raises(ValueError, match="lanes = 0"):
        Shards([("one.tar", 8)], CLASSES, str(tmp_path), 0, 1, tmp_path, 0)
    (tmp_path / "stray").mkdir()
    assert main(["shards", "--index", str(tmp_path / "stray")]) == 1
    assert "no .tar files in" in capsys.readouterr().err
