"""What is published for TNT (arXiv 2103.00112): the authors' files, plain state dicts under GitHub's releases, and
timm's copies of them. Inputs have mean and deviation 0.5. TNT-Ti has no weights."""

from ..published import HALF, Weights, copy_of

_HOST = "https://github.com/huawei-noah/Efficient-AI-Backbones/releases/download/tnt"


def _rows(size: str, top1: float, top5: float) -> tuple[Weights, ...]:
    authors = Weights(
        "noah_in1k", f"{_HOST}/tnt_{size}_{top1}.pth.tar", "apache-2.0", mean=HALF, std=HALF, crop_pct=0.9,
        metrics={"top1": top1, "top5": top5},
    )  # fmt: skip
    return authors, copy_of(authors, "timm", f"timm/tnt_{size}_patch16_224.in1k")


WEIGHTS: dict[str, tuple[Weights, ...]] = {
    "tnt_s_patch16_224": _rows("s", 81.5, 95.7),
    "tnt_b_patch16_224": _rows("b", 82.9, 96.3),
}
