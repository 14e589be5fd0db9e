"""The loss of predictors that keep some of an image's patches (DynamicViT, https://arxiv.org/abs/2106.02034)."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...vision.model import Classifier
from ...vision.plugins import noting
from ...vision.plugins.dynamic_vit import Decide
from .losses import CrossEntropy, Taught


class Sparsify(Taught):
    """base(logits, target) + ratio / K sum_k mean_b (kept_kb - share_k)² + distil (KL + T), for a model with the plugin
    `dynamicvit` at K places.

    kept_kb is the share of image b's patches that the k-th predictor keeps, KL = sum p log(p / q) of the teacher's
    probabilities p and the model's q, mean over the batch, and T the mean square between the last tokens of both (what
    `features` gives), of those that were kept in a plain backbone, of all in a hierarchical one. `teacher` is the same
    network without the plugin, with the weights that the model began with. The paper's `ratio`: 2, 5 for DeiT-B, 10 for
    hierarchical backbones.
    """

    needs_model, shared_mixing = True, True

    def __init__(self, teacher: nn.Module, base: nn.Module | None = None, ratio: float = 2.0, distil: float = 0.5):
        super().__init__(teacher, base if base is not None else CrossEntropy(smoothing=0.1))
        self.ratio, self.distil = ratio, distil

    def forward(self, model: Classifier, views: Sequence[tuple[Tensor, Tensor]], step: int = 0) -> Tensor:
        if len(views) != 1:
            raise ValueError(f"Sparsify takes one view of an image, and the batch has {len(views)} of each: no Views")
        image, target = views[0]
        with noting() as notes:
            t = model.features(image)
        logits = model.logits(t)
        shares = [m.share for m in model.modules() if isinstance(m, Decide)]
        decisions = [value for name, value in notes if name == "decision"]
        if not shares or len(shares) != len(decisions):
            raise ValueError(
                f"Sparsify got {len(decisions)} decisions of {len(shares)} predictors: train a model that has the "
                "plugin, create_model(…, tokens='dynamicvit')"
            )
        off = [(d.mean(1) - share).square().mean() for d, share in zip(decisions, shares, strict=True)]
        with torch.no_grad():
            told = self.teacher.features(self.shown(image))
            judged = self.teacher.logits(told)
        apart = F.kl_div(logits.log_softmax(1), judged.log_softmax(1), reduction="batchmean", log_target=True)
        if told.patches().shape != t.patches().shape:
            raise ValueError(
                f"the teacher's last tokens are {tuple(told.patches().shape)}, the model's {tuple(t.patches().shape)}: "
                "the teacher is the same network"
            )
        square = (t.patches() - told.patches()).square().mean(2)  # B N
        if t.policy is None:
            gap = square.mean()
        else:
            kept = replace(t, x=t.policy).patches()[..., 0].detach()
            gap = (square * kept).sum() / kept.sum().clamp(min=1)
        return self.base(logits, target) + self.ratio * torch.stack(off).mean() + self.distil * (apart + gap)
