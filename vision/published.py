"""One published file of weights: where it lies, under which licence, what went in and what came out."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)  # what JAX's and Google's vision transformers take as mean and deviation
Source = Literal["published", "timm", "transformers"]
Form = Literal["classifier", "dense", "denoiser"]


@dataclass(frozen=True)
class Weights:
    """A file of weights under a tag: `swin_tiny.ms_in1k` is the variant swin_tiny with the tag ms_in1k.

    `url` is an address, PAGE#FILE where a file must be taken from a page by hand, or
    `hf-hub:OWNER/NAME[@REVISION][/FILE]` (FILE is model.safetensors where none is given).
    `sha256` may be the whole digest or its first digits (torch hub puts eight into file names).
    The state dict lies under the key `wrapper` of the file, and there under names that begin with `prefix`.
    `source` says whose names the tensors have: the authors', timm's or transformers'.
    `form` is "dense" where the file holds the authors' detection backbone (no head, norms per stage): `input_size` is
    then the crop that it was trained with and `num_classes` 0. It is "denoiser" for those of generation/, whose
    `input_size` is that of their latents. Else it is "classifier".
    """

    tag: str
    url: str
    license: str
    num_classes: int = 1000
    input_size: tuple[int, int, int] = (3, 224, 224)  # channels, height, width
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"
    metrics: dict[str, float] = field(default_factory=dict, hash=False)  # as reported, shares in percent
    bytes: int | None = None
    sha256: str | None = None
    wrapper: str | None = None
    prefix: str = ""
    source: Source = "published"
    form: Form = "classifier"

    def preprocessing(self) -> dict[str, Any]:
        """What an image needs before it goes in, under the names of timm's `default_cfg`."""
        return {
            "input_size": self.input_size,
            "mean": self.mean,
            "std": self.std,
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
            "crop_mode": self.crop_mode,
        }


def copy_of(weights: Weights, source: Source, repository: str, **changes: Any) -> Weights:
    """The same network as `source` publishes it at `repository` of the Hugging Face hub: tag plus _timm or _hf.

    `changes` is what that library states differently; the metric stays the authors', as do its conditions."""
    suffix = {"timm": "timm", "transformers": "hf"}[source]
    return replace(
        weights,
        tag=f"{weights.tag}_{suffix}",
        url=f"hf-hub:{repository}",
        source=source,
        wrapper=None,
        prefix="",
        sha256=None,
        bytes=None,
        **changes,
    )


def at_size(rows: tuple[Weights, ...], size: int) -> tuple[Weights, ...]:
    """A variant's classifiers that take `size`, tagged without it: caformer_s18.X_384 -> caformer_s18_384.X."""
    return tuple(
        replace(w, tag=w.tag.replace(f"_{size}", ""))
        for w in rows
        if w.form == "classifier" and w.input_size[-1] == size
    )


def with_classes(rows: tuple[Weights, ...], classes: int) -> tuple[Weights, ...]:
    """Those of a variant's weights that have `classes` outputs."""
    return tuple(w for w in rows if w.num_classes == classes)
