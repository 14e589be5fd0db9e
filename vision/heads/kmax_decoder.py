"""kMaX-DeepLab's decoder, https://arxiv.org/abs/2207.04044: queries are centres of clusters, and each gets what the
pixels hold that are nearest to it.

Shapes: B images, C channels, N clusters, H W a map, K classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..residual import Add
from .kmax_pixel_decoder import EPS, MOMENTUM, Conv, per_head

VOID = 0.9  # the share of clusters that begins without a class


@dataclass(frozen=True)
class KMaxPrediction:
    """`classes` (B N K+1): logits, the last one for no class; `masks` (B N H W): logits on this layer's map; `pixels`
    (B 128 H W): features of length 1."""

    classes: Tensor
    masks: Tensor
    pixels: Tensor


class Predictor(nn.Module):
    """Of a map (B dim H W) and embeddings (B 256 N): mask logits are products of pixel features and mask kernels."""

    def __init__(self, dim: int, classes: int, embedding: int = 256, width: int = 128):
        super().__init__()
        self.spread, self.mix = Conv(dim, dim, 5, groups=dim, gelu=True), Conv(dim, 256, gelu=True)
        self.pixel = Conv(256, width, bias=True)
        self.kernel = Conv(embedding, width, flat=True)
        self.classify = nn.Conv1d(embedding, classes + 1, 1)
        self.norm = nn.BatchNorm2d(1, EPS, MOMENTUM)
        nn.init.trunc_normal_(self.classify.weight, std=0.01)
        nn.init.zeros_(self.classify.bias)  # type: ignore[arg-type]
        nn.init.constant_(self.norm.weight, 0.1)
        self.void = math.log(classes * VOID / (1 - VOID))

    def forward(self, m: Tensor, by_class: Tensor, by_mask: Tensor) -> KMaxPrediction:
        pixels = F.normalize(self.pixel(self.mix(self.spread(m))), dim=1)
        masks = self.kernel(by_mask).mT @ pixels.flatten(2)  # B N HW
        masks = self.norm(masks[:, None])[:, 0].unflatten(2, m.shape[-2:])
        chosen = self.classify(by_class).mT  # B N K+1
        return KMaxPrediction(torch.cat([chosen[..., :-1], chosen[..., -1:] + self.void], -1), masks, pixels)


class ClusterAttention(nn.Module):
    """gelu(norm(softmax(norm(q k')) v)) among the clusters; q k v (B 128+128+256 N) -> (B 256 N)."""

    def __init__(self, keys: int = 128, values: int = 256, heads: int = 8):
        super().__init__()
        self.sizes, self.heads = (keys, keys, values), heads
        self.norm_scores, self.norm_out = nn.BatchNorm2d(heads, EPS, MOMENTUM), nn.BatchNorm1d(values, EPS, MOMENTUM)

    def forward(self, qkv: Tensor) -> Tensor:
        q, k, v = (per_head(p, self.heads) for p in torch.split(qkv, list(self.sizes), 1))  # B h d N
        weight = self.norm_scores(q.mT @ k).softmax(-1)
        return F.gelu(self.norm_out((v @ weight.mT).flatten(1, 2)))


class KMaxLayer(nn.Module):
    """A step of k-means, attention among the clusters, an MLP: centres (B 256 N), map (B dim H W) -> centres."""

    def __init__(self, dim: int, classes: int, drop_path: float = 0.0, width: int = 256, hidden: int = 2048):
        super().__init__()
        self.query_in, self.pixel_in = Conv(width, width, gelu=True, flat=True), Conv(dim, width, gelu=True)
        self.qkv, self.pixel_value = Conv(width, 2 * width, flat=True), Conv(width, width)
        self.predictor = Predictor(width, classes)
        self.norm_update, self.update_out = nn.BatchNorm1d(width, EPS, MOMENTUM), Conv(width, width, flat=True)
        self.attention, self.attention_out = ClusterAttention(width // 2, width), Conv(width, width, flat=True)
        self.fc1, self.fc2 = Conv(width, hidden, gelu=True, flat=True), Conv(hidden, width, flat=True)
        self.add = Add(drop_path)
        for last in (self.update_out, self.attention_out, self.fc2):
            nn.init.zeros_(last.norm.weight)  # type: ignore[arg-type]

    def forward(self, centres: Tensor, m: Tensor) -> tuple[Tensor, KMaxPrediction]:
        pixels, query = self.pixel_in(F.gelu(m)), self.query_in(centres)
        prediction = self.predictor(pixels, query, query)
        update = gathered(prediction.masks, self.pixel_value(pixels)).to(self.norm_update.weight.dtype)
        centres = self.add(centres, self.update_out(self.norm_update(update)))
        centres = F.gelu(self.add(centres, self.attention_out(self.attention(self.qkv(query)))))
        return F.gelu(self.add(centres, self.fc2(self.fc1(centres)))), prediction


def gathered(masks: Tensor, values: Tensor) -> Tensor:
    """masks (B N H W), values (B C H W) -> (B C N): for each cluster the sum over the pixels whose highest logit is
    its, in float32 at least."""
    with torch.autocast(masks.device.type, enabled=False):
        best = masks.detach().argmax(1).flatten(1)  # B HW
        v = values.flatten(2)
        v = v.to(torch.promote_types(v.dtype, torch.float32))
        return v @ F.one_hot(best, masks.shape[1]).to(v.dtype)


class KMaxDecoder(nn.Module):
    """Maps from coarse to fine, the first of which (of `channels`) the layers read and the last of which (of `last`
    channels) the final masks are made on -> predictions of the layers and the final one."""

    def __init__(self, channels: Sequence[int], last: int, classes: int, queries: int = 128, repeats: int = 2,
                 drop_path: float = 0.0):  # fmt: skip
        super().__init__()
        self.repeats = repeats
        self.centres = nn.Parameter(nn.init.trunc_normal_(torch.empty(256, queries)))
        self.layers = nn.ModuleList(KMaxLayer(c, classes, drop_path) for c in channels for _ in range(repeats))
        self.class_embedding, self.mask_embedding = (Conv(256, 256, gelu=True, flat=True) for _ in range(2))
        self.predictor = Predictor(last, classes)

    def forward(self, maps: Sequence[Tensor]) -> list[KMaxPrediction]:
        centres, found = self.centres.expand(maps[0].shape[0], -1, -1), []
        for i, layer in enumerate(self.layers):
            centres, prediction = layer(centres, maps[i // self.repeats])
            found.append(prediction)
        last = self.predictor(maps[-1], self.class_embedding(centres), self.mask_embedding(centres))
        return [*found, last]
