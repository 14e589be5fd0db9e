"""The data modules over real and made-up data: splits, classes, the handshake with the model, loaders, errors, YAML."""

import logging
from types import SimpleNamespace

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from PIL import Image
from real_data import real

from patchloom.data.modules import (
    Cifar10Data,
    FashionMnistData,
    FilesData,
    FolderData,
    ImageNetData,
    Images,
    Jostle,
    MnistData,
    Recrop,
    ShapesData,
)
from patchloom.data.sample import KINDS

CFG = {"input_size": (3, 32, 32), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "crop_pct": 1.0}


def ready(data, stage=None):
    data.setup(stage)
    return data


def lengths(data):
    return [None if s is None else len(s) for s in (data.splits.train, data.splits.val, data.splits.test)]


def made(root, splits=("train", "val", "test"), classes="ab", count=4):
    for s in splits:
        for c in classes:
            (root / s / c).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40, 30), (i * 60, len(c), 0)).save(root / s / c / f"{i}.png")
    return root


def test_cifar10_mini_holds_val_out_of_train():
    data = ready(Cifar10Data(str(real("cifar10_mini")), workers=0, preprocessing=CFG))
    assert lengths(data) == [4500, 500, 1000]
    assert data.classes[:3] == ["airplane", "automobile", "bird"]
    assert np.bincount([data.splits.val.load(i)[1] for i in range(500)]).tolist() == [50] * 10
    images, targets = next(iter(data.train_dataloader()))
    assert images.shape == (128, 3, 32, 32)
    assert images.dtype == torch.float32
    assert targets.dtype == torch.int64
    assert sum(len(t) for _, t in data.test_dataloader()) == 1000
    assert len(data.train_dataloader()) == 35  # whole batches only
    folder = ready(FolderData(str(real("cifar10_mini")), val_fraction=0.2, preprocessing=CFG))
    assert lengths(folder) == [4000, 1000, 1000]


def test_flowers_without_test_are_tested_on_val():
    data = ready(FolderData(str(real("flower_photos_mini")), batch_size=50, workers=2, preprocessing=CFG))
    assert lengths(data) == [250, 70, 70]
    assert data.classes == ["daisy", "dandelion", "roses", "sunflowers", "tulips"]
    assert [len(t) for _, t in data.val_dataloader()] == [50, 20]
    data.teardown()


def test_imagenet_mini():
    data = ImageNetData(str(real("imagenet_1k_mini")), workers=0, preprocessing={**CFG, "input_size": (3, 64, 64)})
    with pytest.raises(FileNotFoundError, match=r"imagenet_1k_mini has no train pictures: a folder train/"):
        data.setup("fit")
    ready(data, "validate")
    assert lengths(data) == [None, 1000, 1000]
    assert data.classes[0] == "n01440764"
    assert data.names[:2] == ["tench", "goldfish"]
    images, targets = next(iter(data.val_dataloader()))
    assert images.shape == (128, 3, 64, 64)
    assert targets.tolist() == list(range(128))
    assert isinstance(data.suits(), Recrop)


def test_a_part_of_imagenet_keeps_its_indices(tmp_path):
    made(tmp_path, ("val",), ["n01443537", "n02123045"])
    data = ready(ImageNetData(str(tmp_path), workers=0, preprocessing=CFG), "test")
    assert next(iter(data.test_dataloader()))[1].tolist() == [1] * 4 + [281] * 4
    (tmp_path / "val" / "n99999999").mkdir()
    with pytest.raises(ValueError, match="unknown class folder n99999999"):
        ready(ImageNetData(str(tmp_path), preprocessing=CFG), "test")


def test_fashion_and_mnist():
    grey = {**CFG, "input_size": (1, 28, 28), "mean": (0.5,), "std": (0.25,)}
    folders = ready(FashionMnistData(str(real("fashion_mnist_mini")), workers=0, preprocessing=grey), "fit")
    assert lengths(folders) == [540, 60, 150]
    assert folders.classes[3] == "3_dress"
    idx = ready(MnistData(str(real("mnist_mini")), workers=0, preprocessing=grey), "fit")
    assert lengths(idx) == [6300, 700, 1500]
    assert idx.classes == list("0123456789")
    images, _ = next(iter(idx.train_dataloader()))
    assert images.shape == (128, 1, 28, 28)
    assert idx.suits().hflip == 0
    _, order = next(iter(idx.predict_dataloader()))
    assert order.tolist() == list(range(128))


def test_cifar_files_of_torchvision(tmp_path, monkeypatch):
    """The pickled batches go through torchvision, which checks their sums; what it says becomes one line."""
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(ValueError, match=r"CIFAR-10 in .*: Dataset not found or corrupted"):
        ready(Cifar10Data(str(tmp_path), preprocessing=CFG))
    images = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), np.uint8)

    def stand_in(root, train, download):
        assert not download
        return SimpleNamespace(data=images, targets=[i % 10 for i in range(50)], classes=list("abcdefghij"))

    monkeypatch.setattr("torchvision.datasets.CIFAR10", stand_in)
    data = ready(Cifar10Data(str(tmp_path), workers=0, preprocessing=CFG))
    assert lengths(data) == [40, 10, 50]
    assert np.array_equal(np.asarray(data.splits.test.load(7)[0]), images[7])


def test_nothing_is_downloaded_unasked_or_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHLOOM_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no Fashion-MNIST in .*--data.download true"):
        ready(FashionMnistData(preprocessing=CFG))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="cannot be downloaded offline"):
        Cifar10Data(download=True).prepare_data()


def test_shapes_are_drawn_at_the_models_size_and_anew_in_each_epoch():
    cfg = {**CFG, "input_size": (3, 48, 64)}
    data = ShapesData(64, 16, 24, batch_size=16, workers=0)
    assert data.classes == list(KINDS)  # before anybody knows the size
    data.trainer = SimpleNamespace(
        lightning_module=SimpleNamespace(preprocessing=cfg), world_size=1, global_rank=0, overfit_batches=0
    )
    ready(data, "fit")
    assert lengths(data) == [64, 16, 24]
    loader = data.train_dataloader()
    first, second = (torch.cat([x for x, _ in loader]) for _ in range(2))
    assert first.shape == (64, 3, 48, 64)
    assert not torch.equal(first.sum((1, 2, 3)).sort()[0], second.sum((1, 2, 3)).sort()[0])
    still = ShapesData(64, fresh=False, batch_size=16, workers=0, preprocessing=cfg)
    loader = ready(still).train_dataloader()
    first, second = (torch.cat([x for x, _ in loader]) for _ in range(2))
    assert torch.equal(first.sum((1, 2, 3)).sort()[0], second.sum((1, 2, 3)).sort()[0])
    val = [torch.cat([x for x, _ in data.val_dataloader()]) for _ in range(2)]
    assert torch.equal(*val)


def test_predicting_files_and_folders(tmp_path):
    made(tmp_path, ("one", "two"))
    data = FilesData([str(tmp_path / "two"), str(tmp_path / "one" / "a" / "0.png")], preprocessing=CFG, batch_size=5)
    loader = ready(data, "predict").predict_dataloader()
    assert [i.tolist() for _, i in loader] == [[0, 1, 2, 3, 4], [5, 6, 7, 8]]
    assert data.predicted[8] == str(tmp_path / "one" / "a" / "0.png")
    folder = ready(FolderData(str(tmp_path / "one"), workers=0, preprocessing=CFG), "predict")
    assert len(folder.predict_dataloader().pictures) == 8


def test_evaluation_is_the_same_with_and_without_cache_and_workers(tmp_path):
    made(tmp_path)
    got = []
    for cache, workers in ((True, 0), (False, 0), ("auto", 2)):
        data = ready(FolderData(str(tmp_path), batch_size=3, workers=workers, cache=cache, preprocessing=CFG))
        loader = data.val_dataloader()
        got += [torch.cat([x for x, _ in loader]) for _ in range(2)]
        data.teardown()
    assert all(torch.equal(got[0], other) for other in got)


@pytest.mark.parametrize("how", [Jostle(), Recrop(auto_augment="rand-m9-mstd0.5-inc1")], ids=["jostle", "recrop"])
def test_training_is_the_same_with_any_number_of_workers(tmp_path, how):
    made(tmp_path)
    got = []
    for workers in (0, 1, 2):
        data = ready(FolderData(str(tmp_path), batch_size=3, workers=workers, augment=how, preprocessing=CFG))
        loader = data.train_dataloader()
        got.append(torch.cat([x for _ in range(2) for x, _ in loader]))
        data.teardown()
    assert torch.equal(got[0], got[1])
    assert torch.equal(got[0], got[2])


def test_skipping_is_counted_and_reported_at_the_end(tmp_path, caplog):
    made(tmp_path)
    bad = tmp_path / "train" / "a" / "1.png"
    bad.write_bytes(bad.read_bytes()[:60])
    data = ready(FolderData(str(tmp_path), batch_size=2, workers=2, on_error="skip", preprocessing=CFG), "fit")
    with caplog.at_level(logging.WARNING, "patchloom.data"):
        assert sum(len(t) for _, t in data.train_dataloader()) == 8
        assert list(data.skipped) == [str(bad)]
        data.teardown("fit")
    assert [r.getMessage().split(":")[0] for r in caplog.records] == [
        "skipped 1 unreadable image in epoch 0", "skipped 1 unreadable image in this run"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (lambda root: FolderData(str(root / "trian"), preprocessing=CFG), FileNotFoundError, "did you mean train"),
        (lambda root: FolderData(str(root)), ValueError, "no preprocessing"),
        (lambda root: FolderData(str(root), on_error="ignore"), ValueError, "stop or skip"),
        (lambda root: FolderData(str(root), augment="strong"), ValueError, "Jostle or Recrop"),
        (lambda root: FilesData([str(root / "nothing")], preprocessing=CFG), FileNotFoundError, "nothing"),
    ],
)
def test_errors_are_one_line(tmp_path, data, error, says):
    made(tmp_path)
    with pytest.raises(error, match=says) as found:
        ready(data(tmp_path)).predict_dataloader()
    assert "\n" not in str(found.value)


def test_a_checkpoints_classes_must_be_the_datas(tmp_path):
    made(tmp_path)
    data = ready(FolderData(str(tmp_path), preprocessing=CFG))
    assert data.state_dict() == {"classes": ["a", "b"]}
    data.load_state_dict({"classes": ["a", "b"]})
    with pytest.raises(ValueError, match="lacks c and has b besides"):
        data.load_state_dict({"classes": ["a", "c"]})


def test_yaml_and_command_line(tmp_path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Images, "data", required=True)
    config = tmp_path / "data.yaml"
    config.write_text(
        "data:\n  class_path: patchloom.data.modules.Cifar10Data\n  init_args:\n    root: x\n    cache: true\n"
        "    augment: {class_path: patchloom.data.transforms.Jostle, init_args: {rotate: 10, zoom: [0.9, 1.1]}}\n"
    )
    parser.add_argument("-c", action="config")
    data = parser.instantiate(parser.parse_args(["-c", str(config), "--data.batch_size", "32"])).data
    assert isinstance(data, Cifar10Data)
    assert data.augment == Jostle(rotate=10, zoom=(0.9, 1.1))
    assert data.batch_size == 32
    line = ["--data", "FolderData", "--data.root", "y", "--data.augment"]
    assert parser.instantiate(parser.parse_args([*line, "null"])).data.augment is None
    recrop = parser.parse_args([*line, "Recrop", "--data.augment.scale", "[0.5,1.0]"])
    assert parser.instantiate(recrop).data.augment == Recrop(scale=(0.5, 1.0))
    with pytest.raises(ArgumentError, match="rotat"):
        parser.parse_args([*line, "Jostle", "--data.augment.rotat", "1"])


class Seen(L.LightningModule):
    """Counts the pictures that evaluation sees."""

    preprocessing = CFG

    def test_step(self, batch, index):
        self.seen = getattr(self, "seen", 0) + len(batch[0])

    def predict_step(self, batch, index):
        return batch[1]


def test_lightning_leaves_the_loader_whole(tmp_path):
    made(tmp_path)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False,
    )  # fmt: skip
    module, data = Seen(), FolderData(str(tmp_path), batch_size=3, workers=0)
    trainer.test(module, data, verbose=False)
    assert module.seen == 8
    assert data.preprocessing == CFG
    got = trainer.predict(module, data)
    assert torch.cat(got).tolist() == list(range(24))
