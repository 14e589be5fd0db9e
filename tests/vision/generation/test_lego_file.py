"""LEGO's published files: pickles of modules beside their source, of which only tensors are read and nothing is run."""

import pickle
import re
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from patchloom.vision.generation.lego import Lego
from patchloom.vision.generation.lego_bricks import Brick
from patchloom.vision.generation.lego_file import read
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model

THEIRS = (
    (r"time_embedding\.fc1", "model.t_embedder.mlp.0"), (r"time_embedding\.fc2", "model.t_embedder.mlp.2"),
    (r"labels\.linear", "model.y_embedder.embedding_table"), (r"position\.table", "pos_embed"),
    (r"embed\.(weight|bias)$", r"x_embedder.proj.\1"), (r"mixer\.", "attn."), (r"ffn\.", "mlp."),
    (r"modulation\.linear", "adaLN_modulation.1"), (r"final\.", "final_layer."), (r"^bricks", "model.model"),
)  # fmt: skip
RUN = []


class Stored(nn.Module):
    """A module that is pickled as NVLabs' code does: as a call with its state and its source."""

    def __reduce__(self):
        source = "raise SystemExit('this must not run')"
        meta = {"type": "class", "version": 6, "module_src": source, "class_name": "Net", "state": self.__dict__}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,), None


def run(word):
    RUN.append(word)


class Trap:
    """What would run when it is loaded: a function, and a method that is looked up."""

    def __init__(self, what=run):
        self.what = what

    def __reduce__(self):
        return self.what, ("run",)


@pytest.fixture
def persistence(monkeypatch):
    """The module that such files name, as it is where they are written."""
    module = ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta):
        RUN.append(meta)

    _reconstruct_persistent_obj.__module__ = module.__name__
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    monkeypatch.setitem(sys.modules, "torch_utils", ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    RUN.clear()


def nested(state):
    """Modules that hold tensors under such names; the table of places a parameter, as published."""
    root = Stored()
    for name, value in state.items():
        module = root
        *path, leaf = name.split(".")
        for part in path:
            if part not in module._modules:
                module.add_module(part, Stored() if part == "model" else nn.Module())
            module = module._modules[part]
        module.register_parameter(leaf, nn.Parameter(value.clone(), requires_grad=leaf != "pos_embed"))
    return root


def written(path, model, **more):
    state = model.state_dict()
    names = {}
    for name in state:
        theirs = name
        for ours, there in THEIRS:
            theirs = re.sub(ours, there, theirs)
        names[theirs] = state[name]
    path.write_bytes(pickle.dumps({"ema": nested(names), "loss_fn": Trap(), "augment_pipe": Trap(RUN.append), **more}))
    return names


def small():
    model = Lego((Brick(4, 2, 1), Brick(8, 2, 1)), 16, 2, size=(8, 8), num_classes=3)
    with torch.no_grad():
        for p in (*model.parameters(), *model.buffers()):
            p.normal_()
    return model


def test_the_network_of_a_published_file_is_ours(tmp_path, persistence):
    source, target = small(), small()
    names = written(tmp_path / "net.pkl", source, dataset_kwargs={"resolution": 8})
    found = read(tmp_path / "net.pkl")
    assert RUN == []
    assert set(found) == set(names)
    assert all(torch.equal(found[n], v) for n, v in names.items())
    report = load_published(target, found)
    assert not report.fresh
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )


def test_create_model_takes_such_a_file(tmp_path, persistence):
    path = tmp_path / "LEGO.pkl"
    source = small()
    written(path, source)
    options = {"bricks": source.specs, "dim": 16, "heads": 2, "num_classes": 3, "img_size": 8}
    model = create_model("lego_l_pg_64", checkpoint_path=path, **options)
    assert torch.equal(model.labels.linear.weight, source.labels.linear.weight)
    with pytest.raises(ValueError, match="do not fit"):
        create_model("lego_l_pg_64", checkpoint_path=path, **options | {"num_classes": 4})


def test_what_is_no_such_file_is_refused(tmp_path, persistence):
    for content, match in ((b"no pickle", "damaged"), (pickle.dumps({"net": 1}), "holds no network"),
                           (pickle.dumps({"ema": {"w": 1}}), "holds no network"), (b"", "damaged")):  # fmt: skip
        path = tmp_path / "file.pkl"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=match):
            read(path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent.pkl")
