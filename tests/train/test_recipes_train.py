"""Every packaged recipe is read by LightningCLI as it stands, and those of classifiers train a shrunk step here: two
batches of two small images. Detectors and segmenters: test_dense_recipes.py."""

from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from recipe_parts import KINDS, RECIPES, cli

import patchloom
from patchloom.train.classify import Classify
from patchloom.train.cli import main
from patchloom.train.running import checkpoint
from patchloom.vision.zoo import create_model

CLASSIFIERS = sorted(n for n, kind in KINDS.items() if kind == "patchloom.train.classify.Classify")
KINDS_OF_RUNS = ("classify.Classify", "detect.Detect", "segment.Segment", "diffuse.Diffuse", "converse.Converse",
                 "contrast.Contrast", "panoptic_segment.PanopticSegment")  # fmt: skip
KNOWN = {f"patchloom.train.{kind}" for kind in KINDS_OF_RUNS}
CONFIGS = Path(patchloom.__file__).parent / "configs"
EXPECTED = {
    "shapes/cct", "shapes/hybrid", "shapes/slab_swin", "cifar10/cct", "cifar10/cct_7", "cifar10/scratch",
    "folder/swin_tiny", "folder/convnext_tiny",
    "folder/cct_7", "imagenet/swin_tiny", "imagenet/convnext_tiny", "imagenet/poolformer_s12",
    "imagenet/caformer_s18", "imagenet/deit_small_patch16_224",
    "transfer/vit", "transfer/windows", "transfer/scan", "transfer/flowers",
    "shapes/resformer_sizes", "imagenet/resformer_tiny", "imagenet/illama_tiny", "imagenet/vit_resnas_tiny",
}  # fmt: skip
SMALL = {  # a shrunk stand-in of the same family where the recipe's own network would take seconds a step
    "imagenet/caformer_s18": ["--model.model.img_size", "32"],
    "imagenet/vit_resnas_tiny": ["--model.model.img_size", "112"],  # four cells
    "transfer/flowers": ["--data.preprocessing.input_size", "[3, 32, 32]"],
    "imagenet/deit_small_patch16_224": ["--model.model.name", "deit_tiny_patch16_224"],
    "imagenet/ia_red_deit_small": [
        *("--model.model.name", "deit_tiny_patch16_224", "--model.loss.learns", "backbone"),
        *("--trainer.strategy", "auto"),
    ],
    "imagenet/swin_large_fsdp": ["--model.model.name", "swin_tiny_22k", "--trainer.strategy", "auto"],
    "imagenet/dynamicvit_deit_small": [
        *("--model.model.name", "deit_tiny_patch16_224", "--model.loss.teacher.name", "deit_tiny_patch16_224"),
        *("--model.loss.teacher.pretrained", "false", "--model.loss.teacher.img_size", "64"),
    ],
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Class folders that stand for CIFAR, ImageNet and a person's own."""
    root = tmp_path_factory.mktemp("images")
    from timm.data import ImageNetInfo

    synsets = ImageNetInfo("imagenet-1k").label_names()
    for kind, classes in (("own", ["cat", "dog"]), ("imagenet", synsets[:2])):
        for split in ("train", "val", "test"):
            for c, name in enumerate(classes):
                (folder := root / kind / split / name).mkdir(parents=True)
                for i in range(4):
                    Image.new("RGB", (40, 36), (60 * i, 120 * c, 30)).save(folder / f"{i}.png")
    assert main(["shards", str(root / "imagenet"), str(root / "shards"), "--shard", "3"]) == 0
    model = create_model("cct_2_3x2_32")  # of the run that a recipe may begin with
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    head = checkpoint.header(model, [str(i) for i in range(10)], checkpoint.preprocessing_of(model))
    checkpoint.save({"patchloom": head, "state_dict": state}, root / "run" / "last.ckpt")
    return root


def command(name: str, photographs: Path) -> list[str]:
    """The recipe, at 32 pixels or so, without downloads, for two steps of two images."""
    recipe = yaml.safe_load(Path(RECIPES[name].file).read_text())
    lines = ["--config", RECIPES[name].file]
    ours = recipe["model"]["init_args"]["model"]
    drawn = recipe["data"]["class_path"].endswith("ShapesData")
    if drawn:
        lines += ["--data.train_length", "4", "--data.val_length", "2"]
    else:
        folder = "shards" if "shards" in name else "imagenet" if name.startswith("imagenet") else "own"
        lines += ["--data.root", str(photographs / folder)]
    if "spec" in ours["init_args"]:
        lines += ["--model.model.spec", str(photographs / "run")]
    if "pretrained" in ours["init_args"]:
        lines += ["--model.model.pretrained", "false"]
    if ours["init_args"].get("name", "x_32")[-3:] != "_32":
        lines += ["--model.model.img_size", "64"]
    return [*lines, "--data.batch_size", "2", "--data.workers", "0", *SMALL.get(name, [])]


@pytest.fixture(autouse=True)
def no_command_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["patchloom"])


def test_the_recipes_are_these():
    assert set(RECIPES) >= EXPECTED


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_says_what_it_needs(name):
    text = Path(RECIPES[name].file).read_text()
    assert text.startswith(f"# patchloom fit -c {name}")
    assert len(text.partition("\n")[0]) > 60
    recipe = yaml.safe_load(text)
    assert recipe["checkpoints"]["every_n_steps"] > 0
    assert "max_epochs" in recipe["trainer"]
    assert "seed_everything" in recipe
    assert KINDS[name] in KNOWN


def by_cost():
    """Most of those for ImageNet are slow: they are alike."""
    for name in CLASSIFIERS:
        alike = name.startswith("imagenet/") and not name.endswith(("swin_tiny", "deit_small_patch16_224"))
        yield pytest.param(name, marks=pytest.mark.slow if alike else ())


@pytest.mark.parametrize("name", by_cost())
def test_a_recipe_trains_a_step(name, photographs, tmp_path):
    made = cli(command(name, photographs), tmp_path)
    assert isinstance(made.model, Classify)
    before = {k: v.clone() for k, v in made.model.model.named_parameters()}
    made.trainer.fit(made.model, made.datamodule)
    after = dict(made.model.model.named_parameters())
    assert made.trainer.global_step == 2
    assert torch.isfinite(made.trainer.callback_metrics["train/loss"])
    moved = [
        k for k in after if after[k].shape != before.get(k, after[k]).shape or not torch.equal(after[k], before[k])
    ]
    learning = [k for k, p in after.items() if p.requires_grad]
    assert len(moved) > 0.8 * len(learning)
    assert set(moved) <= set(learning)
    assert set(made.trainer.callback_metrics) >= {"val/loss", "val/top1"}


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("heads: 3, size: 3", "heads: 3, windw: 3", "windw"),
        ("dim: 96, depth", "dim: 96, dept", "dept"),
        ("warmup_steps: 150", "warmup: 150", "warmup"),
        ("max_epochs: 10", "max_epoch: 10", "max_epoch"),
    ],
)
def test_a_misspelt_key_is_an_error_that_names_it(old, new, place, tmp_path, capsys):
    text = (CONFIGS / "shapes" / "hybrid.yaml").read_text()
    assert old in text
    (tmp_path / "mine.yaml").write_text(text.replace(old, new))
    with pytest.raises(SystemExit):
        cli(["--config", str(tmp_path / "mine.yaml")], tmp_path)
    assert place in capsys.readouterr().err
