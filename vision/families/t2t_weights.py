"""What is published for T2T-ViT (arXiv 2101.11986): files of GitHub's releases, Clear BSD licence.

The weights to use are the averaged ones. The files of other data sets are fine-tuned models whose preprocessing the
authors' facts do not state: what stands here is the whole image at 224 with ImageNet's mean and deviation. None of the
files could be fetched where this was written; their names are those of the records.
"""

from typing import Any

from ..published import Weights

_HOST = "https://github.com/yitu-opensource/T2T-ViT/releases/download/main"


def _imagenet(top1: float, file: str, tag: str = "yitu_in1k", size: int = 224) -> Weights:
    return Weights(
        tag,
        f"{_HOST}/{file}.pth.tar",
        "bsd-3-clause-clear",
        input_size=(3, size, size),
        crop_pct=0.9,
        wrapper="state_dict_ema",
        metrics={"top1": top1},
    )


def _cifar(classes: int, top1: float, file: str) -> Weights:
    more: dict[str, Any] = {"crop_pct": 1.0, "metrics": {"top1": top1}}
    return Weights(f"yitu_in1k_ft_cifar{classes}", f"{_HOST}/{file}.pth", "bsd-3-clause-clear", classes, **more)


WEIGHTS: dict[str, tuple[Weights, ...]] = {
    "t2t_vit_7": (_imagenet(71.7, "71.7_T2T_ViT_7"),),
    "t2t_vit_10": (_imagenet(75.2, "75.2_T2T_ViT_10"),),
    "t2t_vit_12": (_imagenet(76.5, "76.5_T2T_ViT_12"),),
    "t2t_vit_14": (
        _imagenet(81.5, "81.5_T2T_ViT_14"),
        _imagenet(83.3, "83.3_T2T_ViT_14", "yitu_in1k_384", 384),
        _cifar(10, 98.3, "cifar10_t2t-vit_14_98.3"),
        _cifar(100, 88.4, "cirfar100_t2t-vit-14_88.4"),  # the misspelling is theirs
    ),
    "t2t_vit_14_384": (_imagenet(83.3, "83.3_T2T_ViT_14", size=384),),
    "t2t_vit_19": (
        _imagenet(81.9, "81.9_T2T_ViT_19"),
        _cifar(10, 98.4, "cifar10_t2t-vit_19_98.4"),
        _cifar(100, 89.0, "cifar100_t2t-vit-19_89.0"),
    ),
    "t2t_vit_24": (
        _imagenet(82.3, "82.3_T2T_ViT_24"),
        _imagenet(84.2, "84.2_T2T_ViT_24", "yitu_in1k_token_labels"),  # trained with token labelling
    ),
    "t2t_vit_t_14": (_imagenet(81.7, "81.7_T2T_ViTt_14"),),
    "t2t_vit_t_19": (_imagenet(82.4, "82.4_T2T_ViTt_19"),),
    "t2t_vit_t_24": (_imagenet(82.6, "82.6_T2T_ViTt_24"),),
}
