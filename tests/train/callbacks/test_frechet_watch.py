"""While a denoiser learns, its pictures are judged by a classifier: the numbers are those that the tools give alone."""

from pathlib import Path

import lightning as L
import pytest
import torch
from classify_parts import tiny

from patchloom.data.captioned import CaptionedShapes
from patchloom.data.modules import ShapesData
from patchloom.data.sample import KINDS
from patchloom.multimodal.text import TextEncoder
from patchloom.train.callbacks.frechet import FrechetWatch
from patchloom.train.diffuse import Diffuse
from patchloom.train.ema import Ema
from patchloom.train.evaluation.fid_numbers import Moments, frechet_distance
from patchloom.train.running import checkpoint
from patchloom.train.running.checkpoint import header, preprocessing_of
from patchloom.train.saved.judge import load
from patchloom.vision.generation.dit import DiT
from patchloom.vision.generation.flow import Flow

SETTINGS = {"steps": 2, "batch": 5}


@pytest.fixture
def judge(tmp_path: Path) -> str:
    torch.manual_seed(0)
    model = tiny(10).eval()
    model.set_input_size(32)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    head = header(model, list(KINDS), preprocessing_of(model) | {"crop_pct": 1.0})
    checkpoint.save({"patchloom": head, "state_dict": state}, tmp_path / "judge.ckpt")
    return str(tmp_path / "judge.ckpt")


def diffuse(**conditions) -> Diffuse:
    torch.manual_seed(0)
    text = TextEncoder("words:width=16,depth=1,heads=2", 10) if "text" in conditions else None
    model = DiT(1, 16, 2, patch=8, in_channels=3, size=(32, 32), learn_variance=False, **conditions)
    return Diffuse(model, Flow(), ema=Ema(0.9), samples=None, text=text)


def train(made: Diffuse, data, watch: FrechetWatch | None, root: Path, steps: int = 4) -> dict[int, dict[str, float]]:
    """What was logged at each step."""
    seen: dict[int, dict[str, float]] = {}

    class Note(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            found = {k: float(v) for k, v in trainer.callback_metrics.items() if k in ("val/frechet", "val/asked")}
            if found:
                seen[trainer.global_step] = found

    callbacks = [Note()] if watch is None else [watch, Note()]
    L.seed_everything(3)
    L.Trainer(
        max_steps=steps, callbacks=callbacks, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", default_root_dir=root, limit_val_batches=0,
    ).fit(made, data)  # fmt: skip
    return seen


def shapes() -> ShapesData:
    return ShapesData(train_length=24, val_length=12, test_length=4, batch_size=4, workers=0)


def test_numbers_are_those_of_the_pictures(judge: str, tmp_path: Path) -> None:
    made, data = diffuse(num_classes=10), shapes()
    watch = FrechetWatch(judge, every_n_steps=2, count=12, **SETTINGS)
    seen = train(made, data, watch, tmp_path)
    assert set(seen) >= {2, 4}
    assert 0 <= seen[4]["val/asked"] <= 1
    assert seen[2]["val/frechet"] != seen[4]["val/frechet"]
    tool, real = load(judge), []
    x = torch.cat([x for x, _ in data.val_dataloader()])
    for picture in (x * 0.5 + 0.5).float():
        image = (picture - torch.tensor(tool.preprocessing["mean"]).view(3, 1, 1)) / torch.tensor(
            tool.preprocessing["std"]
        ).view(3, 1, 1)
        with torch.no_grad():
            real.append(tool.embed(image[None])[0])
    again = Moments.of(torch.stack(real))
    torch.testing.assert_close(watch.tools[2].mean, again.mean, rtol=1e-4, atol=1e-4)
    numbers = watch.numbers(made.trainer, made)  # the weights did not move since
    assert numbers["frechet"] == pytest.approx(seen[4]["val/frechet"], rel=1e-5)
    assert frechet_distance(watch.tools[2], again) < 1e-3 * numbers["frechet"]


def test_the_run_does_not_notice(judge: str, tmp_path: Path) -> None:
    watched, alone = diffuse(num_classes=10), diffuse(num_classes=10)
    train(watched, shapes(), FrechetWatch(judge, every_n_steps=2, count=6, **SETTINGS), tmp_path)
    train(alone, shapes(), None, tmp_path)
    for (name, a), b in zip(watched.state_dict().items(), alone.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_captions_are_taken_from_the_data(judge: str, tmp_path: Path) -> None:
    data = CaptionedShapes(train_length=24, val_length=8, test_length=4, batch_size=4, workers=0)
    seen = train(diffuse(num_classes=None, text=(10, 16)), data, FrechetWatch(judge, 4, 10, **SETTINGS), tmp_path)
    assert set(seen[4]) == {"val/frechet"}


def test_wrong_input(judge: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every_n_steps=0"):
        FrechetWatch(judge, 0)
    data = shapes()
    data.lengths = {"train": 24, "val": 1, "test": 4}
    with pytest.raises(ValueError, match="no validation pictures"):
        train(diffuse(num_classes=10), data, FrechetWatch(judge, 2, 4, **SETTINGS), tmp_path)
