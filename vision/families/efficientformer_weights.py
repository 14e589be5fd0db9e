"""What is published for EfficientFormer (arXiv 2206.01191) and EfficientFormerV2 (arXiv 2212.08059): the authors' files
and timm's copies.

The authors' files lie on Google Drive only, which answers a plain GET with a page: fetch one by hand and load it with
`create_model(name, checkpoint_path=…)`; timm's copies, which hold the same numbers, download by themselves. Their
licence is Snap's own, permissive like MIT's; timm states Apache-2.0 for its copies.
"""

from ..published import Weights, copy_of

# variant -> (tag, file, top-1), the default first: what timm has a copy of
_FILES: dict[str, tuple[tuple[str, str, float], ...]] = {
    "efficientformer_l1": (
        ("snap_dist_in1k", "11SbX-3cfqTOc247xKYubrAjBiUmr818y", 80.2),
        ("snap_dist_in1k_300e", "1wtEmkshLFEYFsX5YhBttBOGYaRvDR7nu", 79.2),
    ),
    "efficientformer_l3": (("snap_dist_in1k", "1OyyjKKxDyMj-BcfInp4GlDdwLu3hc30m", 82.4),),
    "efficientformer_l7": (("snap_dist_in1k", "1cVw-pctJwgvGafeouynqWWCwgkcoFMM5", 83.3),),
    "efficientformerv2_s0": (("snap_dist_in1k", "1PXb7b9pv9ZB4cfkRkYEdwgWuVwvEiazq", 76.2),),
    "efficientformerv2_s1": (("snap_dist_in1k", "1EKe1vt-3mG7iceVIMaET_DyISzVTJMn8", 79.7),),
    "efficientformerv2_s2": (("snap_dist_in1k", "1gjbFyB5T_yAkmzHNuXEljqScYVQZafMQ", 82.0),),
    "efficientformerv2_l": (("snap_dist_in1k", "1sRXNBHl_ewHBMwwYZVsOJo1k6JpcNJn-", 83.5),),
}


def _rows(name: str) -> tuple[Weights, ...]:
    own = tuple(
        Weights(tag, f"https://drive.google.com/file/d/{file}", "other", metrics={"top1": top1}, wrapper="model")
        for tag, file, top1 in _FILES[name]
    )
    copy = copy_of(own[0], "timm", f"timm/{name}.snap_dist_in1k", crop_pct=0.95, license="apache-2.0")
    return (own[0], copy, *own[1:])


WEIGHTS: dict[str, tuple[Weights, ...]] = {name: _rows(name) for name in _FILES}
