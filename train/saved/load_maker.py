"""What makes images, from a run, a checkpoint, a saved adapter or a published name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...vision import zoo
from ...vision.generation.autoencoder import Autoencoder, LatentSpace
from ...vision.generation.create import is_denoiser
from ...vision.generation.denoiser import Denoiser
from ...vision.generation.edm import Edm
from ...vision.generation.gaussian import Gaussian
from ...vision.generation.process import Process
from ...vision.parts import unplain
from ..running import checkpoint
from ..running.checkpoint import CheckpointError, load_model, published_classes
from .adapted import load_adapted
from .judge import choose_device
from .maker import ImageMaker, pixels_of

PUBLISHED: dict[str, tuple[Process, str, str | None]] = {  # family -> process, autoencoder, text encoder
    "dit": (Gaussian(), "stabilityai/sd-vae-ft-mse", None),
    "microdit": (Edm(0.9, -0.6, 1.2), "stabilityai/sdxl-vae", "apple/DFN5B-CLIP-ViT-H-14-378"),
    "dimr": (
        Gaussian(betas="sd", variance="small", time="log_snr", scales=(0.25, 1.0)), "stabilityai/sd-vae-ft-ema", None
    ),
    "lego": (Edm(reduce="sum"), "stabilityai/sd-vae-ft-ema", None),
}  # fmt: skip


def load_maker(
    spec: str, *, device: str = "auto", ema: bool = True, adapter: str | None = None, vae: str | None = None,
    text: str | None = None, precision: torch.dtype = torch.float32,
) -> ImageMaker:  # fmt: skip
    """`spec`: a run folder, a checkpoint, a published name with or without its tag, or NAME=FILE. `ema`: with the
    average of the weights where there is one. `adapter`: a saved one that goes onto the network. `vae`, `text`:
    what decodes latents and encodes captions, instead of what the run or the publication names."""
    target = choose_device(device)
    path = None if "=" in spec else checkpoint.find(spec)
    if not ema and (path is None or adapter is not None):
        what = f"adapter {adapter} learned on the average" if adapter is not None else f"{spec} was published as that"
        raise ValueError(f"--weights raw: {what}; leave it out")
    if path is None:
        if adapter is not None:
            raise ValueError(
                f"--adapter {adapter}: {spec} is a published name; the run that trained the adapter has the network "
                "with it: give that run alone"
            )
        return published_maker(spec, target, vae, text, precision)
    content = checkpoint.read(path) if path.is_file() else {}
    head = content.get("patchloom")
    if not isinstance(head, dict) or "process" not in head:
        raise CheckpointError(
            f"{path}: is no checkpoint of a denoiser; patchloom fit with train.diffuse.Diffuse writes such"
        )
    averaged = any(name.startswith("ema.") for name in content["state_dict"])
    del content
    made = load_model(str(path), ema=ema) if adapter is None else load_adapted(spec, adapter)
    model, classes, preprocessing = made
    if not isinstance(model, Denoiser):
        raise CheckpointError(f"{path}: holds a {type(model).__name__}, which is no denoiser")
    autoencoder = None
    if "latents" in preprocessing:
        space = LatentSpace.of(preprocessing["latents"])
        autoencoder = Autoencoder(vae or space.name).to(target)
        space.check(autoencoder.space, f"what {spec} was trained on", f"those of {autoencoder.spec}")
    elif vae is not None:
        raise ValueError(f"--vae {vae}: {spec} makes pixels; leave it out")
    return ImageMaker(
        model.to(target).eval(), unplain(head["process"]), classes, pixels_of(preprocessing), autoencoder is not None,
        autoencoder, encoder(text, head.get("text"), model), "ema" if ema and averaged else "raw", precision,
    )  # fmt: skip


def published_maker(
    spec: str, device: torch.device, vae: str | None, text: str | None, precision: torch.dtype
) -> ImageMaker:
    """Of a published name, or NAME=FILE."""
    name, _, file = spec.partition("=")
    if not is_denoiser(name):
        raise ValueError(f"{name} is no denoiser, no run folder and no checkpoint: it makes no images")
    model = zoo.create_model(name, **({"checkpoint_path": file} if file else {"pretrained": True}))
    assert isinstance(model, Denoiser)
    process, decoder, reader = PUBLISHED[model.family]
    autoencoder = Autoencoder(vae or decoder).to(device)
    if autoencoder.space.channels != model.in_channels:
        raise ValueError(
            f"{name} makes latents of {model.in_channels} channels, {autoencoder.spec} has "
            f"{autoencoder.space.channels}: name its autoencoder (--vae)"
        )
    size = model.size[0] * autoencoder.space.factor, model.size[1] * autoencoder.space.factor
    classes = [] if model.num_classes is None else published_classes(model.num_classes)
    return ImageMaker(
        model.to(device).eval(), process, classes, size, True, autoencoder,
        encoder(text or reader, None, model), "ema", precision,
    )  # fmt: skip


def encoder(spec: str | None, saved: Mapping[str, Any] | None, model: Denoiser) -> Any:
    """What reads captions for the network; None where it takes none, or where nobody knows which."""
    if model.text is None:
        if spec is not None:
            raise ValueError(f"--text {spec}: {model.called} takes no captions; leave it out")
        return None
    arguments = {key: value for key, value in (saved or {}).items() if key != "digest"}
    if spec is None and not arguments:
        return None
    from ...multimodal.text import TextEncoder

    found = TextEncoder(**({"length": model.text[0]} | arguments | ({} if spec is None else {"spec": spec})))
    if spec is None and saved is not None and found.digest != saved["digest"]:
        raise ValueError(
            f"the run read captions by encoder {arguments['spec']} with digest {saved['digest'][:12]}, here it has "
            f"{found.digest[:12]}: use the very same"
        )
    if tuple(found.text) != model.text:
        raise ValueError(f"{found.spec} encodes captions as {tuple(found.text)}, {model.called} takes {model.text}")
    return found


def is_maker(spec: str | Path) -> bool:
    """Whether a file or folder is a checkpoint, or a run, of a denoiser."""
    path = checkpoint.find(spec)
    return path is not None and path.is_file() and "process" in checkpoint.read(path).get("patchloom", {})
