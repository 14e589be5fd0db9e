"""FaViT, https://arxiv.org/abs/2312.08614: a PVTv2-shaped pyramid with factorised attention. No weights were published;
a checkpoint that the authors' code makes holds them under the key `model`."""

from torch import nn

from ..backbone import Stage
from ..blocks.conv_mlp import ConvPreNorm
from ..mixers.factorized import Factorized
from ..model import Classifier, Head
from ..network import Network, Rules
from ..norm import Norm
from ..published import Weights
from ..pyramid import Pyramid
from ..stem import ConvStem, Strided

WEIGHTS: dict[str, tuple[Weights, ...]] = {}
HEADS, REDUCTIONS, RATIOS = (1, 2, 4, 8), (8, 4, 2, 1), (8, 6, 4, 4)


def initialise(model: Classifier | Pyramid) -> None:
    """As PVT and its kin begin: convolutions normal with variance 2 / fan-out, biases zero."""
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            fan_out = m.kernel_size[0] * m.kernel_size[1] * m.out_channels // m.groups
            nn.init.normal_(m.weight, std=(2 / fan_out) ** 0.5)
            if m.bias is not None:
                nn.init.zeros_(m.bias)


def favit(dim: int, depths: tuple[int, ...], drop_path: float) -> Network:
    """Every stage ends in a norm; the one before the head is the last of these."""
    norm = Norm(eps=1e-6)
    rows = enumerate(zip(depths, HEADS, REDUCTIONS, RATIOS, strict=True))
    stages = tuple(
        Stage(Factorized(h, s), dim * 2**i, n, r, block=ConvPreNorm(norm), norm=norm) for i, (n, h, s, r) in rows
    )
    return Network("favit", stages, ConvStem(7, 4, 3, Norm()), Strided(3, 2, 1, after=Norm()), Head(None),
                   drop_path=drop_path, initialise=initialise)  # fmt: skip


VARIANTS = {
    "favit_b0": favit(32, (2, 2, 6, 2), 0.1),
    "favit_b1": favit(64, (2, 2, 6, 2), 0.1),
    "favit_b2": favit(64, (2, 3, 18, 3), 0.1),
    "favit_b3": favit(96, (2, 3, 14, 3), 0.3),
}


def of_stage(i: int) -> tuple[tuple[str, str], ...]:
    block, ours = rf"block{i}\.(\d+)\.", rf"backbone.stages.{i - 1}.blocks.\1."
    embed = "backbone.stem" if i == 1 else f"backbone.stages.{i - 1}.down"
    end = r"\.(weight|bias)"
    return (
        (rf"patch_embed{i}\.proj" + end, rf"{embed}.convolution.conv.\1"),
        (rf"patch_embed{i}\.norm" + end, rf"{embed}.convolution.norm.\1"),
        (rf"norm{i}" + end, rf"backbone.stages.{i - 1}.norm.\1"),
        (block + r"(norm[12])" + end, ours + r"\2.\3"),
        (block + r"mlp\.(fc[12])" + end, ours + r"ffn.\2.\3"),
        (block + r"mlp\.dwconv\.dwconv" + end, ours + r"ffn.conv.\2"),
        (block + r"attn\.(q|proj)" + end, ours + r"mixer.\2.\3"),
        (block + r"attn\.kv_l\.(depth|point)_conv" + end, ours + r"mixer.\2.\3"),
        (block + r"attn\.sr" + end, ours + r"mixer.broad.reduce.\2"),
        (block + r"attn\.norm" + end, ours + r"mixer.broad.norm.\2"),
        (block + r"attn\.kv_g" + end, ours + r"mixer.broad.kv.\2"),
        (block + r"attn\.local_conv_g" + end, ours + r"mixer.broad.local.conv.\2"),
        (block + r"attn\.fcs\.(\d)" + end, ours + r"mixer.near.\2.fc.\3"),
        (block + r"attn\.single_heads\.(\d)" + end, ours + r"mixer.near.\2.kv.\3"),
        (block + r"attn\.local_convs\.(\d)" + end, ours + r"mixer.near.\2.local.conv.\3"),
    )


RULES = {
    "published": Rules(
        (*of_stage(1), *of_stage(2), *of_stage(3), *of_stage(4), (r"head\.(weight|bias)", r"head.\1")),
        pyramid=(r"head\..*",),
        flatten=(r"block\d\.\d+\.attn\.kv_l\.point_conv\.weight",),
    )
}
