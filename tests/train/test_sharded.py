"""Two CPU processes (gloo) against one: DDP over shards, and fully sharded (FSDP2), give the numbers of one process."""

from pathlib import Path

import lightning as L
import pytest
import torch
from classify_parts import trainer
from PIL import Image
from processes import two_processes

from patchloom.data.modules import ShapesData
from patchloom.data.shapes import Shapes
from patchloom.data.shards import ShardsData
from patchloom.train.callbacks.checkpoints import Checkpoints, PlainFiles
from patchloom.train.callbacks.guard import Guard
from patchloom.train.classify import Classify
from patchloom.train.cli import main
from patchloom.train.ema import Ema
from patchloom.train.optim import Cosine
from patchloom.train.running import checkpoint
from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.mixers.window import Window
from patchloom.vision.model import Classifier


def run(kind: str, devices: int, folder: Path, epochs: int = 2, resume: str | None = None) -> dict[str, float]:
    """Two epochs over an effective batch of 16 -> metrics. 33 images for validation do not divide into two processes.
    kind: ddp over shards, or fsdp2 over drawn pictures, with checkpoints."""
    L.seed_everything(3, verbose=False)
    model = Classifier(Backbone([Stage(Window(2, 2), 16, 2), Stage(Window(4, 2), 32, 1)], patch=8), 10, img_size=32)
    model.register_buffer("seen", torch.zeros(1), persistent=False)
    module = Classify(
        model, optimizer=lambda p: torch.optim.AdamW(p, lr=0.01), schedule=Cosine(warmup_epochs=0.5), ema=Ema(0.9)
    )
    if kind == "ddp":
        data = ShardsData(str(folder / "shards"), lanes=4, mix=2, batch_size=16 // devices, workers=0, augment=None)
    else:
        data = ShapesData(train_length=64, val_length=33, test_length=41, batch_size=16 // devices, workers=0)
    where = folder / f"{kind}_{devices}"
    t = trainer(
        where, devices=devices, strategy=kind if devices > 1 else "auto", max_epochs=epochs, gradient_clip_val=1.0,
        enable_checkpointing=True, callbacks=[Guard(), saved := Checkpoints(0), saved.resume], plugins=[PlainFiles()],
    )  # fmt: skip
    t.fit(module, data, ckpt_path=resume)
    if devices > 1 and kind == "fsdp2":
        mine = sum(p.to_local().numel() for p in module.model.parameters())
        assert mine < 0.6 * sum(p.numel() for p in module.model.parameters())
    numbers = {name: float(value) for name, value in t.callback_metrics.items()}
    return numbers | t.test(module, data, verbose=False)[0]


def alike(first: dict[str, float], second: dict[str, float], one: dict[str, float]) -> None:
    assert set(one) == {"train/loss", "val/loss", "val/top1", "val/top5", "test/loss", "test/top1", "test/top5"}
    for name in set(one) - {"train/loss"}:  # that one is of the last batch, which is shared out
        assert first[name] == second[name] == pytest.approx(one[name], abs=1e-4), name


@pytest.mark.slow
def test_two_processes_in_parts_train_and_judge_as_one(tmp_path):
    """And what they save is one whole checkpoint, which one process reads and goes on with."""
    first, second = two_processes(run, tmp_path, "fsdp2")
    alike(first, second, run("fsdp2", 1, tmp_path))
    ours, theirs = (checkpoint.read(tmp_path / f"fsdp2_{n}" / "last.ckpt") for n in (2, 1))
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    for name, value in theirs["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][name], value, rtol=1e-3, atol=1e-4, msg=name)
    model, classes, _ = checkpoint.load_model(str(tmp_path / "fsdp2_2" / "best.ckpt"))
    assert len(classes) == 10
    assert model(torch.rand(1, 3, 32, 32)).isfinite().all()
    (path := tmp_path / "fsdp2_2" / "last.ckpt").rename(tmp_path / "kept.ckpt")
    assert not path.exists()
    longer = run("fsdp2", 1, tmp_path, epochs=3, resume=str(tmp_path / "kept.ckpt"))
    assert longer["val/loss"] < first["val/loss"] + 0.5


@pytest.mark.slow
def test_two_processes_over_shards_train_and_judge_as_one(tmp_path):
    for split, length in (("train", 64), ("val", 33), ("test", 41)):
        shapes = Shapes(length, (32, 32), "class", 0, split)
        for i in range(length):
            sample = shapes.draw(i)
            file = tmp_path / "tree" / split / shapes.classes[i % 10] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sample.image).save(file)
    assert main(["shards", str(tmp_path / "tree"), str(tmp_path / "shards"), "--shard", "6"]) == 0
    first, second = two_processes(run, tmp_path, "ddp")
    alike(first, second, run("ddp", 1, tmp_path))
