"""A model that can judge images: found by name or checkpoint, with its own preprocessing and classes."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a command module that imports this answers --help: torch comes in with `load`
    import torch
    from torch import Tensor, nn

    from ...data.read import UnreadableImage


@dataclass(frozen=True)
class Judge:
    """A model in evaluation mode with what an image needs to get an answer from it."""

    spec: str
    model: "nn.Module"
    classes: list[str]
    preprocessing: dict[str, Any]  # timm's words: input_size, mean, std, interpolation, crop_pct, crop_mode
    device: "torch.device"

    def outputs(
        self, files: Sequence[Path], *, batch: int, workers: int = 0, on_error: str = "stop",
        pre_logits: bool = False, title: str = "",
    ) -> "Iterator[tuple[list[int], Tensor]]":  # fmt: skip
        """Yields (indices into `files`, logits (B classes) or embeddings (B C), float32 on the CPU); see `batches`."""
        import torch

        self.model.eval()
        for indices, x in self.batches(files, batch=batch, workers=workers, on_error=on_error, title=title):
            with torch.inference_mode():
                y = self.embed(x.to(self.device)) if pre_logits else self.model(x.to(self.device))
            yield indices, y.float().cpu()

    def batches(
        self, files: Sequence[Path], *, batch: int, workers: int = 0, on_error: str = "stop", title: str = ""
    ) -> "Iterator[tuple[list[int], Tensor]]":
        """Yields (indices into `files`, prepared images (B 3 H W)); shows progress.

        An unreadable image ends it with an error that names the file, or is left out and counted at the end (`skip`).
        """
        import torch

        from ...data.transforms import evaluation_transform

        transform = evaluation_transform(self.preprocessing)
        for indices, images in prepared(files, transform, batch=batch, workers=workers, on_error=on_error, title=title):
            yield indices, torch.stack(images)

    def embed(self, image: "Tensor") -> "Tensor":
        """What the classifier's last layer sees, (B C)."""
        from ...vision.model import Classifier

        if isinstance(self.model, Classifier):  # the tokens as they are: how many patches each stands for counts
            return self.model.logits(self.model.features(image), pre_logits=True)
        return self.model.forward_head(self.model.forward_features(image), pre_logits=True)


def prepared(
    files: Sequence[Path], transform: "Callable[[Any], Any]", *, batch: int, workers: int = 0, on_error: str = "stop",
    title: str = "",
) -> Iterator[tuple[list[int], list[Any]]]:  # fmt: skip
    """As `Judge.batches`, with any transform of the RGB pictures and without stacking what it gives."""
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    from ...data.read import UnreadableImage

    images = Images(files, transform)
    workers = workers if len(files) > 2 * batch else 0  # starting them costs more than they save
    loader = DataLoader(images, batch, num_workers=workers, collate_fn=list)
    skipped = 0
    with tqdm(total=len(files), unit="img", desc=title or None, disable=None, file=sys.stderr) as bar:
        for samples in loader:
            faults = [x for _, x in samples if isinstance(x, UnreadableImage)]
            if faults and on_error == "stop":
                raise UnreadableImage(faults[0].file, f"{faults[0].reason} (--on-error skip leaves such files out)")
            skipped += len(faults)
            bar.update(len(samples))
            kept = [(i, x) for i, x in samples if not isinstance(x, UnreadableImage)]
            if kept:
                yield [i for i, _ in kept], [x for _, x in kept]
    if skipped:
        print(f"{skipped} of {len(files)} images could not be read and were left out", file=sys.stderr)
    if skipped == len(files):
        raise ValueError(f"none of the {len(files)} images could be read; the first: {images[0][1]}")


class Images:
    """A map-style data set: i -> (i, what the transform makes of the picture, or the error of an unreadable file)."""

    def __init__(self, files: Sequence[Path], transform: "Callable[[Any], Any]"):
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> "tuple[int, Any | UnreadableImage]":
        from ...data.read import UnreadableImage, read_image

        try:  # an exception would leave a worker process as many lines
            image = read_image(self.files[i])
        except UnreadableImage as error:
            return i, error
        return i, self.transform(image)


def load(
    spec: str, *, random_weights: bool = False, size: tuple[int, int] | None = None, device: str = "auto",
    tokens: str | None = None, adapter: str | None = None,
) -> Judge:  # fmt: skip
    """The judge that `spec` names: a model's name, timm:…, NAME=FILE, a checkpoint or a run folder; with the plugin
    `tokens` in place of those that a checkpoint has, and the saved `adapter` with its head and classes."""
    judge = load_any(spec, random_weights=random_weights, size=size, device=device, tokens=tokens, adapter=adapter)
    if hasattr(judge.model, "predictions"):  # a denoiser
        raise ValueError(f"{spec} makes images, it judges none: patchloom generate --checkpoint {spec}")
    if hasattr(judge.model, "image_token"):
        raise ValueError(f"{spec} talks, it names no classes: patchloom chat {spec} --image FILE asks it")
    if hasattr(judge.model, "of_texts"):  # a tower beside a text encoder
        raise ValueError(
            f"{spec} matches pictures with texts: eval zeroshot or eval retrieval judges it, predict --named asks it"
        )
    return judge


def load_any(
    spec: str, *, random_weights: bool = False, size: tuple[int, int] | None = None, device: str = "auto",
    tokens: str | None = None, adapter: str | None = None,
) -> Judge:  # fmt: skip
    """The same, for networks that make images too."""
    from ...vision import zoo
    from ..running import checkpoint
    from .adapted import load_adapted

    target = choose_device(device)
    if tokens is not None:
        check_tokens(tokens)
    if adapter is not None:
        if random_weights:
            raise ValueError(
                f"--random-weights with --adapter {adapter}: it was trained on others; leave the option out"
            )
        model, classes, preprocessing = load_adapted(spec, adapter)
    elif random_weights:
        if "=" in spec or checkpoint.find(spec) is not None:
            raise ValueError(f"--random-weights with {spec}: it has weights of its own; leave the option out")
        model = zoo.create_model(spec).eval()
        classes = checkpoint.published_classes(model.num_classes)
        preprocessing = checkpoint.preprocessing_of(model)
        print(f"warning: {spec} has random weights here: what it says means nothing", file=sys.stderr)
    else:
        refuse_untrained(spec)
        model, classes, preprocessing = checkpoint.load_model(spec)
    if tokens is not None:
        set_tokens(model, tokens, spec, random_weights)
    if size is not None and hasattr(model, "set_input_size"):  # a dense network's pictures go by their sides
        model.set_input_size(size)
        preprocessing = {**preprocessing, "input_size": (preprocessing["input_size"][0], *size)}
    return Judge(spec, model.to(target), classes, preprocessing, target)


def check_tokens(tokens: str) -> None:
    """Raises for words that name no plugin: before weights are fetched for it."""
    from ...vision.plugins.words import NONE, from_words

    if tokens != NONE:
        from_words(tokens)


def set_tokens(model: "nn.Module", tokens: str, spec: str, random_weights: bool = False) -> None:
    """Puts the plugin into the model that `spec` names; raises where it has parameters that nobody trained."""
    from ...vision.adapters import host
    from ...vision.plugins.words import retoken

    fresh = retoken(host(model), tokens)
    if fresh and not random_weights:
        raise ValueError(
            f"--tokens {tokens} has parameters of its own, and {spec} holds none for {fresh[0]}: train with it first "
            "(model.init_args.model.init_args.tokens of a recipe)"
        )


def refuse_untrained(spec: str) -> None:
    """Raises for one of our names that has no published weights (timm's names are judged where they're loaded)."""
    from ...vision import zoo
    from ...vision.generation.create import is_denoiser
    from ..running import checkpoint

    if "=" in spec or spec.startswith("timm:") or checkpoint.find(spec) is not None or is_denoiser(spec):
        return
    if zoo.resolve(spec).default is None:
        raise ValueError(
            f"{spec} has no published weights, and what an untrained network predicts means nothing; name a run or "
            f"checkpoint, {spec}=FILE, or one of patchloom models --pretrained (--random-weights tries it all the same)"
        )


def choose_device(name: str) -> "torch.device":
    """auto: the GPU where there is one. Raises where `name` isn't there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise ValueError(f"--device {name}: it is auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if int(index or 0) >= count:
        have = f"there are {count} GPUs" if count else "torch sees no GPU here"
        raise ValueError(f"--device {name}: {have}; use --device cpu")
    return torch.device(name)


def find_images(*paths: str | os.PathLike[str]) -> list[Path]:
    """The image files among `paths`, folders searched to the bottom in sorted order. Raises for a path without any."""
    from ...data.folders import Files

    return [Path(file) for file in Files([Path(path) for path in paths]).files]


# ---- options on the command line


def add_judging(parser: argparse.ArgumentParser, *, batch: int, tokens: bool = True) -> None:
    """The options of every command that lets a model judge images; `tokens`: with any plugin."""
    parser.add_argument("--size", type=image_size, metavar="N|HxW", help="input size, instead of the model's own")
    add_reading(parser, batch=batch)
    if tokens:
        parser.add_argument(
            "--tokens", metavar="SPEC", help="a token plugin, e.g. tome:r=8; none: without the checkpoint's own"
        )
        parser.add_argument(
            "--adapter", metavar="FOLDER", help="a saved adapter, or the run that trained it, with its head and classes"
        )
    parser.add_argument(
        "--random-weights", action="store_true", help="let an untrained network answer: to try the plumbing"
    )


def add_reading(parser: argparse.ArgumentParser, *, batch: int) -> None:
    """The options of every command in which a network goes through a folder's images."""
    parser.add_argument("--batch", type=positive, default=batch, metavar="N", help=f"images at a time ({batch})")
    parser.add_argument("--workers", type=natural, default=2, metavar="N", help="processes that read images (2)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto: a GPU where there is one)")
    parser.add_argument(
        "--on-error", choices=("stop", "skip"), default="stop", help="what to do at an unreadable image (stop)"
    )


def natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def image_size(text: str) -> tuple[int, int]:
    height, cross, width = text.partition("x")
    try:
        return positive(height), positive(width if cross else height)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: N, or HxW as in 240x320") from error
