"""What is published for ViT (arXiv 2010.11929, 2106.10270) and DeiT (arXiv 2012.12877).

ViT: Google's files are JAX archives; the tags are timm's, whose copies hold the same numbers under timm's names, and
top-1 is timm's table's. DeiT: the authors' files (timm's names, digits of the digest in the file name), timm's and
transformers' copies. A tag with 0 classes has no head. transformers' ViTs resize to the square, bilinear.
"""

from typing import Any

from ..published import HALF, Weights, copy_of

_DEIT = "https://dl.fbaipublicfiles.com/deit"

# variant -> {tag: top-1 or None where it is no classifier of ImageNet-1k}; the first is timm's default too
_VIT: dict[str, dict[str, float | None]] = {
    "vit_tiny_patch16_224": {"augreg_in21k_ft_in1k": 75.5, "augreg_in21k": None},
    "vit_tiny_patch16_384": {"augreg_in21k_ft_in1k": 78.4},
    "vit_small_patch32_224": {"augreg_in21k_ft_in1k": 76.0, "augreg_in21k": None},
    "vit_small_patch32_384": {"augreg_in21k_ft_in1k": 80.5},
    "vit_small_patch16_224": {"augreg_in21k_ft_in1k": 81.4, "augreg_in1k": 78.8, "augreg_in21k": None, "dino": None},
    "vit_small_patch16_384": {"augreg_in21k_ft_in1k": 83.8, "augreg_in1k": 81.1},
    "vit_base_patch32_224": {
        "augreg_in21k_ft_in1k": 80.7,
        "augreg_in1k": 74.9,
        "sam_in1k": 73.7,
        "augreg_in21k": None,
        "orig_in21k": None,
    },
    "vit_base_patch32_384": {"augreg_in21k_ft_in1k": 83.4, "augreg_in1k": 78.8},
    "vit_base_patch16_224": {
        "augreg2_in21k_ft_in1k": 85.1,
        "augreg_in21k_ft_in1k": 84.5,
        "orig_in21k_ft_in1k": 81.8,
        "augreg_in1k": 79.2,
        "sam_in1k": 80.2,
        "augreg_in21k": None,
        "orig_in21k": None,
        "dino": None,
        "mae": None,
    },
    "vit_base_patch16_384": {"augreg_in21k_ft_in1k": 86.0, "orig_in21k_ft_in1k": 84.2, "augreg_in1k": 81.1},
    "vit_large_patch32_224": {"orig_in21k": None},
    "vit_large_patch32_384": {"orig_in21k_ft_in1k": 81.5},
    "vit_large_patch16_224": {"augreg_in21k_ft_in1k": 85.8, "augreg_in21k": None, "orig_in21k": None, "mae": None},
    "vit_large_patch16_384": {"augreg_in21k_ft_in1k": 87.1},
}

# variant -> Google's own at transformers: (tag, repository, classes)
_GOOGLE: dict[str, tuple[str, str, int]] = {
    **{
        f"vit_{size}_patch{patch}_224": ("orig_in21k_hf", f"google/vit-{size}-patch{patch}-224-in21k", 0)
        for size in ("base", "large")
        for patch in (16, 32)
    },
    **{
        f"vit_{size}_patch{patch}_384": ("orig_in21k_ft_in1k_hf", f"google/vit-{size}-patch{patch}-384", 1000)
        for size in ("base", "large")
        for patch in (16, 32)
    },
}

# variant -> (eight digits of the digest, top-1)
_FACEBOOK = {
    "deit_tiny_patch16_224": ("a1311bcf", 72.2),
    "deit_small_patch16_224": ("cd65a155", 79.9),
    "deit_base_patch16_224": ("b5f2ef4d", 81.8),
    "deit_base_patch16_384": ("8de9b5d1", 82.9),
    "deit_tiny_distilled_patch16_224": ("b40b3cf7", 74.5),
    "deit_small_distilled_patch16_224": ("649709d9", 81.2),
    "deit_base_distilled_patch16_224": ("df68dfff", 83.4),
    "deit_base_distilled_patch16_384": ("d0272ac0", 85.2),
}


def _size(variant: str) -> tuple[int, int, int]:
    side = int(variant[-3:])
    return 3, side, side


def _vit(variant: str, tag: str, top1: float | None) -> Weights:
    """timm's copy of a file of Google's (ImageNet's mean for the two self-supervised ones, else a half)."""
    norm: dict[str, Any] = {} if tag in ("dino", "mae") else {"mean": HALF, "std": HALF}
    classes = 1000 if tag.endswith("in1k") else 21843 if tag == "augreg_in21k" else 0
    return Weights(
        tag,
        f"hf-hub:timm/{variant}.{tag}",
        "cc-by-nc-4.0" if tag == "mae" else "apache-2.0",
        classes,
        _size(variant),
        crop_pct=1.0 if variant.endswith("384") else 0.9,
        metrics={} if top1 is None else {"top1": top1},
        source="timm",
        **norm,
    )


def _google(variant: str, tag: str, repository: str, classes: int) -> Weights:
    top1 = _VIT[variant].get(tag.removesuffix("_hf"))
    return Weights(
        tag,
        f"hf-hub:{repository}",
        "apache-2.0",
        classes,
        _size(variant),
        mean=HALF,
        std=HALF,
        interpolation="bilinear",
        crop_pct=1.0,
        crop_mode="squash",
        source="transformers",
        metrics={} if top1 is None else {"top1": top1},
    )


def _deit(variant: str, digits: str, top1: float) -> tuple[Weights, ...]:
    own = Weights(
        "fb_in1k",
        f"{_DEIT}/{variant}-{digits}.pth",
        "apache-2.0",
        input_size=_size(variant),
        sha256=digits,
        metrics={"top1": top1},
        wrapper="model",
    )
    return (
        own,
        copy_of(own, "timm", f"timm/{variant}.fb_in1k", crop_pct=1.0 if variant.endswith("384") else 0.9),
        copy_of(own, "transformers", f"facebook/{variant.replace('_', '-')}"),
    )


WEIGHTS: dict[str, tuple[Weights, ...]] = {
    variant: tuple(_vit(variant, tag, top1) for tag, top1 in tags.items()) for variant, tags in _VIT.items()
}
for _variant, _row in _GOOGLE.items():
    WEIGHTS[_variant] += (_google(_variant, *_row),)
for _side in ("base", "large"):
    WEIGHTS[f"vit_{_side}_patch16_224"] += (
        _google(f"vit_{_side}_patch16_224", "orig_in21k_ft_in1k_hf", f"google/vit-{_side}-patch16-224", 1000),
    )
WEIGHTS |= {variant: _deit(variant, *row) for variant, row in _FACEBOOK.items()}
