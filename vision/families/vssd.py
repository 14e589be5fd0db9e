"""VSSD, https://arxiv.org/abs/2407.18559: non-causal state space duality in three stages, softmax attention in the
fourth.

The drop path of micro is its file's (0.1); the code as released trained it with 0.2.
"""

from ..backbone import Stage
from ..block import Mixer
from ..blocks.encoded import Encoded
from ..mixers.attention import Global
from ..mixers.duality import Duality
from ..network import Dense, Network, Rules
from ..norm import Norm
from ..stems.vssd import Bottleneck, VssdStem
from .names import mlp_and_norms
from .vssd_weights import WEIGHTS as WEIGHTS


def vssd(dim: int, depths: tuple[int, ...], heads: tuple[int, ...], drop_path: float, states: int = 64) -> Network:
    mixers: list[Mixer] = [Duality(h, states) for h in heads[:3]]
    mixers.append(Global(heads[3], bias=False))
    rows = enumerate(zip(mixers, depths, strict=True))
    stages = tuple(Stage(m, dim * 2**i, n, block=Encoded()) for i, (m, n) in rows)
    return Network("vssd", stages, VssdStem(), Bottleneck(), dense=Dense(Norm()), drop_path=drop_path)


VARIANTS = {
    "vssd_micro": vssd(48, (2, 2, 8, 4), (2, 4, 8, 16), 0.1, 48),
    "vssd_tiny": vssd(64, (2, 4, 8, 4), (2, 4, 8, 16), 0.2),
    "vssd_small": vssd(64, (3, 4, 21, 5), (2, 4, 8, 16), 0.4),
    "vssd_base": vssd(96, (3, 4, 21, 5), (3, 6, 12, 24), 0.6),
}

BLOCK, OURS = r"layers\.(\d+)\.blocks\.(\d+)\.", r"backbone.stages.\1.blocks.\2."
NORMS = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
STEM = "backbone.stem."


def step(i: int) -> tuple[tuple[str, str], ...]:
    """The step behind stage i, which is the next stage's here."""
    theirs, ours = rf"layers\.{i}\.downsample\.conv\.", f"backbone.stages.{i + 1}.down."
    return (
        (theirs + r"0\.conv\.(weight|bias)", ours + r"widen.\1"),
        (theirs + r"1\.conv\.(weight|bias)", ours + r"conv.\1"),
        (theirs + r"2\.conv\.(weight|bias)", ours + r"narrow.linear.\1"),
        (theirs + r"2\.norm\." + NORMS, ours + r"narrow.norm.\1"),
    )


RULES = {
    "published": Rules(
        (
            (BLOCK + r"cpe([12])\.(?:proj\.)?(weight|bias)", OURS + r"encode\3.conv.\4"),
            *mlp_and_norms(BLOCK, OURS),
            (BLOCK + r"attn\.(in_proj|out_proj|norm)\.(weight|bias)", OURS + r"mixer.\3.\4"),
            (BLOCK + r"attn\.conv2d\.(weight|bias)", OURS + r"mixer.conv.\3"),
            (BLOCK + r"attn\.(dt_bias|A_log|D)", OURS + r"mixer.\3"),
            (BLOCK + r"attn\.to_qkv\.weight", OURS + "mixer.qkv.weight"),
            (BLOCK + r"attn\.to_out(?:\.0)?\.(weight|bias)", OURS + r"mixer.proj.\3"),
            *(rule for i in range(3) for rule in step(i)),
            (r"patch_embed\.(conv1|conv2\.[01]|conv3\.0)\.conv\.weight", STEM + r"\1.conv.weight"),
            (r"patch_embed\.(conv1|conv2\.[01]|conv3\.0)\.norm\." + NORMS, STEM + r"\1.norm.\2"),
            (r"patch_embed\.conv3\.1\.conv\.weight", STEM + "conv3.1.linear.weight"),
            (r"patch_embed\.conv3\.1\.norm\." + NORMS, STEM + r"conv3.1.norm.\1"),
            (r"norm\.(weight|bias)", r"norm.\1"),
            (r"head\.(weight|bias)", r"head.\1"),
        ),
        pyramid=(r"norm\..*", r"head\..*"),
        flatten=(r"layers\.\d\.downsample\.conv\.[02]\.conv\.weight", r"patch_embed\.conv3\.1\.conv\.weight"),
        dense=((r"outnorm(\d)\.(weight|bias)", r"norms.\1.\2"),),
    )
}
