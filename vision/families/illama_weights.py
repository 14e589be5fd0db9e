"""What is published for iLLaMA (arXiv 2404.06773), without a licence; prepared as ConvNeXt's images are."""

from typing import Any

from ..published import Weights

HUB = "hf-hub:techmonsterwang/iLLaMA"

# variant -> (tag, file, top-1)
_FILES: dict[str, tuple[tuple[str, str, float], ...]] = {
    "illama_tiny": (("in1k", "illama-tiny-in1k-75.0", 75.0),),
    "illama_small": (("in1k", "illama-small-in1k-79.9", 79.9),),
    "illama_base": (("in1k", "illama-base-in1k-81.6", 81.6), ("in21k_ft_in1k", "illama-base-in21kin1k-224-83.6", 83.6)),
    "illama_base_384": (
        ("in1k", "illama-base-in1k-384-83.0", 83.0),
        ("in21k_ft_in1k", "illama-base-in21kin1k-384-85.0", 85.0),
    ),
    "illama_large": (("in21k_ft_in1k", "illama-large-in21kin1k-224-84.8", 84.8),),
    "illama_large_384": (("in21k_ft_in1k", "illama-large-in21kin1k-384-86.0", 86.0),),
}


def _weights(variant: str, tag: str, file: str, top1: float) -> Weights:
    large: dict[str, Any] = {"input_size": (3, 384, 384), "crop_pct": 1.0, "crop_mode": "squash"}
    return Weights(
        tag, f"{HUB}/{file}.pth", "none", metrics={"top1": top1}, wrapper="model",
        **(large if variant.endswith("384") else {}),
    )  # fmt: skip


WEIGHTS: dict[str, tuple[Weights, ...]] = {
    variant: tuple(_weights(variant, *row) for row in rows) for variant, rows in _FILES.items()
}
