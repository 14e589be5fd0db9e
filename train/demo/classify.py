"""The classification tab: the likeliest classes, and a map of where the model looks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ...data.transforms import evaluation_transform
from ...vision.mixers.attention import SelfAttention
from ...vision.tokens import Tokens
from ..callbacks.sheet import shown
from ..patch_groups import groups_of
from ..saved.judge import Judge
from .limits import Clock, Limits, Refused, choice, whole
from .shelf import Shelf
from .uploads import Upload

MAPS = ("gradient", "attention", "none")
ROUNDS, NOISE = 6, 0.15  # SmoothGrad, arXiv 1706.03825
RAMP = np.array([[0.0, 0.0, 0.12], [0.35, 0.07, 0.43], [0.75, 0.2, 0.3], [0.98, 0.55, 0.1], [0.99, 1.0, 0.64]])


@dataclass(frozen=True)
class Answer:
    top: dict[str, float]  # the likeliest classes, in order
    seen: Image.Image  # the picture as the model saw it, under the map
    text: str


def classify(
    shelf: Shelf, limits: Limits, upload: Upload, model: Any, kind: Any = "gradient", top: Any = 5, *,
    clock: Clock | None = None,
) -> Answer:  # fmt: skip
    """`kind`: of MAPS. The gradient is of the likeliest class, as SmoothGrad takes it; attention is that of the class
    token in the last block, or what each patch gets on average where there is none. `clock`: of the request that this
    is a part of."""
    kind, top = choice(kind, "the map", MAPS), whole(top, "the number of classes", 1, 20)
    clock = clock or Clock(limits.seconds)
    with shelf.borrowed(model, clock, "classify") as judge, clock.watching(judge.model):
        x = prepared(judge, upload)
        with torch.inference_mode():
            chances = logits_of(judge, x).softmax(-1)[0].float().cpu()
        best = chances.topk(min(top, len(chances)))
        heat = None
        if kind == "gradient":
            heat = gradient_map(judge, x, int(best.indices[0]))
        elif kind == "attention":
            heat = attention_map(judge, x)
    names = unique([judge.classes[i] for i in best.indices.tolist()])
    seen = pixels_of(judge, x)
    drawn = np.round(255 * (seen if heat is None else laid_over(seen, heat))).astype(np.uint8)
    text = f"{names[0]}, {float(best.values[0]):.1%}"
    large = max(1, round(384 / max(drawn.shape[:2])))
    picture = Image.fromarray(drawn.repeat(large, 0).repeat(large, 1))
    return Answer(dict(zip(names, best.values.tolist(), strict=True)), picture, "; ".join((text, *upload.notes)))


def prepared(judge: Judge, upload: Upload) -> Tensor:
    """(1 3 H W) on the model's device."""
    return evaluation_transform(judge.preprocessing)(upload.picture)[None].to(judge.device)


def logits_of(judge: Judge, x: Tensor) -> Tensor:
    y = judge.model(x)
    return y[0] if isinstance(y, tuple) else y  # type: ignore[no-any-return]


def pixels_of(judge: Judge, x: Tensor) -> np.ndarray:
    """(H W 3) from 0 to 1."""
    return shown(x[0].cpu(), judge.preprocessing).numpy().clip(0, 1)  # type: ignore[no-any-return]


def unique(names: list[str]) -> list[str]:
    """ImageNet calls two classes `crane`."""
    return [name if names.index(name) == i else f"{name} ({i + 1})" for i, name in enumerate(names)]


# ---- maps


def gradient_map(judge: Judge, x: Tensor, index: int) -> np.ndarray:
    """(H W) from 0 to 1: |gradient of the class's logit| by pixel, over `ROUNDS` noisy copies, smoothed."""
    random = torch.Generator().manual_seed(0)
    spread, total = NOISE * float(x.max() - x.min()), torch.zeros_like(x)
    frozen = [p for p in judge.model.parameters() if p.requires_grad]
    for p in frozen:
        p.requires_grad_(False)
    try:
        for _ in range(ROUNDS):
            noisy = (x + spread * torch.randn(x.shape, generator=random).to(x)).requires_grad_()
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(logits_of(judge, noisy)[0, index], noisy)
            total += slope.float().abs()
    finally:
        for p in frozen:
            p.requires_grad_(True)
    heat = total.amax(1, keepdim=True)
    width = max(3, min(x.shape[2:]) // 20 | 1)
    for _ in range(3):  # nearly a Gaussian
        heat = F.avg_pool2d(heat, width, 1, width // 2, count_include_pad=False)
    return scaled(heat[0, 0].cpu().numpy())


def attention_map(judge: Judge, x: Tensor) -> np.ndarray:
    """(H W) from 0 to 1. Raises Refused for a model without global attention over a grid of patches."""
    layers = [m for m in judge.model.modules() if isinstance(m, SelfAttention)]
    kept: list[tuple[Tokens, Tensor]] = []

    def keep(mixer: SelfAttention, inputs: tuple[Tokens, ...]) -> None:
        t = inputs[0]
        q, k, _ = mixer.qkv(t.x).unflatten(-1, (3, mixer.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if t.size is not None:
            scores = scores + t.size.log()[:, None, None, :, 0]
        kept[:] = [(t, scores.softmax(-1).mean(1)[0])]  # N N

    if not layers:
        raise Refused("this model has no global attention to show: choose the gradient")
    hook = layers[-1].register_forward_pre_hook(keep)
    try:
        with torch.inference_mode():
            judge.model(x)
    finally:
        hook.remove()
    if not kept or (grid := kept[0][0].full or kept[0][0].grid) is None:
        raise Refused("the attention of this model's last block is over no grid of patches: choose the gradient")
    t, shares = kept[0]
    got = (shares[t.special[0]] if t.special else shares.mean(0)).float().cpu().numpy()
    if t.size is not None:  # of a token that stands for several patches, each has its part
        got = got / t.size[0, :, 0].float().cpu().numpy()
    groups = groups_of(t, None)
    if groups.size != grid[0] * grid[1]:
        raise Refused("the attention of this model's last block is over no grid of patches: choose the gradient")
    heat = torch.from_numpy(np.where(groups < 0, 0.0, got[groups])).view(1, 1, *grid)
    return scaled(F.interpolate(heat, x.shape[2:], mode="bilinear", align_corners=False)[0, 0].numpy())


def scaled(heat: np.ndarray) -> np.ndarray:
    low, high = float(heat.min()), float(np.quantile(heat, 0.995))
    return ((heat - low) / max(high - low, 1e-12)).clip(0, 1)  # type: ignore[no-any-return]


def laid_over(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The picture in grey under the map's colours, which are opaque where it is hot."""
    at = heat * (len(RAMP) - 1)
    low = np.floor(at).astype(int).clip(0, len(RAMP) - 2)
    ink = RAMP[low] + (at - low)[..., None] * (RAMP[low + 1] - RAMP[low])
    grey = 0.5 * pixels + 0.5 * pixels.mean(-1, keepdims=True)
    share = 0.75 * heat[..., None]
    return ((1 - share) * grey + share * ink).clip(0, 1)  # type: ignore[no-any-return]
