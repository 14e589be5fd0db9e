"""What is published for ConvNeXt (arXiv 2201.03545): authors' files, timm's and transformers' copies, dense backbones.

Nothing in the network depends on the size: 384 is a tag of the plain variant (fb_in1k_384) and a variant of its own
(convnext_base_384.fb_in1k). The authors resize to 256/224 of the size and crop, from 384 on to the square.
"""

from typing import Any

from ..published import Weights, at_size, copy_of, with_classes

_HOST = "https://dl.fbaipublicfiles.com/convnext"
_CLIP: dict[str, Any] = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}

# variant -> (tag, file, top-1); the ImageNet-1k files of 224 are the moving averages, fb_in1k_raw the plain weights
_CLASSIFIERS: dict[str, tuple[tuple[str, str, float | None], ...]] = {
    "convnext_tiny": (
        ("fb_in1k", "convnext_tiny_1k_224_ema", 82.1),
        ("fb_in22k_ft_in1k", "convnext_tiny_22k_1k_224", 82.9),
        ("fb_in22k_ft_in1k_384", "convnext_tiny_22k_1k_384", 84.1),
        ("fb_in22k", "convnext_tiny_22k_224", None),
        ("fb_in1k_raw", "convnext_tiny_1k_224", None),
    ),
    "convnext_small": (
        ("fb_in1k", "convnext_small_1k_224_ema", 83.1),
        ("fb_in22k_ft_in1k", "convnext_small_22k_1k_224", 84.6),
        ("fb_in22k_ft_in1k_384", "convnext_small_22k_1k_384", 85.8),
        ("fb_in22k", "convnext_small_22k_224", None),
        ("fb_in1k_raw", "convnext_small_1k_224", None),
    ),
    "convnext_base": (
        ("fb_in1k", "convnext_base_1k_224_ema", 83.8),
        ("fb_in1k_384", "convnext_base_1k_384", 85.1),
        ("fb_in22k_ft_in1k", "convnext_base_22k_1k_224", 85.8),
        ("fb_in22k_ft_in1k_384", "convnext_base_22k_1k_384", 86.8),
        ("fb_in22k", "convnext_base_22k_224", None),
        ("fb_in1k_raw", "convnext_base_1k_224", None),
    ),
    "convnext_large": (
        ("fb_in1k", "convnext_large_1k_224_ema", 84.3),
        ("fb_in1k_384", "convnext_large_1k_384", 85.5),
        ("fb_in22k_ft_in1k", "convnext_large_22k_1k_224", 86.6),
        ("fb_in22k_ft_in1k_384", "convnext_large_22k_1k_384", 87.5),
        ("fb_in22k", "convnext_large_22k_224", None),
    ),
    "convnext_xlarge": (
        ("fb_in22k_ft_in1k", "convnext_xlarge_22k_1k_224_ema", 87.0),
        ("fb_in22k_ft_in1k_384", "convnext_xlarge_22k_1k_384_ema", 87.8),
        ("fb_in22k", "convnext_xlarge_22k_224", None),
    ),
    "convnext_isotropic_small": (("fb_in1k", "convnext_iso_small_1k_224_ema", 78.7),),
    "convnext_isotropic_base": (("fb_in1k", "convnext_iso_base_1k_224_ema", 82.0),),
    "convnext_isotropic_large": (("fb_in1k", "convnext_iso_large_1k_224_ema", 82.6),),
}
_NOT_AT_TIMM = ("fb_in1k_384", "fb_in1k_raw")

# (variant, tag) -> repository at facebook/
_TRANSFORMERS = {
    **{(f"convnext_{size}", "fb_in1k"): f"convnext-{size}-224" for size in ("tiny", "small", "base", "large")},
    **{(f"convnext_{size}", "fb_in1k_384"): f"convnext-{size}-384" for size in ("base", "large")},
    **{(f"convnext_{size}", "fb_in22k_ft_in1k"): f"convnext-{size}-224-22k-1k" for size in ("base", "large", "xlarge")},
    **{
        (f"convnext_{size}", "fb_in22k_ft_in1k_384"): f"convnext-{size}-384-22k-1k"
        for size in ("base", "large", "xlarge")
    },
    **{(f"convnext_{size}", "fb_in22k"): f"convnext-{size}-224-22k" for size in ("base", "large", "xlarge")},
}

# variant -> (tag, file, metrics): state_dict of mmsegmentation or mmdetection, our part under `backbone.`
_DENSE: dict[str, tuple[tuple[str, str, tuple[float, float]], ...]] = {
    "convnext_tiny": (
        ("ade20k_upernet", "ade20k/upernet_convnext_tiny_1k_512x512", (46.0, 46.7)),
        ("coco_mask_rcnn_3x", "coco/mask_rcnn_convnext_tiny_1k_3x", (46.2, 41.7)),
        ("coco_cascade_3x", "coco/cascade_mask_rcnn_convnext_tiny_1k_3x", (50.4, 43.7)),
    ),
    "convnext_small": (
        ("ade20k_upernet", "ade20k/upernet_convnext_small_1k_512x512", (48.7, 49.6)),
        ("coco_cascade_3x", "coco/cascade_mask_rcnn_convnext_small_1k_3x", (51.9, 45.0)),
    ),
    "convnext_base": (
        ("ade20k_upernet", "ade20k/upernet_convnext_base_1k_512x512", (49.1, 49.9)),
        ("in22k_ade20k_upernet", "ade20k/upernet_convnext_base_22k_640x640", (52.6, 53.1)),
        ("coco_cascade_3x", "coco/cascade_mask_rcnn_convnext_base_1k_3x", (52.7, 45.6)),
        ("in22k_coco_cascade_3x", "coco/cascade_mask_rcnn_convnext_base_22k_3x", (54.0, 46.9)),
    ),
    "convnext_large": (
        ("in22k_ade20k_upernet", "ade20k/upernet_convnext_large_22k_640x640", (53.2, 53.7)),
        ("in22k_coco_cascade_3x", "coco/cascade_mask_rcnn_convnext_large_22k_3x", (54.8, 47.6)),
    ),
    "convnext_xlarge": (
        ("in22k_ade20k_upernet", "ade20k/upernet_convnext_xlarge_22k_640x640", (53.6, 54.0)),
        ("in22k_coco_cascade_3x", "coco/cascade_mask_rcnn_convnext_xlarge_22k_3x", (55.2, 47.7)),
    ),
}

# weights of the same networks that only timm trained: variant -> (tag, classes, size, crop fraction, crop mode, other)
_TIMM_ONLY: dict[str, tuple[tuple[str, int, int, float, str, dict[str, Any]], ...]] = {
    **{
        f"convnext_{size}": (
            ("in12k_ft_in1k", 1000, 224, 0.95, "center", {}),
            ("in12k_ft_in1k_384", 1000, 384, 1.0, "squash", {}),
            ("in12k", 11821, 224, 0.95, "center", {}),
        )
        for size in ("tiny", "small")
    },
    "convnext_base": (
        ("clip_laion2b_augreg_ft_in12k_in1k", 1000, 256, 1.0, "center", _CLIP),
        ("clip_laion2b_augreg_ft_in12k_in1k_384", 1000, 384, 1.0, "squash", _CLIP),
        ("clip_laion2b_augreg_ft_in1k", 1000, 256, 1.0, "center", _CLIP),
        ("clip_laiona_augreg_ft_in1k_384", 1000, 384, 1.0, "center", _CLIP),
        ("clip_laion2b_augreg_ft_in12k", 11821, 256, 1.0, "center", _CLIP),
    ),
}


def _classifiers(variant: str) -> tuple[Weights, ...]:
    """The authors' files of a variant, timm's copies and own, then transformers' copies."""
    own = []
    for tag, file, top1 in _CLASSIFIERS[variant]:
        size = 384 if tag.endswith("_384") else 224
        crop: dict[str, Any] = {"crop_pct": 1.0, "crop_mode": "squash"} if size == 384 else {}
        own.append(
            Weights(
                tag,
                f"{_HOST}/{file}.pth",
                "mit",
                21841 if tag == "fb_in22k" else 1000,
                (3, size, size),
                metrics={} if top1 is None else {"top1": top1},
                wrapper="model",
                **crop,
            )
        )
    timm = [
        copy_of(w, "timm", f"timm/{variant}.{w.tag}", license="apache-2.0")
        for w in own
        if w.tag not in _NOT_AT_TIMM and "isotropic" not in variant
    ]
    timm += [
        Weights(
            tag,
            f"hf-hub:timm/{variant}.{tag}",
            "apache-2.0",
            classes,
            (3, size, size),
            crop_pct=pct,
            crop_mode=mode,
            source="timm",
            **other,
        )
        for tag, classes, size, pct, mode, other in _TIMM_ONLY.get(variant, ())
    ]
    hf = [
        copy_of(w, "transformers", f"facebook/{_TRANSFORMERS[variant, w.tag]}", license="apache-2.0")
        for w in own
        if (variant, w.tag) in _TRANSFORMERS
    ]
    return (*own, *timm, *hf)


def _dense(tag: str, file: str, metrics: tuple[float, float]) -> Weights:
    """A detector's or segmenter's file, of which the backbone is ours."""
    if "coco" in tag:
        size, names = (800, 1333), ("box_ap", "mask_ap")
    else:
        size, names = ((640, 640) if "in22k" in tag else (512, 512)), ("miou", "miou_multiscale")
    return Weights(
        tag,
        f"{_HOST}/{file}.pth",
        "mit",
        0,
        (3, *size),
        metrics=dict(zip(names, metrics, strict=True)),
        wrapper="state_dict",
        prefix="backbone.",
        form="dense",
        crop_pct=1.0,
    )


_PLAIN = {
    variant: _classifiers(variant) + tuple(_dense(*row) for row in _DENSE.get(variant, ())) for variant in _CLASSIFIERS
}
_PYRAMIDS = {variant: rows for variant, rows in _PLAIN.items() if "isotropic" not in variant}
WEIGHTS: dict[str, tuple[Weights, ...]] = {
    **_PLAIN,
    **{f"{variant}_384": at_size(rows, 384) for variant, rows in _PYRAMIDS.items()},
    **{f"{variant}_22k": with_classes(rows, 21841) for variant, rows in _PYRAMIDS.items()},
}
