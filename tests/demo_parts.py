"""Runs of small models for the demo, the files that visitors send, and a served page."""

import io
import json
import struct
import time
import urllib.error
import urllib.request
import uuid
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch
from dense_run_parts import mask_rcnn, semantic_fpn
from generation_parts import awake, save_run
from PIL import Image

from patchloom.train.demo.app import App
from patchloom.train.demo.limits import Limits
from patchloom.train.demo.shelf import Shelf
from patchloom.train.running import checkpoint
from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.mixers.attention import Global
from patchloom.vision.mixers.pool import Pool
from patchloom.vision.model import Classifier
from patchloom.vision.position import Position
from patchloom.vision.stem import Patchify

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
SQUARE = {**HALF, "input_size": (3, 32, 32), "interpolation": "bilinear", "crop_pct": 1.0}
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220)}


def save(model, classes, preprocessing, folder: Path) -> Path:
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    head = checkpoint.header(model, classes, preprocessing)
    checkpoint.save({"patchloom": head, "state_dict": state}, folder / "last.ckpt")
    return folder


def tiny_vit() -> Classifier:
    """Of 4 x 4 patches and a class token."""
    stem = Patchify(8, None, position=Position((4, 4), special=1))
    return Classifier(Backbone([Stage(Global(2), 16, 3)], stem), 4, img_size=32)


def colour_judge() -> Classifier:
    """Says red, green or blue for pictures of these colours: no training, its weights are set."""
    torch.manual_seed(0)
    model = Classifier(Backbone([Stage(Pool(), 6, 1)], Patchify(8, None)), 3, img_size=32)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        project = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
        project.weight[:3] = torch.eye(3)[:, :, None, None] / 64
        project.weight[3:] = -project.weight[:3]
        for m in model.modules():
            if isinstance(m, torch.nn.LayerNorm | torch.nn.GroupNorm):
                m.weight.fill_(1)
        linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]
        linear.weight[:, :3] = 4 * torch.eye(3)
    return model.eval()


def speaking(folder: Path) -> Path:
    """A vision-language model of random weights, as a run of Converse saves it."""
    from multimodal_parts import small_vlm

    from patchloom.multimodal.words import learned, plain_words

    tokenizer = learned(["what colour is the star? red", "how many circles are there? two"] * 3, 300)
    vlm = small_vlm(vocab_size=304)
    vlm.image_token = tokenizer.convert_tokens_to_ids("<image>")
    head = checkpoint.header(vlm, [], SQUARE)
    speech = {"template": None, "image_token": "<image>", "most": 16, "tiles": 0, "tokenizer": "learn:300"}
    state = {f"model.{name}": value for name, value in vlm.state_dict().items()}
    content = {"patchloom": {**head, "tokenizer": plain_words(tokenizer), "speech": speech}, "state_dict": state}
    checkpoint.save(content, folder / "last.ckpt")
    return folder


def runs_in(root: Path, *which: str) -> Path:
    """A folder of runs with a model for every tab, or some of them."""
    dense = {**HALF, "shortest": None, "longest": 96}
    made = {
        "vit": lambda to: save(tiny_vit(), ["cat", "dog", "bird", "fish"], SQUARE, to),
        "colours": lambda to: save(colour_judge(), list(COLOURS), SQUARE, to),
        "mask": lambda to: save(mask_rcnn(2, score=0.0, limit=5), ["square", "circle"], dense, to),
        "fpn": lambda to: save(semantic_fpn(3), ["ground", "square", "circle"], dense, to),
        "dit": lambda to: save_run(to / "last.ckpt", awake()),
        "vlm": speaking,
    }
    torch.manual_seed(0)
    for name in which or made:
        (root / name / "1").mkdir(parents=True)
        made[name](root / name / "1")
    return root


@contextmanager
def app_over(runs: Path, **limits):
    app = App(Shelf(runs, device="cpu"), Limits(**limits))
    try:
        yield app
    finally:
        app.close()


# ---- files


def picture(colour=(40, 60, 220), size=(64, 48)) -> Image.Image:
    return Image.new("RGB", size, colour)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def bomb(side: int = 50_000) -> bytes:
    """A PNG of side x side black pixels in a few hundred kB."""
    zipper, rows = zlib.compressobj(9), bytes(side // 8 + 1) * 500
    data = b"".join(zipper.compress(rows) for _ in range(side // 500)) + zipper.flush()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@cache
def hostile() -> dict[str, tuple[bytes, str]]:
    """name of the file -> (its bytes, a word of the refusal; empty: it is a picture)."""
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [picture(c) for c in COLOURS.values()]
    deep = Image.fromarray(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 20)
    svg = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    return {
        "bomb.png": (bomb(), "too large"),
        "setup.png": (b"MZ\x90\x00" + bytes(500), "not an image"),
        "drawing.svg": (svg, "SVG"),
        "renamed.png": (svg, "SVG"),
        "cut.png": (encoded(Image.fromarray(noise))[:900], "damaged"),
        "empty.jpg": (b"", "empty"),
        "moving.gif": (encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), ""),
        "inks.jpg": (encoded(picture().convert("CMYK"), "JPEG"), ""),
        "deep.png": (encoded(deep), ""),
        "turned.jpg": (encoded(picture(), "JPEG", exif=exif), ""),
        "../../etc/passwd": (encoded(picture()), ""),
        "a\x00b<script>.png": (encoded(picture()), ""),
    }


# ---- a visitor without a browser


class Visitor:
    """Speaks to the served page as its script does."""

    def __init__(self, address: str):
        self.address, self.session = address.rstrip("/"), uuid.uuid4().hex
        self.config = json.loads(self.get("/config"))
        self.parts = {c["props"].get("elem_id"): c["id"] for c in self.config["components"]}

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.address + path, timeout=60) as answer:
            return answer.read()

    def status(self, path: str, data: bytes | None = None, kind: str = "application/json") -> tuple[int, str]:
        request = urllib.request.Request(self.address + path, data, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def upload(self, data: bytes, name: str) -> tuple[int, str]:
        edge = uuid.uuid4().hex
        shown = name.replace("\x00", "%00").replace('"', "%22")
        head = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{shown}"\r\n\r\n'
        body = head.encode() + data + f"\r\n--{edge}--\r\n".encode()
        return self.status("/gradio_api/upload", body, f"multipart/form-data; boundary={edge}")

    def file(self, data: bytes, name: str = "mine.png") -> dict:
        status, text = self.upload(data, name)
        assert status == 200, text
        return {"path": json.loads(text)[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    def event(self, button: str) -> dict:
        """The dependency of a button's click."""
        part = self.parts[button]
        return next(d for d in self.config["dependencies"] if [part, "click"] in [list(t) for t in d["targets"]])

    def join(self, button: str, values: dict) -> tuple[int, str, int]:
        """Queues a click; `values` by elem_id, the others as the page has them."""
        found, own = self.event(button), {c["id"]: c["props"].get("value") for c in self.config["components"]}
        given = {self.parts[name]: value for name, value in values.items()}
        data = [given.get(i, own[i]) for i in found["inputs"]]
        body = {"data": data, "fn_index": found["id"], "session_hash": self.session, "event_data": None}
        status, text = self.status("/gradio_api/queue/join", json.dumps(body).encode())
        return status, text, found["id"]

    def click(self, button: str, values: dict, seconds: float = 120) -> dict:
        """The last message of the event: {"success", "output": {"data"} or {"error"}}."""
        status, text, _ = self.join(button, values)
        assert status == 200, text
        return self.wait(json.loads(text)["event_id"], seconds)

    def wait(self, event: str, seconds: float = 120) -> dict:
        end = time.monotonic() + seconds
        address = f"{self.address}/gradio_api/queue/data?session_hash={self.session}"
        with urllib.request.urlopen(address, timeout=seconds) as stream:
            for line in stream:
                if line.startswith(b"data:"):
                    message = json.loads(line[5:])
                    if message.get("msg") == "process_completed" and message.get("event_id") == event:
                        return message
                assert time.monotonic() < end
        raise AssertionError("the stream ended before the answer")


@contextmanager
def served(runs: Path, **limits):
    """(app, address)"""
    from patchloom.train.demo.page import serve

    with app_over(runs, **limits) as app:
        page, address = serve(app)
        try:
            yield app, address
        finally:
            page.close(verbose=False)


def at_once(count: int, do) -> list:
    """What `do(i)` gives, or raises, in threads that run together."""
    with ThreadPoolExecutor(count) as pool:
        answers = [pool.submit(do, i) for i in range(count)]
    return [answer.exception() or answer.result() for answer in answers]
