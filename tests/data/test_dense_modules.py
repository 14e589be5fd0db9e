"""The data modules of detection and segmentation: batches, splits, resuming, faults, YAML."""

import logging
import pickle
from types import SimpleNamespace

import albumentations as A
import lightning as L
import numpy as np
import pytest
import torch
from dense_parts import CFG, annotation, coco, mask, pairs, picture, voc
from jsonargparse import ArgumentParser
from PIL import Image
from real_data import real
from torch.utils.data._utils.pin_memory import pin_memory

from patchloom.data.augment import Albumented, Fit, LargeScaleJitter, SemanticCrop
from patchloom.data.dense_modules import (
    Ade20kData,
    CityscapesData,
    CocoData,
    DenseImages,
    DrawnData,
    LooseData,
    PennFudanData,
    SegmentationData,
    VocData,
)
from patchloom.data.pictures import Failure
from patchloom.data.read import UnreadableImage
from patchloom.data.scene import IGNORE
from patchloom.data.scenes import Scenes

SMALL = LargeScaleJitter(size=(24, 32), scale=(0.6, 1.4))


def ready(data, stage=None):
    data.setup(stage)
    return data


def made(tmp_path, images=6, **more):
    """Pictures of noise, of which the last has no object; three splits the same but for the pictures."""
    for split in ("train", "val"):
        coco(tmp_path, [annotation(i, i) for i in range(1, images)], images, split)
        for i in range(1, images + 1):
            pixels = np.random.default_rng(i).integers(0, 256, (30, 40, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"images/{split}/{i}.png")
    more = {"batch_size": 2, "workers": 0, "augment": SMALL, "preprocessing": CFG, **more}
    return ready(CocoData(str(tmp_path), more.pop("task", "instance"), **more))


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


def test_a_batch_is_what_detectors_take(tmp_path):
    data = made(tmp_path)
    images, targets = next(iter(data.train_dataloader()))
    assert len(images) == len(targets) == 2
    for image, target in zip(images, targets, strict=True):
        assert image.dtype == torch.float32
        assert image.shape[0] == 3
        n = len(target["boxes"])
        kinds = {"boxes": torch.float32, "labels": torch.int64, "iscrowd": torch.int64, "area": torch.float32}
        kinds |= {"masks": torch.bool, "image_id": torch.int64, "original_size": torch.int64}
        assert {k: v.dtype for k, v in target.items()} == kinds
        assert target["masks"].shape == (n, *image.shape[1:])
        assert target["original_size"].tolist() == [30, 40]
        assert target["image_id"].shape == ()
    images, targets = (
        [x for batch in data.val_dataloader() for x in batch[0]],
        [t for b in data.val_dataloader() for t in b[1]],
    )
    assert [int(t["image_id"]) for t in targets] == [1, 2, 3, 4, 5, 6]
    assert targets[0]["boxes"].tolist() == [[5, 6, 15, 14]]
    assert targets[0]["labels"].tolist() == [1]
    assert targets[5]["boxes"].shape == (0, 4)
    assert targets[5]["masks"].shape == (0, 30, 40)
    pixels = np.asarray(Image.open(tmp_path / "images/val/1.png"), np.float32)
    assert torch.allclose(images[0], (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - 0.5) / 0.25, atol=1e-6)
    assert [c.id for c in data.categories] == [3, 7]
    assert data.classes == ["cat", "dog"]


def test_torchvision_trains_on_it(tmp_path):
    """A step of torchvision's own Mask R-CNN, of which one picture has no object."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    data = made(tmp_path, augment=None, batch_size=6)
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=96)
    losses = model.train()(*next(iter(data.train_dataloader())))
    assert set(losses) >= {"loss_mask", "loss_box_reg", "loss_classifier"}
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("task", ["instance", "detection"])
def test_workers_change_nothing(task, tmp_path):
    alone, helped = (list(made(tmp_path, task=task, workers=w, seed=3).train_dataloader()) for w in (0, 2))
    assert same(alone, helped)
    other = list(made(tmp_path, task=task, seed=4).train_dataloader())
    assert not same(alone, other)


def test_epochs_differ_and_a_resumed_pass_goes_on(tmp_path):
    loader = made(tmp_path).train_dataloader()
    first, second = list(loader), list(loader)
    assert not same(first, second)
    again = made(tmp_path).train_dataloader()
    passes = iter(again)
    assert same(next(passes), first[0])
    state = pickle.loads(pickle.dumps(again.state_dict()))
    later = made(tmp_path).train_dataloader()
    later.load_state_dict(state)
    assert same(list(later), first[1:])
    assert same(list(later), second)


def test_batches_pass_through_pinning(tmp_path, monkeypatch):
    """What a loader does to them where there is a GPU; tuples come out of it as lists."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, device=None: self)
    for task in ("instance", "detection"):
        data = made(tmp_path, task=task)
        batch = data._read_by("val", data.splits.val, False).__getitems__([(0, 0), (0, 5)])
        assert same(pickle.loads(pickle.dumps(batch)).out(), pin_memory(pickle.loads(pickle.dumps(batch))).out())


class Counting(L.LightningModule):
    """Learns one number, and counts what it is given."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.ones(1)), []

    def training_step(self, batch, index):
        images, targets = batch
        self.seen.append(len(targets))
        return sum((image * self.weight).mean() for image in images)

    def validation_step(self, batch, index):
        self.seen.append(-len(batch[0]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_trains_on_it(tmp_path):
    data, module = made(tmp_path, workers=1), Counting()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    L.Trainer(max_epochs=2, default_root_dir=tmp_path, accelerator="cpu", enable_checkpointing=False, **quiet).fit(
        module, datamodule=data
    )
    assert module.seen[-6:] == [2, 2, 2, -2, -2, -2]


def test_what_falls_out_is_counted_over_all_processes(tmp_path, caplog):
    counts = []
    for workers in (0, 1):
        data = made(tmp_path, workers=workers, augment=Albumented([A.Crop(20, 0, 40, 30)]))
        list(data.train_dataloader())
        counts.append(data.dropped)
        with caplog.at_level(logging.INFO, "patchloom.data"):
            data.teardown()
    assert counts[0] == counts[1] == {"outside": 5}
    assert "objects that training went without, in this run: 5 outside" in caplog.text


def test_crowds_are_judged_by_nobody(tmp_path):
    """Training is without regions of many, and says so; evaluation has them, marked."""
    for split in ("train", "val"):
        coco(tmp_path, [annotation(1), annotation(2, iscrowd=1)], 1, split)
    data = ready(CocoData(str(tmp_path), workers=0, augment=None, preprocessing=CFG))
    (_, (target,)), (_, (judged,)) = next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))
    assert target["iscrowd"].tolist() == [0]
    assert judged["iscrowd"].tolist() == [0, 1]
    assert data.dropped == {"crowd": 1}


def test_pictures_without_objects_can_be_left_out_of_training(tmp_path):
    data = made(tmp_path, empty=False)
    assert (len(data.splits.train), len(data.splits.val)) == (5, 6)
    assert any("left out" in note for note in data.splits.notes)


def test_broken_pictures_stop_or_are_skipped(tmp_path):
    data = made(tmp_path)
    (tmp_path / "images/val/2.png").write_bytes(b"nothing")
    (tmp_path / "images/train/2.png").write_bytes(b"nothing")
    with pytest.raises(UnreadableImage, match=r"val/2.png: not an image.*on_error: skip"):
        list(data.val_dataloader())
    data = made_again(tmp_path, on_error="skip")
    assert [int(t["image_id"]) for _, ts in data.val_dataloader() for t in ts] == [1, 3, 4, 5, 6]
    assert sum(len(images) for images, _ in data.train_dataloader()) == 6  # another one stands in
    assert len(data.skipped) == 2
    broken = Scenes(data.splits.val, Fit().build(), data._read_by("val", data.splits.val, False).preprocessing)
    assert isinstance(broken.__getitems__([(0, 1)]), Failure)
    with pytest.raises(UnreadableImage, match=r"2\.png"):
        broken[1]
    assert broken[0][1]["image_id"] == 1
    with pytest.raises(UnreadableImage, match=r"2\.png"):
        Scenes(broken.source, broken.vary, broken.preprocessing, on_error="skip")[1]


def made_again(tmp_path, **more):
    return ready(CocoData(str(tmp_path), "instance", workers=0, augment=SMALL, preprocessing=CFG, **more))


def test_wrong_annotations_stop_the_run_before_it_begins(tmp_path):
    for split in ("train", "val"):
        coco(tmp_path, [annotation(1), annotation(2, category=9)], 1, split)
    with pytest.raises(ValueError, match="1 x unknown category: category_id 9"):
        ready(CocoData(str(tmp_path), preprocessing=CFG))
    assert len(ready(CocoData(str(tmp_path), preprocessing=CFG, on_error="skip")).splits.train) == 1


def test_splits(tmp_path):
    data = made(tmp_path, images=20, val_fraction=0.2)
    names = [{data.splits.train.name(i) for i in range(16)}, {data.splits.val.name(i) for i in range(4)}]
    assert not names[0] & names[1]
    assert all("/train/" in name for name in names[1])
    assert len(data.splits.test) == 20  # the set's own val: nothing was chosen by it
    assert data.splits.test.file.name == "instances_val.json"
    assert data.categories[1].name == "dog"
    for name in ("train2014", "train2017"):
        coco(tmp_path, [annotation(1)], 1, name)
    (tmp_path / "annotations/instances_train.json").unlink()
    with pytest.raises(ValueError, match="train2014, train2017 are there for train: name one of them"):
        ready(CocoData(str(tmp_path), preprocessing=CFG))
    assert len(ready(CocoData(str(tmp_path), train="train2014", preprocessing=CFG)).splits.train) == 1
    with pytest.raises(FileNotFoundError, match="did you mean train2017 or train2014"):
        ready(CocoData(str(tmp_path), train="train201", preprocessing=CFG))
    coco(tmp_path, [], 1, "val", categories=[{"id": 1, "name": "cow"}])
    with pytest.raises(ValueError, match="the splits have different classes: cat, dog, and cow"):
        ready(CocoData(str(tmp_path), train="train2014", preprocessing=CFG))


def test_stacks_are_padded_with_what_is_ignored(tmp_path):
    for i, (width, height) in enumerate([(8, 6), (5, 9)]):
        picture(tmp_path / f"images/{i}.png", width, height, (255, 255, 255))
        mask(tmp_path / f"masks/{i}.png", np.ones((height, width)))
    data = SegmentationData(str(tmp_path), ["a", "b"], [255], batch_size=2, workers=0, preprocessing=CFG)
    images, semantic = next(iter(ready(data, "validate").val_dataloader()))
    assert images.shape == (2, 3, 9, 8)
    assert semantic.shape == (2, 9, 8)
    assert semantic.dtype == torch.int64
    assert (semantic == IGNORE).sum(dim=(1, 2)).tolist() == [72 - 48, 72 - 45]
    assert images[0, :, :6].min() == 2
    assert images[0, :, 6:].abs().max() == 0
    with pytest.raises(FileNotFoundError, match="has no train pictures: its annotations were not found"):
        data.setup("fit")


def test_the_real_sets():
    bccd = ready(CocoData(str(real("bccd")), workers=0, preprocessing=CFG, val_fraction=0.1))
    assert [len(s) for s in (bccd.splits.train, bccd.splits.val, bccd.splits.test)] == [185, 20, 87]
    assert bccd.classes == ["RBC", "WBC", "Platelets"]
    people = ready(PennFudanData(str(real("penn_fudan")), workers=0, preprocessing=CFG))
    assert [len(s) for s in (people.splits.train, people.splits.val)] == [90, 30]
    _, targets = next(iter(people.train_dataloader()))
    assert targets[0]["masks"].any()
    roads = ready(
        SegmentationData(
            str(real("camvid_mini")),
            workers=0,
            preprocessing=CFG,
            augment=SemanticCrop(size=(90, 120)),
            val_fraction=0.2,
        )
    )
    assert [len(s) for s in (roads.splits.train, roads.splits.val, roads.splits.test)] == [80, 20, 40]
    images, semantic = next(iter(roads.train_dataloader()))
    assert images.shape == (4, 3, 90, 120)
    assert set(semantic.unique().tolist()) <= {*range(11), IGNORE}
    scenes = ready(Ade20kData(str(real("ade20k_mini")), batch_size=1, workers=0, preprocessing=CFG), "test")
    images, semantic = next(iter(scenes.test_dataloader()))
    assert min(images.shape[2:]) == 512
    assert len(scenes.classes) == 150
    whole = ready(CocoData(str(real("coco_mini")), "panoptic", workers=0, preprocessing=CFG), "validate")
    _, (target, _) = next(iter(whole.val_dataloader()))
    assert target["semantic"].shape == target["masks"].shape[1:]
    assert sum(not c.thing for c in whole.categories) == 53


def test_voc_and_cityscapes_and_published_penn_fudan(tmp_path):
    voc(tmp_path / "v", a=[("b", 0, 1, 1, 9, 9)], b=[("a", 0, 1, 1, 9, 9)])
    voc(tmp_path / "v", "val", a=[("b", 0, 1, 1, 9, 9)])
    data = ready(VocData(str(tmp_path / "v"), workers=0, preprocessing=CFG))
    assert data.classes == ["a", "b"]  # the order of train, in val too
    assert next(iter(data.val_dataloader()))[1][0]["labels"].tolist() == [2]
    pairs(tmp_path / "c")
    picture(tmp_path / "y/leftImg8bit/val/ulm/u_leftImg8bit.png", 8, 4)
    mask(tmp_path / "y/gtFine/val/ulm/u_gtFine_labelIds.png", np.full((4, 8), 7))
    city = ready(CityscapesData(str(tmp_path / "y"), workers=0, preprocessing=CFG), "validate")
    assert next(iter(city.val_dataloader()))[1].unique().tolist() == [0]
    for i in range(5):
        picture(tmp_path / f"p/PNGImages/F{i}.png", 8, 4)
        mask(tmp_path / f"p/PedMasks/F{i}_mask.png", np.eye(4, 8))
    people = ready(PennFudanData(str(tmp_path / "p"), workers=0, preprocessing=CFG, val_fraction=0.4))
    assert [len(s) for s in (people.splits.train, people.splits.val, people.splits.test)] == [3, 2, 2]
    assert people.categories[0].name == "person"


def test_drawn():
    lengths = {"train_length": 8, "val_length": 4, "test_length": 4, "workers": 0, "preprocessing": CFG}
    data = ready(DrawnData((48, 64), batch_size=4, **lengths))
    loader = data.train_dataloader()
    first, second = (torch.stack([x for images, _ in loader for x in images]) for _ in range(2))
    assert first.shape == (8, 3, 48, 64)
    assert not torch.equal(first.sum((1, 2, 3)).sort()[0], second.sum((1, 2, 3)).sort()[0])  # never seen twice
    maps = ready(DrawnData((48, 64), semantic=True, batch_size=4, **lengths))
    images, semantic = next(iter(maps.val_dataloader()))
    assert images.shape == (4, 3, 48, 64)
    assert 0 < semantic.max() <= 10
    assert maps.classes[0] == "ground"


def test_loose_pictures_for_prediction(tmp_path):
    picture(tmp_path / "a.png", 60, 30)
    picture(tmp_path / "b/c.jpg", 20, 50)
    data = ready(LooseData([str(tmp_path)], resize=Fit(longest=30), preprocessing=CFG), "predict")
    batches = list(data.predict_dataloader())
    assert [x.shape for images, _ in batches for x in images] == [(3, 15, 30), (3, 30, 12)]
    assert [t["original_size"].tolist() for _, ts in batches for t in ts] == [[30, 60], [50, 20]]
    assert [data.predicted[t["image_id"]].rsplit("/", 1)[1] for _, ts in batches for t in ts] == ["a.png", "c.jpg"]


def test_the_model_names_the_preprocessing(tmp_path):
    coco(tmp_path, [annotation(1)])
    data = CocoData(str(tmp_path), workers=0)
    module = SimpleNamespace(preprocessing={**CFG, "mean": (0.1, 0.2, 0.3)})
    data.trainer = SimpleNamespace(lightning_module=module, world_size=1, global_rank=0, overfit_batches=0)
    ready(data, "fit")
    assert data.preprocessing["mean"] == (0.1, 0.2, 0.3)
    assert isinstance(data.suits(), LargeScaleJitter)
    grey = CocoData(str(tmp_path), workers=0, preprocessing={"input_size": (1, 8, 8)})
    with pytest.raises(ValueError, match="the model takes 1 channel"):
        ready(grey, "fit").train_dataloader()


def test_arguments(tmp_path):
    with pytest.raises(ValueError, match="no task 'boxes' of COCO: one of detection"):
        CocoData(str(tmp_path), "boxes")
    with pytest.raises(ValueError, match="augment = 'strong'"):
        CocoData(str(tmp_path), augment="strong")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        ready(CocoData(str(tmp_path / "none"), preprocessing=CFG))


YAML = """
class_path: patchloom.data.dense_modules.CocoData
init_args:
  root: {root}
  task: instance
  workers: 0
  preprocessing: {{input_size: [3, 64, 64]}}
  resize: {{class_path: patchloom.data.augment.Fit, init_args: {{shortest: 24, longest: 48}}}}
  augment:
    class_path: patchloom.data.augment.{augment}
"""
AUGMENT = {
    "LargeScaleJitter": {"size": [32, 32], "colour": {"brightness": 0.1}},
    "ShortestSide": {"shortest": [24, 32], "longest": 64},
    "SemanticCrop": {"size": [16, 20]},
    "Albumented": {"transforms": [{"class_path": "albumentations.VerticalFlip", "init_args": {"p": 1.0}}]},
}


@pytest.mark.parametrize("augment", AUGMENT)
def test_yaml(augment, tmp_path):
    """A module as a recipe says it, through jsonargparse, and a batch of it."""
    import yaml

    coco(tmp_path, [annotation(1)])
    parser = ArgumentParser()
    parser.add_subclass_arguments(DenseImages, "data")
    config = yaml.safe_load(YAML.format(root=tmp_path, augment=augment))
    config["init_args"]["augment"]["init_args"] = AUGMENT[augment]
    data = parser.instantiate_classes(parser.parse_object({"data": config})).data
    assert type(data.augment).__name__ == augment
    assert data.resize == Fit(shortest=24, longest=48)
    images, (target,) = next(iter(ready(data).train_dataloader()))
    assert target["masks"].shape[1:] == images[0].shape[1:]
    if augment == "Albumented":
        assert torch.allclose(target["boxes"], torch.tensor([[5.0, 16, 15, 24]]))
