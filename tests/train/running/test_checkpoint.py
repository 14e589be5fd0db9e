import json
import os
import pickle
import random

import numpy as np
import pytest
import torch
from fit_parts import small
from safetensors.torch import save_file

from patchloom.train.callbacks.generators import generators_state, set_generators_state
from patchloom.train.running import checkpoint
from patchloom.train.running.checkpoint import CheckpointError

PREPROCESSING = {"input_size": (3, 32, 32), "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "interpolation": "bicubic"}


class Code:
    def __reduce__(self):
        return os.system, ("echo this ran",)


@pytest.fixture
def saved(tmp_path):
    """A small model with weights and an average of other weights, and its file."""
    model, average = small(), small()
    state = {f"model.{k}": v for k, v in model.state_dict().items()} | {
        f"ema.module.{k}": v for k, v in average.state_dict().items()
    }
    content = {
        "patchloom": checkpoint.header(model, [f"c{i}" for i in range(10)], PREPROCESSING, "shapes/small"),
        "state_dict": state,
        "epoch": 3,
    }
    checkpoint.save(content, tmp_path / "last.ckpt")
    return model.eval(), average.eval(), tmp_path / "last.ckpt", content


def test_a_model_comes_back_with_classes_and_preprocessing(saved):
    model, average, path, _ = saved
    x = torch.randn(2, 3, 32, 32)
    for ema, expected in ((True, average), (False, model)):
        loaded, classes, preprocessing = checkpoint.load_model(str(path), ema=ema)
        assert not loaded.training
        assert torch.equal(loaded(x), expected(x))
    assert classes == [f"c{i}" for i in range(10)]
    assert tuple(preprocessing["mean"]) == (0.5, 0.5, 0.5)
    assert torch.equal(checkpoint.load_model(str(path.parent))[0](x), average(x))  # a run folder without best.ckpt
    (path.parent / "best.ckpt").write_bytes(path.read_bytes())
    assert checkpoint.find(path.parent) == path.parent / "best.ckpt"


def test_safetensors_say_of_which_model_they_are(saved, tmp_path):
    model, _, _, content = saved
    save_file(model.state_dict(), tmp_path / "a.safetensors", {"patchloom": json.dumps(content["patchloom"])})
    loaded, classes, _ = checkpoint.load_model(str(tmp_path / "a.safetensors"))
    assert len(classes) == 10
    assert torch.equal(loaded(torch.ones(1, 3, 32, 32)), model(torch.ones(1, 3, 32, 32)))
    save_file(model.state_dict(), tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"does not say of which model; write NAME=\S+b.safetensors"):
        checkpoint.load_model(str(tmp_path / "b.safetensors"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s, k: s.pop(k), r"tensor missing: {k}; use a checkpoint of this very model"),
        (lambda s, k: s.update({"ema.module.novel": torch.ones(2)}), r"tensor unknown to the model: novel;"),
        (
            lambda s, k: s.update({k: torch.ones(3, 5)}),
            r"tensor wrongly shaped: {k} has shape \(3, 5\) where the model has \(\d+",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(saved, change, says):
    _, _, path, content = saved
    name = next(k for k in content["state_dict"] if k.startswith("ema.module.") and content["state_dict"][k].ndim > 1)
    change(content["state_dict"], name)
    checkpoint.save(content, path)
    with pytest.raises(
        CheckpointError, match=says.format(k=name.removeprefix("ema.module.").replace(".", r"\."))
    ) as error:
        checkpoint.load_model(str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("protocol", [2, 4])
def test_code_is_refused_and_named(tmp_path, protocol, capfd):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"state_dict": Code()}, protocol))
    torch.save({"state_dict": Code()}, tmp_path / "a.ckpt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    for name, what in (
        ("a.pkl", r"posix\.system"),
        ("a.ckpt", r"posix\.system"),
        ("module.pth", r"torch\.nn\.modules\.linear\.Linear"),
    ):
        with pytest.raises(CheckpointError, match=rf"{name}: holds code or objects \({what}\), .*not loaded"):
            checkpoint.read(tmp_path / name)
    assert "this ran" not in capfd.readouterr().out


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xd8\xff\xe0" + bytes(300), b"PK\x03\x04" + bytes(50)])
def test_what_is_no_checkpoint_is_said(tmp_path, content):
    for name in ("a.ckpt", "a.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match="is no checkpoint, or a damaged one"):
            checkpoint.load_model(str(tmp_path / name))


def test_a_truncated_file_is_said(saved):
    *_, path, _ = saved
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read(path)


def test_names_of_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file or run folder a\.ckpt"):
        checkpoint.load_model("a.ckpt")
    with pytest.raises(FileNotFoundError, match=r"no best\.ckpt or last\.ckpt in folder"):
        checkpoint.load_model(str(tmp_path))
    (tmp_path / "2026").mkdir()
    (tmp_path / "2026" / "last.ckpt").touch()
    with pytest.raises(FileNotFoundError, match=r"did you mean .*2026"):
        checkpoint.load_model(str(tmp_path))
    with pytest.raises(ValueError, match="did you mean swin_tiny"):
        checkpoint.load_model("swin_tini")


def test_only_plain_values_are_saved(tmp_path):
    with pytest.raises(TypeError, match=r"checkpoint\['a'\]\[1\]\['b'\] is a pathlib\.PosixPath"):
        checkpoint.save({"a": [1, {"b": tmp_path}]}, tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []


class Full:
    """A disk that is full after some bytes, for files that are written in this process."""

    def __init__(self, room: int):
        self.room = room

    def __call__(self, descriptor, mode):
        file, room = open(descriptor, mode), [self.room]  # noqa: SIM115

        class Limited:
            def write(self, data):
                room[0] -= len(data)
                if room[0] < 0:
                    raise OSError(28, "No space left on device")
                return file.write(data)

            def flush(self):
                file.flush()

            def fileno(self):
                return file.fileno()

            def close(self):
                file.close()

        return Limited()


@pytest.mark.parametrize("room", [0, 500, 3000])
def test_a_full_disk_leaves_the_previous_file(saved, monkeypatch, room):
    _, _, path, content = saved
    before = path.read_bytes()
    monkeypatch.setattr(os, "fdopen", Full(room))
    with pytest.raises(
        OSError, match=r"cannot save checkpoint .*last\.ckpt: No space left on device; the previous one is intact"
    ) as error:
        checkpoint.save({**content, "epoch": 4}, path)
    assert "\n" not in str(error.value)
    with pytest.raises(OSError, match="nothing was written"):
        checkpoint.save(content, path.with_name("other.ckpt"))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_generators_go_on_where_they_were():
    def draw():
        return (
            random.random(),
            np.random.rand(3).tolist(),
            np.random.randn(),
            torch.randn(3).tolist(),
            random.gauss(0, 1),
        )

    draw()
    state = generators_state()
    checkpoint.check_plain(state)
    first = draw()
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    set_generators_state(state)
    assert draw() == first
