"""What a model gives at named places on its way, to compare with the outputs of a golden record."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from patchloom.vision.block import Tokens


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
