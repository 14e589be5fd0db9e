"""Each wrong thing is one line that says what and what would do, a status that isn't 0, and nothing half-written."""

import resource

import pytest
import torch
from fit_parts import RECIPE, error_line, patchloom, recipe, run_folder
from PIL import Image

from patchloom.train import cli
from patchloom.train.running import checkpoint


def said(capsys, *line, status=2) -> str:
    """The error of one command line in this process."""
    assert cli.main([str(word) for word in line]) == status
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert len([x for x in lines if x.startswith("patchloom: error: ")]) == 1
    assert lines[-1].startswith("patchloom: error: ")
    return lines[-1]


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "batch_size: 8",
            "batchsize: 8",
            r"small.yaml:12: data.init_args.batchsize: no such key; did you mean batch_size?",
        ),
        ("decay: 0.9", "dekay: 0.9", "small.yaml:9: model.init_args.ema.dekay: no such key; did you mean decay?"),
        ("max_epochs", "max_epoch", "small.yaml:13: trainer.max_epoch: no such key; did you mean max_epochs"),
        (
            "{every_n_steps",
            "{every_n_step",
            "small.yaml:14: checkpoints.every_n_step: no such key; did you mean every_n_steps?",
        ),
        ("trainer:", "trainr:", "small.yaml:13: trainr: no such key; did you mean trainer?"),
        (
            "ShapesData",
            "ShapeData",
            "small.yaml:11: data.class_path: patchloom.data.modules has no ShapeData; did you mean ShapesData",
        ),
        ("batch_size: 8", "batch_size: many", "data.batch_size: expected int. Got value: many"),
        ("trainer: {", "trainer: [", "small.yaml:13: no YAML: "),
    ],
)
def test_a_wrong_recipe(tmp_path, capsys, old, new, says):
    path = recipe(tmp_path, text=RECIPE.replace(old, new))
    assert says in said(capsys, "fit", "-c", path, status=1 if "no YAML" in says else 2)
    assert list(tmp_path.iterdir()) == [path]


def test_windw_in_the_stages_of_a_hybrid(tmp_path, capsys):
    stages = (
        "backbone: {class_path: patchloom.vision.backbone.Backbone, init_args: {stages: [\n"
        "      {dim: 8, depth: 1, mixer: {class_path: patchloom.vision.mixers.pool.Pool}},\n"
        "      {dim: 16, depth: 1, mixer: {class_path: patchloom.vision.mixers.window.Window, "
        "init_args: {heads: 2, windw: 3}}}]}}"
    )
    text = RECIPE.replace(
        "{class_path: fit_parts.small}",
        "{class_path: patchloom.vision.model.Classifier, init_args: {num_classes: 10, " + stages + "}}",
    )
    path = recipe(tmp_path, text=text)
    line = said(capsys, "fit", "-c", path)
    assert (
        "small.yaml:8: model.init_args.model.init_args.backbone.init_args.stages[1].mixer.init_args.windw: no such key"
        in line
    )


@pytest.mark.parametrize(
    ("line", "status", "says"),
    [
        (["--data.batchsize", "3"], 2, "--data.batchsize: no such key 'batchsize'; did you mean batch_size?"),
        (["--model.ema.dekay", "3"], 2, "--model.ema.dekay: no such key 'dekay'; did you mean decay?"),
        (["--trainer.acelerator=gpu"], 2, "--trainer.acelerator: no such key 'acelerator'; did you mean accelerator"),
        (["--checkpoints.every_n_steps", "-1"], 1, "give a number of steps, or 0"),
        (["runs/x"], 2, "fit takes no word 'runs/x'"),
        (
            ["--data", "patchloom.data.dense_modules.CocoData", "--data.wokers", "1"],
            2,
            "--data.wokers: no such key 'wokers'; did you mean workers?",
        ),
    ],
)
def test_a_wrong_option(tmp_path, capsys, line, status, says):
    assert says in said(capsys, "fit", "-c", recipe(tmp_path), *line, status=status)


def test_a_misspelt_model(tmp_path, capsys):
    text = RECIPE.replace(
        "{class_path: fit_parts.small}", "{class_path: patchloom.vision.zoo.create_model, init_args: {name: swin_tini}}"
    )
    assert "no model 'swin_tini'; did you mean swin_tiny" in said(
        capsys, "fit", "-c", recipe(tmp_path, text=text), status=1
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(tmp_path, capsys):
    line = said(capsys, "fit", "-c", recipe(tmp_path), "--trainer.accelerator", "gpu", status=1)
    assert "trainer.accelerator=gpu: torch" in line
    assert "sees no GPU here; use --trainer.accelerator auto or cpu" in line


@pytest.mark.parametrize(
    ("line", "status", "says"),
    [
        (["fit"], 2, "no recipe: patchloom fit -c RECIPE"),
        (["fit", "-c", "shapes/ctc"], 1, "no file and no recipe 'shapes/ctc'; did you mean shapes/cct"),
        (["fit", "--resume", "runs/none"], 1, "no run folder or checkpoint runs/none"),
        (["test"], 2, "no checkpoint: patchloom test RUN"),
        (["validate", "nowhere"], 1, "no run folder or checkpoint nowhere"),
        (["test", "swin_tiny"], 1, "patchloom eval imagenet swin_tiny --data DIR judges a published model"),
        (["test", "a", "b"], 2, "test takes one run folder or checkpoint, got a, b"),
    ],
)
def test_lines_that_name_nothing(capsys, line, status, says):
    assert says in said(capsys, *line, status=status)


def test_folders_that_hold_nothing(tmp_path, capsys):
    text = RECIPE.replace("patchloom.data.modules.ShapesData", "patchloom.data.modules.FolderData").replace(
        "train_length: 80, val_length: 24, test_length: 32, ", "root: photos, "
    )
    path = recipe(tmp_path, text=text)
    assert "no file or folder photos" in said(capsys, "fit", "-c", path, status=1)
    (tmp_path / "photos").mkdir()
    assert "photos: the folder is empty" in said(capsys, "fit", "-c", path, status=1)
    (tmp_path / "run").mkdir()
    assert "no run in folder run: it has no last.ckpt" in said(capsys, "fit", "--resume", "run", status=1)
    (tmp_path / "run" / "config.yaml").touch()
    assert "the run ended before its first save; begin anew with patchloom fit -c run/config.yaml" in said(
        capsys, "fit", "--resume", "run", status=1
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("run")
    done = patchloom(
        "fit",
        "-c",
        recipe(folder),
        "--test",
        "false",
        "--trainer.max_epochs",
        "1",
        "--pictures.predictions",
        "0",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return run_folder(folder)


def pictures(root, classes):
    for split in ("train", "test"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (32, 32), (40 * i, 90, 9)).save(root / split / name / f"{i}.png")


@pytest.mark.slow
def test_classes_that_differ(tmp_path, run, capsys):
    content = checkpoint.read(run / "best.ckpt")
    pictures(tmp_path / "photos", [*content["patchloom"]["classes"][1:], "zebra"])
    line = said(capsys, "test", run, "--data", "photos", status=1)
    assert "10 classes" in line
    assert "zebra" in line


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s, k: s.pop(k), "tensor missing: model."),
        (lambda s, k: s.update({"model.novel": torch.ones(2)}), "tensor unknown to the model: model.novel;"),
        (lambda s, k: s.update({k: torch.ones(3, 5)}), "has shape (3, 5) where the model has"),
    ],
)
def test_a_checkpoint_that_does_not_fit(tmp_path, run, capsys, change, says):
    content = checkpoint.read(run / "last.ckpt")
    change(
        content["state_dict"],
        next(k for k in content["state_dict"] if k.startswith("model.") and content["state_dict"][k].ndim > 1),
    )
    checkpoint.save(content, tmp_path / "bad.ckpt")
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    for verb in (("test", "bad.ckpt"), ("fit", "--resume", "bad.ckpt", "--trainer.max_epochs", "2")):
        line = said(capsys, *verb, status=1)
        assert says in line
        assert "bad.ckpt" in line
        assert "use a checkpoint of this very model" in line
    assert (tmp_path / "config.yaml").read_text() == (run / "config.yaml").read_text()  # nothing of the refused run


@pytest.mark.slow
def test_a_full_disk(tmp_path, run):
    """A limit on the size of files: the first save fails, then one that would have replaced a good checkpoint."""
    size = (run / "last.ckpt").stat().st_size

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    done = patchloom("fit", "-c", recipe(tmp_path), cwd=tmp_path, preexec_fn=limit)
    folder = run_folder(tmp_path)
    assert "cannot save checkpoint" in error_line(done)
    assert "File too large; nothing was written; free space" in error_line(done)
    assert not list(folder.glob("*.ckpt"))
    assert not list(folder.glob(".*"))
    (folder / "last.ckpt").write_bytes((run / "last.ckpt").read_bytes())
    done = patchloom("fit", "--resume", folder, cwd=tmp_path, preexec_fn=limit)
    assert "File too large; the previous one is intact" in error_line(done)
    assert (folder / "last.ckpt").read_bytes() == (run / "last.ckpt").read_bytes()
    assert not list(folder.glob(".*"))
