"""The published families, one a file: variants, the names in their checkpoints, and where their weights lie.

A family is a module with VARIANTS (name -> Network), RULES (whose names -> Rules) and WEIGHTS (name -> Weights, the
first one being the default).
"""

from types import ModuleType

from . import (
    astroformer,
    cct,
    convnext,
    cvt,
    efficientformer,
    favit,
    fmvit,
    gmm_mask,
    illama,
    metaformer,
    plainmamba,
    pyramid_tnt,
    resformer,
    rmt,
    sam,
    slab,
    sret,
    svt,
    swin,
    t2t,
    tinyvit,
    tnt,
    vim,
    vir,
    vit,
    vit_resnas,
    vmamba,
    vssd,
)

FAMILIES: dict[str, ModuleType] = {
    "vit": vit,
    "swin": swin,
    "metaformer": metaformer,
    "convnext": convnext,
    "cct": cct,
    "cvt": cvt,
    "astroformer": astroformer,
    "fmvit": fmvit,
    "t2t": t2t,
    "sret": sret,
    "illama": illama,
    "resformer": resformer,
    "rmt": rmt,
    "vit_resnas": vit_resnas,
    "favit": favit,
    "sam": sam,
    "slab": slab,
    "tnt": tnt,
    "gmm_mask": gmm_mask,
    "tinyvit": tinyvit,
    "efficientformer": efficientformer,
    "svt": svt,
    "vim": vim,
    "vmamba": vmamba,
    "vssd": vssd,
    "plainmamba": plainmamba,
    "vir": vir,
    "pyramid_tnt": pyramid_tnt,
}
