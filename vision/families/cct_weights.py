"""What is published for the compact transformers (arXiv 2104.05704): ViT-Lite, CVT and CCT; plain state dicts.

The zipped files are older runs (200 epochs, an earlier recipe). Which position embedding they were trained with is not
said; they stand under the plain names, whose embedding is a parameter and comes from the file.
"""

from typing import Any

from ..published import Weights

_HOST = "https://shi-labs.com/projects/cct/checkpoints"
_ZIPS = "https://github.com/SHI-Labs/Compact-Transformers/files"
_CIFAR: dict[int, dict[str, Any]] = {
    10: {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)},
    100: {"mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761)},
}
_FLOWERS: dict[str, Any] = {"num_classes": 102, "mean": (0.4353, 0.3773, 0.2872), "std": (0.2966, 0.2455, 0.2698)}


def _cifar(classes: int, epochs: int, url: str, top1: float) -> Weights:
    """A model of CIFAR-10 or CIFAR-100 images as they are, 32 x 32."""
    return Weights(
        f"cifar{classes}_{epochs}ep",
        url,
        "apache-2.0",
        classes,
        (3, 32, 32),
        crop_pct=1.0,
        metrics={"top1": top1},
        **_CIFAR[classes],
    )


def _large(tag: str, path: str, top1: float, size: int, **other: Any) -> Weights:
    """A model of ImageNet or Flowers-102."""
    return Weights(
        tag,
        f"{_HOST}/{path}.pth",
        "apache-2.0",
        input_size=(3, size, size),
        crop_pct=0.9,
        metrics={"top1": top1},
        **other,
    )


def _current(stem: str, classes: int, epochs: int, top1: float) -> Weights:
    return _cifar(classes, epochs, f"{_HOST}/pretrained/{stem}_cifar{classes}_{epochs}epochs.pth", top1)


def _older(path: str, top1: float) -> Weights:
    return _cifar(100 if "cifar100" in path else 10, 200, f"{_ZIPS}/{path}.pth.zip", top1)


WEIGHTS: dict[str, tuple[Weights, ...]] = {
    "cct_7_3x1_32": (_current("cct_7_3x1_32", 10, 300, 96.53), _older("6644400/cct7-3x1_cifar10_best", 94.78)),
    "cct_7_3x1_32_c100": (_current("cct_7_3x1_32", 100, 300, 80.92),),
    "cct_7_3x1_32_sine": (
        _current("cct_7_3x1_32_sine", 10, 5000, 98.00),
        _current("cct_7_3x1_32_sine", 10, 1500, 97.48),
    ),
    "cct_7_3x1_32_sine_c100": (
        _current("cct_7_3x1_32_sine", 100, 5000, 82.87),
        _current("cct_7_3x1_32_sine", 100, 1500, 82.72),
    ),
    "cct_7_7x2_224_sine": (_large("flowers102", "pretrained/cct_7_7x2_224_flowers102", 97.19, 224, **_FLOWERS),),
    "cct_14_7x2_224": (_large("in1k", "pretrained/cct_14_7x2_224_imagenet", 80.67, 224),),
    "cct_14_7x2_384": (
        _large("in1k", "finetuned/cct_14_7x2_384_imagenet", 82.71, 384),
        _large("flowers102", "finetuned/cct_14_7x2_384_flowers102", 99.76, 384, **_FLOWERS),
    ),
    "cct_14_7x2_384_fl": (_large("flowers102", "finetuned/cct_14_7x2_384_flowers102", 99.76, 384, **_FLOWERS),),
    "vit_lite_7_4_32": (_older("6666087/vitlite7-4_cifar10", 91.38),),
    "vit_lite_7_4_32_c100": (_older("6666088/vitlite7-4_cifar100", 69.75),),
    "cvt_7_4_32": (_older("6666077/cvt7-4_cifar10", 92.43),),
    "cvt_7_4_32_c100": (_older("6666078/cvt7-4_cifar100", 73.01),),
    "cct_2_3x2_32": (_older("6666059/cct2-3x2_cifar10", 89.17),),
    "cct_4_3x2_32": (_older("6666061/cct4-3x2_cifar10", 91.45),),
    "cct_6_3x2_32": (_older("6658604/cct6-3x2_cifar10_best", 93.56),),
    "cct_7_3x2_32": (_older("6657152/cct7-3x2_cifar10_best", 93.83),),
    "cct_6_3x1_32": (_older("6657185/cct6-3x1_cifar10_best", 94.81),),
}
