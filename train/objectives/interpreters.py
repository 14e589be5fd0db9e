"""How the interpreters of IA-RED² learn (https://arxiv.org/abs/2106.12620): by the reward of what they drop."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...vision.plugins import noting
from ...vision.plugins.ia_red import interpreters_of
from .losses import Counts, CrossEntropy, Loss


class PolicyGradient(Loss):
    """The loss of what learns at present: the backbone by base(logits, target), or one interpreter by REINFORCE,

        -mean over images of (R(u) - R(u*)) log p(u).

    u are the tokens that the interpreter of `group` draws to stay, u* those that it would take in evaluation (left out
    without `baseline`); the other interpreters do as in evaluation. R is the share of the tokens that are gone in that
    group where the class is right, -penalty where it is wrong. The interpreter's gradient stays in it, and none comes
    to it from `base`. `callbacks.interpreters.InterpreterCurriculum` changes who `learns`, and in which `group`.
    """

    needs_model = True
    shared_mixing = True

    def __init__(self, base: nn.Module | None = None, penalty: float = 0.5, baseline: bool = True,
                 learns: Literal["interpreter", "backbone"] = "interpreter", group: int = 0):  # fmt: skip
        super().__init__()
        self.base = base if base is not None else CrossEntropy()
        if getattr(self.base, "labels", "one") != "one" or getattr(self.base, "needs_image", False):
            raise ValueError(
                f"{type(self.base).__name__} inside PolicyGradient: a loss of logits and one class is wanted"
            )
        if learns not in ("interpreter", "backbone") or group < 0:
            raise ValueError(f"learns={learns!r}, group={group}: interpreter or backbone, and a group counted from 0")
        if penalty < 0:
            raise ValueError(f"penalty={penalty}: what a wrong class costs, 0 or more")
        self.penalty, self.baseline = penalty, baseline
        self.learns, self.group = learns, group

    def setup(self, classes: int, counts: Callable[[], Counts], preprocessing: Mapping[str, Any]) -> None:
        if isinstance(self.base, Loss):
            self.base.setup(classes, counts, preprocessing)

    def forward(self, model: nn.Module, views: Sequence[tuple[Tensor, Tensor]], step: int = 0) -> Tensor:
        if len(views) > 1:
            raise ValueError(f"PolicyGradient takes one view of each image; data.augment gives {len(views)}")
        image, target = views[0]
        interpreters = interpreters_of(model)
        if self.group >= len(interpreters):
            raise ValueError(f"group={self.group}: the model has {len(interpreters)} interpreters, counted from 0")
        for interpreter in interpreters:
            interpreter.sampling = self.learns == "interpreter" and interpreter.group == self.group
        if self.learns == "backbone":
            return self.base(model(image), target)
        reward, drawn = self.rewarded(model, image, target)
        if self.baseline:
            with torch.no_grad():
                reward = reward - self.rewarded(model, image, target)[0]
        return -(reward * drawn).mean()

    def rewarded(self, model: nn.Module, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """R (B), and log p(u) (B) of what was drawn; without a gradient nothing is drawn, and that is 0."""
        with noting() as notes:
            logits = model(image)
        seen = dict(notes)
        policy = seen[f"policy{self.group}"]  # B N
        drawn = seen.get("log_probability", policy.new_zeros(len(policy)))
        right = logits.argmax(1) == (target if target.ndim == 1 else target.argmax(1))
        return torch.where(right, 1 - policy.mean(1), -self.penalty), drawn
