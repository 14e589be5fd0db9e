"""What a model gives at named places on its way, to compare with the outputs of a golden record."""

from collections.abc import Mapping
from functools import partial

import pytest
import torch
from golden import golden
from torch import Tensor, nn

from patchloom.vision.tokens import Tokens
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model, model_info


@torch.inference_mode()
def captured(model: nn.Module, x: Tensor, places: Mapping[str, str]) -> dict[str, Tensor]:
    """{name: what the module at that path gave last}, x of it where it gave Tokens; the model's own answer as
    "logits"."""
    found: dict[str, Tensor] = {}

    def keep(_: nn.Module, __: object, out: object, name: str) -> None:
        value = out.x if isinstance(out, Tokens) else out
        assert isinstance(value, Tensor)
        found[name] = value

    hooks = [model.get_submodule(path).register_forward_hook(partial(keep, name=n)) for n, path in places.items()]
    try:
        found["logits"] = model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def loaded(name: str, record: golden.Record, **options: object) -> nn.Module:
    """The model of that name with the record's weights, all of which must find their place as they are."""
    model = create_model(name, **options).eval()
    report = load_published(model, record.state_dict())
    assert not report.fresh
    assert not report.resized
    return model


def agree(record: golden.Record, found: Mapping[str, Tensor], tolerance: float = 1e-5) -> None:
    """Every output of the record is found, and equal to it."""
    assert set(found) == set(record.meta["outputs"])
    for output, value in found.items():
        record.compare(output, value, tolerance)


def sizes_are(facts: Mapping[str, tuple[int, float]]) -> None:
    """Parameters, all of which train, are those of the fact file, and GMACs within one per cent of its."""
    for name, (parameters, gmacs) in facts.items():
        info = model_info(name)
        assert info.parameters == info.trainable == parameters
        assert info.macs / 1e9 == pytest.approx(gmacs, rel=0.01)
