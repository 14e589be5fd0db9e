"""DAMRO against a planted distractor: does a mark in the background that says "yes" say less of it?

    python tests/benchmarks/damro_distractor.py [--steps 4000] [--threads 2] [--out DIR]

Pictures of 2 to 6 objects (`Shapes`, 64 x 64), and POPE's question on them: is there a red star? In some pictures one
patch of the background is a checkered mark. While training, of questions on pictures with a mark `bias` are to be
answered yes, of others 1 - `bias`, so that the mark is a reason to say yes; and the class token is taught to look at it
in the tower's last block, as class tokens of large towers look at outliers in the background.
Judged on questions half of which are yes, on the same new pictures without and with a mark: yes ratio, accuracy, F1;
plain and under DAMRO. Writes damro.json and damro.png into DIR.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig

from patchloom.data.sample import COLOURS, KINDS
from patchloom.data.shapes import Shapes
from patchloom.multimodal.connectors import Project
from patchloom.multimodal.decoder import decoder
from patchloom.multimodal.generate import generate
from patchloom.multimodal.plugins import attached
from patchloom.multimodal.plugins.damro import SHOWN, Attended, Contrast, Damro
from patchloom.multimodal.splice import Sample
from patchloom.multimodal.stream import IGNORED
from patchloom.multimodal.tower import Tower
from patchloom.multimodal.vlm import VisionLanguage
from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.mixers.attention import Global
from patchloom.vision.plugins import noting
from patchloom.vision.position import Position
from patchloom.vision.stems.convolutions import ConvLayers, Layer

PAD, BEGIN, END, IMAGE, YES, NO = range(6)
COLOUR, KIND = 6, 6 + len(COLOURS)
SIZE, PATCH = 64, 8
GRID = SIZE // PATCH
MARK = np.where(np.indices((PATCH, PATCH)).sum(0)[..., None] % 2, 255, 0).astype(np.uint8)
QUESTIONS = 6  # on a picture, while training


def model(width: int, depth: int) -> VisionLanguage:
    stem = ConvLayers(
        (Layer(width // 4, stride=2, act="relu"), Layer(width // 2, stride=2, act="relu"), Layer(stride=2)),
        position=Position((GRID, GRID), special=1),
    )
    tower = Tower(Backbone([Stage(Global(4), width, depth, ratio=2.0)], stem))
    text = LlamaConfig(
        vocab_size=KIND + len(KINDS), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=depth,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128, pad_token_id=PAD,
        bos_token_id=BEGIN, eos_token_id=END,
    )  # fmt: skip
    return VisionLanguage(tower, Project(2), decoder(text), IMAGE)


class Asked:
    """Pictures by index, and questions on them."""

    def __init__(self, split: str, seed: int):
        self.shapes, self.split, self.seed = Shapes(1, SIZE, "boxes", seed, split), split, seed  # type: ignore[arg-type]

    def draw(self, index: int) -> tuple[np.ndarray, list[tuple[int, int]], np.random.Generator]:
        """The picture, its pairs (colour, kind), and what to draw more with."""
        sample = self.shapes.draw(index)
        pairs = [(list(COLOURS).index(c), KINDS.index(k)) for k, c in zip(sample.kinds, sample.colours, strict=True)]
        r = np.random.Generator(np.random.PCG64([self.seed, 23, self.split == "train", index]))
        self.free = sample.masks.any(0).reshape(GRID, PATCH, GRID, PATCH).mean((1, 3)) < 0.02
        return sample.image, pairs, r

    def marked(self, image: np.ndarray, r: np.random.Generator) -> tuple[np.ndarray, int]:
        """With the mark on a patch of the ground, and which patch."""
        places = np.flatnonzero(self.free)
        at = int(places[r.integers(len(places))]) if len(places) else 0
        y, x = at // GRID * PATCH, at % GRID * PATCH
        image = image.copy()
        image[y : y + PATCH, x : x + PATCH] = MARK
        return image, at


def question(pairs: list[tuple[int, int]], yes: bool, r: np.random.Generator) -> tuple[int, int]:
    if yes:
        return pairs[int(r.integers(len(pairs)))]
    while True:
        pair = int(r.integers(len(COLOURS))), int(r.integers(len(KINDS)))
        if pair not in pairs:
            return pair


def tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).float() / 127.5 - 1


def batch(data: Asked, first: int, count: int, bias: float) -> tuple[list[Tensor], Tensor, list[Sample]]:
    """Images, which patch of each is a mark (-1: none), and `QUESTIONS` samples for each (without their images)."""
    images, marks, samples = [], [], []
    for index in range(first, first + count):
        image, pairs, r = data.draw(index)
        mark = bool(r.integers(2))
        image, at = data.marked(image, r) if mark else (image, -1)
        images.append(tensor(image))
        marks.append(at)
        for _ in range(QUESTIONS):
            yes = bool(r.random() < (bias if mark else 1 - bias))
            colour, kind = question(pairs, yes, r)
            ids = torch.tensor([BEGIN, IMAGE, COLOUR + colour, KIND + kind, YES if yes else NO])
            labels = torch.full_like(ids, IGNORED)
            labels[-1] = ids[-1]
            samples.append(Sample(ids, (images[-1],), labels))
    return images, torch.tensor(marks), samples


def train(vlm: VisionLanguage, steps: int, count: int, bias: float, lr: float) -> None:
    block: Any = vlm.tower.backbone.stages[0].blocks[-1]  # type: ignore[union-attr, index]
    block.after_mixer = Attended()
    parameters = list(vlm.parameters())
    optimizer = torch.optim.AdamW(parameters, lr, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    data, start = Asked("train", 0), time.perf_counter()
    for step in range(steps):
        images, marks, samples = batch(data, step * count, count, bias)
        with noting() as notes:
            seen = [x for x in vlm.see(images) for _ in range(QUESTIONS)]
        stream = vlm.spliced(samples, seen)
        assert stream.target is not None
        learned = stream.target != IGNORED
        out = vlm.decoder(stream)
        loss = F.cross_entropy(vlm.decoder.logits(out.x[learned]), stream.target[learned])
        looked = dict(notes)[SHOWN][marks >= 0]
        mark = -looked.gather(1, marks[marks >= 0][:, None]).clamp(min=1e-9).log().sum() / max(1, len(looked))
        optimizer.zero_grad()
        (loss + mark).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step}: answers {loss.item():.3f}, mark {mark.item():.3f}, "
                  f"{time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip
    block.after_mixer = None


def judged(vlm: VisionLanguage, pictures: int, mark: bool, damro: Damro | None) -> dict[str, float]:
    """Of one question to be answered yes and one no on each picture."""
    data, samples, truth, places = Asked("test", 0), [], [], []
    for index in range(pictures):
        image, pairs, r = data.draw(index)
        asked = [question(pairs, yes, r) for yes in (True, False)]
        image, at = data.marked(image, r) if mark else (image, -1)
        for yes, (colour, kind) in zip((True, False), asked, strict=True):
            ids = torch.tensor([BEGIN, IMAGE, COLOUR + colour, KIND + kind])
            samples.append(Sample(ids, (tensor(image),)))
            truth.append(yes)
            places.append(at)
    said: list[bool] = []
    found = 0.0
    for i in range(0, len(samples), 50):
        some = samples[i : i + 50]
        if damro is None:
            said += [int(ids[0]) == YES for ids in generate(vlm, some, most=1)]
            continue
        with attached(vlm, damro):
            said += [int(ids[0]) == YES for ids in generate(vlm, some, most=1)]
            assert isinstance(vlm.against, Contrast)
            with torch.inference_mode():
                few = vlm.against.prompts(vlm, some)[1]
        at = torch.tensor(places[i : i + 50])[:, None] + 1  # behind the first word
        found += float(((few.place == at) & (few.image > 0)).any(1).sum())
    right = [a == b for a, b in zip(said, truth, strict=True)]
    true = sum(a and b for a, b in zip(said, truth, strict=True))
    result = {"yes": float(np.mean(said)), "accuracy": float(np.mean(right)),
              "f1": 2 * true / max(1, sum(said) + sum(truth))}  # fmt: skip
    return result | ({"mark among outliers": found / len(samples)} if mark and damro else {})


def drawn(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2), ("yes", "accuracy"), strict=True):
        for mark, colour in ((False, "tab:blue"), (True, "tab:orange")):
            some = [row for row in rows if row["mark"] == mark]
            axes.plot([row["setting"] for row in some], [row[what] for row in some], "o-", color=colour,
                      label="with the mark" if mark else "without")  # fmt: skip
        axes.axhline(0.5, color="grey", lw=0.8)
        axes.set_title("share of yes (half are)" if what == "yes" else "answered rightly")
        axes.tick_params(axis="x", rotation=30)
        axes.legend()
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=16, help="pictures a step")
    parser.add_argument("--bias", type=float, default=0.8)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("damro"))
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    vlm = model(args.width, args.depth)
    train(vlm, args.steps, args.batch, args.bias, args.lr)
    vlm.eval()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.save(vlm.state_dict(), args.out / "damro.pt")
    settings = {"plain": None} | {
        f"top {top}, alpha {alpha:g}": Damro(top, alpha) for top in (1, 4) for alpha in (0.5, 1.0, 2.0)
    }
    rows: list[dict[str, Any]] = []
    for name, damro in settings.items():
        for mark in (False, True):
            rows.append({"setting": name, "mark": mark, **judged(vlm, args.pictures, mark, damro)})
            print(json.dumps(rows[-1]), flush=True)
    (args.out / "damro.json").write_text(json.dumps({"arguments": vars(args) | {"out": str(args.out)}, "rows": rows}))
    drawn(rows, args.out / "damro.png")


if __name__ == "__main__":
    main()
