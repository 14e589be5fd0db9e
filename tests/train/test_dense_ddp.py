"""Two CPU processes (gloo) against one: detector and segmenter train alike and are judged over every picture once."""

from pathlib import Path

import lightning as L
import pytest
import torch
from dense_run_parts import drawn, mask_rcnn, semantic_fpn
from processes import two_processes
from vision_tiny import tiny_pyramid

from patchloom.train.detect import Detect
from patchloom.train.ema import Ema
from patchloom.train.segment import Segment
from patchloom.vision.heads.detection import FCOS


def run(kind: str, devices: int, folder: Path) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Numbers and weights after two steps of four pictures in all; five are judged, so the processes have unlike
    shares. Random parts of a detector (which regions are sampled) are drawn by each process itself."""
    torch.manual_seed(0)
    sgd = lambda p: torch.optim.SGD(p, lr=1e-3)  # noqa: E731
    if kind == "detect":
        module = Detect(mask_rcnn(score=0.0, limit=10), sgd, ema=Ema(0.5))
    elif kind == "fcos":  # as coco/fcos_convnext_tiny: a norm on each map, and none that nothing reads
        pyramid = tiny_pyramid("convnext_tiny", dense=True, out_indices=[1, 2, 3])
        module = Detect(FCOS(pyramid, 10, dim=64, score=0.0, limit=10), sgd, ema=Ema(0.5))
    else:
        module = Segment(semantic_fpn(dropout=0.0), optimizer=sgd, ema=Ema(0.5))
    data = drawn(kind == "segment", batch_size=4 // devices, train_length=8, val_length=5)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, data)
    numbers = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return numbers, {name: value.clone() for name, value in module.model.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["detect", "fcos", "segment"])
def test_two_processes_train_and_judge_as_one(kind, tmp_path):
    (first, weights), (second, copy) = two_processes(run, tmp_path, kind)
    one, expected = run(kind, 1, tmp_path)
    judged = {name for name in one if name.startswith("val/")}
    assert judged == {name for name in first if name.startswith("val/")}
    for name in judged:  # both tell the same of all pictures
        assert first[name] == second[name], name
    for name, value in weights.items():
        assert torch.equal(value, copy[name]), name
    if kind == "segment":  # nothing in it is drawn: as one process has it
        assert all(first[name] == pytest.approx(one[name], abs=2e-3) for name in judged)
        for name, value in expected.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-5, msg=name)
