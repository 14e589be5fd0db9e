"""PlainMamba, https://arxiv.org/abs/2403.17695: a plain map of patches at constant width, scanned along snakes.

The counts of parameters in the paper (7.3, 25.7, 50.5 M) leave the head out.
"""

from ..backbone import Stage
from ..block import EachBlock
from ..blocks.mixer_only import MixerOnly
from ..mixers.continuous_scan import Continuous
from ..model import Head
from ..network import Network, Rules
from ..norm import Norm
from ..position import Position
from ..stems.plainmamba import Plain
from .plainmamba_weights import WEIGHTS as WEIGHTS


def plainmamba(dim: int, depth: int, count: int, drop_path: float, local: int | None = None) -> Network:
    """`local`: the block whose sum goes through a depthwise convolution."""
    blocks = EachBlock(tuple(MixerOnly(local=i == local) for i in range(depth)))
    stage = Stage(Continuous(), dim, depth, block=MixerOnly() if local is None else blocks)
    stem = Plain(Position((14, 14), antialias=False), count)
    return Network("plainmamba", (stage,), stem, head=Head(Norm(eps=1e-6)), drop_path=drop_path)


VARIANTS = {
    "plainmamba_l1": plainmamba(192, 24, 1, 0.2, local=0),
    "plainmamba_l2": plainmamba(384, 24, 2, 0.2),
    "plainmamba_l3": plainmamba(448, 36, 2, 0.4),
}

BLOCK, OURS, STEM = r"(?:backbone\.)?layers\.(\d+)\.", r"backbone.stages.0.blocks.\1.", "backbone.stem."
BATCH = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
CONVS = tuple(
    rule for i in range(2) for rule in (
        (rf"backbone\.patch_embed\.convs\.{3 * i}\.weight", f"{STEM}convs.{i}.conv.weight"),
        (rf"backbone\.patch_embed\.convs\.{3 * i + 1}\." + BATCH, rf"{STEM}convs.{i}.norm.\1"),
    )
)  # fmt: skip
RULES = {
    "published": Rules(
        (
            (BLOCK + r"norm\.(weight|bias)", OURS + r"norm.\2"),
            (BLOCK + r"dw\.0\.weight", OURS + "last.conv.weight"),
            (BLOCK + r"dw\.1\." + BATCH, OURS + r"last.norm.\2"),
            (BLOCK + r"mamba\.(in_proj|x_proj|dt_proj|out_proj)\.(weight|bias)", OURS + r"mixer.\2.\3"),
            (BLOCK + r"mamba\.conv2d\.(weight|bias)", OURS + r"mixer.conv.\2"),
            (BLOCK + r"mamba\.(A_log|D)", OURS + r"mixer.\2"),
            (BLOCK + r"mamba\.direction_Bs", OURS + "mixer.directions"),
            (r"backbone\.patch_embed\.stem\.0\.weight", STEM + "first.conv.weight"),
            (r"backbone\.patch_embed\.stem\.1\." + BATCH, STEM + r"first.norm.\1"),
            *CONVS,
            (r"backbone\.patch_embed\.projection\.(weight|bias)", STEM + r"projection.\1"),
            (r"backbone\.pos_embed", STEM + "position.table"),
            (r"backbone\.ln1\.(weight|bias)", r"norm.\1"),
            (r"head\.fc\.(weight|bias)", r"head.\1"),
        ),
        pyramid=(r"backbone\.ln1\..*", r"head\..*"),
    )
}
