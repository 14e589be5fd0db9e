"""RMT, https://arxiv.org/abs/2309.11523: retention becomes Manhattan self-attention, in rows and columns where the map
is large. Its weights lie on Baidu drive only, which no plain GET reaches: load a file that you have with
`checkpoint_path`.

The variants with token labels (https://arxiv.org/abs/2104.10858) have a second head for the tokens of the last stage,
whose largest logit counts half in evaluation. The published small one reads the 1024 widened channels there.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..backbone import Stage
from ..blocks.conv_mlp import ConvPreNorm
from ..mixers.manhattan import Manhattan, ManhattanAttention, angles, decays
from ..model import Classifier, Head
from ..network import Dense, Network, Rules
from ..norm import Norm
from ..published import Weights
from ..pyramid import Pyramid
from ..stem import Strided
from ..stems.convolutions import ConvLayers, Layer

WEIGHTS: dict[str, tuple[Weights, ...]] = {}
BLOCK = ConvPreNorm(Norm(eps=1e-6), residual=True, position=True)


def rmt(dims: tuple[int, ...], depths: tuple[int, ...], heads: tuple[int, ...], spans: tuple[int, ...],
        ratios: tuple[int, ...], decomposed: int, drop_path: float, scale: float | None = None) -> Network:  # fmt: skip
    """`decomposed`: so many stages attend by rows and columns; `scale`: LayerScale of stages 3 and 4."""
    rows = enumerate(zip(dims, depths, heads, spans, ratios, strict=True))
    stages = tuple(
        Stage(Manhattan(n, g, decomposed=i < decomposed), d, depth, r, None if i < 2 else scale, BLOCK)
        for i, (d, depth, n, g, r) in rows
    )
    half, full = Layer(dims[0] // 2, act="gelu"), Layer()
    stem = ConvLayers((replace(half, stride=2), half, replace(full, stride=2, act="gelu"), full))
    return Network("rmt", stages, stem, Strided(3, 2, 1, after=Norm("batch")), Head(None, widen=1024), Dense(Norm()),
                   drop_path=drop_path)  # fmt: skip


def labelled(network: Network, wide: bool = False, drop_path: float | None = None) -> Network:
    head = replace(network.head, patches=0.5, wide_patches=wide)
    return replace(network, head=head, drop_path=network.drop_path if drop_path is None else drop_path)


WIDTHS, HEADS = (64, 128, 256, 512), (4, 4, 8, 16)
TINY = rmt(WIDTHS, (2, 2, 8, 2), HEADS, (4, 4, 6, 6), (3, 3, 3, 3), 2, 0.1)
SMALL = rmt(WIDTHS, (3, 4, 18, 4), HEADS, (4, 4, 6, 6), (4, 4, 3, 3), 3, 0.15)
BASE = rmt((80, 160, 320, 512), (4, 8, 25, 8), (5, 5, 10, 16), (5, 5, 6, 6), (4, 4, 3, 3), 3, 0.4, 1e-6)
LARGE = rmt((112, 224, 448, 640), (4, 8, 25, 8), (7, 7, 14, 20), (6, 6, 6, 6), (4, 4, 3, 3), 3, 0.5, 1e-6)
VARIANTS = {
    "rmt_tiny": TINY,
    "rmt_small": SMALL,
    "rmt_base": BASE,
    "rmt_large": LARGE,
    "rmt_small_token_label": labelled(SMALL, True, 0.1),
    "rmt_base_token_label": labelled(BASE),
    "rmt_large_token_label": labelled(LARGE),
}


def computed(name: str, value: Tensor, model: Classifier | Pyramid) -> Tensor | None:
    """The buffers `Relpos.angle` and `Relpos.decay` of a stage; theirs may be rounded otherwise."""
    mixer = model.backbone.stages[int(name.split(".")[1])].blocks[0].mixer  # type: ignore[union-attr, index]
    assert isinstance(mixer, ManhattanAttention)
    if name.endswith("decay"):
        want = torch.from_numpy(decays(mixer.heads, mixer.start, mixer.span))
    else:
        want = torch.from_numpy(angles(mixer.v.out_features // mixer.heads)).repeat_interleave(2)
    return value if want.shape == value.shape and torch.allclose(want, value.cpu().float(), rtol=1e-4) else want


def flat(value: Tensor, host: nn.Module) -> Tensor:
    return value.reshape(-1)


STATE = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
THEIRS, OURS = r"layers\.(\d)\.blocks\.(\d+)\.", r"backbone.stages.\1.blocks.\2."
RULES = {
    "published": Rules(
        (
            (THEIRS + r"retention\.q_proj\.(weight|bias)", OURS + r"mixer.qk.\3[1/2]"),
            (THEIRS + r"retention\.k_proj\.(weight|bias)", OURS + r"mixer.qk.\3[2/2]"),
            (THEIRS + r"retention\.v_proj\.(weight|bias)", OURS + r"mixer.v.\3"),
            (THEIRS + r"retention\.out_proj\.(weight|bias)", OURS + r"mixer.proj.\3"),
            (THEIRS + r"retention\.lepe\.conv\.(weight|bias)", OURS + r"mixer.local.\3"),
            (THEIRS + r"retention_layer_norm\.(weight|bias)", OURS + r"norm1.\3"),
            (THEIRS + r"final_layer_norm\.(weight|bias)", OURS + r"norm2.\3"),
            (THEIRS + r"ffn\.(fc[12])\.(weight|bias)", OURS + r"ffn.\3.\4"),
            (THEIRS + r"ffn\.dwconv\.conv\.(weight|bias)", OURS + r"ffn.conv.conv.\3"),
            (THEIRS + r"pos\.conv\.(weight|bias)", OURS + r"position.conv.\3"),
            (THEIRS + r"gamma_([12])", OURS + r"add\3.gamma"),
            *(
                (
                    rf"layers\.{i}\.downsample\.{theirs}\." + STATE,
                    rf"backbone.stages.{i + 1}.down.convolution.{ours}.\1",
                )
                for i in range(3)
                for theirs, ours in (("reduction", "conv"), ("norm", "norm"))
            ),
            *(
                (rf"patch_embed\.proj\.{3 * i + j}\." + STATE, rf"backbone.stem.layers.{i}.{part}.\1")
                for i in range(4)
                for j, part in enumerate(("conv", "norm"))
            ),
            (r"proj\.(weight|bias)", r"widen.linear.\1"),
            (r"norm\." + STATE, r"widen.norm.\1"),
            (r"head\.(weight|bias)", r"head.\1"),
            (r"aux_head\.(weight|bias)", r"head_patches.\1"),
        ),
        drop=(r"layers\.\d\.Relpos\.(angle|decay)",),
        pyramid=(r"(proj|norm|head|aux_head)\..*",),
        convert=((r".*\.gamma", flat),),
        dense=((r"extra_norms\.([0-3])\.(weight|bias)", r"norms.\1.\2"),),
        check=computed,
    )
}
