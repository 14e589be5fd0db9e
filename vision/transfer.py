"""One address over http into a file: a broken connection is taken up where it ended, in this call or in a later one.

Beside NAME.part lies NAME.part.json with the address, validators and size of what was begun; where the server's file is
another by now, the part is thrown away. Both are gone once the file is whole.
"""

import http.client
import json
import os
import shutil
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CHUNK, TIMEOUT = 1 << 20, 30.0  # bytes read at once, seconds without any byte
TRIES, PAUSE = 5, 1.0  # attempts in a row that bring no byte, seconds before the second (then doubled)


class DownloadError(OSError):
    """A file that could not be had; one line with its address and what would do."""


class _Broken(Exception):
    """The connection ended early: worth another attempt from where it stopped."""


BROKEN = (_Broken, urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)
HOPELESS = (socket.gaierror, ssl.SSLCertVerificationError)  # no such host or no network; not who it says it is


def receive(url: str, part: Path) -> None:
    """Attempts until `part` is whole; one that brought bytes starts the count anew."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"cannot fetch {url}: only http and https are read")
    failures = 0
    while True:
        before = _length(part)
        try:
            return _attempt(url, part)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 416, 429):
                raise DownloadError(f"{url} answered {error.code} {error.reason}") from error
            if error.code == 416:  # what we hold does not fit the file as it is now
                forget(part)
            reason = f"{error.code} {error.reason}"
        except BROKEN as error:
            cause = getattr(error, "reason", error)
            reason = first_line(cause)
            if isinstance(cause, HOPELESS):
                raise DownloadError(f"cannot fetch {url}: {reason}") from error
        failures = 1 if _length(part) > before else failures + 1
        if failures >= TRIES:
            raise DownloadError(f"cannot fetch {url}: {reason} ({TRIES} attempts)")
        time.sleep(PAUSE * 2 ** (failures - 1))


def _attempt(url: str, part: Path) -> None:
    """One attempt: appends to `part` what is missing, or starts over where the server's file is not the one begun."""
    known = _read_note(part, url)
    have = _length(part)
    if have and have == known.get("total"):  # whole already: the process ended before it could rename it
        return
    headers = {"User-Agent": "patchloom"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
        if url.startswith("https:") and not response.geturl().startswith("https:"):
            raise DownloadError(f"{url} leads to {response.geturl()}, which is not https")
        now = {"url": url, "etag": response.headers["ETag"], "modified": response.headers["Last-Modified"]}
        length = response.headers["Content-Length"]
        total = None if length is None else int(length) + (have if response.status == 206 else 0)
        if response.status == 206:
            start = response.headers["Content-Range"] or ""
            if not start.startswith(f"bytes {have}-") or {**now, "total": total} != known:
                forget(part)
                raise _Broken("the file changed on the server meanwhile")
        else:
            have = 0
        _check_space(part, None if total is None else total - have)
        with _writing(part):
            _note(part).write_text(json.dumps({**now, "total": total}))
        _stream(response, part, have, total)
    if total is not None and (got := _length(part)) != total:
        raise _Broken(f"the connection ended after {got:,} of {total:,} bytes")


def _stream(response: http.client.HTTPResponse, part: Path, have: int, total: int | None) -> None:
    """Bytes to the disk under a bar on stderr (a terminal: at once; else only where it takes long)."""
    from tqdm import tqdm

    pace: dict[str, Any] = {} if sys.stderr.isatty() else {"delay": 5, "mininterval": 15, "leave": False}
    width = min(shutil.get_terminal_size().columns, 120)
    shown = {"desc": part.stem, "unit": "B", "unit_scale": True, "ncols": width, "file": sys.stderr}
    bar = tqdm(total=total, initial=have, **shown, **pace)
    with bar, part.open("r+b" if have else "wb") as file:
        file.seek(have)
        while chunk := response.read(CHUNK):
            with _writing(part):
                file.write(chunk)
                file.flush()
            bar.update(len(chunk))
        os.fsync(file.fileno())


@contextmanager
def _writing(part: Path) -> Iterator[None]:
    """A disk that fails ends the download, and leaves nothing of it."""
    try:
        yield
    except OSError as error:
        forget(part)
        raise DownloadError(f"cannot write {part}: {error.strerror or error}") from error


def _check_space(part: Path, needed: int | None) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed is not None and needed > free:
        raise DownloadError(
            f"{part.parent} has {free / 1e6:,.0f} MB free, the file needs {needed / 1e6:,.0f} MB; "
            "set PATCHLOOM_HOME to a larger disk"
        )


def _length(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _note(part: Path) -> Path:
    """Beside `part`: the address, validators and size of what it is a part of."""
    return part.with_name(f"{part.name}.json")


def _read_note(part: Path, url: str) -> dict[str, Any]:
    """The note of a begun file; forgets a part without one or of another address."""
    known: dict[str, Any] = {}
    with suppress(FileNotFoundError, json.JSONDecodeError):
        known = json.loads(_note(part).read_text())
    if known.get("url") != url:
        forget(part)
    return known


def forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def first_line(error: object) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
