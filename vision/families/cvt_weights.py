"""What is published for CvT (arXiv 2103.15808): plain state dicts in a folder of OneDrive's, to be taken from its page
by hand.

Copies of them lie on the Hugging Face hub (microsoft/cvt-13 and its kin) under transformers' names, which
`checkpoint_path` reads. They are not listed here: the metric that stands there belongs to transformers' network, whose
MLP has the exact GELU where the authors' has x sigmoid(1.702 x). Loaded here they give what the authors' code gives.
"""

from ..published import Weights

_PAGE = "https://1drv.ms/u/s!AhIXJn_J-blW9RzF3rMW7SsLHa8h?e=blQ0Al"


def _weights(file: str, top1: float) -> Weights:
    """224: the middle of an image resized to 256; 384: the whole image resized to that square."""
    size = 384 if "384x384" in file else 224
    return Weights(
        "ms_in22k_ft_in1k" if file.endswith("22k") else "ms_in1k",
        f"{_PAGE}#{file}.pth",
        "mit",
        input_size=(3, size, size),
        crop_pct=1.0 if size == 384 else 0.875,
        crop_mode="squash" if size == 384 else "center",
        metrics={"top1": top1},
    )


WEIGHTS: dict[str, tuple[Weights, ...]] = {
    "cvt_13": (_weights("CvT-13-224x224-IN-1k", 81.6),),
    "cvt_13_384": (_weights("CvT-13-384x384-IN-1k", 83.0), _weights("CvT-13-384x384-IN-22k", 83.3)),
    "cvt_21": (_weights("CvT-21-224x224-IN-1k", 82.5),),
    "cvt_21_384": (_weights("CvT-21-384x384-IN-1k", 83.3), _weights("CvT-21-384x384-IN-22k", 84.9)),
    "cvt_w24_384": (_weights("CvT-w24-384x384-IN-22k", 87.6),),
}
