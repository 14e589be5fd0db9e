"""What is published for SReT (arXiv 2111.05297): files on Google Drive, linked from the table of the repository's page.

An address here is that page and, behind the #, the file: a plain GET cannot fetch it, it is put by hand where
`patchloom weights get` says. Top-1 on ImageNet-1K, from the last epoch of training.
"""

from ..published import Weights

_PAGE = "https://github.com/szq0214/SReT"


def _file(name: str, top1: float, size: int = 224) -> tuple[Weights, ...]:
    return (
        Weights(
            "in1k", f"{_PAGE}#{name}.pth", "mit", input_size=(3, size, size), metrics={"top1": top1}, wrapper="model",
        ),
    )  # fmt: skip


WEIGHTS: dict[str, tuple[Weights, ...]] = {
    "sret_t": _file("SReT_T", 76.0),
    "sret_t_wo_slice": _file("SReT_T_wo_slice", 76.1),
    "sret_lt": _file("SReT_LT", 76.7),
    "sret_lt_wo_slice": _file("SReT_LT_wo_slice", 76.8),
    "sret_lt_16_14_1": _file("SReT_LT_16-14-1_1-1-1", 76.6),
    "sret_s": _file("SReT_S", 81.9),
    "sret_s_wo_slice": _file("SReT_S_wo_slice", 82.0),
    "sret_t_distill": _file("SReT_T_distill", 77.6),
    "sret_t_wo_slice_distill": _file("SReT_T_wo_slice_distill", 77.7),
    "sret_lt_distill": _file("SReT_LT_distill", 77.7),
    "sret_lt_wo_slice_distill": _file("SReT_LT_wo_slice_distill", 77.9),
    "sret_t_wo_slice_384": _file("SReT_T_wo_slice_fineture_384", 79.7, 384),
    "sret_s_wo_slice_384": _file("SReT_S_wo_slice_fineture_384", 83.8, 384),
    "sret_s_wo_slice_512": _file("SReT_S_wo_slice_fineture_512", 84.3, 512),
}
