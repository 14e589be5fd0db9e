"""What is published for ViT-ResNAS (arXiv 2109.00642): one Dropbox folder, for non-commercial use.

An address here is the folder and, behind the #, the network: a plain GET cannot fetch its file
(best_ema_checkpoint.pth.tar), it is put by hand where `patchloom weights get` says. Top-1 on ImageNet-1K.
"""

from ..published import Weights

_FOLDER = "https://www.dropbox.com/sh/x3momdvo7dkyv4o/AAB5orUSm7aWk6wQM_QFcKDsa?dl=0"


def _file(name: str, top1: float, size: int = 224) -> tuple[Weights, ...]:
    return (
        Weights(
            "in1k", f"{_FOLDER}#{name}.pth.tar", "cc-by-nc-4.0", input_size=(3, size, size), metrics={"top1": top1},
            wrapper="model_ema",
        ),
    )  # fmt: skip


WEIGHTS: dict[str, tuple[Weights, ...]] = {
    "vit_resnas_tiny": _file("vit_resnas_tiny", 80.8),
    "vit_resnas_small": _file("vit_resnas_small", 81.7),
    "vit_resnas_medium": _file("vit_resnas_medium", 82.4),
    "vit_resnas_medium_280": _file("vit_resnas_medium_280", 83.1, 280),
    "vit_resnas_medium_336": _file("vit_resnas_medium_336", 83.5, 336),
    "vit_resnas_medium_392": _file("vit_resnas_medium_392", 83.8, 392),
}
