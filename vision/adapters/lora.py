"""LoRA (https://arxiv.org/abs/2106.09685) by peft, and what differs from it in how it begins or is scaled."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from . import in_words
from .lora_house import NAME, House, above_width, at_least, library, tuned
from .lora_split import Rows, apart

Init = Literal["kaiming", "gaussian", "pissa", "olora", "corda", "eva"]
STARTED = ("pissa", "olora", "corda")  # begin at a part of the weight, which is then taken off it
BY_DATA = ("corda", "eva")  # begin as the images have it: vision/adapters/lora_data.py
START = "start"  # the second adapter of a layer: where the first began, subtracted


@dataclass(frozen=True)
class Lora(House):
    """Low-rank adaptation (LoRA): a product of two narrow matrices beside a layer.

    W x + s B A x with s = alpha / r, A (r, in), B (out, r) zero; a convolution's A has its kernel and stride.

    `rslora`: s = alpha / sqrt(r) (https://arxiv.org/abs/2312.03732). `dora`: rows m (W + s B A) / |W + s B A| with
    learned lengths m (https://arxiv.org/abs/2402.09353). `bias`: B has one. `init`: of A; "pissa"
    (https://arxiv.org/abs/2404.02948), "olora" (https://arxiv.org/abs/2406.01775) and "corda"
    (https://arxiv.org/abs/2406.05223) begin with A0, B0 out of the weight, and the layer computes
    W x + s (B A - B0 A0) x, so that the trunk's weight stays what it is. "corda" and "eva"
    (https://arxiv.org/abs/2410.07170) look at images first (`lora_data.prepare`), and until then begin as "kaiming".
    """

    r: int = 8
    alpha: float = 8.0
    dropout: float = 0.0  # of what A reads
    init: Init = "kaiming"
    rslora: bool = False
    dora: bool = False
    bias: bool = False

    kind: ClassVar[str] = "LoraConfig"
    called: ClassVar[dict[str, str]] = {
        "r": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "rslora": "use_rslora", "dora": "use_dora",
        "bias": "lora_bias",
    }  # fmt: skip
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, nn.Conv2d)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, r=self.r)
        if self.init in STARTED and self.dora:
            raise ValueError(
                f"init={self.init} takes A and B out of the weight, and dora=true scales its rows: one of them"
            )

    @property
    def begins_in_weights(self) -> bool:
        return self.dora or self.init in STARTED

    def settings(self) -> dict[str, Any]:
        init: Any = self.init if self.init in ("gaussian", "pissa", "olora") else True
        return {**super().settings(), "init_lora_weights": init}

    def unfit(self, layer: nn.Module) -> str | None:
        if self.init in (*STARTED, *BY_DATA) and not isinstance(layer, nn.Linear):
            return f"is no linear layer, as init={self.init} needs"
        if self.bias and getattr(layer, "bias", None) is None:
            return "has no bias, so bias=true could not be merged"
        return above_width(self.r, layer)

    def around(self, layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        if self.init not in STARTED:
            return super().around(layers)
        copies = {n: apart(m) if isinstance(m, Rows) else deepcopy(m) for n, m in layers.items()}  # peft changes them
        found = tuned(copies, self.config(layers), in_words(self))
        for name, layer in found.items():
            self.begun(layer, layers[name])
        return found

    def begun(self, layer: Any, base: nn.Module) -> None:
        """`layer` around `base`, with what it begins as subtracted."""
        layer.base_layer = base
        plain = library().LoraConfig(r=self.r, lora_alpha=self.alpha, use_rslora=self.rslora)
        layer.update_layer(START, self.r, lora_alpha=self.alpha, config=plain)
        layer.scaling[START] = -layer.scaling[NAME]
        layer.set_adapter([NAME, START])
        for matrix in (layer.lora_A, layer.lora_B):
            matrix[START].requires_grad_(False)
        restart(layer)


@torch.no_grad()
def restart(layer: Any) -> None:
    """What a layer is now becomes what is subtracted from it."""
    for matrix in (layer.lora_A, layer.lora_B):
        matrix[START].weight.copy_(matrix[NAME].weight)


@dataclass(frozen=True)
class RsLora(Lora):
    """LoRA scaled by the root of its rank: `Lora` with rslora=true."""

    rslora: bool = True


@dataclass(frozen=True)
class Dora(Lora):
    """LoRA with the lengths of the weight's rows learned apart (DoRA): `Lora` with dora=true."""

    dora: bool = True


@dataclass(frozen=True)
class Pissa(Lora):
    """LoRA that begins as the weight's largest singular directions (PiSSA): `Lora` with init=pissa."""

    init: Init = "pissa"


@dataclass(frozen=True)
class Olora(Lora):
    """LoRA that begins as the weight's first orthonormal directions (OLoRA): `Lora` with init=olora."""

    init: Init = "olora"


@dataclass(frozen=True)
class Corda(Lora):
    """LoRA that begins as the weight's directions on images seen before (CorDA).

    `Lora` with init=corda. `mode`: "ipm" begins with the r largest components, "kpm" with the r smallest, which
    leaves what the trunk knows alone."""

    init: Init = "corda"
    mode: Literal["ipm", "kpm"] = "ipm"


@dataclass(frozen=True)
class Eva(Lora):
    """LoRA that begins as the directions in which a layer's inputs differ (EVA).

    `Lora` with init=eva: A begins as the directions along which a layer's inputs differ most.
    """

    init: Init = "eva"


@dataclass(frozen=True)
class AdaLora(House):
    """LoRA whose ranks fall where they matter least (AdaLoRA).

    W x + s B (A x * E), E (r) zero to begin with, s = alpha / the rank at the start
    (https://arxiv.org/abs/2303.10512). In training (`train.callbacks.adalora`) the ranks fall from `start` to `r` on
    average, where they matter least, after the share `begin` of the steps and before the share `end` of them; and
    `orthogonal` |A A' - 1| + |B' B - 1| is added to the loss."""

    r: int = 8
    start: int = 12
    alpha: float = 8.0
    dropout: float = 0.0
    begin: float = 0.1
    end: float = 0.3
    every: int = 10  # steps between two allocations
    orthogonal: float = 0.5

    kind: ClassVar[str] = "AdaLoraConfig"
    called: ClassVar[dict[str, str]] = {
        "r": "target_r", "start": "init_r", "alpha": "lora_alpha", "dropout": "lora_dropout", "every": "deltaT",
        "orthogonal": "orth_reg_weight",
    }  # fmt: skip
    fixed: ClassVar[dict[str, Any]] = {"total_step": 10, "tinit": 1, "tfinal": 3}  # of a run: see `scheduled`
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, nn.Conv2d)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, r=self.r, every=self.every)
        at_least(0, orthogonal=self.orthogonal)
        if self.start <= self.r:
            raise ValueError(f"start={self.start}: ranks fall from it to r={self.r}, so it is above that")
        if not (self.begin >= 0 and self.end >= 0 and self.begin + self.end < 1):
            raise ValueError(f"begin={self.begin}, end={self.end}: shares of the steps that leave some between them")

    def scheduled(self, steps: int) -> dict[str, int]:
        """peft's names for the schedule of a run of so many steps."""
        return {"total_step": steps, "tinit": round(self.begin * steps), "tfinal": round(self.end * steps)}

    def unfit(self, layer: nn.Module) -> str | None:
        return above_width(self.start, layer)
