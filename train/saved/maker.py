"""`ImageMaker`: images from a denoiser, one seed for each, whatever the batch; and what makes one of a checkpoint."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...data.keyed import key
from ...vision.generation.denoiser import Denoiser
from ...vision.generation.guidance import Guidance
from ...vision.generation.process import Process, draw
from ...vision.generation.samplers import SAMPLERS, default_sampler, sample

if TYPE_CHECKING:
    from ...vision.generation.autoencoder import Autoencoder
    from ..inpaint import Region

Conditions = Sequence[int] | Sequence[str] | int


@dataclass(frozen=True)
class MakeSettings:
    """How images are made. None: the process's own sampler, its published number of steps, the size that the network
    was trained for. `channels`, `power` and `interval` are `Guidance`'s; `eta` is DDIM's."""

    sampler: str | None = None
    steps: int | str | None = None
    guidance: float = 1.0
    channels: int | None = None
    power: float | None = None
    interval: tuple[float, float] | None = None
    eta: float | None = None
    seed: int = 0
    size: tuple[int, int] | None = None  # H, W in pixels

    def build_sampler(self, process: Process) -> Any:
        if self.sampler is not None and self.sampler not in SAMPLERS:
            raise ValueError(f"no sampler {self.sampler!r}: {', '.join(SAMPLERS)}")
        found = default_sampler(process) if self.sampler is None else SAMPLERS[self.sampler]()
        if self.steps is not None:
            found = replace(found, steps=self.steps)
        if self.eta is not None:
            if not hasattr(found, "eta"):
                raise ValueError(f"eta={self.eta:g} is DDIM's, and the sampler is {name_of(found)}: leave it out")
            found = replace(found, eta=self.eta)
        return found

    def build_guidance(self) -> Guidance | None:
        if self.guidance != 1:
            return Guidance(self.guidance, channels=self.channels, power=self.power, interval=self.interval)
        for name in ("channels", "power", "interval"):
            if getattr(self, name) is not None:
                raise ValueError(f"guidance {name} {getattr(self, name)} without guidance: give a scale other than 1")
        return None


def name_of(sampler: Any) -> str:
    return next((name for name, kind in SAMPLERS.items() if type(sampler) is kind), type(sampler).__name__)


@dataclass(frozen=True)
class ImageMaker:
    """A denoiser in evaluation mode and what stands around it: `size` in pixels (H, W) is what it makes by default;
    `autoencoder` decodes latents; `text` encodes captions. `preview`: latents without an autoencoder are shown by their
    first three channels, not refused."""

    model: Denoiser
    process: Process
    classes: list[str]
    size: tuple[int, int]
    latents: bool = False
    autoencoder: "Autoencoder | None" = None
    text: Any = None
    weights: str = "ema"
    precision: torch.dtype = torch.float32
    preview: bool = False

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def factor(self) -> int:
        """Pixels a side of what the network sees as one."""
        return 1 if self.autoencoder is None else self.autoencoder.space.factor

    # -------------------------------------------------------------------------------------------------- conditions

    def check(self, conditions: Conditions, settings: MakeSettings) -> list[Any]:
        """One condition for each image (None where the network takes none). Raises ValueError for what cannot be."""
        sampler = settings.build_sampler(self.process)
        sampler.check(self.process)
        self.process.levels(sampler.steps)
        if self.latents and self.autoencoder is None and not self.preview:
            raise ValueError("the network makes latents: name the autoencoder that decodes them (--vae)")
        if isinstance(conditions, int):
            if self.model.num_classes is not None or self.model.text is not None:
                takes = "classes" if self.model.text is None else "captions"
                raise ValueError(
                    f"{self.model.called} makes what it is told: give {takes}, not only a number of images"
                )
            return [None] * conditions
        found = list(conditions)
        if not found:
            raise ValueError("no conditions: say which classes or captions are wanted")
        texts = isinstance(found[0], str)
        if texts != (self.model.text is not None) or (not texts and self.model.num_classes is None):
            takes = "nothing but a number" if self.model.num_classes is None else "classes"
            takes = takes if self.model.text is None else "captions"
            raise ValueError(f"{self.model.called} takes {takes}, and got {'captions' if texts else 'classes'}")
        if texts and self.text is None:
            raise ValueError(f"{self.model.called} takes captions as an encoder reads them: name it (--text)")
        if not texts:
            self.model.check_classes(torch.tensor(found))
        if settings.guidance != 1:
            self.model.null(
                torch.zeros(1, dtype=torch.int64) if not texts else torch.zeros(1, *(self.model.text or ()))
            )
        return found

    def encoded(self, conditions: Sequence[Any]) -> Tensor | None:
        if conditions[0] is None:
            return None
        if isinstance(conditions[0], str):
            return self.text.to(self.device).encode(list(conditions))[0].to(self.device)  # type: ignore[no-any-return]
        return torch.tensor(conditions, device=self.device)

    # ------------------------------------------------------------------------------------------------------ images

    def images(
        self, conditions: Conditions, settings: MakeSettings, *, batch: int = 32, progress: bool = False,
        region: "Region | None" = None,
    ) -> Iterator[Tensor]:  # fmt: skip
        """uint8 (b, 3, H, W) on the CPU, in the order of the conditions. Image i depends on (seed, i) and on its
        condition. `region`: what of the picture is known, and stays."""
        from tqdm import tqdm

        wanted = self.check(conditions, settings)
        sampler, guidance = settings.build_sampler(self.process), settings.build_guidance()
        bar = tqdm(total=len(wanted), unit="img", desc="generate", file=sys.stderr, disable=None if progress else True)
        with bar, torch.inference_mode(), evaluating(self.model):
            for start in range(0, len(wanted), batch):
                part = wanted[start : start + batch]
                seeds = [key(settings.seed, 0, start + i) for i in range(len(part))]
                x = self._made(
                    part, [torch.Generator().manual_seed(s) for s in seeds], settings, sampler, guidance, region
                )
                yield x if region is None else region.pasted(x)
                bar.update(len(part))

    def _made(self, part: Sequence[Any], generators: list[torch.Generator], settings: MakeSettings, sampler: Any,
              guidance: Guidance | None, region: "Region | None") -> Tensor:  # fmt: skip
        height, width = self.grid(settings.size or self.size)
        noise = draw((len(part), self.model.in_channels, height, width), generators, self.device)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            x = sample(
                self.process, self.model, noise, self.encoded(part), sampler=sampler, guidance=guidance,
                generator=generators, clip=None if self.latents else 1.0,
                inpaint=None if region is None else region.inpaint(self),
            )  # fmt: skip
        return as_bytes(x if self.autoencoder is None else self.autoencoder.decode(x))

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of what the network sees."""
        f = self.factor
        if size[0] % f or size[1] % f:
            raise ValueError(f"size {size[0]} x {size[1]}: sides must be multiples of {f}, pixels of one latent")
        return size[0] // f, size[1] // f

    def protocol(self, settings: MakeSettings) -> dict[str, Any]:
        """What a number judged on such images depends on, as plain values."""
        sampler, words = settings.build_sampler(self.process), asdict(settings)
        return {
            "model": self.model.called,
            "weights": self.weights,
            "sampler": name_of(sampler),
            "steps": sampler.steps,
            "eta": getattr(sampler, "eta", None),
            "guidance": settings.guidance,
            **{f"guidance_{name}": words[name] for name in ("channels", "power", "interval")},
            "seed": settings.seed,
            "size": list(settings.size or self.size),
            "decoder": "none" if self.autoencoder is None else self.autoencoder.spec,
            "precision": str(self.precision).removeprefix("torch."),
        }


class evaluating:
    """The network in evaluation mode for as long as the block lasts."""

    def __init__(self, model: nn.Module):
        self.model, self.mode = model, model.training

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *exception: object) -> None:
        self.model.train(self.mode)


def as_bytes(x: Tensor) -> Tensor:
    """(B, C, H, W) in [-1, 1] -> (B, 3, H, W) uint8 on the CPU: grey thrice, of more channels the first three."""
    x = x[:, :3] if x.shape[1] >= 3 else x[:, :1].expand(-1, 3, -1, -1)
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).byte().cpu()


def pixels_of(preprocessing: Mapping[str, Any]) -> tuple[int, int]:
    """(H, W) in pixels of what a run was trained on."""
    height, width = preprocessing["input_size"][1:]
    factor = preprocessing.get("latents", {}).get("factor", 1)
    return height * factor, width * factor
