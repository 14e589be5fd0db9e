"""Every packaged recipe of a denoiser is read by LightningCLI as it stands and trains a shrunk step; then it draws."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from generation_parts import awake, save_autoencoder, save_pictures, save_run
from PIL import Image

from patchloom.train.cli import main
from patchloom.train.running import checkpoint
from patchloom.train.running.recipes import recipes
from patchloom.train.saved.load_maker import load_maker
from patchloom.train.saved.maker import MakeSettings

RECIPES = {r.name: r.file for r in recipes() if "train.diffuse.Diffuse" in Path(r.file).read_text()}
EXPECTED = {
    "shapes/dit", "shapes/dit_gaussian", "shapes/dit_captions", "shapes/meta_denoiser", "cifar10/dit",
    "imagenet/dit_xl_2_latents", "imagenet/dimr_xl_2r_latents", "transfer/dit_diffscaler", "transfer/dit_panels",
}  # fmt: skip
SMALL = {  # a network of the same kind where the recipe's own would take minutes a step
    "imagenet/dit_xl_2_latents": ["--model.model.name", "dit_s_8_256", "--model.model.img_size", "8"],
    "imagenet/dimr_xl_2r_latents": [
        *("--model.model.name", "dimr_tiny_3r", "--model.model.img_size", "8"),
        "--model.process.scales=[0.1, 0.3, 1.0]",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """What recipes train on: photographs, latents of them, sets of images, and a run that an adapter goes onto."""
    root = tmp_path_factory.mktemp("data")
    save_pictures(root / "photographs", {"train": 4, "val": 2})
    vae = save_autoencoder(root / "vae")
    assert main(["latents", str(root / "photographs"), str(root / "latents"), "--vae", vae, "--size", "32"]) == 0
    (root / "sets").mkdir()
    for i in range(4):
        Image.effect_noise((32, 32), 40 + 20 * i).save(root / "sets" / f"{i}.png")
    lines = [{"images": [f"{i}.png", f"{i + 1}.png"], "captions": ["a", "b"], "caption": "noise"} for i in (0, 1, 2, 0)]
    (root / "sets" / "panels.jsonl").write_text("\n".join(map(json.dumps, lines)))
    save_run(root / "run.ckpt", awake(learn_variance=False))
    from patchloom.multimodal.text import TextEncoder

    text = TextEncoder("words:width=128,depth=2,seed=0", 10)
    save_run(root / "words.ckpt", awake(num_classes=None, text=(10, 128), learn_variance=False), text=text)
    return root


def command(name: str, places: Path) -> list[str]:
    recipe = yaml.safe_load(Path(RECIPES[name]).read_text())
    data = recipe["data"]["class_path"].rpartition(".")[2]
    root = {"LatentsData": "latents", "Cifar10Data": "photographs", "FolderData": "photographs", "PanelsData": "sets"}
    lines = ["-c", name, "--data.batch_size", "2", "--data.workers", "0", "--test", "false"]
    if data in root:
        lines += ["--data.root", str(places / root[data])]
    else:
        lines += ["--data.train_length", "4", "--data.val_length", "2"]
    if "spec" in recipe["model"]["init_args"]["model"]["init_args"]:
        lines += ["--model.model.spec", str(places / ("words.ckpt" if data == "PanelsData" else "run.ckpt"))]
    samples = ["--model.samples.rows", "2", "--model.samples.columns", "1", "--model.samples.steps", "2"]
    trainer = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.accelerator", "cpu"]
    return [*lines, *samples, *trainer, "--trainer.precision", "32-true", *SMALL.get(name, [])]


def test_the_recipes_are_these():
    assert set(RECIPES) == EXPECTED


LONG = {"imagenet/dit_xl_2_latents"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in sorted(RECIPES)])
def test_a_recipe_trains_a_step_and_draws(name, places, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *command(name, places), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    run = Path(said["run"])
    assert Path(said["samples"]).parent == run
    assert checkpoint.read(run / "last.ckpt")["global_step"] == 2
    maker = load_maker(str(run))
    conditions = 1 if maker.model.num_classes is maker.model.text is None else ["a star"] if maker.model.text else [0]
    image = next(maker.images(conditions, MakeSettings(steps=2, sampler="ddim", guidance=1.5)))
    assert image.shape[:2] == (1, 3)
    assert image.dtype == torch.uint8


def test_an_adapter_keeps_to_the_process_of_its_base(places, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flow = ["--model.process", "patchloom.vision.generation.flow.Flow"]
    assert main(["fit", *command("transfer/dit_diffscaler", places), *flow]) == 1
    assert "model learned under process Gaussian(" in capsys.readouterr().err
