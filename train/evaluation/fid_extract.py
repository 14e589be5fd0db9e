"""What tells features of images: the network of the reference FID, or any classifier."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ...data.centre_crop import centre_crop, to_tensor
from ...vision.download import DownloadError, fetch, verify
from ...vision.inception import Inception, prepare
from ...vision.inception_weights import SIDE, WEIGHTS
from ...vision.state import read_state
from ..saved.judge import Judge, load

INCEPTION = "inception"


@dataclass(frozen=True)
class Extractor:
    """Pictures -> features (B C) and logits (B K). `whole`: it takes pictures as they are, so all must be of one size;
    others are cropped as the extractor's own preprocessing says."""

    name: str
    resize: str
    transform: Callable[[Image.Image], Tensor]
    network: Callable[[Tensor], tuple[Tensor, Tensor]]
    device: torch.device
    whole: bool

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Prepared images (B 3 h w) -> (features (B C), logits (B K)), float32 on the CPU."""
        with torch.inference_mode():
            features, logits = self.network(images.to(self.device))
        return features.float().cpu(), logits.float().cpu()


def load_extractor(name: str, device: torch.device) -> Extractor:
    """`inception`, or what `patchloom features` takes: a model's name, timm:…, a checkpoint or a run folder."""
    if name == INCEPTION:
        network = load_inception().to(device)
        called = f"inception.{WEIGHTS.tag} ({WEIGHTS.sha256})"
        words = f"TensorFlow 1's bilinear to {SIDE}x{SIDE}"
        return Extractor(called, words, inception_input, network, device, whole=True)
    judge = load(name, device=str(device))
    return of_judge(judge)


def of_judge(judge: Judge) -> Extractor:
    from ...data.transforms import evaluation_transform
    from .classes import describe_preprocessing, numbers

    how = judge.preprocessing
    words = f"{describe_preprocessing(how)}, mean {numbers(how['mean'])}, std {numbers(how['std'])}"
    called = f"{judge.spec} ({weights_digest(judge.model)[:8]})"
    judge.model.eval()
    return Extractor(called, words, evaluation_transform(how), Both(judge.model), judge.device, whole=False)


class Both:
    """What a classifier's last layer sees and what it says, in one pass over the image."""

    def __init__(self, model: nn.Module):
        self.model: Any = model

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        from ...vision.model import Classifier

        if isinstance(self.model, Classifier):
            t = self.model.features(image)
            return self.model.logits(t, pre_logits=True), self.model.logits(t)
        x = self.model.forward_features(image)
        return self.model.forward_head(x, pre_logits=True), self.model.forward_head(x)


def load_inception() -> Inception:
    """The reference's network with its weights: from the cache, or fetched by their name."""
    try:
        path = fetch(WEIGHTS)
    except DownloadError as error:
        raise DownloadError(
            f"FID is defined by the Inception weights, and {error}; or judge by another extractor (--features NAME), "
            "whose numbers are no FID"
        ) from error
    verify(path, WEIGHTS)
    network = Inception()
    network.load_state_dict(read_state(path))
    return network.eval()


def inception_input(image: Image.Image) -> Tensor:
    return prepare(to_tensor(image)[None])[0]


def weights_digest(model: nn.Module) -> str:
    """sha256 of every tensor of a model's state."""
    sha = hashlib.sha256()
    for name, t in sorted(model.state_dict().items()):
        sha.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        sha.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


@dataclass(frozen=True)
class Sized:
    """The middle of a picture at `size` (H, W), or the picture as it is (None); then the extractor's transform."""

    transform: Callable[[Image.Image], Tensor]
    size: tuple[int, int] | None

    def __call__(self, image: Image.Image) -> Tensor:
        return self.transform(image if self.size is None else centre_crop(image, self.size))
