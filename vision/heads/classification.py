"""Heads for classification: what stands between the last stage and the logits."""

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from ..conv import LinearNorm
from ..layers import ACTIVATIONS, Linear
from ..norm import Norm
from ..spec import Spec

Pool = Literal["mean", "token", "distilled", "attention"]


class Neck(Spec):
    """What stands between the last stage and the norm before the head: `build` gives a module Tokens -> Tokens.
    `special` are the special tokens of what comes out, None if they are as before."""

    @property
    def special(self) -> tuple[int, ...] | None:
        return None

    def build(self, dim: int) -> nn.Module:
        raise AssertionError(f"{type(self).__name__} does not say what it builds")


@dataclass(frozen=True)
class Head:
    """What stands between the last stage and the logits: a neck or none, a norm on the tokens, or behind the pooling
    (`late`); a way to pool them (mean over the patches, the class token, class and distillation token, or CCT's
    attention over the sequence); a linear layer, or an MLP with `hidden` times the width."""

    norm: Norm | None = Norm()
    pool: Pool = "mean"
    late: bool = False
    hidden: float | None = None  # width of the MLP head over the channels
    dropout: float = 0.0  # inside the MLP head
    act: Literal["squared_relu", "tanh"] = "squared_relu"  # of the MLP head
    hidden_norm: bool = True  # behind that activation
    neck: Neck | None = None
    widen: int | None = None  # linear layer, batch norm and SiLU on every token before the pooling, to this width
    two: bool = False  # a second linear layer beside the first, for distillation; the answer is their mean
    patches: float | None = None  # token labelling: see Classifier.head_patches
    wide_patches: bool = False  # those logits come from the widened tokens


class AttentionPool(nn.Module):
    """sum_n softmax(w x_n + b) x_n over the tokens (https://arxiv.org/abs/2104.05704), (B N C) -> (B C); where a policy
    (B N 1) is given, over those that count."""

    def __init__(self, dim: int):
        super().__init__()
        self.score = Linear(dim, 1)

    def forward(self, x: Tensor, policy: Tensor | None = None) -> Tensor:
        weight = self.score(x).softmax(1)
        if policy is not None:
            weight = weight * policy
            weight = weight / weight.sum(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
        return cast(Tensor, (weight.mT @ x)[:, 0])


class MlpHead(nn.Module):
    """fc2(dropout(norm(act(fc1(x))))), the head of ConvFormer and CAFormer (squared ReLU), of CoAtNet's kin (tanh, no
    norm)."""

    def __init__(self, dim: int, hidden: int, classes: int, dropout: float, act: str = "squared_relu",
                 norm: bool = True):  # fmt: skip
        super().__init__()
        self.fc1, self.act = Linear(dim, hidden), ACTIVATIONS[act]()
        self.norm: nn.Module = nn.LayerNorm(hidden) if norm else nn.Identity()
        self.drop, self.fc2 = nn.Dropout(dropout), Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.drop(self.norm(self.act(self.fc1(x)))))  # type: ignore[no-any-return]


class Widen(LinearNorm):
    """silu(norm(linear(x))) on every token, (… C) -> (… width)."""

    def __init__(self, dim: int, width: int):
        super().__init__(dim, width, bias=True, act="silu")
