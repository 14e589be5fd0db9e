"""Weights of timm's models: fetched by timm itself, with errors of one line; or from a file, strictly."""

import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from .state import read_local


def expect_weights(name: str) -> None:
    """Raises where timm has no weights for `name`, or where they are neither in the cache nor to be had."""
    import timm
    from timm.models._builder import _resolve_pretrained_source

    cfg: Any = timm.get_pretrained_cfg(name)
    source, where = _resolve_pretrained_source(cfg.to_dict() if cfg else {})
    if not source:
        raise ValueError(f"timm:{name} has no pretrained weights; use pretrained=False (--random-weights)")
    if source == "hf-hub" and not _reachable(where if isinstance(where, str) else where[0]):
        raise FileNotFoundError(
            f"the weights of timm:{name} are not in the cache and huggingface.co cannot be reached; "
            "connect, or copy the cache (HF_HOME) of a machine that has them"
        )


def _reachable(repository: str) -> bool:
    """Whether `repository` is in the cache, or its hub has an address: without one, the hub's retries take a minute."""
    from huggingface_hub import constants, try_to_load_from_cache

    if any(isinstance(try_to_load_from_cache(repository, f), str) for f in ("model.safetensors", "pytorch_model.bin")):
        return True
    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True  # the proxy knows
    try:
        socket.getaddrinfo(constants.ENDPOINT.partition("//")[2].partition("/")[0].partition(":")[0], 443)
    except socket.gaierror:
        return False
    return True


@contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """The hub's errors (no connection, no such file) in one line that names the model; all of them are OSErrors."""
    try:
        yield
    except OSError as error:
        text = str(error).strip().partition("\n")[0] or type(error).__name__
        raise OSError(f"cannot get timm:{name}: {text}") from error


def load_file(network: nn.Module, path: Path, name: str, own_prefix: str) -> None:
    """Strictly loads a file with timm's names, or ours (`own_prefix` in front)."""
    state = {key.removeprefix(own_prefix): value for key, value in read_local(path).items()}
    own = network.state_dict()
    wrong = {key for key in own if key in state and state[key].shape != own[key].shape}
    faults = {
        "lacks": own.keys() - state.keys(),
        "has unknown": state.keys() - own.keys(),
        "has another shape of": wrong,
    }
    for text, names in faults.items():
        if names:
            raise ValueError(f"{path} does not fit {name}: it {text} {len(names)} tensors, among them {min(names)}")
    network.load_state_dict(state)
