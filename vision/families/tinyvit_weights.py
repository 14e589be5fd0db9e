"""What is published for TinyViT (arXiv 2207.10666, MIT): the authors' files and timm's copies.

The authors resize to 256 and crop 224, and at 384 and 512 resize to the square; timm states 0.95 and a plain crop.
"""

from typing import Any

from ..published import Weights, copy_of, with_classes

_RELEASE = "https://github.com/wkcn/TinyViT-model-zoo/releases/download/checkpoints"
_TAGS = {"in1k": "1k", "dist_in22k_ft_in1k": "22kto1k_distill", "dist_in22k": "22k_distill"}

# size -> (top-1, top-5) from scratch and from 22k
_ACCURACY = {
    "5m": ((79.1, 94.8), (80.7, 95.6)),
    "11m": ((81.5, 95.8), (83.2, 96.5)),
    "21m": ((83.1, 96.5), (84.8, 97.3)),
}


def _plain(size: str) -> tuple[Weights, ...]:
    rows: list[Weights] = []
    for i, (tag, file) in enumerate(_TAGS.items()):
        metrics = dict(zip(("top1", "top5"), _ACCURACY[size][i], strict=True)) if i < 2 else {}
        classes = 1000 if i < 2 else 21841
        url = f"{_RELEASE}/tiny_vit_{size}_{file}.pth"
        own = Weights(tag, url, "mit", num_classes=classes, metrics=metrics, wrapper="model")
        rows += [own, copy_of(own, "timm", f"timm/tiny_vit_{size}_224.{tag}", crop_pct=0.95, license="apache-2.0")]
    return tuple(rows)


def _large(side: int, top1: float, top5: float, **timm: Any) -> tuple[Weights, ...]:
    """The 21M network at a higher resolution."""
    own = Weights(
        "dist_in22k_ft_in1k",
        f"{_RELEASE}/tiny_vit_21m_22kto1k_{side}_distill.pth",
        "mit",
        input_size=(3, side, side),
        crop_pct=1.0,
        crop_mode="squash",
        metrics={"top1": top1, "top5": top5},
        wrapper="model",
    )
    timm |= {"license": "apache-2.0"}
    return own, copy_of(own, "timm", f"timm/tiny_vit_21m_{side}.dist_in22k_ft_in1k", **timm)


WEIGHTS: dict[str, tuple[Weights, ...]] = {
    **{f"tiny_vit_{size}": _plain(size) for size in _ACCURACY},
    "tiny_vit_21m_384": _large(384, 86.2, 97.8, crop_mode="center"),
    "tiny_vit_21m_512": _large(512, 86.5, 97.9),
    **{f"tiny_vit_{size}_22k": with_classes(_plain(size), 21841) for size in _ACCURACY},
}
