"""SlimFit (https://arxiv.org/abs/2305.18513): before each step, what moves least is frozen."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

from ...vision.adapters.slimfit import candidates, distance, keep_less


class SlimFit(L.Callback):
    """Fine-tunes a model of which the share `frozen` of the weights (vision/adapters/slimfit.candidates) rests at each
    optimiser step: those with the smallest update distance, mean |(old - new) / old|, at the last step that they took
    part in. Before the first one the distances are random, and larger than any; biases and the classifier always learn.

    layers  put layers that keep less for the backward pass in place of the model's while it trains (`keep_less`): the
            forward pass is the same, gradients are those of a few bits. Without them they are exact and less is saved.
    seed    of the random distances

    The authors took 0.9 for CIFAR-10, 0.75 for CIFAR-100, 0.95 for ImageNet, three epochs of AdamW with a rate of 5e-5
    to 7.5e-5 that falls to 0. The optimiser keeps state for all that has ever moved. A run resumed goes on exactly.

    DeiT-S keeps 59 MB an image of 224 px for the backward pass when all of it learns, 39 with 0.9 at rest and 12 with
    the layers too; a step on one core takes 2.4, 1.8 and 2.0 s. Swin-T: 107, 67, 19 MB; 2.6, 1.6, 2.1 s.
    """

    def __init__(self, frozen: float = 0.9, layers: bool = True, seed: int = 0):
        if not 0 <= frozen < 1:
            raise ValueError(f"frozen={frozen}: the share of the weights that rests at a step, from 0 to below 1")
        self.frozen, self.layers, self.seed = frozen, layers, seed
        self.distances: dict[str, float] = {}
        self.weights: dict[str, nn.Parameter] = {}
        self.before: dict[str, Tensor] = {}  # weights as they are while a step is taken
        self.back: Callable[[], None] | None = None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        check_strategy(trainer)
        model = getattr(module, "model", module)
        self.weights = candidates(model)
        if len(self.weights) < 2:
            raise ValueError(f"SlimFit: {type(model).__name__} has {len(self.weights)} weights to choose from")
        if self.layers:
            self.back = keep_less(model)
        if not self.distances:
            first = torch.rand(len(self.weights), generator=torch.Generator().manual_seed(self.seed)) * 1e7
            self.distances = dict(zip(self.weights, first.tolist(), strict=True))
        elif other := self.distances.keys() ^ self.weights.keys():
            raise ValueError(
                f"SlimFit: the checkpoint and this model do not have the same weights to freeze; {min(other)} is in one"
            )
        self.choose()
        rank_zero_info(f"SlimFit: {int(self.frozen * len(self.weights))} of {len(self.weights)} weights rest at a step")

    def choose(self) -> None:
        """Freezes the share with the smallest distances; the rest learns."""
        slowest = sorted(self.weights, key=self.distances.__getitem__)[: int(self.frozen * len(self.weights))]
        for name, p in self.weights.items():
            p.requires_grad_(name not in slowest)

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        self.before = {name: p.detach().clone() for name, p in self.weights.items() if p.requires_grad}

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs, batch, batch_idx) -> None:
        if not self.before:
            return  # gradients are still being accumulated
        moved = torch.stack([distance(old, self.weights[name]) for name, old in self.before.items()]).tolist()
        if any(moved):  # a step that the loss scaler left out, or one of rate 0, tells nothing
            self.distances.update(zip(self.before, moved, strict=True))
            self.choose()
        self.before = {}

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.leave()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self.leave()

    def leave(self) -> None:
        """The model as it was: all of it learns, by its own layers."""
        for p in self.weights.values():
            p.requires_grad_(True)
        if self.back is not None:
            self.back()
        self.weights, self.before, self.back = {}, {}, None

    def state_dict(self) -> dict[str, Any]:
        return {"distances": dict(self.distances)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.distances = dict(state["distances"])


def check_strategy(trainer: L.Trainer) -> None:
    """Raises where processes would wait for the gradients of what rests."""
    strategy = trainer.strategy
    searches = isinstance(strategy, DDPStrategy) and strategy._ddp_kwargs.get("find_unused_parameters", False)
    if trainer.world_size > 1 and not searches:
        raise ValueError(
            f"SlimFit: {type(strategy).__name__} expects a gradient of every weight at every step; use "
            "--trainer.strategy ddp_find_unused_parameters_true"
        )
