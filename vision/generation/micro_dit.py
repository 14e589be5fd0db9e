"""MicroDiT, a text-to-image transformer trained on few of its tokens, https://arxiv.org/abs/2407.15811.

Shapes: B samples, C channels, h x w patches of which there are N, L tokens of a caption of width d, D width.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..layers import Linear
from ..network import Rules
from ..published import Weights
from ..tokens import Tokens, select, unmerge
from .adaln import Modulation, unpatchify
from .conditioning import TimeEmbedding
from .denoiser import Denoiser, Variant
from .expert_choice import ExpertChoice
from .micro_blocks import CaptionBlock, CaptionMlp, MicroBlock, MicroFinal, weight_norm
from .position import LatentPatches


class MicroDiT(Denoiser):
    """All patches go through a light patch mixer; only behind it, and only in training, most are dropped before the
    deep backbone (`masked`), so that those that stay know of the others. Deeper blocks are wider inside: queries take
    0.5 to 1, MLPs 0.5 to 4 times the width; every second block has experts that choose their tokens.

    The prediction is F of EDM's form. `mixer`: depth and width of the patch mixer. `position_scale` divides the
    coordinates of patches: 2 for a network that goes on from one of half its size. `head`: channels of a head.
    """

    family = "microdit"

    def __init__(self, dim: int = 512, depth: int = 16, head: int = 32, mixer: Sequence[int] = (4, 512), *,
                 patch: int = 2, in_channels: int = 4, size: Sequence[int] = (32, 32),
                 text: Sequence[int] = (77, 1024), position_scale: float = 1.0, experts: int = 8,
                 dropout: float = 0.1):  # fmt: skip
        (high, wide), (tokens, words), (steps, width) = size, text, mixer
        super().__init__(in_channels, in_channels, (high, wide), text=(tokens, words), time="c_noise", dropout=dropout)
        self.dim, self.depth, self.head, self.mixer, self.patch = dim, depth, head, (steps, width), patch
        self.position_scale, self.experts, self.grad_checkpointing = position_scale, experts, False
        grid = (-(-high // patch), -(-wide // patch))
        self.stem = LatentPatches(patch, grid, position_scale).build(in_channels, dim)
        places = self.stem.get_submodule("position")
        places.register_buffer("table", cast(Tensor, places.table), persistent=False)  # no parameter, as published
        self.time_embedding = TimeEmbedding(dim, 512, "gelu_tanh")
        self.caption, self.caption_block = CaptionMlp(words, dim), CaptionBlock(dim, head)
        self.pooled = CaptionMlp(dim, dim)
        self.into, self.into_caption, self.out_of = (
            nn.Identity() if width == dim else nn.Sequential(weight_norm(a), Linear(a, b, bias=False))
            for a, b in ((dim, width), (dim, width), (width, dim))
        )
        chosen = [experts if i % 2 else 0 for i in range(max(steps, depth))]
        self.patch_mixer = nn.ModuleList(MicroBlock(width, dim, head, 1.0, 4.0, chosen[i]) for i in range(steps))
        queries, hidden = np.linspace(0.5, 1.0, depth), np.linspace(0.5, 4.0, depth)
        self.blocks = nn.ModuleList(
            MicroBlock(dim, dim, head, float(queries[i]), float(hidden[i]), chosen[i] if i < depth - 1 else 0)
            for i in range(depth)
        )
        self.final = MicroFinal(dim, dim, patch * patch * in_channels)
        initialise(self)

    def arguments(self) -> dict[str, Any]:
        names = ("dim", "depth", "head", "mixer", "patch", "in_channels", "size", "text", "position_scale", "experts")
        return {name: getattr(self, name) for name in names} | {"dropout": self.made_with_dropout}

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None, kept: Tensor | None = None) -> list[Tensor]:
        """`kept` (B K): positions of the patches that the backbone takes; None: all. Elsewhere the prediction is 0."""
        assert y is not None
        tokens: Tokens = self.stem(x)
        grid = tokens.grid
        assert grid is not None
        caption = self.caption_block(self.caption(y))  # B L D
        told = self.time_embedding(t, tokens.x.dtype) + self.pooled(caption.mean(1))
        mixed = replace(tokens, x=self.into(tokens.x), condition=told, context=self.into_caption(caption))
        tokens = self.through(self.patch_mixer, mixed)
        if kept is not None:
            if tokens.grid is None:
                raise ValueError("a plugin reduced the tokens before they are masked: leave it out of the patch mixer")
            tokens = select(tokens, kept, ())
        tokens = self.through(self.blocks, replace(tokens, x=self.out_of(tokens.x), context=caption))
        out = unmerge(replace(tokens, x=self.final(tokens.x, told)))
        return [unpatchify(out, grid, self.patch)[..., : x.shape[-2], : x.shape[-1]]]

    def through(self, blocks: Iterable[nn.Module], t: Tokens) -> Tokens:
        for block in blocks:
            keep = self.grad_checkpointing and torch.is_grad_enabled()
            t = cast(Tokens, checkpoint(block, t, use_reentrant=False) if keep else block(t))
        return t

    def masked(self, x: Tensor, t: Tensor, y: Tensor | None, ratio: float) -> tuple[Tensor, Tensor]:
        """See `Denoiser`; the patches that stay are drawn anew for each sample, int(N (1 - ratio)) of them."""
        self.check(x, t, y)
        h, w = (-(-n // self.patch) for n in x.shape[-2:])
        kept, there = lowest(torch.rand(len(x), h * w, device=x.device), ratio)
        return self.predict(x, t, self.thinned(y), kept)[-1], there

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable


def lowest(noise: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """Of a number for each patch (B N): (positions of the int(N (1 - ratio)) lowest (B K), whether each patch is one of
    them (B N) bool). Raises ValueError where none would be left."""
    n = noise.shape[1]
    count = int(n * (1 - ratio)) if 0 <= ratio < 1 else 0
    if not count:
        raise ValueError(f"mask ratio {ratio} of {n} patches leaves none: one between 0 and {1 - 1 / n:.3g} is wanted")
    kept = noise.argsort(1)[:, :count]
    return kept, torch.zeros_like(noise, dtype=torch.bool).scatter(1, kept, True)


@torch.no_grad()
def initialise(model: MicroDiT) -> None:
    """Xavier for whatever is not said otherwise; narrow normals for the conditions, the ways into the stream narrower
    the deeper they stand; and zeros where a block or the network begins as nothing."""
    for m in model.modules():
        if isinstance(m, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(m.weight.flatten(1))
            if m.bias is not None:
                nn.init.zeros_(m.bias)
    for part in (model.time_embedding, model.pooled, model.caption):
        for layer in (part.fc1, part.fc2):
            nn.init.normal_(layer.weight, std=0.02)
    steps = model.mixer[0]
    for block, depth in (*((b, steps) for b in model.patch_mixer), *((b, i + 1) for i, b in enumerate(model.blocks))):
        narrow(block, 0.02 / math.sqrt(2 * depth))
    narrow(model.caption_block, 0.02)
    nn.init.zeros_(model.caption_block.mixer.proj.weight)
    nn.init.zeros_(model.caption_block.ffn.fc2.weight)
    for m in model.modules():
        if isinstance(m, Modulation):
            m.reset_parameters()
    nn.init.zeros_(model.final.linear.weight)


def narrow(block: nn.Module, std: float) -> None:
    """Truncated normals of deviation 0.02, and of `std` for what leads back into the stream (and for the gate's partner
    of an MLP, as published)."""
    for m in block.modules():
        if isinstance(m, Modulation):
            continue
        if isinstance(m, ExpertChoice):
            nn.init.trunc_normal_(m.w1, std=0.02)
            nn.init.trunc_normal_(m.w2, std=std)
    for name, layer in block.named_modules():
        if isinstance(layer, nn.Linear) and not name.startswith("modulation"):
            back = name.rpartition(".")[2] in ("proj", "fc2", "fc3")
            nn.init.trunc_normal_(layer.weight, std=std if back else 0.02)


TINY = {"dim": 512, "depth": 16, "head": 32, "mixer": (4, 512)}
XL = {"dim": 1024, "depth": 28, "head": 64, "mixer": (6, 768)}
LARGE = {"size": (64, 64), "position_scale": 2.0}  # latents of 512 x 512 images
VARIANTS = {
    "microdit_tiny_2": Variant("microdit", MicroDiT, TINY),
    "microdit_xl_2": Variant("microdit", MicroDiT, XL),
    "microdit_xl_2_16ch": Variant("microdit", MicroDiT, {**XL, "in_channels": 16}),
    "microdit_xl_2_512": Variant("microdit", MicroDiT, {**XL, **LARGE}),
    "microdit_xl_2_512_16ch": Variant("microdit", MicroDiT, {**XL, **LARGE, "in_channels": 16}),
}


def as_computed(name: str, value: Tensor, model: nn.Module) -> Tensor | None:
    """The table of places, for the grid that the file was made for, and the zeros where patches are missing."""
    if name == "mask_token":
        return torch.zeros_like(value)
    table = cast(Tensor, model.get_submodule("stem.position").table)
    if value.shape != table.shape:
        return None  # that of another size, from which a network for this one goes on
    return value if torch.allclose(value.float(), table.to(value).float(), atol=1e-5) else table


ENDS = r"(weight|bias)"
ATTENTION = r"attn\.(qkv|proj)\.weight"
FFN = {"w1": "fc1", "w2": "fc3", "w3": "fc2"}


def block_rules(theirs: str, ours: str, group: int) -> tuple[tuple[str, str], ...]:
    """Of a block; `group` counts the groups of its own that `theirs` has."""
    first = rf"\{group + 1}"
    return (
        (theirs + r"norm([123])\.weight", f"{ours}norm{first}.weight"),
        (theirs + ATTENTION, f"{ours}mixer.{first}.weight"),
        (theirs + r"cross_attn\.(q|kv)_linear\.weight", f"{ours}cross.{first}.weight"),
        (theirs + r"cross_attn\.proj\.weight", f"{ours}cross.proj.weight"),
        *((theirs + rf"mlp\.{t}\.weight", f"{ours}ffn.{o}.weight") for t, o in FFN.items()),
        (theirs + r"mlp\.(w[12])", f"{ours}ffn.{first}"),
        (theirs + r"mlp\.gate\.weight", f"{ours}ffn.gate.weight"),
        (theirs + r"adaLN_modulation\.1\." + ENDS, f"{ours}modulation.linear.{first}"),
    )


RULES = {
    "published": Rules((
        (r"x_embedder\.proj\." + ENDS, r"stem.convolution.conv.\1"),
        (r"t_embedder\.mlp\.0\." + ENDS, r"time_embedding.fc1.\1"),
        (r"t_embedder\.mlp\.2\." + ENDS, r"time_embedding.fc2.\1"),
        (r"y_embedder\.y_proj\.(fc1|norm|fc2)\." + ENDS, r"caption.\1.\2"),
        (r"pooled_y_emb_process\.(fc1|norm|fc2)\." + ENDS, r"pooled.\1.\2"),
        (r"patch_mixer_map_xin\.([01])\.weight", r"into.\1.weight"),
        (r"patch_mixer_map_y\.([01])\.weight", r"into_caption.\1.weight"),
        (r"patch_mixer_map_xout\.([01])\.weight", r"out_of.\1.weight"),
        *block_rules(r"y_emb_preprocess\.", "caption_block.", 0),
        *block_rules(r"(patch_mixer|blocks)\.(\d+)\.", r"\1.\2.", 2),
        (r"final_layer\.linear\." + ENDS, r"final.linear.\1"),
        (r"final_layer\.adaLN_modulation\.1\." + ENDS, r"final.modulation.linear.\1"),
        (r"final_layer\.norm_final\.weight", "final.norm.weight"),
    ), drop=("pos_embed", "mask_token"), check=as_computed),
}  # fmt: skip
PAGE = "hf-hub:VSehwag24/MicroDiT/ckpts/"


def row(tag: str, file: str, channels: int, **metrics: float) -> Weights:
    return Weights(tag, PAGE + file, "apache-2.0", 0, (channels, 64, 64), mean=(0.5,) * 3, std=(0.5,) * 3,
                   crop_pct=1.0, metrics=metrics, form="denoiser")  # fmt: skip


WEIGHTS = {
    "microdit_xl_2_512": (
        row("real_and_synthetic_37m", "dit_4_channel_37M_real_and_synthetic_data.pt", 4, fid=12.66, geneval=46),
        row("real_22m", "dit_4_channel_22M_real_only_data.pt", 4, fid=12.72, geneval=46),
        row("synthetic_500m", "dit_4_channel_0.5B_synthetic_data.pt", 4, fid=13.26, geneval=52),
    ),
    "microdit_xl_2_512_16ch": (
        row("real_and_synthetic_37m", "dit_16_channel_37M_real_and_synthetic_data.pt", 16, fid=13.04, geneval=40),
    ),
}
