"""Many visitors of a demo that runs as a process of its own: nobody gets another's answer, memory comes back, and a
thousand requests do not end it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from demo_parts import COLOURS, Visitor, at_once, encoded, hostile, picture, runs_in

pytest.importorskip("gradio", reason="pip install 'patchloom[demo]'")
pytestmark = pytest.mark.slow


class Demo:
    """`patchloom demo` over a folder of runs."""

    def __init__(self, runs, log, *options):
        self.log = log.open("w+")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "patchloom", "demo", "--runs", str(runs), "--device", "cpu", *options],
            stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment,
        )  # fmt: skip
        line = self.process.stdout.readline()
        self.address = re.search(r"http://127\.0\.0\.1:\d+", line)[0]

    def resident_mb(self) -> float:
        with open(f"/proc/{self.process.pid}/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:")) / 1024

    def end(self, number=signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("crowd")
    runs = runs_in(root / "runs", "colours", "vit", "dit", "vlm")
    demo = Demo(runs, root / "log")
    yield demo
    assert demo.end() == 0
    assert "Traceback" not in (root / "log").read_text()


def ask(demo, i):
    """One visitor: a picture of a colour and size of its own, asked about twice."""
    name, colour = list(COLOURS.items())[i % 3]
    visitor = Visitor(demo.address)
    file = visitor.file(encoded(picture(colour, (100 + i, 60))), f"mine {i}.png")
    for _ in range(2):
        said = visitor.click("classify-go", {"classify-picture": file, "classify-model": "colours/1"}, seconds=200)
        assert said["success"], said["output"]
        assert said["output"]["data"][0]["label"] == name
    words = f"number {i}?"
    said = visitor.click(
        "chat-go", {"chat-picture": file, "chat-model": "vlm/1", "chat-question": words, "chat-warmth": 0}, seconds=200
    )
    assert said["success"], said["output"]
    assert said["output"]["data"][0][0]["content"][0]["text"] == words


def test_twenty_at_once_get_their_own_and_memory_comes_back(demo):
    after = []
    for _ in range(4):
        wrong = [e for e in at_once(20, lambda i: ask(demo, i)) if e is not None]
        assert not wrong, wrong[0]
        time.sleep(2)
        after.append(demo.resident_mb())
    assert after[3] - after[1] < 30, after  # the first round loads models and starts threads


def test_a_thousand_requests(demo):
    visitor = Visitor(demo.address)
    file = visitor.file(encoded(picture()))

    def flood(i):
        mine = Visitor(demo.address)
        values = {"classify-picture": file, "classify-model": "vit/1"}
        return [mine.join("classify-go", values)[:2] for _ in range(50)]

    answers = [a for many in at_once(20, flood) for a in many]
    counts = Counter(status for status, _ in answers)
    assert sum(counts.values()) == 1000
    assert set(counts) <= {200, 503}
    assert counts[503] > 0, "the queue has a length"
    assert all("full" in text for status, text in answers if status == 503)
    end = time.monotonic() + 240
    while json.loads(visitor.get("/gradio_api/queue/status"))["queue_size"] and time.monotonic() < end:
        time.sleep(0.5)
    ask(demo, 1)


def test_who_leaves_holds_nothing_up(demo):
    file = Visitor(demo.address).file(encoded(picture()))
    for _ in range(5):  # ask and go
        values = {"chat-picture": file, "chat-model": "vlm/1", "chat-question": "what?", "chat-warmth": 0}
        assert Visitor(demo.address).join("chat-go", values)[0] == 200
    ask(demo, 2)


def test_hostile_uploads_from_many(demo):
    def send(i):
        visitor = Visitor(demo.address)
        for name, (data, refusal) in list(hostile().items())[i % 3 :: 3]:
            status, text = visitor.upload(data, name)
            assert status == 200
            file = {"path": json.loads(text)[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}
            said = visitor.click("classify-go", {"classify-picture": file, "classify-model": "colours/1"}, seconds=200)
            assert said["success"] == (not refusal)
            assert refusal in str(said["output"].get("error", ""))

    before = demo.resident_mb()
    wrong = [e for e in at_once(9, send) if e is not None]
    assert not wrong, wrong[0]
    assert demo.resident_mb() - before < 100
    ask(demo, 0)


def test_what_it_wrote_goes_with_it(tmp_path):
    runs = runs_in(tmp_path / "runs", "colours")
    places = tmp_path / "places"
    places.mkdir()
    os.environ["TMPDIR"], before = str(places), os.environ.get("TMPDIR")
    try:
        demo = Demo(runs, tmp_path / "log")
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before
    ask_only = Visitor(demo.address)
    ask_only.file(encoded(picture()))
    assert list(places.glob("patchloom-demo-*"))
    assert str(places) not in ask_only.get("/config").decode()
    assert demo.end(signal.SIGTERM) == 143
    assert not list(places.glob("patchloom-demo-*"))
