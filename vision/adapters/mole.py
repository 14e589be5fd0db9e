"""LLaVA-MoLE, https://arxiv.org/abs/2401.16160: several LoRAs beside the layers of each MLP, of which tokens take one.

A router, one linear layer, reads what the MLP takes, and its choice holds for all the MLP's layers:
W x + s sum_e w_e B_e A_e x, w the one-hot of the largest p = softmax(router(x)) (or p itself: `dense`).
Nothing but the balance loss teaches the router which expert to take:

    with routed(model) as routes:  # what the routers say while the model runs
        loss = …
    loss = loss + routes.loss(real)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Linear, Mlp, SwiGLU
from . import AdapterError, Put
from .lora import Lora
from .lora_house import above_width, at_least
from .lora_targets import preset


@dataclass(frozen=True)
class Mole:
    """LoRA for attention, and for each MLP several of which every token takes one (LLaVA-MoLE).

    s = alpha / r. `balance`: weight of the balance loss, which `routed` computes. `dense`: all experts take part, each
    as much as the router says. `attention`: ordinary LoRA of the same rank beside the mixers' layers too, as published,
    where they have any. What is narrower than the rank is left out, as LoRA leaves it out.
    """

    experts: int = 3
    r: int = 32
    alpha: float = 64.0
    dropout: float = 0.05  # of what A reads
    balance: float = 0.01
    dense: bool = False
    attention: bool = True

    def __post_init__(self) -> None:
        at_least(2, experts=self.experts)
        at_least(1, r=self.r)
        if not 0 < self.alpha < inf:
            raise ValueError(f"alpha={self.alpha}: a number above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: from 0 to below 1")
        if not 0 <= self.balance < inf:
            raise ValueError(f"balance={self.balance}: a weight of 0 or more")

    def place(self, model: nn.Module) -> list[Put]:
        found = {path: form for path, m in model.named_modules() if (form := form_of(m)) is not None}
        if not found:
            raise AdapterError(f"{type(model).__name__}: no MLP here has layers that experts can stand beside; mole "
                               "knows gated ones (gate_proj, up_proj, down_proj), Mlp and SwiGLU")  # fmt: skip
        lora = Lora(self.r, self.alpha, self.dropout, targets=("mixers",))
        beside = self.attention and preset(model, "mixers", lora.offered(model))
        puts = lora.place(model) if beside else []
        reasons = {
            p: next((w for m in form.layers if (w := above_width(self.r, m))), None) for p, form in found.items()
        }
        if all(reasons.values()):
            path, why = next(iter(reasons.items()))
            raise AdapterError(f"{path}: {type(model.get_submodule(path)).__name__} {why}")
        for path, form in found.items():
            if reasons[path]:
                continue
            owner, _, name = path.rpartition(".")
            puts.append(Put(owner, name, MixtureMlp(form, self)))
        return puts


@dataclass(frozen=True)
class Form:
    """The layers of an MLP: down(act(gate(x)) * up(x)), or down(act(gate(x))) without an `up`."""

    gate: nn.Linear
    up: nn.Linear | None
    down: nn.Linear
    act: nn.Module

    @property
    def layers(self) -> list[nn.Linear]:
        return [self.gate, self.down] if self.up is None else [self.gate, self.up, self.down]


def form_of(m: nn.Module) -> Form | None:
    """How this module is an MLP; None where it is none, or one of another kind."""
    if isinstance(m, SwiGLU):
        return formed(m.fc1, m.fc3, m.fc2, m.act)
    if isinstance(m, Mlp):
        return formed(m.fc1, None, m.fc2, m.act)
    gate, up, down, act = (getattr(m, name, None) for name in ("gate_proj", "up_proj", "down_proj", "act_fn"))
    return None if up is None else formed(gate, up, down, act)


def formed(gate: Any, up: Any, down: Any, act: Any) -> Form | None:
    layers = [gate, down] if up is None else [gate, up, down]
    fits = all(isinstance(layer, nn.Linear) for layer in layers) and isinstance(act, nn.Module)
    return Form(gate, up, down, act) if fits else None


class Experts(nn.Module):
    """base(x) + s sum_e w_e B_e A_e x of x (… C) and weights (… experts); A Kaiming uniform, B zero to begin with."""

    def __init__(self, base: nn.Linear, experts: int, r: int, scale: float):
        super().__init__()
        self.base, self.scale = base, scale
        self.down = nn.ModuleList(Linear(base.in_features, r, bias=False) for _ in range(experts))
        self.up = nn.ModuleList(Linear(r, base.out_features, bias=False) for _ in range(experts))
        for down, up in zip(self.down, self.up, strict=True):
            nn.init.kaiming_uniform_(down.weight, a=5**0.5)  # type: ignore[arg-type]
            nn.init.zeros_(up.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor, low: Tensor, weights: Tensor) -> Tensor:
        """`low` is what the experts read: x, or x with dropout."""
        each = weights.to(x.dtype).unsqueeze(-2).unbind(-1)
        said = sum(up(down(low) * w) for down, up, w in zip(self.down, self.up, each, strict=True))
        return self.base(x) + self.scale * said  # type: ignore[no-any-return]


class MixtureMlp(nn.Module):
    """(… C) -> (… C): the MLP with experts beside each of its layers."""

    def __init__(self, form: Form, mole: Mole):
        super().__init__()

        def beside(layer: nn.Linear) -> Experts:
            return Experts(layer, mole.experts, mole.r, mole.alpha / mole.r)

        self.gate, self.down = beside(form.gate), beside(form.down)
        self.up = None if form.up is None else beside(form.up)
        self.act, self.dense, self.balance = form.act, mole.dense, mole.balance
        self.router = nn.Linear(form.gate.in_features, mole.experts)
        self.drop = nn.Dropout(mole.dropout) if mole.dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).float().softmax(-1)
        if not self.dense:
            weights = one_hot(weights)
        low = self.drop(x)
        y = self.act(self.gate(x, low, weights))
        if self.up is not None:
            y = y * self.up(x, low, weights)
        return self.down(y, self.drop(y), weights)  # type: ignore[no-any-return]


def one_hot(p: Tensor) -> Tensor:
    """1 for the largest of the last axis, the first of equals; without a gradient."""
    return F.one_hot(p.detach().argmax(-1), p.shape[-1]).to(p.dtype)


@dataclass
class Routes:
    """What the routers of a model said, in the order in which they ran."""

    weight: float
    logits: list[Tensor] = field(default_factory=list)  # each (B N experts)
    open: bool = True

    def loss(self, real: Tensor | None = None) -> Tensor:
        """The weight times the balance loss; `real` (B N) is False for padding. Raises ValueError where no router
        spoke."""
        self.open = False
        if not self.logits:
            raise ValueError("no router spoke: the model has no adapter `mole` that is on, or did not run")
        return self.weight * balance([each.float().softmax(-1) for each in self.logits], real)


def balance(p: Sequence[Tensor], real: Tensor | None = None) -> Tensor:
    """The mean over the batch of sum_e mean(p_e) mean(chosen_e): p, one (B N experts) a layer, and the one-hot of its
    largest, both over all real tokens (B N; None: all) of all layers together. 1 / experts where both are even. Raises
    ValueError where layers read different numbers of tokens."""
    counts = sorted({each.shape[1] for each in p} | (set() if real is None else {real.shape[1]}))
    if len(counts) > 1:
        raise ValueError(f"the experts of one layer read {counts[0]} tokens of a sequence, others {counts[-1]}, and "
                         "the balance loss compares the same ones: take off the plugin that lets tokens go, or learn "
                         "without experts")  # fmt: skip
    whole = torch.stack(list(p), 1)  # B L N E
    chosen = one_hot(whole)
    if real is None:
        return (whole.mean((1, 2)) * chosen.mean((1, 2))).sum(-1).mean()
    count = real[:, None, :, None].to(whole.dtype)
    n = len(p) * count.sum((1, 2)).clamp(min=1)
    return ((whole * count).sum((1, 2)) * (chosen * count).sum((1, 2)) / n.square()).sum(-1).mean()


@contextmanager
def routed(model: nn.Module) -> Iterator[Routes]:
    """What the routers of a model with `Mole` say for as long as the block lasts; of none where it has no such adapter.
    Blocks that run once more in the backward pass (checkpointing) add nothing once the loss was taken."""
    mixtures = [m for m in model.modules() if isinstance(m, MixtureMlp)]
    routes = Routes(mixtures[0].balance if mixtures else 0.0)

    def keep(_: nn.Module, __: Any, logits: Tensor) -> None:
        if routes.open:
            routes.logits.append(logits)

    hooks = [m.router.register_forward_hook(keep) for m in mixtures]
    try:
        yield routes
    finally:
        for hook in hooks:
            hook.remove()
