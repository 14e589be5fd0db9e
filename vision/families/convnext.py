"""ConvNeXt, https://arxiv.org/abs/2201.03545: the variants, and the names in their checkpoints."""

from torch import nn

from ..backbone import Stage
from ..block import Inverted
from ..mixers.convolution import Depthwise
from ..model import Classifier, Head
from ..network import Dense, Network, Rules
from ..norm import Norm
from ..pyramid import Pyramid
from ..stem import Patchify, Strided
from .convnext_weights import WEIGHTS as WEIGHTS

NORM = Norm(eps=1e-6)
HEAD = Head(NORM, late=True)


def initialise(model: Classifier | Pyramid) -> None:
    """Normal weights of deviation 0.02 in convolutions too, biases zero."""
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.normal_(m.weight, std=0.02)
            if m.bias is not None:
                nn.init.zeros_(m.bias)


def convnext(
    depths: tuple[int, ...], dims: tuple[int, ...], drop_path: float, classes: int = 1000, size: int = 224
) -> Network:
    stages = tuple(
        Stage(Depthwise(7), d, n, scale=1e-6, block=Inverted(NORM)) for d, n in zip(dims, depths, strict=True)
    )
    stem, down = Patchify(4, NORM, pad=False), Strided(2, 2, 0, NORM)
    return Network("convnext", stages, stem, down, HEAD, Dense(NORM), (size, size), classes, drop_path, initialise)


def isotropic(depth: int, dim: int, drop_path: float, scale: float | None = None) -> Network:
    """One resolution, 16x16 patches. The large one was trained with a layer scale, the others without."""
    stage = Stage(Depthwise(7), dim, depth, scale=scale, block=Inverted(NORM))
    return Network(
        "convnext", (stage,), Patchify(16, None, pad=False), head=HEAD, drop_path=drop_path, initialise=initialise
    )


DEEP = (3, 3, 27, 3)
SIZES = {
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768), 0.1),
    "small": (DEEP, (96, 192, 384, 768), 0.4),
    "base": (DEEP, (128, 256, 512, 1024), 0.5),
    "large": (DEEP, (192, 384, 768, 1536), 0.5),
    "xlarge": (DEEP, (256, 512, 1024, 2048), 0.4),
}
VARIANTS = {
    **{f"convnext_{n}": convnext(*a) for n, a in SIZES.items()},
    **{f"convnext_{n}_384": convnext(*a, size=384) for n, a in SIZES.items()},
    **{f"convnext_{n}_22k": convnext(a[0], a[1], 0.2 if n == "xlarge" else 0.1, 21841) for n, a in SIZES.items()},
    "convnext_isotropic_small": isotropic(18, 384, 0.1),
    "convnext_isotropic_base": isotropic(18, 768, 0.2),
    "convnext_isotropic_large": isotropic(36, 1024, 0.5, scale=1e-6),
}

OURS = r"backbone.stages.\1.blocks.\2."


def block(theirs: str, dwconv: str, fc1: str, fc2: str, ours: str, at: int) -> tuple[tuple[str, str], ...]:
    """The rules of a block whose names begin with `theirs`; group `at` holds weight or bias."""
    return (
        (theirs + r"gamma", ours + "add.gamma"),
        (theirs + dwconv + r"\.(weight|bias)", ours + rf"mixer.conv.\{at}"),
        (theirs + r"norm\.(weight|bias)", ours + rf"norm.\{at}"),
        (theirs + fc1 + r"\.(weight|bias)", ours + rf"ffn.fc1.\{at}"),
        (theirs + fc2 + r"\.(weight|bias)", ours + rf"ffn.fc2.\{at}"),
    )


GAMMAS = (r"backbone\.stages\.\d+\.blocks\.\d+\.add\.gamma",)  # no layer scale: no gamma in the file
NAMES = ("dwconv", "pwconv1", "pwconv2")
RULES = {
    "published": Rules(
        (
            *block(r"stages\.(\d+)\.(\d+)\.", *NAMES, OURS, 3),
            *block(r"blocks\.(\d+)\.", *NAMES, r"backbone.stages.0.blocks.\1.", 2),
            (r"downsample_layers\.0\.0\.(weight|bias)", r"backbone.stem.convolution.conv.\1"),
            (r"downsample_layers\.0\.1\.(weight|bias)", r"backbone.stem.convolution.norm.\1"),
            (r"stem\.(weight|bias)", r"backbone.stem.convolution.conv.\1"),
            (r"downsample_layers\.(\d)\.0\.(weight|bias)", r"backbone.stages.\1.down.convolution.before.\2"),
            (r"downsample_layers\.(\d)\.1\.(weight|bias)", r"backbone.stages.\1.down.convolution.conv.\2"),
            (r"norm\.(weight|bias)", r"late_norm.\1"),
            (r"head\.(weight|bias)", r"head.\1"),
        ),
        pyramid=(r"norm\..*", r"head\..*"),
        ones=GAMMAS,
        dense=((r"norm([0-3])\.(weight|bias)", r"norms.\1.\2"),),
    ),
    "timm": Rules(
        (
            *block(r"stages\.(\d+)\.blocks\.(\d+)\.", "conv_dw", r"mlp\.fc1", r"mlp\.fc2", OURS, 3),
            (r"stem\.0\.(weight|bias)", r"backbone.stem.convolution.conv.\1"),
            (r"stem\.1\.(weight|bias)", r"backbone.stem.convolution.norm.\1"),
            (r"stages\.(\d+)\.downsample\.0\.(weight|bias)", r"backbone.stages.\1.down.convolution.before.\2"),
            (r"stages\.(\d+)\.downsample\.1\.(weight|bias)", r"backbone.stages.\1.down.convolution.conv.\2"),
            (r"head\.norm\.(weight|bias)", r"late_norm.\1"),
            (r"head\.fc\.(weight|bias)", r"head.\1"),
        ),
        pyramid=(r"head\..*",),
        ones=GAMMAS,
    ),
}
