"""Two CPU processes (gloo) against one: the same training, and metrics over every image exactly once."""

import pytest
import torch
from classify_parts import shapes_run
from processes import two_processes


@pytest.mark.slow
def test_two_processes_train_and_judge_as_one(tmp_path):
    (first, weights), (second, copy) = two_processes(shapes_run, tmp_path)
    one, expected = shapes_run(1, tmp_path)
    assert set(one) == {"train/loss", "val/loss", "val/top1", "val/top5", "test/loss", "test/top1", "test/top5"}
    for name in set(one) - {"train/loss"}:  # that one is of the last batch, which is shared out
        assert first[name] == second[name] == pytest.approx(one[name], abs=1e-5), name
    for name, value in expected.items():
        assert torch.equal(weights[name], copy[name]), name
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5, msg=name)
