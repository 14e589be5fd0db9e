"""The recipes of detectors and segmenters train a shrunk step: their own heads, losses, schedules and pictures, on tiny
backbones of the same family."""

from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from dense_run_parts import coco_folder, fake_ade20k, panoptic_folder
from recipe_parts import KINDS, RECIPES, cli

DENSE = sorted(n for n, kind in KINDS.items() if kind.endswith((".Detect", ".Segment", ".PanopticSegment")))
EXPECTED = {
    "coco/mask_rcnn_swin_tiny", "coco/cascade_mask_rcnn_swin_tiny", "coco/faster_rcnn_swin_tiny",
    "coco/retinanet_poolformer_s12", "coco/fcos_convnext_tiny", "coco/mask_rcnn_convnext_tiny",
    "coco/mask_rcnn_vit_comer_small", "coco/mask2former_swin_tiny", "coco/mask2former_panoptic_swin_tiny",
    "coco/mamba_yolo_tiny",
    "ade20k/upernet_swin_tiny", "ade20k/upernet_convnext_tiny", "ade20k/semantic_fpn_poolformer_s12",
    "ade20k/upernet_vit_comer_small", "ade20k/mask2former_swin_tiny",
    "bccd/fcos", "penn_fudan/mask_rcnn", "camvid/semantic_fpn", "camvid/upernet",
    "shapes/mask_rcnn", "shapes/semantic_fpn",
}  # fmt: skip
CLASSES = {"coco": 80, "bccd": 3, "penn_fudan": 1, "ade20k": 150, "camvid": 11}
QUICK = {"coco/fcos_convnext_tiny", "coco/mask2former_panoptic_swin_tiny", "ade20k/semantic_fpn_poolformer_s12"}


def test_the_recipes_are_these():
    assert set(DENSE) >= EXPECTED


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    for kind, count in CLASSES.items():
        if kind in ("ade20k", "camvid"):
            fake_ade20k(root / kind, count, published=kind == "ade20k")
        else:
            names = [(i + 1, f"kind {i}") for i in range(count)]
            splits = ("train2017", "val2017") if kind == "coco" else ("train", "val")
            coco_folder(root / kind, splits, 20, (48, 64), names, side=20)
    names = tuple((i + 1, f"kind {i}", int(i < 80)) for i in range(133))
    panoptic_folder(root / "coco_panoptic", ("train2017", "val2017"), 20, (48, 64), names)
    return root


def dictionaries(value):
    """All that a recipe holds, at any depth."""
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from dictionaries(each)
    if isinstance(value, dict):
        yield value


def shrunk(name: str, root: Path) -> dict:
    """The recipe with a tiny backbone of the same family, small pictures and narrow heads."""
    recipe = yaml.safe_load(Path(RECIPES[name].file).read_text())
    for part in list(dictionaries(recipe["model"])):
        kind, given = part.get("class_path", ""), part.get("init_args", {})
        if kind.endswith("zoo.create_model"):
            kept = {k: given[k] for k in ("name", "dense", "out_indices") if k in given}
            part |= {"class_path": "vision_tiny.tiny_pyramid", "init_args": kept}
        elif kind.endswith("yolo.mamba_yolo"):
            given["bins"] = 4
        elif kind.endswith("mask2former.Mask2Former"):
            given |= {"queries": 8, "dim": 32, "heads": 4, "encoder_depth": 1, "decoder_depth": 1}
        elif ".heads." in kind and "classes" in given:
            narrow = {"dim": 64, "hidden": 32, "width": 32, "out": 16, "auxiliary": 8}
            given |= {k: v for k, v in narrow.items() if k in parameters_of(kind)}
    data = recipe["data"]["init_args"]
    if "root" not in data and not name.startswith("shapes/"):
        data["root"] = str(root / (name.partition("/")[0] + "_panoptic" * (data.get("task") == "panoptic")))
    vary = data.get("augment", {}).get("init_args", {})
    if "size" in vary or "SemanticCrop" in data.get("augment", {}).get("class_path", ""):
        vary["size"] = [48, 64]
    for part in (vary, data.get("resize", {})):
        part |= {k: [64] if isinstance(part[k], list) else 64 for k in ("shortest", "longest") if k in part}
    if "shortest" in data.get("augment", {}).get("class_path", "").lower():
        data["augment"].setdefault("init_args", {}).update(shortest=[64], longest=96)
    data |= {"batch_size": 2, "workers": 0}
    if "train_length" in data:
        data |= {"size": [64, 96], "train_length": 4, "val_length": 2}
    return recipe


def parameters_of(path: str) -> dict:
    from patchloom.train.running.keys import parameters, resolve

    return parameters(resolve(path)) or {}


class Reached(L.Callback):
    """The parameters that learn and that no loss reached: DDP refuses them, and no step moves them."""

    def __init__(self):
        self.missed: set[str] = set()

    def on_after_backward(self, trainer, module) -> None:
        self.missed |= {n for n, p in module.model.named_parameters() if p.requires_grad and p.grad is None}


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in DENSE])
def test_a_recipe_trains_a_step(name, folders, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["patchloom"])
    recipe = shrunk(name, folders)
    recipe.pop("pictures")  # a callback of the command line's
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    torch.manual_seed(0)
    made = cli(["--config", str(tmp_path / "recipe.yaml")], tmp_path)
    before = {k: v.clone() for k, v in made.model.model.named_parameters()}
    made.trainer.callbacks.append(reached := Reached())
    made.trainer.fit(made.model, made.datamodule)
    assert not reached.missed
    after = dict(made.model.model.named_parameters())
    assert made.trainer.global_step == 2
    assert torch.isfinite(made.trainer.callback_metrics["train/loss"])
    assert sum(not torch.equal(after[k], before[k]) for k in after) > 0.8 * len(after)
    assert {"val/map", "val/miou", "val/pq"} & set(made.trainer.callback_metrics)
