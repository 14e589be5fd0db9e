"""Where published files lie on this machine. Imports no torch and opens no socket.

`PATCHLOOM_HOME` (checkpoints/ for addresses, hub/ for the Hugging Face hub), else the folders of torch hub
(`TORCH_HOME`) and of huggingface_hub (`HF_HOME`), so that what these have fetched is found.
"""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .published import Weights

HUB = "hf-hub:"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # tried in this order where a table names no file


def offline_mode(offline: bool | None = None) -> bool:
    """`offline` itself, or what PATCHLOOM_OFFLINE and HF_HUB_OFFLINE say."""
    if offline is not None:
        return offline
    return any(
        os.environ.get(name, "").lower() in ("1", "true", "yes", "on")
        for name in ("PATCHLOOM_OFFLINE", "HF_HUB_OFFLINE")
    )


def address(weights: Weights) -> str:
    """What a browser fetches."""
    if not weights.url.startswith(HUB):
        return weights.url
    repository, revision, file = hub_parts(weights.url)
    return f"https://huggingface.co/{repository}/resolve/{revision or 'main'}/{file or HUB_FILES[0]}"


def local_path(weights: Weights) -> Path:
    """Where the file of an address lies in the cache, and where one from the hub may be put by hand."""
    return _local_paths(weights)[0]


def cached(weights: Weights) -> Path | None:
    """The file where it is in the cache already, asking nobody."""
    for path in _local_paths(weights):
        if path.is_file():
            return path
    if weights.url.startswith(HUB):
        from huggingface_hub import try_to_load_from_cache

        repository, revision, file = hub_parts(weights.url)
        for name in (file,) if file else HUB_FILES:
            found = try_to_load_from_cache(repository, name, cache_dir=hub_folder(), revision=revision)
            if isinstance(found, str):
                return Path(found)
    return None


def _local_paths(weights: Weights) -> list[Path]:
    folder = checkpoints_folder()
    if not weights.url.startswith(HUB):
        parts = urlsplit(weights.url)
        return [folder / Path(unquote(parts.fragment or parts.path)).name]  # PAGE#FILE: a file that a page links
    repository, _, file = hub_parts(weights.url)
    names = (file,) if file else HUB_FILES
    return [folder / "--".join((*repository.split("/"), *name.split("/"))) for name in names]


def checkpoints_folder() -> Path:
    if home := os.environ.get("PATCHLOOM_HOME"):
        return Path(home).expanduser() / "checkpoints"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"  # as torch.hub.get_dir() has it
    return Path(os.environ.get("TORCH_HOME") or f"{cache}/torch").expanduser() / "hub" / "checkpoints"


def hub_folder() -> Path | None:
    """The hub's cache; None leaves it to huggingface_hub, which reads HF_HOME and HF_HUB_CACHE."""
    home = os.environ.get("PATCHLOOM_HOME")
    return Path(home).expanduser() / "hub" if home else None


def hub_parts(url: str) -> tuple[str, str | None, str | None]:
    """hf-hub:OWNER/NAME[@REVISION][/FILE] -> repository, revision, file."""
    owner, name, *file = url.removeprefix(HUB).split("/", 2)
    name, _, revision = name.partition("@")
    return f"{owner}/{name}", revision or None, file[0] if file else None
