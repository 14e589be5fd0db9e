"""One frozen encoder for data of many kinds, after Meta-Transformer, https://arxiv.org/abs/2307.10802."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..vision.backbone import Backbone
from ..vision.layers import Linear
from ..vision.mixers.attention import SelfAttention
from ..vision.model import Classifier
from ..vision.plugins import hosts_of
from ..vision.tokens import Tokens
from .modalities import Pieces, Tokeniser


class SharedEncoder(nn.Module):
    """Data of a kind -> Pieces: a token for the whole in front, then what the encoder says to each of its tokens.

    model: any backbone of one resolution whose mixers need no grid; its stem is left out, its blocks are frozen and
        stay in evaluation mode. kinds: a tokeniser for each kind of data. Tokenisers and the first token learn, and so
        does the norm behind it all.
    Raises ValueError for a backbone of several resolutions or of mixers that want a grid.
    """

    def __init__(self, model: Backbone | Classifier, kinds: Mapping[str, Tokeniser], frozen: bool = True):
        super().__init__()
        backbone = model.backbone if isinstance(model, Classifier) else model
        if len(set(backbone.strides)) > 1 or len(set(backbone.channels)) > 1:
            raise ValueError(f"an encoder of sequences has one resolution and width; this backbone has strides "
                             f"{backbone.strides} and channels {backbone.channels}")  # fmt: skip
        if needy := next((h for h in hosts_of(backbone) if h.block.needs_grid or h.mixer.needs_grid), None):
            raise ValueError(f"{needy.name}: {type(needy.mixer).__name__} needs a full grid, and sequences fill none")
        if not kinds:
            raise ValueError("no kinds: a shared encoder takes a tokeniser for each kind of data")
        self.dim, self.frozen = backbone.channels[-1], frozen
        self.stages = backbone.stages
        self.walk = (backbone,)  # whose stem stays outside
        self.blind = [h for h in hosts_of(backbone) if not isinstance(h.mixer, SelfAttention)]  # to what is padding
        self.tokenisers = nn.ModuleDict({name: spec.build(self.dim) for name, spec in kinds.items()})
        self.first = nn.Parameter(torch.randn(1, 1, self.dim) * 0.02)
        self.norm = nn.LayerNorm(self.dim)
        if frozen:
            self.stages.requires_grad_(False)
            self.train(self.training)

    def train(self, mode: bool = True) -> "SharedEncoder":
        super().train(mode)
        if self.frozen:
            self.stages.eval()
        return self

    def forward(self, kind: str, data: Any) -> Pieces:
        if kind not in self.tokenisers:
            raise ValueError(f"no tokeniser for {kind!r}; there are {', '.join(self.tokenisers)}")
        pieces: Pieces = self.tokenisers[kind](data)
        x = torch.cat([self.first.expand(len(pieces.x), -1, -1).to(pieces.x.dtype), pieces.x], 1)
        size = real = None
        if pieces.real is not None:  # padding stands for no patch, so that no attention counts it
            if self.blind:
                name = type(self.blind[0].mixer).__name__
                raise ValueError(
                    f"{kind} with padding: {name} mixes it with the rest; one length for all, or attention"
                )
            real = torch.cat([pieces.real.new_ones(len(x), 1), pieces.real], 1)
            size = real[..., None].to(x.dtype)
        t = self.walk[0].onward(Tokens(x, None, (0,), size=size), ())[0]
        return Pieces(self.norm(t.x), real)


class SharedClassifier(nn.Module):
    """Data of a kind -> logits (B classes) of that kind's own head, read off the first token."""

    def __init__(self, encoder: SharedEncoder, classes: Mapping[str, int]):
        super().__init__()
        if set(classes) != set(encoder.tokenisers):
            raise ValueError(f"classes of {', '.join(classes)}, tokenisers of {', '.join(encoder.tokenisers)}: each "
                             "kind of data takes both")  # fmt: skip
        self.encoder = encoder
        self.heads = nn.ModuleDict({name: Linear(encoder.dim, n) for name, n in classes.items()})

    def forward(self, kind: str, data: Any) -> Tensor:
        return self.heads[kind](self.encoder(kind, data).x[:, 0])  # type: ignore[no-any-return]
