"""What is published for PoolFormer (arXiv 2111.11418) and the MetaFormer baselines (arXiv 2210.13452).

The authors' files are plain state dicts; timm has copies of all but IdentityFormer and RandFormer, transformers of
PoolFormer. 384 is a tag of the plain variant (sail_in1k_384) and a variant of its own (caformer_s18_384.sail_in1k).

timm's files hold the authors' numbers, its forward pass is not quite theirs: PoolFormer there takes the mean before the
last norm (another network: logits differ), and the MLP head's norm has eps 1e-6 instead of 1e-5 (1e-4 of the logits).
Loaded here, both give what the authors' code gives.
"""

from ..published import Weights, at_size, copy_of, with_classes

_POOLFORMER = "https://github.com/sail-sg/poolformer/releases/download/v1.0"
_SIZES = ("s12", "s24", "s36", "m36", "m48")

# family -> top-1 of s12, s24, s36, m36, m48
_FIRST = {
    "poolformer": (77.2, 80.3, 81.4, 82.1, 82.5),
    "poolformerv2": (78.0, 80.7, 81.6, 82.2, 82.6),
    "identityformer": (74.6, 78.2, 79.3, 80.0, 80.4),
    "randformer": (76.6, 78.2, 79.5, 81.2, 81.4),
}
# family -> size -> top-1 of 1k at 224 and 384, of 22k fine-tuned at 224 and 384
_SECOND = {
    "convformer": {
        "s18": (83.0, 84.4, 83.7, 85.0),
        "s36": (84.1, 85.4, 85.4, 86.4),
        "m36": (84.5, 85.6, 86.1, 86.9),
        "b36": (84.8, 85.7, 87.0, 87.6),
    },
    "caformer": {
        "s18": (83.6, 85.0, 84.1, 85.4),
        "s36": (84.5, 85.7, 85.8, 86.9),
        "m36": (85.2, 86.2, 86.6, 87.5),
        "b36": (85.5, 86.4, 87.4, 88.1),
    },
}


def _first(family: str, size: str, top1: float) -> tuple[Weights, ...]:
    """One size of a family that was trained on ImageNet-1k at 224 only."""
    name = f"{family}_{size}"
    if family != "poolformer":
        own = Weights(
            "sail_in1k", f"hf-hub:sail/dl/{family}/{name}.pth", "apache-2.0", crop_pct=1.0, metrics={"top1": top1}
        )
        return (own, copy_of(own, "timm", f"timm/{name}.sail_in1k")) if family == "poolformerv2" else (own,)
    own = Weights(
        "sail_in1k",
        f"{_POOLFORMER}/{name}.pth.tar",
        "apache-2.0",
        crop_pct=0.9 if size[0] == "s" else 0.95,
        metrics={"top1": top1},
    )
    return own, copy_of(own, "timm", f"timm/{name}.sail_in1k"), copy_of(own, "transformers", f"sail/{name}")


def _second(family: str, size: str, top1: tuple[float, float, float, float]) -> tuple[Weights, ...]:
    """One size of ConvFormer or CAFormer: 1k and 22k, 224 and 384."""
    name = f"{family}_{size}"
    files = (
        ("sail_in1k", "", top1[0]),
        ("sail_in1k_384", "_384", top1[1]),
        ("sail_in22k_ft_in1k", "_in21ft1k", top1[2]),
        ("sail_in22k_ft_in1k_384", "_384_in21ft1k", top1[3]),
        ("sail_in22k", "_in21k", None),
    )
    own = [
        Weights(
            tag,
            f"hf-hub:sail/dl/{family}/{name}{suffix}.pth",
            "apache-2.0",
            21841 if tag == "sail_in22k" else 1000,
            (3, 384, 384) if tag.endswith("_384") else (3, 224, 224),
            crop_pct=1.0,
            metrics={} if accuracy is None else {"top1": accuracy},
        )
        for tag, suffix, accuracy in files
    ]
    return (*own, *(copy_of(w, "timm", f"timm/{name}.{w.tag}") for w in own))


WEIGHTS: dict[str, tuple[Weights, ...]] = {
    f"{family}_{size}": _first(family, size, top1)
    for family, row in _FIRST.items()
    for size, top1 in zip(_SIZES, row, strict=True)
}
_PLAIN = {
    f"{family}_{size}": _second(family, size, top1) for family, row in _SECOND.items() for size, top1 in row.items()
}
WEIGHTS |= _PLAIN
WEIGHTS |= {f"{variant}_384": at_size(rows, 384) for variant, rows in _PLAIN.items()}
WEIGHTS |= {f"{variant}_in21k": with_classes(rows, 21841) for variant, rows in _PLAIN.items()}
