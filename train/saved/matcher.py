"""A contrastive run that judges: found by name, with its preprocessing, as vectors of pictures and of texts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ...data.questions import Pair
from ...multimodal.two_towers import TwoTowers, ZeroShot
from ..running import checkpoint
from .judge import Judge, choose_device


def load_matcher(spec: str, device: str = "auto") -> tuple[Judge, TwoTowers, list[Pair]]:
    """(what prepares pictures, the network in evaluation mode, the (kind, colour) pairs of drawn pictures that its
    training never showed) of a run folder or checkpoint of train.contrast."""
    target = choose_device(device)
    path = checkpoint.find(spec)
    if path is None or not path.is_file():
        raise ValueError(
            f"{spec}: a run folder or a checkpoint of a contrastive run (patchloom fit -c shapes/clip) is due"
        )
    model, classes, preprocessing = checkpoint.load_model(spec)
    if not isinstance(model, TwoTowers):
        raise ValueError(
            f"{spec} is a {type(model).__name__}, which reads no texts: a run of train.contrast.Contrast is due"
        )
    held = checkpoint.read(path)["patchloom"].get("without", [])
    model = model.to(target).eval()
    return Judge(spec, model, classes, preprocessing, target), model, [(kind, colour) for kind, colour in held]


def load_named(spec: str, names: Sequence[str], device: str = "auto") -> Judge:
    """A contrastive run as a classifier of classes that are only named."""
    judge, pair, _ = load_matcher(spec, device)
    return replace(judge, model=ZeroShot(pair, names).eval(), classes=list(names))


def image_vectors(judge: Judge, pair: TwoTowers, files: Sequence[Path], *, batch: int, workers: int,
                  on_error: str) -> tuple[list[int], Tensor]:  # fmt: skip
    """(indices into `files` of those that could be read, their vectors (N d) on the CPU)."""
    indices, vectors = [], []
    for at, x in judge.batches(files, batch=batch, workers=workers, on_error=on_error, title="pictures"):
        with torch.inference_mode():
            vectors.append(pair.of_images(x.to(judge.device)).cpu())
        indices += at
    return indices, torch.cat(vectors)


def text_vectors(pair: TwoTowers, captions: Sequence[str], batch: int) -> Tensor:
    """(M d) on the CPU."""
    with torch.inference_mode():
        return torch.cat([pair.of_texts(captions[i : i + batch]).cpu() for i in range(0, len(captions), batch)])
