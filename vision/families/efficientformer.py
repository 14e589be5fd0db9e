"""EfficientFormer, https://arxiv.org/abs/2206.01191, and EfficientFormerV2, https://arxiv.org/abs/2212.08059: two
families of convolutional networks that end in attention, with a second head for distillation."""

import re
from dataclasses import replace

from torch import Tensor, nn

from ..backbone import Stage
from ..block import EachBlock, Mixer, PreNorm
from ..blocks.convolutional import Convolutional, Residual
from ..conv import LinearNorm
from ..mixers.distance import Distance, DistanceAttention, by_part
from ..mixers.each import Each
from ..mixers.inverted import Inverted
from ..mixers.pool import Pool
from ..mixers.talking import AttentionDown, AttentionStep, Talking, TalkingHeads
from ..model import Classifier, Head
from ..network import Dense, Network, Rules
from ..norm import Norm
from ..pyramid import Pyramid
from ..stems.convolutional import ConvNormDown, TwoConvStem
from .efficientformer_weights import WEIGHTS as WEIGHTS

Four = tuple[int, int, int, int]
HEADS, PARTS = 8, (32, 32, 128)  # of the attention, whatever the width: heads; channels of q, k and v in each


def first(depths: Four, dims: Four, attentions: int) -> Network:
    """Pooling on maps, and `attentions` blocks of attention at the end of the last stage."""
    pools = depths[3] - attentions

    def stages(attention: Mixer) -> tuple[Stage, ...]:
        block = EachBlock((Convolutional(),) * pools + (PreNorm(),) * attentions)
        last = Each((Pool(3),) * pools + (attention,) * attentions)
        maps = (Stage(Pool(3), d, n, scale=1e-5, block=Convolutional()) for d, n in zip(dims[:3], depths, strict=False))
        return *maps, Stage(last, dims[3], depths[3], scale=1e-5, block=block)

    dense = Dense(Norm("group"), stages(Distance((25, 25), resize="spread")))
    return Network("efficientformer", stages(Distance((7, 7))), TwoConvStem("relu", "relu", bias=True), ConvNormDown(),
                   Head(Norm(), two=True), dense)  # fmt: skip


Ratios = tuple[tuple[int, ...], ...]


def second(dims: Four, attentions: int, ratios: Ratios, drop_path: float = 0.0) -> Network:
    """Inverted bottlenecks, with attention before the last `attentions` of stages 3 and 4."""

    def mixed(i: int, attention: Talking) -> Stage:
        each, plain = ratios[i], len(ratios[i]) - attentions
        mixer = Each((*(Inverted(r, bias=True) for r in each[:plain]), *(attention,) * attentions))
        block = EachBlock((Residual(),) * plain + (Convolutional(middle=True),) * attentions)
        return Stage(mixer, dims[i], len(each), each, 1e-5, block, AttentionStep((7, 7)) if i == 3 else None)

    stages = (
        *(Stage(Inverted(4, bias=True), dims[i], len(ratios[i]), 4, 1e-5, Residual()) for i in (0, 1)),
        mixed(2, Talking((14, 14), stride=2)),
        mixed(3, Talking((7, 7))),
    )
    return Network("efficientformer", stages, TwoConvStem("gelu", "gelu", bias=True), ConvNormDown(),
                   Head(Norm("batch"), two=True), drop_path=drop_path, initialise=initialise_second)  # fmt: skip


def initialise_second(model: Classifier | Pyramid) -> None:
    """1x1 convolutions of the attention begin as torch's convolutions do; those of MLPs as linear layers here."""
    for host in model.modules():
        if isinstance(host, TalkingHeads | AttentionDown):
            for m in host.children():
                if isinstance(m, LinearNorm):
                    nn.Linear.reset_parameters(m.linear)


def four(n: int) -> tuple[int, ...]:
    return (4,) * n


VARIANTS = {
    "efficientformer_l1": first((3, 2, 6, 4), (48, 96, 224, 448), 1),
    "efficientformer_l3": first((4, 4, 12, 6), (64, 128, 320, 512), 4),
    "efficientformer_l7": first((6, 6, 18, 8), (96, 192, 384, 768), 8),
    "efficientformerv2_s0": second((32, 48, 96, 176), 2, (four(2), four(2), (4, 3, 3, 3, 4, 4), (4, 3, 3, 4))),
    "efficientformerv2_s1": second(
        (32, 48, 120, 224), 2, (four(3), four(3), (4, 4, 3, 3, 3, 3, 4, 4, 4), (4, 4, 3, 3, 4, 4))
    ),
    "efficientformerv2_s2": second(
        (32, 64, 144, 288), 4, (four(4), four(4), (4, 4, *(3,) * 6, *four(4)), (4, 4, *(3,) * 4, 4, 4)), 0.02
    ),
    "efficientformerv2_l": second(
        (40, 80, 192, 384), 6, (four(5), four(5), (*four(4), *(3,) * 7, *four(4)), (*four(3), *(3,) * 4, *four(3))), 0.1
    ),
}

# ------------------------------------------------------------------------------------------------------------- names

Renames = tuple[tuple[str, str], ...]
PARAM, STATE = "(?P<leaf>weight|bias)", "(?P<leaf>weight|bias|running_mean|running_var)"
LEAF, COUNT, OURS = r"\g<leaf>", "num_batches_tracked", r"backbone.stages.{}.blocks.\g<block>."


def rows_by_part(value: Tensor, host: nn.Module) -> Tensor:
    """Published: q, k, v of one head after another; ours: all q, all k, all v."""
    return by_part(value, HEADS, PARTS)


def flat(value: Tensor, host: nn.Module) -> Tensor:
    return value.flatten()


def unshifted(name: str, model: Classifier | Pyramid) -> str:
    """In the first generation the flattening before the first attention occupies a number of the last stage."""
    m = re.fullmatch(r"(network\.6\.|stages\.3\.blocks\.)(\d+)(\..*)", name)
    blocks = model.backbone.stages[3].blocks if m and len(model.backbone.stages) == 4 else ()
    maps = sum(not isinstance(b.mixer, DistanceAttention) for b in blocks)  # type: ignore[union-attr]
    return f"{m[1]}{int(m[2]) - 1}{m[3]}" if m and maps < len(blocks) and int(m[2]) > maps else name  # type: ignore[arg-type]


def layer(conv: str, norm: str, ours: str, kind: str, part: str = "") -> Renames:
    """A convolution with its norm, theirs under `conv` and `norm`; ours is a ConvNorm ("conv") or LinearNorm
    ("linear"), or a `part` of one that several make up: the counter of the first stands for all."""
    rules = (rf"{conv}\.{PARAM}", f"{ours}.{kind}.{LEAF}{part}"), (rf"{norm}\.{STATE}", f"{ours}.norm.{LEAF}{part}")
    return (*rules, (rf"{norm}\.{COUNT}", f"{ours}.norm.{COUNT}")) if part[:2] in ("", "[1") else rules


def attention(theirs: str, ours: str, conv: str, norm: str, proj: tuple[str, str]) -> Renames:
    """What the attentions of the second generation share; `conv` and `norm` are the words for the two parts of a layer,
    `proj` those of the last one."""

    def one(name: str, to: str, kind: str, part: str = "") -> Renames:
        return layer(rf"{theirs}{name}\.{conv}", rf"{theirs}{name}\.{norm}", ours + to, kind, part)

    last = layer(rf"{theirs}proj\.{proj[0]}", rf"{theirs}proj\.{proj[1]}", ours + "proj", "linear")
    qkv = tuple(rule for i, n in enumerate("qkv", 1) for rule in one(n, "qkv", "linear", f"[{i}/3]"))
    kv = tuple(rule for i, n in enumerate("kv", 1) for rule in one(n, "kv", "linear", f"[{i}/2]"))
    local = (
        *one("v_local", "local", "conv"),
        *one("v_local", "local_v", "conv"),
        *one("stride_conv", "stride", "conv"),
    )
    talk = ((rf"{theirs}talking_head(?P<n>[12])\.{PARAM}", ours + rf"talk\g<n>.{LEAF}"),)
    down = ((rf"{theirs}q\.local(\.0)?\.{PARAM}", ours + f"local.{LEAF}"), *one(r"q\.proj", "q", "linear"))
    return *qkv, *kv, *local, *talk, *down, *last, (theirs + "attention_biases", ours + "bias.table")


def block(theirs: str, ours: str, words: tuple[str, ...], scale: str) -> Renames:
    """A block of either generation; `words` are six: fc1, its norm, the middle, its norm, fc2, its norm."""
    mlp: Renames = ()
    for host in ("ffn", "mixer.branch"):
        for part, kind, i in (("fc1", "linear", 0), ("mid", "conv", 2), ("fc2", "linear", 4)):
            mlp += layer(rf"{theirs}mlp\.{words[i]}", rf"{theirs}mlp\.{words[i + 1]}", f"{ours}{host}.{part}", kind)
    return (
        *mlp,
        (rf"{theirs}mlp\.(?P<name>fc[12])\.{PARAM}", ours + rf"ffn.\g<name>.{LEAF}"),
        (theirs + scale.format("(?P<n>[12])"), ours + r"add\g<n>.gamma"),
        (theirs + scale.format("2"), ours + "add.gamma"),
        (rf"{theirs}(?P<name>norm[12])\.{PARAM}", ours + rf"\g<name>.{LEAF}"),
        (rf"{theirs}token_mixer\.(?P<name>qkv|proj)\.{PARAM}", ours + rf"mixer.\g<name>.{LEAF}"),
    )


def published() -> Renames:
    rules: Renames = ()
    for i in range(4):
        theirs, ours, down = rf"network\.{2 * i}\.(?P<block>\d+)\.", OURS.format(i), f"backbone.stages.{i}.down."
        rules += block(theirs, ours, ("fc1", "norm1", "mid", "mid_norm", "fc2", "norm2"), "layer_scale_{}")
        rules += attention(theirs + r"token_mixer\.", ours + "mixer.", "0", "1", ("1", "2"))
        rules += layer(rf"network\.{2 * i - 1}\.proj", rf"network\.{2 * i - 1}\.norm", down + "convolution", "conv")
    rules += layer(r"network\.5\.conv", r"network\.5\.bn", "backbone.stages.3.down.conv", "conv")
    rules += attention(r"network\.5\.attn\.", "backbone.stages.3.down.", "0", "1", ("1", "2"))
    for n in (1, 2):
        rules += layer(rf"patch_embed\.{3 * n - 3}", rf"patch_embed\.{3 * n - 2}", f"backbone.stem.conv{n}", "conv")
    return *rules, (rf"dist_head\.{PARAM}", rf"head_dist.{LEAF}")


def timm() -> Renames:
    rules: Renames = ()
    for i in range(4):
        theirs, ours, down = rf"stages\.{i}\.blocks\.(?P<block>\d+)\.", OURS.format(i), f"backbone.stages.{i}.down."
        rules += block(theirs, ours, ("fc1", "norm1", "mid", "mid_norm", "fc2", "norm2"), r"ls{}\.gamma")
        words = tuple(rf"{n}\.{w}" for n in ("fc1", "mid", "fc2") for w in ("conv", "bn"))
        rules += block(theirs, ours, words, r"ls{}\.gamma")
        rules += attention(theirs + r"token_mixer\.", ours + "mixer.", "conv", "bn", ("conv", "bn"))
        below = rf"stages\.{i}\.downsample\."
        rules += layer(below + "conv", below + "norm", down + "convolution", "conv")
        for name in ("convolution", "conv"):
            rules += layer(below + r"conv\.conv", below + r"conv\.bn", down + name, "conv")
    rules += attention(r"stages\.3\.downsample\.attn\.", "backbone.stages.3.down.", "conv", "bn", ("conv", "bn"))
    for n in (1, 2):
        rules += layer(rf"stem\.conv{n}", rf"stem\.norm{n}", f"backbone.stem.conv{n}", "conv")
        rules += layer(rf"stem\.conv{n}\.conv", rf"stem\.conv{n}\.bn", f"backbone.stem.conv{n}", "conv")
    return *rules, (rf"head_dist\.{PARAM}", rf"head_dist.{LEAF}")


LAST = (
    (rf"norm\.{STATE}", rf"norm.{LEAF}"),
    (rf"norm\.{COUNT}", f"norm.{COUNT}"),
    (rf"head\.{PARAM}", rf"head.{LEAF}"),
)
SEGMENTED = r"network\.6\.(?P<block>\d+)\.token_mixer\."
DROP = (r".*\.attention_bias_idxs(_seg)?", rf".*\.(k|v)\.(1|bn)\.{COUNT}")
FLAT = (r".*\.(fc[12]|q|k|v|proj)(\.([01]|conv|proj|proj\.0|proj\.conv))?\.weight",)
CONVERT = ((r".*\.mixer\.qkv\.(weight|bias)", rows_by_part), (r".*\.gamma", flat))
RULES = {
    "published": Rules(
        (*published(), *LAST),
        DROP,
        pyramid=(r"norm\..*", r"head\..*", r"dist_head\..*"),
        flatten=FLAT,
        convert=CONVERT,
        dense=tuple((rf"norm{2 * i}\.{PARAM}", rf"norms.{i}.{LEAF}") for i in range(4)),
        number=unshifted,
    ),
    "timm": Rules(
        (*timm(), *LAST), DROP, pyramid=(r"norm\..*", r"head(_dist)?\..*"), flatten=FLAT, convert=CONVERT,
        number=unshifted,
    ),
}  # fmt: skip
TABLE = SEGMENTED + "attention_biases"
RULES["detection"] = replace(  # the dense form's own files: the classifier's table stays in them, read by nobody
    RULES["published"],
    rename=((TABLE + "_seg", OURS.format(3) + "mixer.bias.table"), *(r for r in published() if r[0] != TABLE)),
    drop=(*DROP, TABLE),
)
