"""Published denoisers by name; `zoo.create_model` comes here with theirs."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import adapters
from ..adapters import adapt
from ..plugins import attach
from ..plugins.words import from_words
from ..published import Weights
from ..weights import load_published
from . import DENOISERS, FAMILIES, family
from .denoiser import Denoiser

GENERAL = ("num_classes", "in_channels", "size")  # what create_model calls num_classes, in_chans and img_size


def is_denoiser(name: str) -> bool:
    """Whether a name, perhaps with a tag of weights, begins as those of denoisers do."""
    return name.partition(".")[0].partition("_")[0] in FAMILIES


def resolved(name: str) -> tuple[str, Weights | None]:
    """The variant that a name stands for, and the weights of its tag, or its first ones."""
    whole, _, tag = name.partition(".")
    there = family(whole.partition("_")[0])
    base: str = getattr(there, "ALIASES", {}).get(whole, whole)
    if base not in there.VARIANTS:
        close = difflib.get_close_matches(whole, [*there.VARIANTS, *getattr(there, "ALIASES", ())], 3, 0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else 'list_models(kind="denoiser") lists them'
        raise ValueError(f"no denoiser {name!r}; {hint}")
    rows: tuple[Weights, ...] = there.WEIGHTS.get(base, ())
    if tag and tag not in {w.tag for w in rows}:
        raise ValueError(f"no weights {tag!r} of {base}; there are {', '.join(w.tag for w in rows) or 'none'}")
    return base, next((w for w in rows if not tag or w.tag == tag), None)


def create_denoiser(
    name: str, *, pretrained: bool = False, checkpoint_path: str | Path | None = None,
    num_classes: int | None = None, in_chans: int | None = None, img_size: int | tuple[int, int] | None = None,
    tokens: Any = None, adapter: Any = None, device: str | torch.device | None = None,
    dtype: torch.dtype | None = None, **options: Any,
) -> Denoiser:  # fmt: skip
    """As `create_model`: `img_size` is the size (H, W) of what is denoised, latents where the variant was made for
    them, and `in_chans` its channels; None is as published. `options` are other arguments of the network
    (`learn_variance=False`, `dropout=0.0`). Published weights for other classes leave their labels out."""
    base, weights = resolved(name)
    if pretrained and checkpoint_path is not None:
        raise ValueError(f"pretrained=True and checkpoint_path={str(checkpoint_path)!r} exclude each other")
    if pretrained and weights is None:
        raise ValueError(f"nobody published weights of {base}; `patchloom weights list` shows what there is")
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    given = {"num_classes": num_classes, "in_channels": in_chans, "size": size} | options
    given = {key: value for key, value in given.items() if value is not None}
    with torch.device(device) if device is not None else torch.device(torch.get_default_device()):
        model = DENOISERS[base].build(**given)
    if dtype is not None:
        model.to(dtype)
    model.name = name
    if tokens is not None:
        attach(model, from_words(tokens))
    if pretrained or checkpoint_path is not None:
        state = opened(checkpoint_path, weights, base)
        other = pretrained and weights is not None and model.num_classes not in (None, weights.num_classes)
        load_published(model, state, fresh_head=other)
    if adapter is not None:
        adapt(model, adapters.from_words(adapter))
    return model


def opened(path: str | Path | None, weights: Weights | None, name: str) -> Mapping[str, Tensor]:
    """The tensors of a local file, of which those that were averaged count where it has both, or the published ones. A
    family that publishes pickles of modules says how to `read` them."""
    from ..download import fetch, open_weights, read_local

    read = getattr(family(name.partition("_")[0]), "read", None)
    if read is not None and str(weights.url if path is None and weights is not None else path).endswith(".pkl"):
        state: Mapping[str, Tensor] = read(fetch(weights) if path is None and weights is not None else path)
        return state
    if path is not None:
        return read_local(path, prefer="ema")
    assert weights is not None
    return open_weights(weights)


def denoisers() -> list[str]:
    """The names of the published denoisers."""
    return list(DENOISERS)


def inputs(model: Denoiser, size: tuple[int, int] | None = None) -> tuple[Tensor, ...]:
    """(x, t[, y]) of one sample, without values to speak of, on the model's device: to count, trace or export with."""
    p = next(p for p in model.parameters() if p.is_floating_point())
    x = torch.zeros(1, model.in_channels, *(size or model.size), device=p.device, dtype=p.dtype)
    t = torch.zeros(1, device=p.device)
    if model.text is not None:
        return x, t, torch.zeros(1, *model.text, device=p.device, dtype=p.dtype)
    return (x, t) if model.num_classes is None else (x, t, torch.zeros(1, dtype=torch.long, device=p.device))


def macs(model: nn.Module, size: tuple[int, int] | None = None) -> int:
    """Multiply-accumulates of one evaluation for one sample (vision/count.py)."""
    from ..count import macs

    assert isinstance(model, Denoiser)
    x, *more = inputs(model, size)
    return macs(model, x.shape[1:], more)
