"""Gaussian mixture masks, https://arxiv.org/abs/2309.05375: five small backbones (ViT, Swin, CaiT, PiT, T2T) whose
attention scores are multiplied by a function of the tokens' distance; for CIFAR (gmm_*, 32 pixels) and Tiny-ImageNet
(*_64), each also without the mask (*_plain) and with a learned matrix in its place (*_slm)."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..backbone import Stage
from ..heads.class_layers import ClassBlocks, ClassLayers, thin_class_layers
from ..mixers.attention import Global
from ..mixers.gaussian_mask import Elementwise, Gaussians, Mask, distance, offsets
from ..mixers.masked import Kept, MaskedGlobal, MaskedWindow
from ..mixers.talking_heads import TalkingGlobal
from ..mixers.window import Window
from ..model import Classifier, Head
from ..network import Network, Rules
from ..position import Position
from ..pyramid import Pyramid
from ..residual import AddScaled
from ..stem import Patchify
from ..stems.class_pool import ClassPooling
from ..stems.masked_tokens import MaskedTokensToToken
from . import swin as swin_family
from .gmm_mask_weights import WEIGHTS as WEIGHTS

KINDS = {"": "gaussians", "_plain": None, "_slm": "elementwise"}
POOLED, GATHERED = Head(late=True), Head(late=True, pool="token")  # the norm stands behind the pooling


def mask_for(kind: str | None, side: int) -> Mask | None:
    return None if kind is None else Gaussians() if kind == "gaussians" else Elementwise((side, side))


def attention(mask: Mask | None, heads: int) -> Global | MaskedGlobal:
    return Global(heads, bias=False) if mask is None else MaskedGlobal(heads, mask, bias=False)


def network(stages: tuple[Stage, ...], stem: Patchify | MaskedTokensToToken, head: Head, pixels: int) -> Network:
    """CIFAR-100's or Tiny-ImageNet's."""
    classes = 100 if pixels == 32 else 200
    return Network("gmm_mask", stages, stem, head=head, size=(pixels, pixels), classes=classes, drop_path=0.1)


def level(depth: int) -> tuple[float, ...]:
    """One drop path rate for all layers."""
    return (1.0,) * depth


def vit(kind: str | None, pixels: int) -> Network:
    """A class token only without a mask."""
    mask = mask_for(kind, 8)
    stem = Patchify(pixels // 8, None, position=Position((8, 8), special=int(mask is None), token_std=0.02))
    stage = Stage(attention(mask, 12), 192, 9, 2, drop_path=level(9))
    return network((stage,), stem, GATHERED if mask is None else POOLED, pixels)


def swin(kind: str | None, pixels: int) -> Network:
    mask = mask_for(kind, 4)
    stem = Patchify(pixels // 16, position=Position((16, 16)))
    stages = tuple(
        Stage(Window(h, 4) if mask is None else MaskedWindow(h, 4, mask), 96 * 2**i, n, 2)
        for i, (n, h) in enumerate(((2, 3), (6, 6), (4, 12)))
    )
    return network(stages, stem, Head(), pixels)


def cait(kind: str | None, pixels: int) -> Network:
    """LayerScale begins at 0.1 in the first 18 layers, at 1e-5 in the others."""
    stem = Patchify(pixels // 8, None, position=Position((8, 8)))
    stage = Stage(TalkingGlobal(4, 64, mask_for(kind, 8)), 192, 24, 2, scale=0.1, drop_path=level(24))
    head = replace(GATHERED, neck=ClassLayers(2, 4, 64, 2, scale=0.1))
    return replace(network((stage,), stem, head, pixels), initialise=begin_cait)


def begin_cait(model: Classifier | Pyramid) -> None:
    blocks = model.backbone.stages[0].blocks
    assert isinstance(blocks, nn.ModuleList)
    for block in blocks[18:]:
        for add in (block.add1, block.add2):
            assert isinstance(add, AddScaled)
            nn.init.constant_(add.gamma, 1e-5)
    if isinstance(model, Classifier) and isinstance(model.neck, ClassBlocks):
        thin_class_layers(model.neck, model.backbone.drop_path)


def pit(kind: str | None, pixels: int) -> Network:
    stem = Patchify(pixels // 16, None, position=Position((16, 16), special=1, token_std=0.02))
    stages = tuple(
        Stage(attention(mask_for(kind, 16 // 2**i), h), 96 * 2**i, n, 2, down=ClassPooling(), drop_path=level(n))
        for i, (n, h) in enumerate(((2, 2), (6, 4), (4, 8)))
    )
    return network(stages, stem, GATHERED, pixels)


def t2t(kind: str | None, pixels: int) -> Network:
    mask = mask_for(kind, 8)
    stem = MaskedTokensToToken(Position((8, 8), "sinusoid"), 1 if pixels == 32 else 2, mask)
    stage = Stage(Kept(attention(mask, 4)), 256, 12, 2)
    return replace(network((stage,), stem, Head(), pixels), unread=256 + 2 * 9 * 64)  # a class token, a norm


VARIANTS = {
    f"gmm_{name}{kind}{size}": make(mask, pixels)
    for name, make in (("vit", vit), ("swin", swin), ("cait", cait), ("pit", pit), ("t2t", t2t))
    for kind, mask in KINDS.items()
    for size, pixels in (("", 32), ("_64", 64))
}


def computed(name: str, value: Tensor, model: Classifier | Pyramid) -> Tensor | None:
    """What a distance table in a checkpoint must hold, up to what a machine's exponential differs by; a window
    attention's buffers as Swin's."""
    if name.endswith(("relative_position_index", "attn_mask")):
        return swin_family.computed(name, value, model)
    if not name.endswith("mask"):  # what nothing reads
        return None
    side = round(value.shape[-1] ** 0.5)
    rows = torch.from_numpy(offsets(side))
    table = torch.from_numpy(distance(side, side))[rows][:, rows].view(side, side, side, side).transpose(1, 2)
    want = table.reshape(1, 1, side * side, side * side)
    return None if want.shape == value.shape and torch.allclose(value.float(), want, 1e-5, 1e-12) else want


def as_kernel(value: Tensor, conv: nn.Module) -> Tensor:
    """A linear layer on patches (row, column, channel) as the convolution that it is."""
    if value.ndim != 2:
        return value
    patch = conv.kernel_size[0]  # type: ignore[index]
    return value.unflatten(1, (patch, patch, -1)).permute(0, 3, 1, 2)  # type: ignore[no-untyped-call, no-any-return]


def as_matrix(value: Tensor, mask: nn.Module) -> Tensor:
    return value.reshape(value.shape[-2:])


def as_vector(value: Tensor, add: nn.Module) -> Tensor:
    return value.flatten()


ENDS = r"\.(weight|bias)"


def named(theirs: str, ours: str, pairs: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Rules for the layers of a block: `theirs` and `ours` are what stands before its layers' names."""
    return tuple((theirs + a.replace(".", r"\.") + ENDS, ours + b + r".\2") for a, b in pairs.items())


def masks(theirs: str, ours: str) -> tuple[tuple[str, str], ...]:
    """The mask's own parameters in an attention layer: the Gaussians', or the one matrix in their place."""
    return (theirs + r"\.mask\.(sigma|alpha)", ours + r".mask.\2"), (theirs + r"\.mask(\.\w+)?", ours + ".mask.matrix")


def encoder(theirs: str, ours: str) -> tuple[tuple[str, str], ...]:
    """The layers of ViT and PiT."""
    pairs = {"0.norm": "norm1", "0.fn.to_qkv": "mixer.qkv", "0.fn.to_out.0": "mixer.proj", "1.norm": "norm2",
             "1.fn.net.0": "ffn.fc1", "1.fn.net.3": "ffn.fc2"}  # fmt: skip
    return *named(theirs, ours, pairs), *masks(theirs + r"0\.fn", ours + "mixer")


def scaled(theirs: str, ours: str, attention: str, parts: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """The layers of CaiT: each behind a LayerScale; `parts` are the attention's own."""
    pairs = {"0.fn.norm": "norm1", "0.fn.fn.to_out.0": f"{attention}.proj", "1.fn.norm": "norm2",
             "1.fn.fn.net.0": "ffn.fc1", "1.fn.fn.net.3": "ffn.fc2"}  # fmt: skip
    return (
        *named(theirs, ours, pairs),
        (theirs + r"0\.scale", ours + "add1.gamma"),
        (theirs + r"1\.scale", ours + "add2.gamma"),
        (theirs + r"0\.fn\.fn\.mix_heads_pre_attn", f"{ours}{attention}.before"),
        (theirs + r"0\.fn\.fn\.mix_heads_post_attn", f"{ours}{attention}.after"),
        *((theirs + r"0\.fn\.fn\." + a, f"{ours}{attention}.{b}") for a, b in parts),
        *masks(theirs + r"0\.fn\.fn", ours + attention),
    )


STEM, BLOCK = "backbone.stem.", r"backbone.stages.0.blocks.\1."
Q, KV = r"to_q\.weight", r"to_kv\.weight"
VIT = encoder(r"transformer\.layers\.(\d+)\.", BLOCK)
SWIN = (
    *masks(r"layers\.(?=\d+\.blocks)(\d+\.blocks\.\d+)\.attn", r"backbone.stages.\1.mixer"),
    *swin_family.BLOCKS,
    *swin_family.later(1),
)
CAIT = (
    *scaled(r"patch_transformer\.layers\.(\d+)\.", BLOCK, "mixer", ((Q, "qkv.weight[1/2]"), (KV, "qkv.weight[2/2]"))),
    *scaled(r"cls_transformer\.layers\.(\d+)\.", r"neck.blocks.\1.", "attention", ((Q, "q.weight"), (KV, "kv.weight"))),
)


def pit_stage(i: int) -> tuple[tuple[str, str], ...]:
    """A stage's layers, and the pooling before it, which counts as a layer of its own."""
    theirs, ours = rf"layers\.{2 * i - 1}\.", rf"backbone.stages.{i}.down."
    return (
        *encoder(rf"layers\.{2 * i}\.layers\.(\d+)\.", rf"backbone.stages.{i}.blocks.\1."),
        (theirs + r"downsample\.net\.0" + ENDS, ours + r"conv.\1"),
        (theirs + r"downsample\.net\.1" + ENDS, ours + r"pointwise.\1"),
        (theirs + r"cls_ff" + ENDS, ours + r"token.\1"),
    )


def t2t_layer(theirs: str, ours: str, attention: str, mlp: str) -> tuple[tuple[str, str], ...]:
    pairs = {"norm1": "norm1", "attn.qkv": f"{attention}.qkv", "attn.proj": f"{attention}.proj", "norm2": "norm2",
             "mlp.fc1": f"{mlp}.fc1", "mlp.fc2": f"{mlp}.fc2"}  # fmt: skip
    return *named(theirs, ours, pairs), *masks(theirs + "attn", ours + attention)


T2T = (
    *t2t_layer(r"blocks\.(\d+)\.", BLOCK, "mixer.mixer", "ffn"),
    *t2t_layer(r"tokens_to_token\.attention(1)\.", STEM + "layers.0.", "attention", "mlp"),
    *t2t_layer(r"tokens_to_token\.attention(2)\.", STEM + "layers.1.", "attention", "mlp"),
    (r"tokens_to_token\.project" + ENDS, STEM + r"project.\1"),
)
ENDINGS = (
    (r"to_patch_embedding(?:\.\d)?" + ENDS, STEM + r"convolution.conv.\1"),
    (r"pos_embedding|pos_embed|absolute_pos_embed", STEM + "position.table"),
    (r"cls_token", STEM + "position.tokens.0"),
    (r"cls_token", "neck.tokens.0"),
    (r"mlp_head\.0" + ENDS, r"late_norm.\1"),
    (r"mlp_head\.1" + ENDS, r"head.\1"),
    (r"head" + ENDS, r"head.\1"),
)
RULES = {
    "published": Rules(
        (*VIT, *SWIN, *CAIT, *pit_stage(0), *pit_stage(1), *pit_stage(2), *T2T, *ENDINGS),
        drop=(r"(?:.+\.)?mask", *swin_family.BUFFERS, "cls_token", r"tokens_to_token\.norm" + ENDS),
        pyramid=(r"mlp_head\..*", r"norm\..*", r"head\..*", r"cls_transformer\..*"),
        flatten=(r"layers\.\d+\.downsample\.net\.1\.weight",),
        convert=(
            (r"backbone\.stem\.convolution\.conv\.weight", as_kernel),
            (r".*\.mask\.matrix", as_matrix),
            (r".*\.gamma", as_vector),
        ),
        check=computed,
    )
}
