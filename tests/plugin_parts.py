"""Every plugin with its settings, and every kind of backbone in a tiny form: two blocks a stage, 64 pixels.

A plugin is a line of METHODS, a kind of backbone a line of `patchloom.train.catalogue.compat.KINDS`.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn
from vision_tiny import tiny

from patchloom.train.catalogue.compat import KINDS, network
from patchloom.train.objectives.interpreters import PolicyGradient
from patchloom.train.objectives.sparsify import Sparsify
from patchloom.vision.model import Classifier
from patchloom.vision.plugins import Plugin, SeamError, attach, hosts_of
from patchloom.vision.plugins.clustering import Clustering
from patchloom.vision.plugins.dynamic_vit import DynamicViT
from patchloom.vision.plugins.evit import Evit
from patchloom.vision.plugins.ia_red import IaRed, interpreters_of
from patchloom.vision.plugins.merge import Merge
from patchloom.vision.plugins.patch_dropout import PatchDropout
from patchloom.vision.plugins.random_drop import RandomDrop
from patchloom.vision.plugins.scan_pruning import ScanPruning
from patchloom.vision.plugins.soft_merge import SoftMerge
from patchloom.vision.plugins.window_merge import WindowMerge
from patchloom.vision.plugins.words import strip
from patchloom.vision.plugins.zero_tprune import ZeroTPrune
from patchloom.vision.pyramid import Pyramid
from patchloom.vision.zoo import create_model


def total(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The mean square of the logits, or of all logits that a model gives in training."""
    return torch.stack([y.square().mean() for y in (out if isinstance(out, tuple) else (out,))]).sum()


def by_energy(model: nn.Module, x: Tensor) -> Tensor:
    loss = total(model(x))
    loss.backward()
    return loss.detach()


def by_reward(model: nn.Module, x: Tensor) -> Tensor:
    """Each interpreter in its turn, as the curriculum has it."""
    learner, losses = PolicyGradient(baseline=False), []
    for learner.group in range(len(interpreters_of(model))):
        losses.append(learner(model, [(x, torch.arange(len(x)))]))
        losses[-1].backward()
    return torch.stack(losses).sum().detach()


def by_teacher(model: nn.Module, x: Tensor) -> Tensor:
    strip(teacher := deepcopy(model))
    loss = Sparsify(teacher)(model, [(x, torch.arange(len(x)))])
    loss.backward()
    return loss.detach()


@dataclass(frozen=True)
class Method:
    """A plugin with settings that change nothing, and with some that do; how a step's gradients are made; whether it
    acts in training only."""

    neutral: Plugin
    acting: Plugin
    learn: Callable[[nn.Module, Tensor], Tensor] = by_energy
    in_training: bool = False


METHODS = {
    "tome": Method(Merge(0), Merge(2)),
    "evit": Method(Evit(1.0), Evit(0.6)),
    "zero_tprune": Method(ZeroTPrune(1.0), ZeroTPrune(0.6)),
    "ia_red": Method(IaRed(2, threshold=0), IaRed(2), by_reward),
    "dynamicvit": Method(DynamicViT(1.0), DynamicViT(0.6, (0,)), by_teacher),
    "clustering": Method(Clustering(scale=1.0), Clustering(scale=0.5)),
    "scan_pruning": Method(ScanPruning(1.0), ScanPruning(0.5)),
    "random": Method(RandomDrop(keep=1.0), RandomDrop(keep=0.6)),
    "patch_dropout": Method(PatchDropout(1.0), PatchDropout(0.5), in_training=True),
    "soft_merge": Method(SoftMerge(1000, hidden=8), SoftMerge(3, hidden=8)),
    "window_merge": Method(WindowMerge(share=0.0), WindowMerge(share=0.4, side=4)),
}


@lru_cache
def original(kind: str) -> Classifier:
    small = tiny(network(KINDS[kind]))
    torch.manual_seed(0)
    model = Classifier(small.backbone(3, 0.0), 7, small.head, img_size=small.size)
    with torch.no_grad():
        for p in model.parameters():  # so that nothing is hidden by a zero
            p.add_(torch.randn_like(p) * 0.05)
    return model.eval()


def made(kind: str) -> Classifier:
    return deepcopy(original(kind))


def pyramid(kind: str) -> Pyramid:
    torch.manual_seed(0)
    return Pyramid(tiny(network(KINDS[kind])).backbone(3, 0.0)).eval()


@torch.no_grad()
def disturbed(module: nn.Module) -> nn.Module:
    """With something added to each parameter, so that nothing is hidden by a zero."""
    for p in module.parameters():
        p.add_(torch.randn_like(p) * 0.1)
    return module


def image(size: tuple[int, int] = (64, 64), batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))


def refused(name: str, plugin: Plugin, words: str) -> None:
    """The plugin refuses the published variant with these words, and leaves it as it was."""
    with torch.device("meta"):
        model = create_model(name)
    with pytest.raises(SeamError, match=words):
        attach(model, plugin)
    assert all(getattr(h.block, seam) is None for h in hosts_of(model) for seam in h.block.seams)


def every_parameter_learns(model: nn.Module, x: Tensor) -> None:
    """Two training steps give each parameter a gradient."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        loss = by_energy(model, x)
        optimizer.step()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert torch.isfinite(loss)
