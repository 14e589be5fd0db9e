"""Frozen autoencoders of diffusers (AutoencoderKL): images to latents and back, and what tells one latent space from
another."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HINT = "give a folder with config.json and weights, as save_pretrained writes it, or a name on the hub"


@dataclass(frozen=True)
class LatentSpace:
    """Whose latents they are, and how they are scaled: (z - shift) * scale is what a network sees.

    `digest`: sha256 of the encoder's tensors. Decoders may differ (sd-vae-ft-ema and -mse have one encoder): latents of
    one encoder are of one space, whoever decodes them.
    """

    name: str
    digest: str
    channels: int
    factor: int  # pixels a side of one latent
    scale: float
    shift: float = 0.0

    def check(self, other: "LatentSpace", mine: str, theirs: str) -> None:
        """Raises ValueError where the two are latents of different encoders, or scaled otherwise."""
        if self.digest != other.digest:
            raise ValueError(
                f"{mine} are latents of autoencoder {self.name} ({self.digest[:12]}), {theirs} of another, "
                f"{other.name} ({other.digest[:12]}): what one made the other cannot read; use the same"
            )
        if (self.scale, self.shift) != (other.scale, other.shift):
            raise ValueError(
                f"{mine} are latents with scale {self.scale:g} and shift {self.shift:g}, {theirs} have "
                f"{other.scale:g} and {other.shift:g}: use the same"
            )

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "LatentSpace":
        return cls(**plain)


class Autoencoder(nn.Module):
    """`spec`: a folder (or its subfolder vae/) or a name on the hub. Frozen, float32; H and W of images are multiples
    of `space.factor`."""

    def __init__(self, spec: str):
        super().__init__()
        self.spec = spec
        self.vae = load_vae(spec).float().eval().requires_grad_(False)
        config = self.vae.config
        self.space = LatentSpace(
            spec, digest(self.vae, ("encoder.", "quant_conv.")), config.latent_channels,
            2 ** (len(config.block_out_channels) - 1), config.scaling_factor, config.shift_factor or 0.0,
        )  # fmt: skip

    @property
    def decoder(self) -> str:
        """sha256 of the decoder's tensors, which a judged number depends on."""
        return digest(self.vae, ("decoder.", "post_quant_conv."))

    def train(self, mode: bool = True) -> "Autoencoder":
        return super().train(False)  # it is frozen, whoever trains around it

    @torch.no_grad()
    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image (B, 3, H, W) in [-1, 1] -> mean and standard deviation (B, C, h, w) of its scaled latents."""
        f = self.space.factor
        if image.shape[-2] % f or image.shape[-1] % f:
            raise ValueError(
                f"images of {image.shape[-2]} x {image.shape[-1]} pixels: sides must be multiples of {f} for "
                f"{self.spec}"
            )
        with torch.autocast(image.device.type, enabled=False):
            found = self.vae.encode(image.float()).latent_dist
            return (found.mean - self.space.shift) * self.space.scale, found.std * self.space.scale

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) -> images (B, 3, H, W), about [-1, 1]."""
        with torch.autocast(latent.device.type, enabled=False):
            return self.vae.decode(latent.float() / self.space.scale + self.space.shift).sample  # type: ignore[no-any-return]


def load_vae(spec: str) -> Any:
    from diffusers import AutoencoderKL
    from diffusers.utils import logging

    folder = Path(spec)
    if folder.is_dir():
        folder = next((f for f in (folder, folder / "vae") if (f / "config.json").is_file()), folder)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"no autoencoder in {spec}: it has no config.json; {HINT}")
    elif folder.is_absolute() or spec.startswith(".") or spec.count("/") > 1:
        raise FileNotFoundError(f"no autoencoder {spec}: there is no such folder; {HINT}")
    kind: Any = AutoencoderKL
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return kind.from_pretrained(str(folder) if folder.is_dir() else spec)
    except OSError as error:  # not there, not reachable, or no file that it reads
        raise ValueError(f"no autoencoder {spec}: {first_line(error)}; {HINT}") from error
    finally:
        logging.set_verbosity(before)


def first_line(error: Exception) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)


def digest(module: nn.Module, prefixes: tuple[str, ...]) -> str:
    """sha256 of the tensors below these names: names, shapes and values as float32."""
    sha = hashlib.sha256()
    for name, t in sorted(module.state_dict().items()):
        if name.startswith(prefixes):
            sha.update(f"{name} {tuple(t.shape)}\n".encode())
            sha.update(t.detach().float().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
