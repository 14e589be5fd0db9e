"""What is published for Swin (arXiv 2103.14030): the authors' files, timm's and transformers' copies, dense backbones.

The authors resize to 256/224 of the size and crop, and at 384 resize to the square; timm states 0.9 and a plain crop.
Where transformers' card and file disagree on whether a 1k head was fine-tuned from 22k (base), no metric is given.
"""

from typing import Any

from ..published import Weights, copy_of, with_classes

_RELEASES = "https://github.com/SwinTransformer/storage/releases/download"
_DIRECT = {"crop_pct": 1.0, "crop_mode": "squash"}

# variant -> stem of the file, input size, then (tag, release, suffix of the file, top-1)
_CLASSIFIERS: dict[str, tuple[str, int, tuple[tuple[str, str, str, float | None], ...]]] = {
    "swin_tiny": (
        "swin_tiny_patch4_window7_224",
        224,
        (
            ("ms_in1k", "v1.0.0", "", 81.2),
            ("ms_in22k_ft_in1k", "v1.0.8", "_22kto1k_finetune", 80.9),
            ("ms_in22k", "v1.0.8", "_22k", None),
        ),
    ),
    "swin_small": (
        "swin_small_patch4_window7_224",
        224,
        (
            ("ms_in1k", "v1.0.0", "", 83.2),
            ("ms_in22k_ft_in1k", "v1.0.8", "_22kto1k_finetune", 83.2),
            ("ms_in22k", "v1.0.8", "_22k", None),
        ),
    ),
    "swin_base": (
        "swin_base_patch4_window7_224",
        224,
        (
            ("ms_in1k", "v1.0.0", "", 83.5),
            ("ms_in22k_ft_in1k", "v1.0.0", "_22kto1k", 85.2),
            ("ms_in22k", "v1.0.0", "_22k", None),
        ),
    ),
    "swin_base_384": (
        "swin_base_patch4_window12_384",
        384,
        (
            ("ms_in1k", "v1.0.0", "", 84.5),
            ("ms_in22k_ft_in1k", "v1.0.0", "_22kto1k", 86.4),
            ("ms_in22k", "v1.0.0", "_22k", None),
        ),
    ),
    "swin_large": (
        "swin_large_patch4_window7_224",
        224,
        (("ms_in22k_ft_in1k", "v1.0.0", "_22kto1k", 86.3), ("ms_in22k", "v1.0.0", "_22k", None)),
    ),
    "swin_large_384": (
        "swin_large_patch4_window12_384",
        384,
        (("ms_in22k_ft_in1k", "v1.0.0", "_22kto1k", 87.3), ("ms_in22k", "v1.0.0", "_22k", None)),
    ),
}

# variant -> (tag, file, metrics): state_dict of mmsegmentation or mmdetection, our part under `backbone.`
_DENSE: dict[str, tuple[tuple[str, str, tuple[float, float]], ...]] = {
    "swin_tiny": (
        ("ade20k_upernet", "v1.0.1/upernet_swin_tiny_patch4_window7_512x512.pth", (44.51, 45.81)),
        ("coco_mask_rcnn_1x", "v1.0.3/mask_rcnn_swin_tiny_patch4_window7_1x.pth", (43.7, 39.8)),
        ("coco_mask_rcnn_3x", "v1.0.2/mask_rcnn_swin_tiny_patch4_window7.pth", (46.0, 41.6)),
        ("coco_cascade_1x", "v1.0.3/cascade_mask_rcnn_swin_tiny_patch4_window7_1x.pth", (48.1, 41.7)),
        ("coco_cascade_3x", "v1.0.2/cascade_mask_rcnn_swin_tiny_patch4_window7.pth", (50.4, 43.7)),
    ),
    "swin_small": (
        ("ade20k_upernet", "v1.0.1/upernet_swin_small_patch4_window7_512x512.pth", (47.64, 49.47)),
        ("coco_mask_rcnn_3x", "v1.0.2/mask_rcnn_swin_small_patch4_window7.pth", (48.5, 43.3)),
        ("coco_cascade_3x", "v1.0.2/cascade_mask_rcnn_swin_small_patch4_window7.pth", (51.9, 45.0)),
    ),
    "swin_base": (
        ("ade20k_upernet", "v1.0.1/upernet_swin_base_patch4_window7_512x512.pth", (48.13, 49.72)),
        ("coco_cascade_3x", "v1.0.2/cascade_mask_rcnn_swin_base_patch4_window7.pth", (51.9, 45.0)),
    ),
}

# (variant, tag) -> repository at microsoft/
_TRANSFORMERS = {
    ("swin_tiny", "ms_in1k"): "swin-tiny-patch4-window7-224",
    ("swin_small", "ms_in1k"): "swin-small-patch4-window7-224",
    ("swin_base", "ms_in1k"): "swin-base-patch4-window7-224",
    ("swin_base", "ms_in22k"): "swin-base-patch4-window7-224-in22k",
    ("swin_base_384", "ms_in1k"): "swin-base-patch4-window12-384",
    ("swin_base_384", "ms_in22k"): "swin-base-patch4-window12-384-in22k",
    ("swin_large", "ms_in22k_ft_in1k"): "swin-large-patch4-window7-224",
    ("swin_large", "ms_in22k"): "swin-large-patch4-window7-224-in22k",
    ("swin_large_384", "ms_in22k_ft_in1k"): "swin-large-patch4-window12-384",
    ("swin_large_384", "ms_in22k"): "swin-large-patch4-window12-384-in22k",
}


def _classifiers(variant: str) -> tuple[Weights, ...]:
    """The authors' files of a variant, then timm's copies, then transformers'."""
    stem, size, files = _CLASSIFIERS[variant]
    crop: dict[str, Any] = _DIRECT if size == 384 else {}
    own = [
        Weights(
            tag,
            f"{_RELEASES}/{release}/{stem}{suffix}.pth",
            "mit",
            21841 if suffix == "_22k" else 1000,
            (3, size, size),
            metrics={} if top1 is None else {"top1": top1},
            wrapper="model",
            **crop,
        )
        for tag, release, suffix, top1 in files
    ]
    timm = [
        copy_of(w, "timm", f"timm/{stem}.{w.tag}", crop_pct=1.0 if size == 384 else 0.9, crop_mode="center")
        for w in own
    ]
    hf = [
        copy_of(
            w,
            "transformers",
            f"microsoft/{_TRANSFORMERS[variant, w.tag]}",
            license="apache-2.0",
            crop_pct=1.0,
            crop_mode="squash",
            metrics={} if "base" in variant else w.metrics,
        )
        for w in own
        if (variant, w.tag) in _TRANSFORMERS
    ]
    return (*own, *timm, *hf)


def _dense(tag: str, file: str, metrics: tuple[float, float]) -> Weights:
    """A detector's or segmenter's file, of which the backbone is ours."""
    size, names = (
        ((512, 512), ("miou", "miou_multiscale")) if tag.startswith("ade") else ((800, 1333), ("box_ap", "mask_ap"))
    )
    return Weights(
        tag,
        f"{_RELEASES}/{file}",
        "apache-2.0",
        0,
        (3, *size),
        metrics=dict(zip(names, metrics, strict=True)),
        wrapper="state_dict",
        prefix="backbone.",
        form="dense",
        crop_pct=1.0,
    )


WEIGHTS: dict[str, tuple[Weights, ...]] = {
    variant: _classifiers(variant) + tuple(_dense(*row) for row in _DENSE.get(variant, ())) for variant in _CLASSIFIERS
}
WEIGHTS |= {f"{variant}_22k": with_classes(rows, 21841) for variant, rows in WEIGHTS.items()}
WEIGHTS["swin_tiny_c24_256"] = (
    Weights(
        "ms_in1k",
        f"{_RELEASES}/v1.0.5/swin_tiny_c24_patch4_window8_256.pth",
        "mit",
        input_size=(3, 256, 256),
        metrics={"top1": 81.6},
        wrapper="model",
    ),
)
