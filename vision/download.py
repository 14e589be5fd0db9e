"""Published files into the cache: resumed after a break, verified, renamed when whole, one process at a time.

A file put by hand at `local_path(weights)` counts as fetched. Offline (`PATCHLOOM_OFFLINE=1`, `HF_HUB_OFFLINE=1`, the
front door's --offline) opens no socket.
"""

import hashlib
import os
import socket
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from torch import Tensor

from .cache import HUB, HUB_FILES, address, cached, hub_folder, hub_parts, local_path, offline_mode
from .families.transformers_keys import family_of, to_published
from .published import Weights
from .state import read_local, read_state
from .tables import name_of
from .transfer import CHUNK, DownloadError, first_line, forget, receive

__all__ = [
    "DownloadError",
    "address",
    "cached",
    "fetch",
    "local_path",
    "offline_mode",
    "open_file",
    "open_weights",
    "read_local",
    "read_state",
    "verify",
]


def open_weights(weights: Weights, *, offline: bool | None = None) -> dict[str, Tensor]:
    """Fetches and reads: the tensors under the publisher's names (transformers' copies renamed), or timm's."""
    return _published(read_state(fetch(weights, offline=offline), weights.wrapper, weights.prefix))


def open_file(path: str | Path) -> dict[str, Tensor]:
    """The same of a local file, whoever published it."""
    return _published(read_local(path))


def _published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    family = family_of(state)
    return state if family is None else to_published(family, state)


def fetch(weights: Weights, *, offline: bool | None = None) -> Path:
    """The file of `weights`, from the cache or else downloaded into it."""
    if (path := cached(weights)) is not None:
        return path
    name, place = name_of(weights), local_path(weights)
    page, _, file = weights.url.partition("#")
    if file:
        raise DownloadError(f"{name} cannot be fetched by itself: take {file} from {page} and put it at {place}")
    if offline_mode(offline):
        raise DownloadError(
            f"{name} is not in the cache and downloads are off (offline); run `patchloom weights get {name}` "
            f"where there is a network, or put {address(weights)} at {place}"
        )
    try:
        return _from_hub(weights) if weights.url.startswith(HUB) else _from_address(weights, place)
    except DownloadError as error:
        raise DownloadError(
            f"{error}; try `patchloom weights get {name}` again (it resumes), put the file at {place} by hand, "
            "or name a local file instead"
        ) from error


def verify(path: Path, weights: Weights) -> str:
    """Compares size and digest with what is known of them; the sha256 of the file, or ValueError."""
    digest, fault = _judge(path, weights)
    if fault:
        raise ValueError(f"{path} has {fault}; it is damaged or another file: delete it and fetch it again")
    return digest


def _judge(path: Path, weights: Weights) -> tuple[str, str]:
    """The sha256 of the file and what is wrong with it, or nothing."""
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    found = digest.hexdigest()
    if weights.bytes is not None and size != weights.bytes:
        return found, f"{size:,} bytes where {name_of(weights)} has {weights.bytes:,}"
    if not found.startswith((weights.sha256 or "").lower()):
        return found, f"sha256 {found} where {name_of(weights)} has {weights.sha256}"
    return found, ""


def _from_hub(weights: Weights) -> Path:
    """Through huggingface_hub: its cache, its own resuming and its own digest check."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    _expect_host(ENDPOINT)
    repository, revision, file = hub_parts(weights.url)
    names = (file,) if file else HUB_FILES
    for name in names:
        try:
            path = Path(hf_hub_download(repository, name, revision=revision, cache_dir=hub_folder()))
        except LocalEntryNotFoundError as error:
            raise DownloadError(f"no connection to the Hugging Face hub for {address(weights)}") from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError) as error:
            raise DownloadError(f"cannot fetch {address(weights)}: {first_line(error)}") from error
        verify(path, weights)
        return path
    raise DownloadError(f"{HUB}{repository} has no file {' or '.join(names)}")


def _expect_host(url: str) -> None:
    """Without a network the hub's client asks for half a minute: one look-up tells. (A proxy would do it for us.)"""
    host = urlsplit(url).hostname
    if host and not urllib.request.getproxies():
        try:
            socket.getaddrinfo(host, None)
        except socket.gaierror as error:
            raise DownloadError(f"cannot fetch from {url}: {first_line(error)}") from error


def _from_address(weights: Weights, target: Path) -> Path:
    """GET with ranges into `target`.part, then verify, then rename. A second process waits and finds it done."""
    part = target.with_name(f"{target.name}.part")
    with _locked(target):
        if target.is_file():
            return target
        receive(weights.url, part)
        if fault := _judge(part, weights)[1]:
            forget(part)
            raise DownloadError(f"{weights.url} sent {fault}")
        os.replace(part, target)
        forget(part)
    return target


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One process at a time a file; says so on stderr where it has to wait."""
    from filelock import FileLock, Timeout

    folder = target.parent / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{target.name}.lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print(f"patchloom: another process is fetching {target.name}; waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
