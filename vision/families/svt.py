"""SVT (its hierarchical form), https://arxiv.org/abs/2311.01310: wavelets mix the tokens of the first stage, attention
those of the others. Trained with token labels (https://arxiv.org/abs/2104.10858): a second head looks at the patches,
and its largest logit of each class counts half in evaluation. `svt_*_no_token_label` are the same without that head. No
weights were published."""

from dataclasses import replace

from torch import Tensor, nn

from ..backbone import Stage
from ..block import Mixer
from ..blocks.conv_mlp import ConvPreNorm
from ..heads.class_block import ClassToken
from ..mixers.attention import Global
from ..mixers.scattering import Scatter
from ..model import Head
from ..network import Network, Rules
from ..norm import Norm
from ..published import Weights
from ..stem import Strided
from ..stems.convolutions import ConvLayers, Layer
from .favit import initialise

WEIGHTS: dict[str, tuple[Weights, ...]] = {}
NORM = Norm(eps=1e-6)


def svt(stem: int, dims: tuple[int, ...], heads: tuple[int, ...], depths: tuple[int, ...], drop_path: float) -> Network:
    """The norms behind the first three stages stand before the convolutions that follow."""
    mixers: tuple[Mixer, ...] = (Scatter((56, 56)), *(Global(h) for h in heads[1:]))
    rows = zip(mixers, dims, depths, (8, 8, 4, 4), strict=True)
    stages = tuple(Stage(m, d, n, r, block=ConvPreNorm(NORM)) for m, d, n, r in rows)
    inner = Layer(stem, act="relu", bias=False)
    layers = (replace(inner, kernel=7, stride=2), inner, inner, Layer(stride=2, norm=Norm()))
    head = Head(NORM, "token", neck=ClassToken(), patches=0.5)
    return Network("svt", stages, ConvLayers(layers), Strided(3, 2, 1, NORM, Norm()), head, drop_path=drop_path,
                   initialise=initialise)  # fmt: skip


TRAINED = {
    "svt_s": svt(32, (64, 128, 320, 448), (2, 4, 10, 14), (3, 4, 6, 3), 0.1),
    "svt_b": svt(64, (64, 128, 320, 512), (2, 4, 10, 16), (3, 4, 12, 3), 0.1),
    "svt_l": svt(64, (96, 192, 384, 512), (3, 6, 12, 16), (3, 6, 18, 3), 0.3),
}
VARIANTS = {
    **TRAINED,
    **{
        f"{name}_no_token_label": replace(n, head=replace(n.head, patches=None), listed=False)
        for name, n in TRAINED.items()
    },
}

STATE = r"(weight|bias|running_mean|running_var|num_batches_tracked)"


def gate(value: Tensor, host: nn.Module) -> Tensor:
    """Channels last."""
    return value.permute(1, 2, 0)


def of_stage(i: int) -> tuple[tuple[str, str], ...]:
    block, ours = rf"block{i}\.(\d+)\.", rf"backbone.stages.{i - 1}.blocks.\1."
    end = r"\.(weight|bias)"
    return (
        (block + r"(norm[12])" + end, ours + r"\2.\3"),
        (block + r"mlp\.(fc[12])" + end, ours + r"ffn.\2.\3"),
        (block + r"mlp\.dwconv\.dwconv" + end, ours + r"ffn.conv.\2"),
        (block + r"attn\.complex_weight_ll", ours + r"mixer.gate"),
        (block + r"attn\.complex_weight_lh_([12])", ours + r"mixer.weight\2"),
        (block + r"attn\.complex_weight_lh_b([12])", ours + r"mixer.bias\2"),
        (block + r"attn\.q" + end, ours + r"mixer.qkv.\2[1/2]"),
        (block + r"attn\.kv" + end, ours + r"mixer.qkv.\2[2/2]"),
        (block + r"attn\.proj" + end, ours + r"mixer.proj.\2"),
        (rf"patch_embed{i}\.proj" + end, rf"backbone.stages.{i - 1}.down.convolution.conv.\1"),
        (rf"patch_embed{i}\.norm" + end, rf"backbone.stages.{i - 1}.down.convolution.norm.\1"),
        (rf"norm{i}" + end, rf"backbone.stages.{i}.down.convolution.before.\1"),
    )


RULES = {
    "published": Rules(
        (
            *of_stage(1),
            *of_stage(2),
            *of_stage(3),
            *of_stage(4),
            *((rf"patch_embed1\.conv\.{3 * i}\.weight", f"backbone.stem.layers.{i}.conv.weight") for i in range(3)),
            *((rf"patch_embed1\.conv\.{3 * i + 1}\." + STATE, rf"backbone.stem.layers.{i}.norm.\1") for i in range(3)),
            (r"patch_embed1\.proj\.(weight|bias)", r"backbone.stem.layers.3.conv.\1"),
            (r"patch_embed1\.norm\.(weight|bias)", r"backbone.stem.layers.3.norm.\1"),
            (r"post_network\.0\.(norm[12])\.(weight|bias)", r"neck.\1.\2"),
            (r"post_network\.0\.attn\.(q|kv|proj)\.(weight|bias)", r"neck.mixer.\1.\2"),
            (r"post_network\.0\.mlp\.(fc[12])\.(weight|bias)", r"neck.ffn.\1.\2"),
            (r"norm4\.(weight|bias)", r"norm.\1"),
            (r"head\.(weight|bias)", r"head.\1"),
            (r"aux_head\.(weight|bias)", r"head_patches.\1"),
        ),
        drop=(r"block1\.\d+\.attn\.(xfm\.h|ifm\.g)[01][oab]",),
        pyramid=(r"(post_network\.0|norm4|head|aux_head)\..*",),
        convert=((r".*\.gate", gate),),
    )
}
