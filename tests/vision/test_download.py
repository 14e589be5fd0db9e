"""Fetching from a server on this machine that breaks, lies and changes its mind; nothing here leaves the machine."""

import hashlib
import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from patchloom.vision import cache, transfer
from patchloom.vision.download import DownloadError, cached, fetch, local_path, verify
from patchloom.vision.published import Weights

CONTENT = bytes(range(256)) * 4096 * 3  # 3 MiB


@dataclass
class Site:
    """What the server answers: `cuts` are the bytes after which it drops the connection, one an answer."""

    content: bytes = CONTENT
    etag: str | None = '"one"'
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    ranges: bool = True
    sized: bool = True
    delay: float = 0.0
    requests: list[str | None] = field(default_factory=list)  # the Range header of each
    url: str = ""

    def weights(self, **changes) -> Weights:
        return replace(Weights("tag", f"{self.url}/net-abcd.pth", "mit"), **changes)


def handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            wanted = self.headers["Range"]
            site.requests.append(wanted)
            if site.statuses and (status := site.statuses.pop(0)) != 200:
                return self.send_error(status)
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and site.ranges else 0
            if start >= len(site.content):
                return self.send_error(416)
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(site.content) - 1}/{len(site.content)}")
            if site.sized:
                self.send_header("Content-Length", str(len(site.content) - start))
            if site.etag:
                self.send_header("ETag", site.etag)
            self.end_headers()
            body = site.content[start:]
            time.sleep(site.delay)
            with suppress(ConnectionError):  # the client may have gone
                self.wfile.write(body[: site.cuts.pop(0)] if site.cuts else body)

    return Handler


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHLOOM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PATCHLOOM_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(transfer, "PAUSE", 0.001)
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(site))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    yield site
    server.shutdown()
    server.server_close()


def left(weights: Weights) -> list[str]:
    """Names of the files in the cache folder, locks aside."""
    folder = local_path(weights).parent
    return sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


@contextmanager
def no_sockets(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", refuse)
        patch.setattr(socket, "create_connection", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield


def test_a_file_arrives_whole_and_only_once(site):
    weights = site.weights(sha256=hashlib.sha256(CONTENT).hexdigest(), bytes=len(CONTENT))
    path = fetch(weights)
    assert path == local_path(weights)
    assert path.read_bytes() == CONTENT
    assert fetch(weights) == cached(weights) == path
    assert len(site.requests) == 1
    assert left(weights) == ["net-abcd.pth"]


def test_broken_connections_are_taken_up_where_they_ended(site):
    site.cuts = [1_000_000, 500_000]
    weights = site.weights()
    assert fetch(weights).read_bytes() == CONTENT
    assert site.requests == [None, "bytes=1000000-", "bytes=1500000-"]
    assert left(weights) == ["net-abcd.pth"]


def test_a_later_process_goes_on_with_what_a_killed_one_left(site, tmp_path):
    site.cuts, site.delay = [2_000_000], 0.0
    script = (
        "import os, signal; from patchloom.vision import transfer\n"
        "transfer.time.sleep = lambda s: os.kill(os.getpid(), signal.SIGKILL)\n"  # killed while it waits to go on
        "from patchloom.vision.download import fetch; from patchloom.vision.published import Weights\n"
        f"fetch(Weights('tag', {site.weights().url!r}, 'mit'))"
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    weights = site.weights()
    assert left(weights) == ["net-abcd.pth.part", "net-abcd.pth.part.json"]
    assert cached(weights) is None
    assert fetch(weights).read_bytes() == CONTENT
    assert site.requests == [None, "bytes=2000000-"]
    assert left(weights) == ["net-abcd.pth"]


def test_a_part_that_is_whole_already_is_not_fetched_again(site):
    weights = site.weights()
    part = local_path(weights).with_name("net-abcd.pth.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT)
    part.with_name(f"{part.name}.json").write_text(json.dumps({"url": weights.url, "total": len(CONTENT)}))
    assert fetch(weights).read_bytes() == CONTENT
    assert site.requests == []


@pytest.mark.parametrize("sent", [b"longer than before" * 100_000, CONTENT[::-1]])
def test_a_file_that_changed_meanwhile_is_begun_anew(site, sent):
    site.cuts = [1_000_000, 0, 0, 0, 0, 0]
    weights = site.weights()
    with pytest.raises(DownloadError, match="1,000,000 of 3,145,728"):
        fetch(weights)
    site.cuts, site.content, site.etag = [], sent, '"two"'
    assert fetch(weights).read_bytes() == sent


def test_a_server_without_ranges_starts_over(site):
    site.cuts, site.ranges = [1_000_000], False
    assert fetch(site.weights()).read_bytes() == CONTENT
    assert site.requests == [None, "bytes=1000000-"]


def test_a_part_of_another_address_is_not_continued(site):
    site.cuts = [1_000_000, 0, 0, 0, 0]
    with pytest.raises(DownloadError):
        fetch(site.weights())
    other = site.weights(url=f"{site.url}/elsewhere/net-abcd.pth")
    site.requests.clear()
    assert fetch(other).read_bytes() == CONTENT
    assert site.requests == [None]


def test_a_size_that_is_not_announced_is_still_checked(site):
    site.sized = False
    assert fetch(site.weights(bytes=len(CONTENT))).read_bytes() == CONTENT
    site.content = CONTENT[:-1]
    short = site.weights(url=f"{site.url}/short.pth", bytes=len(CONTENT))
    with pytest.raises(DownloadError, match=r"3,145,727 bytes where tag has 3,145,728"):
        fetch(short)
    assert left(short) == ["net-abcd.pth"]


@pytest.mark.parametrize("digits", [8, 64])
def test_a_wrong_digest_is_refused_and_nothing_is_left(site, digits):
    good = hashlib.sha256(CONTENT).hexdigest()[:digits]
    assert fetch(site.weights(sha256=good)).is_file()
    bad = site.weights(url=f"{site.url}/bad.pth", sha256="0" * digits)
    with pytest.raises(DownloadError) as error:
        fetch(bad)
    assert "0" * digits in str(error.value)
    assert f"{site.url}/bad.pth" in str(error.value)
    assert "\n" not in str(error.value)
    assert left(bad) == ["net-abcd.pth"]


def test_busy_servers_are_asked_again_and_missing_files_are_not(site):
    site.statuses = [503, 429, 500]
    assert fetch(site.weights()).is_file()
    assert len(site.requests) == 4
    site.requests.clear()
    site.statuses = [404]
    missing = site.weights(url=f"{site.url}/missing.pth")
    with pytest.raises(DownloadError) as error:
        fetch(missing)
    for part in ("404", missing.url, "patchloom weights get", str(local_path(missing)), "local file"):
        assert part in str(error.value)
    assert len(site.requests) == 1


def test_it_gives_up_after_five_attempts_without_a_byte(site):
    site.statuses = [503] * 9
    with pytest.raises(DownloadError, match="503"):
        fetch(site.weights())
    assert len(site.requests) == transfer.TRIES


def test_two_processes_fetch_a_file_once(site):
    site.delay = 0.4
    weights, paths = site.weights(), []
    threads = [threading.Thread(target=lambda: paths.append(fetch(weights))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [local_path(weights)] * 3
    assert len(site.requests) == 1


def test_a_full_disk_is_said_before_and_leaves_nothing(site, monkeypatch):
    weights = site.weights()
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(DownloadError, match="MB free, the file needs 3 MB"):
        fetch(weights)
    assert left(weights) == []


def test_a_disk_that_fills_up_leaves_nothing(site, tmp_path):
    script = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "from patchloom.vision.download import fetch; from patchloom.vision.published import Weights\n"
        f"fetch(Weights('tag', {site.weights().url!r}, 'mit'))"
    )
    full = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert full.returncode == 1
    assert "cannot write" in full.stderr.splitlines()[-1]
    assert left(site.weights()) == []


def test_only_http_is_read(site, tmp_path):
    secret = tmp_path / "secret.pth"
    secret.write_bytes(b"x")
    with pytest.raises(DownloadError, match="only http"):
        fetch(Weights("tag", secret.as_uri(), "mit"))


@pytest.mark.parametrize("variable", ["PATCHLOOM_OFFLINE", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize("url", [None, "hf-hub:timm/no_such_model.tag", "hf-hub:sail/dl/caformer/none.pth"])
def test_offline_opens_no_socket(site, monkeypatch, variable, url):
    weights = site.weights(**({"url": url} if url else {}))
    monkeypatch.setenv(variable, "1")
    with no_sockets(monkeypatch), pytest.raises(DownloadError) as error:
        fetch(weights)
    assert "offline" in str(error.value)
    assert str(local_path(weights)) in str(error.value)
    local_path(weights).parent.mkdir(parents=True)
    local_path(weights).write_bytes(b"by hand")
    with no_sockets(monkeypatch):
        assert fetch(weights).read_bytes() == b"by hand"
    assert site.requests == []


def test_offline_as_an_argument_wins_over_the_environment(site, monkeypatch):
    with no_sockets(monkeypatch), pytest.raises(DownloadError, match="offline"):
        fetch(site.weights(), offline=True)
    monkeypatch.setenv("PATCHLOOM_OFFLINE", "1")
    assert fetch(site.weights(), offline=False).is_file()


def test_what_the_hubs_own_cache_holds_is_found_without_a_socket(site, monkeypatch, tmp_path):
    repository = tmp_path / "home" / "hub" / "models--timm--some_net.some_tag"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123")
    (repository / "snapshots" / "abc123").mkdir(parents=True)
    (repository / "snapshots" / "abc123" / "pytorch_model.bin").write_bytes(b"weights")
    with no_sockets(monkeypatch):
        assert fetch(Weights("t", "hf-hub:timm/some_net.some_tag", "mit")).read_bytes() == b"weights"
        assert cached(Weights("t", "hf-hub:timm/some_net.some_tag/model.safetensors", "mit")) is None


def test_a_hub_file_comes_through_huggingface_hub(site, tmp_path):
    """A hub of one file on this machine: a repository that has no model.safetensors but a pytorch_model.bin."""

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def answer(self, body: bool):
            if not self.path.endswith("/resolve/main/pytorch_model.bin") and "abc123" not in self.path:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("X-Repo-Commit", "abc123")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(200)
            self.send_header("Content-Length", "7")
            self.send_header("ETag", f'"{hashlib.sha256(b"weights").hexdigest()}"')
            self.send_header("X-Repo-Commit", "abc123")
            self.end_headers()
            if body:
                self.wfile.write(b"weights")

        def do_GET(self):
            self.answer(True)

        def do_HEAD(self):
            self.answer(False)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    script = (
        "from patchloom.vision.download import fetch, cached; from patchloom.vision.published import Weights\n"
        "w = Weights('t', 'hf-hub:owner/net', 'mit')\n"
        "assert fetch(w).read_bytes() == b'weights'; assert cached(w) == fetch(w, offline=True)\n"
        "fetch(Weights('t', 'hf-hub:owner/net/other.pth', 'mit'))"
    )
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "PATCHLOOM_HOME": str(tmp_path / "hub_home"),
        "HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
    }
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    server.shutdown()
    server.server_close()
    assert "has no file other.pth" in run.stderr.splitlines()[-1], run.stderr
    assert (tmp_path / "hub_home" / "hub" / "models--owner--net").is_dir()


def test_the_folders_are_those_of_the_libraries(monkeypatch, tmp_path):
    import torch

    for name in ("PATCHLOOM_HOME", "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    weights = Weights("t", "https://example.org/a%20b/net-1234.pth?download=1", "mit")
    assert local_path(weights).parent == type(tmp_path)(torch.hub.get_dir()) / "checkpoints"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert local_path(weights).parent == type(tmp_path)(torch.hub.get_dir()) / "checkpoints"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert local_path(weights) == type(tmp_path)(torch.hub.get_dir()) / "checkpoints" / "net-1234.pth"
    assert cache.hub_folder() is None
    monkeypatch.setenv("PATCHLOOM_HOME", str(tmp_path))
    assert local_path(weights) == tmp_path / "checkpoints" / "net-1234.pth"
    assert cache.hub_folder() == tmp_path / "hub"


def test_verify_names_what_differs(tmp_path):
    path = tmp_path / "net.pth"
    path.write_bytes(b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    assert verify(path, Weights("t", "http://x/net.pth", "mit", sha256=digest[:8].upper(), bytes=3)) == digest
    with pytest.raises(ValueError, match="3 bytes where t has 4"):
        verify(path, Weights("t", "http://x/net.pth", "mit", bytes=4))
    with pytest.raises(ValueError, match=r"sha256 ba78.* where t has deadbeef; it is damaged"):
        verify(path, Weights("t", "http://x/net.pth", "mit", sha256="deadbeef"))


@pytest.mark.parametrize("url", ["http://host.invalid/net.pth", "hf-hub:timm/some_net.some_tag"])
def test_without_a_network_it_says_so_at_once(site, monkeypatch, url):
    asked = []

    def nowhere(*args, **kwargs):
        asked.append(args)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    weights = Weights("tag", url, "mit")
    with pytest.raises(DownloadError) as error:
        fetch(weights)
    assert "Name or service not known" in str(error.value)
    assert str(local_path(weights)) in str(error.value)
    assert len(asked) == 1
    assert left(weights) == []
