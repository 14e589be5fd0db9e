"""Small ViTs and single layers that the records of adapters were made with."""

import torch
from golden import golden
from torch import Tensor, nn

from patchloom.vision.adapters import adapt, adapter
from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.block import PreNorm
from patchloom.vision.heads.classification import Head
from patchloom.vision.mixers.attention import Global
from patchloom.vision.model import Classifier
from patchloom.vision.norm import Norm
from patchloom.vision.position import Position
from patchloom.vision.stem import Patchify
from patchloom.vision.tokens import Tokens
from patchloom.vision.weights import load_published

NORM = Norm(eps=1e-6)


def small_vit(depth: int, pixels: int, head: Head | None = None) -> Classifier:
    """ViT of 96 channels in 3 heads on patches of 16 pixels, 10 classes."""
    stage = Stage(Global(3), 96, depth, block=PreNorm(NORM))
    stem = Patchify(16, None, position=Position((pixels // 16,) * 2, special=1))
    model = Classifier(Backbone([stage], stem), 10, head or Head(NORM, pool="token"), img_size=pixels)
    model.family = "vit"
    return model.eval()


def filled(model: Classifier, spelling: str, record: golden.Record) -> Classifier:
    """The model with this adapter and the record's weights, all of which find their place and leave none empty."""
    adapt(model, adapter(spelling))
    report = load_published(model, record.state_dict())
    assert not report.fresh
    assert not report.dropped
    assert sum(p.numel() for p in model.parameters()) == record.meta["parameters"]
    return model


def layer(spelling: str, state: dict[str, Tensor], names: dict[str, str], dim: int = 32, heads: int = 4) -> nn.Module:
    """One pre-norm layer of AST with this adapter, filled from `state`, in which `names` says how the adapter's modules
    are called; each tensor is used, each parameter filled."""
    stage = Stage(Global(heads), dim, 1, ratio=2, block=PreNorm(Norm(eps=1e-12)))
    model = Classifier(Backbone([stage]), 0).eval()
    adapt(model, adapter(spelling))
    block = model.backbone.stages[0].blocks[0]
    parts = ("query", "key", "value")
    names = {"layernorm_before": "norm1", "layernorm_after": "norm2", "attention.output.dense": "mixer.proj",
             "intermediate.dense": "ffn.fc1", "output.dense": "ffn.fc2", **names}  # fmt: skip
    ours = {
        f"mixer.qkv.{kind}": torch.cat([state.pop(f"attention.attention.{p}.{kind}") for p in parts])
        for kind in ("weight", "bias")
    }
    for name, value in state.items():
        owner = next(n for n in names if name == n or name.startswith(f"{n}."))
        ours[names[owner] + name.removeprefix(owner)] = value
    counters = {n: v for n, v in block.state_dict().items() if n.endswith("num_batches_tracked")}
    block.load_state_dict({**counters, **ours})
    return block


def of(record: golden.Record, part: str) -> dict[str, Tensor]:
    """The tensors of one part of the record, by their names in it."""
    return {n.removeprefix(f"{part}."): v for n, v in record.state_dict().items() if n.startswith(f"{part}.")}


@torch.inference_mode()
def run(block: nn.Module, x: Tensor) -> Tensor:
    return block(Tokens(x, None)).x
