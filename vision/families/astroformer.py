"""Astroformer, https://arxiv.org/abs/2304.05350: CoAtNet with three stages of MBConv and one of relative attention.

The variants are made for 224 x 224, the size whose parameters and products the authors state; their default input is
64 x 64 with mean and deviation 0.5: `create_model("astroformer_0_64")`, or `img_size=64`. There are no published
weights. The first block of a stage is its step down here, the first stage's the end of the stem.
"""

import re

from torch import Tensor, nn

from ..backbone import Stage
from ..block import PreNorm
from ..blocks.convolutional import Residual
from ..layers import Linear, Mlp
from ..mixers.mbconv import MBConvs
from ..mixers.relative import Relative
from ..model import Classifier, Head
from ..network import Network, Rules
from ..norm import Norm
from ..published import Weights
from ..pyramid import Pyramid
from ..stems.coatnet import AttentionDown, AttentionStep, CoAtStem, ConvsThenStep, MBConvDown, MBConvStep

WEIGHTS: dict[str, tuple[Weights, ...]] = {}
LAYER, WIDTH = Norm(eps=1e-6), 32  # of a head
SMALL, LARGE, HUGE = (96, 192, 384, 768), (192, 384, 768, 1536), (256, 512, 1280, 2048)


def initialise(model: Classifier | Pyramid) -> None:
    """The convolutional parts by sqrt(2 / fan out), the last stage's linear layers by Xavier with all but zero biases
    in the MLP; and the stochastic depth of the first blocks."""
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.normal_(m.weight, std=(2 * m.groups / (m.out_channels * m.weight[0, 0].numel())) ** 0.5)
    for layer in linears(model.backbone):
        nn.init.normal_(layer.weight, std=(2 / layer.out_features) ** 0.5)
    for layer in linears(model.backbone.stages[-1]):
        nn.init.xavier_uniform_(layer.weight)
    for m in model.backbone.stages[-1].modules():
        if isinstance(m, Mlp):
            nn.init.normal_(m.fc1.bias, std=1e-6)
            nn.init.normal_(m.fc2.bias, std=1e-6)
    thin_first_blocks(model)


def linears(module: nn.Module) -> list[Linear]:
    return [m for m in module.modules() if isinstance(m, Linear)]


def thin_first_blocks(model: Classifier | Pyramid) -> None:
    """Gives every block, the first ones of the stages among them, its share of the rate."""
    depths = [1 + s.depth for s in model.backbone.specs]
    rate, total = model.backbone.drop_path, sum(depths)
    for i, stage in enumerate(model.backbone.stages):
        first = model.backbone.stem if i == 0 else stage.down
        step = first.step if isinstance(first, ConvsThenStep) else first
        drop = rate * sum(depths[:i]) / (total - 1)
        if isinstance(step, MBConvStep):
            step.add.drop = drop
        elif isinstance(step, AttentionStep):
            step.add1.drop = step.add2.drop = drop


def astroformer(width: int, dims: tuple[int, ...], depths: tuple[int, ...]) -> Network:
    total, stages = sum(depths), []
    for i, (dim, n) in enumerate(zip(dims, depths, strict=True)):
        shares = tuple((sum(depths[:i]) + j) / (total - 1) for j in range(1, n))
        if i < 3:
            stages.append(Stage(MBConvs(), dim, n - 1, block=Residual(), drop_path=shares))
        else:
            stages.append(
                Stage(Relative(WIDTH), dim, n - 1, block=PreNorm(LAYER), down=AttentionDown(WIDTH), drop_path=shares)
            )
    head = Head(LAYER, late=True, hidden=1, act="tanh", hidden_norm=False)
    return Network("astroformer", tuple(stages), CoAtStem(width), MBConvDown(), head, initialise=initialise)


VARIANTS = {
    "astroformer_0": astroformer(64, SMALL, (2, 3, 5, 2)),
    "astroformer_1": astroformer(64, SMALL, (2, 6, 14, 2)),
    "astroformer_2": astroformer(128, (128, 256, 512, 1024), (2, 6, 14, 2)),
    "astroformer_3": astroformer(192, LARGE, (2, 6, 14, 2)),
    "astroformer_4": astroformer(192, LARGE, (2, 12, 28, 2)),
    "astroformer_5": astroformer(192, HUGE, (2, 12, 28, 2)),
}


def counted(name: str, model: Classifier | Pyramid) -> str:
    """stages.s.blocks.b -> stages.s.first for the first block, stages.s.blocks.b-1 for the others."""
    m = re.fullmatch(r"stages\.(\d)\.blocks\.(\d+)\.(.*)", name)
    if m is None:
        return name
    return f"stages.{m[1]}.first.{m[3]}" if m[2] == "0" else f"stages.{m[1]}.blocks.{int(m[2]) - 1}.{m[3]}"


def thirds_first(value: Tensor, layer: nn.Module) -> Tensor:
    """Rows that hold q, k and v of each head in turn -> all of q, then k, then v."""
    return value.unflatten(0, (-1, 3, WIDTH)).transpose(0, 1).flatten(0, 2)  # type: ignore[no-untyped-call, no-any-return]


def block(theirs: str, groups: int, ours: str, branch: str) -> tuple[tuple[str, str], ...]:
    """A block's rules. `groups`: how many numbers stand in `theirs`; `branch`: where ours has its MBConv."""
    a, b = rf"\{groups + 1}", rf"\{groups + 2}"
    conv = ours + branch
    return (
        (theirs + r"shortcut\.expand\.(weight|bias)", ours + f"expand.{a}"),
        (theirs + r"pre_norm\.(\w+)", conv + f"norm.{a}"),
        (theirs + r"conv1_1x1\.weight", conv + "fc1.linear.weight"),
        (theirs + r"norm1\.(\w+)", conv + f"fc1.norm.{a}"),
        (theirs + r"conv2_kxk\.weight", conv + "conv.conv.weight"),
        (theirs + r"norm2\.(\w+)", conv + f"conv.norm.{a}"),
        (theirs + r"se\.(fc[12])\.(\w+)", conv + f"se.{a}.{b}"),
        (theirs + r"conv3_1x1\.(\w+)", conv + f"fc2.{a}"),
        (theirs + r"(norm[12])\.(?:norm\.)?(weight|bias)", ours + f"{a}.{b}"),
        (theirs + r"attn\.(qkv|proj)\.(weight|bias)", ours + f"mixer.{a}.{b}"),
        (theirs + r"attn\.rel_pos\.relative_position_bias_table", ours + "mixer.table"),
        (theirs + r"mlp\.(fc[12])\.(weight|bias)", ours + f"ffn.{a}.{b}"),
    )


STEM = "backbone.stem."
RULES = {
    "published": Rules(
        (
            (r"stem\.(conv[12])\.weight", STEM + r"\1.weight"),
            (r"stem\.conv1\.weight", STEM + "conv1.conv.weight"),
            (r"stem\.norm1\.(\w+)", STEM + r"conv1.norm.\1"),
            *block(r"stages\.0\.first\.", 0, STEM + "step.", "branch."),
            *block(r"stages\.(\d)\.first\.", 1, r"backbone.stages.\1.down.", "branch."),
            *block(r"stages\.(\d)\.blocks\.(\d+)\.", 2, r"backbone.stages.\1.blocks.\2.", "mixer.branch."),
            (r"head\.norm\.(weight|bias)", r"late_norm.\1"),
            (r"head\.pre_logits\.fc\.(weight|bias)", r"head.fc1.\1"),
            (r"head\.fc\.(weight|bias)", r"head.fc2.\1"),
        ),
        drop=(r".*\.rel_pos\.relative_position_index",),
        pyramid=(r"head\..*",),
        flatten=(r"stages\..*\.(expand|conv[13]_1x1|fc[12]|qkv|proj)\.weight",),
        convert=((r".*\.mixer\.qkv\.(weight|bias)", thirds_first),),
        number=counted,
    )
}
