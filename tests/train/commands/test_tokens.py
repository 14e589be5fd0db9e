"""The commands patchloom tokens and show-tokens, and --tokens elsewhere: on a small ViT, with times of our own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from token_parts import CLASSES, vit
from torch import nn

from patchloom.train import tradeoff
from patchloom.train.cli import main
from patchloom.train.commands.tokens import snippet
from patchloom.train.measure import Arm, Case, build
from patchloom.train.running import checkpoint
from patchloom.train.saved.judge import load
from patchloom.train.tradeoff import twin, variants
from patchloom.vision import zoo
from patchloom.vision.plugins import SeamError, attach, plugin, plugins_of
from patchloom.vision.plugins.dynamic_vit import DynamicViT
from patchloom.vision.plugins.evit import Evit
from patchloom.vision.plugins.merge import Merge
from patchloom.vision.plugins.words import from_words, in_words, retoken

Capture = pytest.CaptureFixture[str]


def saved(model: nn.Module, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    head = checkpoint.header(model, CLASSES, checkpoint.preprocessing_of(model))
    checkpoint.save({"patchloom": head, "state_dict": state}, folder / "best.ckpt")
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(vit(), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures of noise for each class."""
    root = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir()
        for i in range(2):
            Image.fromarray(noise.integers(0, 255, (9, 7, 3), np.uint8)).resize((80, 70)).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What each step takes, the plain model's first; by default each setting a tenth less than the one before."""
    wanted: list[float] = []

    def alternate(steps: list[object], *_: object, **__: object) -> list[tuple[float, ...]]:
        for step in steps:
            step()
        return [tuple(wanted or [8 * 0.9**i for i in range(len(steps))])] * 3

    monkeypatch.setattr(tradeoff, "alternate", alternate)
    return wanted


def said(capsys: Capture, *line: object, status: int = 0) -> str:
    """What the command printed; its error, where it is to fail."""
    assert main([str(word) for word in line]) == status
    out, err = capsys.readouterr()
    if not status:
        return out
    assert out == ""
    errors = [text for text in err.splitlines() if text.startswith("patchloom: error: ")]
    assert len(errors) == 1
    return errors[0]


# -------------------------------------------------------------------------------------------------------- the command


@pytest.mark.slow
def test_the_whole_way(run_folder: Path, photos: Path, times: list[float], tmp_path: Path, capsys: Capture) -> None:
    line = ["tokens", run_folder, "--method", "tome", "evit", "--target", "0.8x", "--data", photos, "--points", "3"]
    result = json.loads(said(capsys, *line, "--images", "5", "--batch", "4", "--out", tmp_path / "out", "--json"))
    assert [p["tokens"] for p in result["points"]] == ["tome:r=1", "evit:keep=0.95", "evit:keep=0.72", "evit:keep=0.5"]
    assert (result["images"], result["size"], result["batch"]) == (5, [64, 64], 4)
    assert result["plain"]["seconds"]["median"] == pytest.approx(2)
    assert [p["ratio"]["median"] for p in result["points"]] == pytest.approx([0.9**i for i in range(1, 5)])
    assert result["plain"]["acc1"] is not None
    assert all(p["random"]["acc1"] is not None for p in result["points"] if p["left"] < 17)
    assert result["plain"]["macs"] > result["points"][-1]["macs"]
    meeting = [p for p in result["points"] if p["ratio"]["median"] <= 0.8]
    best = max(meeting, key=lambda p: (p["answers"]["acc1"], -p["answers"]["kl"]))
    assert result["chosen"] == best["tokens"]
    assert result["verdict"].startswith(f"{best['tokens']} meets 0.8x")
    assert json.loads((tmp_path / "out" / "tokens.json").read_text()) == result
    with Image.open(tmp_path / "out" / "tokens.png") as picture:
        assert picture.width > 500
    kept = yaml.safe_load((tmp_path / "out" / "tokens.yaml").read_text())
    assert kept["model"]["init_args"]["model"]["init_args"]["tokens"] == best["tokens"]
    text = said(capsys, *line)
    assert "tokens: " in text
    assert "Acc@1" in text
    assert "at random" in text


@pytest.mark.slow
def test_all_that_need_no_training(run_folder: Path, photos: Path, times: list[float], capsys: Capture) -> None:
    line = ["tokens", run_folder, "--target", "5ms", "--data", photos / "ant", "--points", "1", "--images", "1"]
    result = json.loads(said(capsys, *line, "--json"))
    methods = {p["method"] for p in result["points"]}
    assert methods == {"tome", "evit", "zero_tprune", "clustering", "window_merge"}
    assert set(result["left_out"]) == {"scan_pruning", "dynamicvit", "ia_red"}
    assert "no parameters" in result["left_out"]["dynamicvit"]
    assert "SelfAttention has no selective scan" in result["left_out"]["scan_pruning"]
    assert result["plain"]["acc1"] is None
    text = said(capsys, *line)
    assert "left out: scan_pruning" in text
    assert "Acc@1" not in text


def test_where_nothing_pays(run_folder: Path, photos: Path, times: list[float], capsys: Capture) -> None:
    times += [1.0, 1.1, 1.2]
    line = ["tokens", run_folder, "--method", "evit", "--target", "0.6x", "--data", photos, "--points", "2"]
    text = said(capsys, *line, "--images", "2")
    assert "no setting pays" in text
    assert "tokens: " not in text


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        (["--target", "60%"], 2, "'60%' is no target; write 0.6x (of the plain time) or 30ms (an image)"),
        (["--target", "0x"], 2, "'0x' is no target"),
        (["--target", "1.5x"], 2, "a share of the plain time is below 1"),
        ([], 2, "--target"),
        (["--target", "0.6x", "--method", "tomee"], 1, "--method tomee is not known; did you mean tome?"),
        (["--target", "0.6x", "--method", "scan_pruning"], 1, "SelfAttention has no selective scan"),
        (["--target", "0.6x", "--method", "dynamicvit"], 1, "the model holds no parameters for"),
        (["--target", "0.6x", "--method", "patch_dropout"], 1, "--method patch_dropout has no strength to choose"),
        (["--target", "0.6x", "--data", "EMPTY"], 1, "no pictures in it or below"),
        (["--target", "0.6x", "--data", "NOWHERE"], 1, "no file or folder"),
        (["--target", "0.6x", "--points", "0"], 2, "'0' is not a whole number"),
    ],
)
def test_wrong_lines(
    line: list[str], status: int, words: str, run_folder: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    named = {"EMPTY": str(tmp_path), "NOWHERE": str(tmp_path / "x")}
    line = ["tokens", str(run_folder), "--data", str(photos), *[named.get(word, word) for word in line]]
    assert words in said(capsys, *line, status=status)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["tokens", "--target", "0.6x", "--data", "PHOTOS", "--method", "tomee"], "did you mean tome?"),
        (["tokens", "--target", "0.6x", "--data", "PHOTOS/nowhere"], "no file or folder"),
        (["eval", "imagenet", "--data", "PHOTOS", "--tokens", "tomee:r=8"], "did you mean tome?"),
    ],
)
def test_what_is_wrong_is_said_before_weights_are_fetched(
    line: list[str], words: str, photos: Path, capsys: Capture
) -> None:
    command, *rest = [word.replace("PHOTOS", str(photos)) for word in line]
    at = 1 if command == "eval" else 0
    assert words in said(capsys, command, *rest[:at], "deit_tiny_patch16_224", *rest[at:], status=1)


def test_models_without_seams_are_refused(photos: Path, capsys: Capture) -> None:
    line = ["tokens", "timm:test_vit", "--random-weights", "--target", "0.6x", "--data", photos]
    assert "TimmClassifier has no blocks with seams" in said(capsys, *line, status=1)


# ------------------------------------------------------------------------------ methods with parameters of their own


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that has DynamicViT's predictors."""
    return saved(vit(tokens=DynamicViT(keep=0.8, at=(2, 6))), tmp_path_factory.mktemp("trained"))


def test_a_checkpoint_with_predictors_is_tried_in_several_strengths(
    trained: Path, photos: Path, times: list[float], capsys: Capture
) -> None:
    line = ["tokens", trained, "--method", "dynamicvit", "--target", "0.99x", "--data", photos, "--points", "2"]
    result = json.loads(said(capsys, *line, "--json"))
    assert [p["tokens"] for p in result["points"]] == [f"dynamicvit:keep={k},at=2+6" for k in (0.95, 0.5)]
    assert result["plain"]["left"] == 17
    assert [p["left"] for p in result["points"]] == [15, 5]


def test_another_strength_keeps_the_predictors(trained: Path) -> None:
    model, _, _ = checkpoint.load_model(str(trained))
    other = twin(model, "dynamicvit:keep=0.5,at=2+6")
    for (name, a), (other_name, b) in zip(model.state_dict().items(), other.state_dict().items(), strict=True):
        assert name == other_name
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match=r"the model holds no parameters for .*blocks\.3"):
        twin(model, "dynamicvit:keep=0.5,at=3")


def test_what_a_ladder_lacks_is_tried_as_it_is() -> None:
    shape = tradeoff.Shape(17, 12)
    model = vit(tokens="soft_merge:tokens=4")
    assert variants("soft_merge", model, shape, 3) == plugins_of(model)
    with pytest.raises(ValueError, match="soft_merge has no strength"):
        variants("soft_merge", vit(), shape, 3)


# ------------------------------------------------------------------------------------------------- --tokens elsewhere


def test_words_and_back() -> None:
    for text in ("tome:r=8", "tome:r=8+4+2,prop=false", "evit", "evit:keep=0.5,fuse=false,at=3+6", "window_merge:r=5"):
        assert in_words(plugin(text)) == text
    spelt = {"class_path": "patchloom.vision.plugins.merge.Merge", "init_args": {"r": 3}}
    assert from_words(spelt) == from_words("tome:r=3") == from_words(Merge(3)) == Merge(3)


def test_another_plugin_takes_the_place_of_the_first() -> None:
    model = vit(tokens="tome:r=1")
    assert retoken(model, "evit:keep=0.5") == []
    assert plugins_of(model) == [Evit(0.5)]
    with pytest.raises(SeamError, match="no selective scan"):
        retoken(model, "scan_pruning")
    assert plugins_of(model) == [Evit(0.5)]
    retoken(model, "none")
    assert plugins_of(model) == []
    assert torch.equal(model(torch.ones(1, 3, 64, 64)), vit()(torch.ones(1, 3, 64, 64)))
    assert retoken(model, "soft_merge:tokens=4")


def test_predict_and_eval_take_tokens(run_folder: Path, photos: Path, capsys: Capture) -> None:
    model = load(str(run_folder), tokens="tome:r=1").model
    assert plugins_of(model) == [Merge(1)]
    plain = json.loads(said(capsys, "predict", run_folder, photos, "--json"))
    other = json.loads(said(capsys, "predict", run_folder, photos, "--json", "--tokens", "tome:r=1"))
    assert plain != other
    assert [a["file"] for a in plain] == [a["file"] for a in other]
    result = json.loads(said(capsys, "eval", "folder", run_folder, "--data", photos, "--tokens", "tome:r=1", "--json"))
    assert result["note"] == "tokens tome:r=1"
    error = said(capsys, "predict", run_folder, photos, "--tokens", "dynamicvit", status=1)
    assert "--tokens dynamicvit has parameters of its own" in error
    assert "did you mean tome" in said(capsys, "predict", run_folder, photos, "--tokens", "tme:r=1", status=1)


def test_features_weigh_tokens_by_their_patches(tmp_path: Path, photos: Path, capsys: Capture) -> None:
    torch.manual_seed(0)
    model = zoo.create_model("cct_2_3x2_32", num_classes=len(CLASSES)).eval()
    folder = saved(model, tmp_path / "run")
    judge = load(str(folder), tokens="tome:r=4")
    ((_, got),) = judge.outputs([photos / "ant" / "0.png"], batch=1, pre_logits=True)
    ((_, image),) = judge.batches([photos / "ant" / "0.png"], batch=1)
    attach(model, Merge(4))
    with torch.inference_mode():
        torch.testing.assert_close(model.head(got), model(image))
    out = tmp_path / "x.safetensors"
    line = ["features", folder, photos, "--out", out, "--tokens", "tome:r=4", "--json"]
    assert json.loads(said(capsys, *line))["images"] == 12


def test_bench_takes_tokens_for_a_checkpoint(run_folder: Path) -> None:
    assert plugins_of(build(Arm(str(run_folder), (("tokens", "tome:r=1"),)), Case())) == [Merge(1)]


RECIPE = """
model:
  class_path: patchloom.train.classify.Classify
  init_args:
    model:
      class_path: patchloom.vision.zoo.create_model
      init_args: {name: vit_lite_2_4_32, num_classes: 10, tokens: TOKENS}
data:
  class_path: patchloom.data.modules.ShapesData
  init_args:
    train_length: 16
    val_length: 8
    test_length: 8
    batch_size: 8
    workers: 0
    preprocessing: {input_size: [3, 32, 32], mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2], crop_pct: 1.0}
trainer: {max_epochs: 1, accelerator: cpu, logger: false}
"""
MERGE = "{class_path: patchloom.vision.plugins.merge.Merge, init_args: {r: 3}}"


@pytest.mark.parametrize("tokens", ["tome:r=3", MERGE, "null"])
def test_a_recipe_trains_with_tokens_and_its_run_keeps_them(
    tokens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(RECIPE.replace("TOKENS", tokens))
    (tmp_path / "tokens.yaml").write_text(snippet("vit_lite_2_4_32", "tome:r=3"))
    more = ["-c", "tokens.yaml"] if tokens == "null" else []
    said(capsys, "fit", "-c", "small.yaml", *more, "--test", "false", "--pictures.curves", "false")
    (config,) = (tmp_path / "runs").rglob("config.yaml")
    run = config.parent
    model, _, _ = checkpoint.load_model(str(run))
    assert plugins_of(model) == [Merge(3)]
    seen = [
        json.loads(said(capsys, "test", run, "--json", "--pictures.predictions", "0", *more))["test"]["test/loss"]
        for more in ([], ["--tokens", "tome:r=3"], ["--tokens", "none"])
    ]
    assert seen[0] == seen[1] != seen[2]


def test_a_model_of_ones_own_takes_tokens() -> None:
    described = zoo.describe(vit(tokens=Merge(2, prop=False)))
    assert plugins_of(zoo.rebuild(described)) == [Merge(2, prop=False)]
    model = vit()
    own = type(model)(model.backbone, 6, model.spec, img_size=64, tokens="tome:r=2")
    assert plugins_of(own) == [Merge(2)]
    assert plugins_of(zoo.rebuild(json.loads(json.dumps(zoo.describe(own))))) == [Merge(2)]


# --------------------------------------------------------------------------------------------------------- show-tokens


def test_show_tokens(run_folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                     capsys: Capture) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    line = ["show-tokens", photos / "ant" / "0.png", "--model", run_folder, "--tokens", "tome:r=1"]
    text = said(capsys, *line)
    assert text.splitlines()[0].split() == ["block", "tokens", "patches", "groups", "merged", "dropped"]
    assert text.rstrip().endswith("0_tokens.png")
    with Image.open("0_tokens.png") as picture:
        assert picture.width > 1000
    result = json.loads(said(capsys, *line, "--json", "--out", "x.png", "--size", "32x64"))
    assert [row["patches"] for row in result["layers"]] == [8] * 12
    assert result["tokens"] == ["tome:r=1"]


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        (["PHOTO"], 2, "--model"),
        (["PHOTO", "--model", "RUN"], 1, "nothing reduces the tokens of"),
        (["PHOTO", "--model", "RUN", "--tokens", "tome"], 1, "lacks r"),
        (["PHOTO", "--model", "RUN", "--tokens", "tme:r=1"], 1, "did you mean tome"),
        (["PHOTO", "--model", "RUN", "--tokens", "tome:r=1", "--out", "x.jpg"], 1, "written as .png"),
        (["x.jpg", "--model", "RUN", "--tokens", "tome:r=1"], 1, "x.jpg"),
        (["PHOTO", "--model", "swin_tiny", "--tokens", "tome:r=1", "--random-weights"], 1, "needs a full grid"),
    ],
)
def test_wrong_lines_of_show_tokens(
    line: list[str], status: int, words: str, run_folder: Path, photos: Path, capsys: Capture
) -> None:
    named = {"PHOTO": str(photos / "ant" / "0.png"), "RUN": str(run_folder)}
    assert words in said(capsys, "show-tokens", *[named.get(word, word) for word in line], status=status)
