"""What is published for SLAB (arXiv 2405.11582): the authors' files, one a variant; the repository has no licence."""

from ..published import Weights

_RELEASE = "https://github.com/xinghaochen/SLAB/releases/download/ckpts"
_TOP1 = {
    "deit_tiny_prepbn": 73.6,
    "deit_small_prepbn": 80.2,
    "slab_deit_tiny": 74.3,
    "slab_deit_small": 80.0,
    "swin_tiny_prepbn": 81.4,
    "slab_swin_tiny": 81.8,
    "slab_swin_small": 83.6,
    "slab_pvt_tiny": 76.5,
}
WEIGHTS = {
    name: (Weights("slab_in1k", f"{_RELEASE}/{name}.pth", "none", metrics={"top1": top1}, wrapper="model"),)
    for name, top1 in _TOP1.items()
}
