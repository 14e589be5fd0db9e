"""Files of weights in every wrapping, and files that are none: each refused in one line that names the file."""

import argparse
import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from patchloom.vision.state import read_local, read_state

STATE = {"stem.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.ones(2)}


class Code:
    """Pickles as a call, as a hostile file does."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (open, (self.marker, "w"))


def same(state, want=STATE):
    assert set(state) == set(want)
    assert all(torch.equal(state[name], want[name]) for name in want)


def zipped(path, names, inner):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, inner)
    return path


def torch_bytes(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["net.pth", "net.pth.tar", "net.bin", "net"])
def test_plain_and_wrapped_and_prefixed(tmp_path, name):
    path = tmp_path / name
    torch.save(STATE, path)
    same(read_state(path))
    torch.save({"model": STATE, "epoch": 3}, path)
    same(read_state(path, "model"))
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in STATE.items()} | {"decode_head.x": torch.ones(1)}}, path)
    same(read_state(path, "state_dict", "backbone."))


def test_safetensors_by_its_name_or_its_content(tmp_path):
    for name in ("net.safetensors", "5f3e0c"):
        save_file(STATE, tmp_path / name)
        same(read_state(tmp_path / name))
        same(read_local(tmp_path / name))


def test_the_legacy_format_without_zip(tmp_path):
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    same(read_state(tmp_path / "old.pth"))


def test_a_zip_around_one_file(tmp_path):
    path = zipped(tmp_path / "net.pth.zip", ["folder/net.pth", "__MACOSX/folder/._net.pth"], torch_bytes(STATE))
    same(read_state(path))
    with pytest.raises(ValueError, match=r"zip archive with 2 files of weights, not one"):
        read_state(zipped(tmp_path / "two.zip", ["a.pth", "b.pth"], torch_bytes(STATE)))
    with pytest.raises(ValueError, match=r"zip archive with 0 files of weights"):
        read_state(zipped(tmp_path / "none.zip", ["readme.txt"], b"hello"))


@pytest.mark.parametrize("key", ["model", "state_dict", "model_ema", "module"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_one_obvious_wrapper_and_common_prefixes_come_off(tmp_path, key, prefix):
    path = tmp_path / "mine.pth"
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({key: {prefix + name: value for name, value in STATE.items()}, "optimizer": optimizer, "epoch": 1}, path)
    same(read_local(path))


def test_a_prefix_that_not_all_names_have_stays(tmp_path):
    state = {"model.x": torch.ones(1), "head": torch.ones(1)}
    torch.save(state, tmp_path / "mine.pth")
    same(read_local(tmp_path / "mine.pth"), state)


def test_a_published_file_by_hand_is_read_as_its_table_says(tmp_path):
    path = tmp_path / "upernet_swin_tiny_patch4_window7_512x512.pth"
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in STATE.items()} | {"decode_head.x": torch.ones(1)}}, path)
    same(read_local(path))


def test_two_sets_of_weights_are_not_guessed_between(tmp_path):
    path = tmp_path / "mine.pth"
    torch.save({"model": STATE, "model_ema": STATE}, path)
    with pytest.raises(ValueError, match=r"mine\.pth: holds several sets of weights \(model, model_ema\)"):
        read_local(path)
    same(read_state(path, "model_ema"))


def test_options_and_numbers_beside_the_tensors_do_no_harm(tmp_path):
    path = tmp_path / "mine.pth"
    torch.save(
        {"model": STATE, "args": argparse.Namespace(lr=1.0, name="x"), "best": np.float64(81.2), "n": np.int64(3)}, path
    )
    same(read_state(path, "model"))
    same(read_local(path))


def refused(path, *parts, read=read_local):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        read(path)
    text = str(error.value)
    assert "\n" not in text
    for part in (str(path), *parts):
        assert part in text
    return text


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zip_format", [True, False])
def test_code_is_not_run(tmp_path, zip_format, protocol):
    marker, path = tmp_path / "ran", tmp_path / "evil.pth"
    content = {"model": STATE, "hook": Code(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=zip_format, pickle_protocol=protocol)
    refused(path, "holds Python objects (", "open", "safetensors")
    refused(zipped(tmp_path / "evil.pth.zip", ["evil.pth"], path.read_bytes()), "holds Python objects")
    path.write_bytes(pickle.dumps(Code(marker), protocol))
    refused(path, "open")
    assert not marker.exists()


def test_torchs_tar_format_is_refused(tmp_path):
    path = tmp_path / "old.pth"
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.addfile(tarfile.TarInfo(name))
    refused(path, "old tar format", "torch.save")


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files_are_refused(tmp_path, kind, part):
    path = tmp_path / f"cut.{'safetensors' if kind == 'safetensors' else 'pth'}"
    big = {"a": torch.randn(300, 300), "b": torch.randn(300)}
    if kind == "safetensors":
        save_file(big, path)
    else:
        torch.save(big, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    refused(path, "is empty" if part == 0 else "damaged", "fetch it again")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "page.pth"
    path.write_text("<!DOCTYPE html><html>404</html>")
    refused(path, "web page")
    path.write_text("hello, this is a text")
    refused(path, "no file of weights")
    torch.save([1, 2], path)
    refused(path, "holds a list")
    torch.save({"epoch": 1, "config": {"a": 2}}, path)
    refused(path, "'epoch' is of type int")
    torch.save({"patchloom": {"format": 1}, "state_dict": STATE}, path)
    refused(path, "checkpoint of a patchloom run")
    refused(tmp_path / "missing.pth", "no file of weights")
    refused(tmp_path, "it is a folder")


def test_what_a_declared_place_lacks_is_named(tmp_path):
    path = tmp_path / "net.pth"
    torch.save({"model": {"a.w": torch.ones(1), "step": 3}, "epoch": 2}, path)
    refused(path, "no dict under the key 'state_dict'", "model, epoch", read=lambda p: read_state(p, "state_dict"))
    refused(path, "no name begins with 'backbone.'", "a.w, step", read=lambda p: read_state(p, "model", "backbone."))
    refused(path, "'step' is of type int, not a tensor", read=lambda p: read_state(p, "model"))
    refused(path, "'step' is of type int, not a tensor")
