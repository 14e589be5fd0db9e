"""DAMRO, https://arxiv.org/abs/2410.04514: what a picture's outlier tokens alone would make the model say counts less.

Of the paper its abstract's facts are at hand: decoders look at the same few tokens of the background as the tower's
class token does, and hallucinate for it; those are found by the class token's attention, and their influence is taken
out while words are made. This is a reading of it: the prompt is read twice, once with image tokens of which only the
outliers stay, and words are chosen by contrast (https://arxiv.org/abs/2210.15097),

    (1 + alpha) log p(word | picture) - alpha log p(word | outliers), of words with p >= beta max p
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...vision.plugins import SeamError, hosts_of, note, noting
from ...vision.plugins.evit import class_attention
from ...vision.tokens import Probe, Tokens, patch_positions
from ..connectors import Project
from ..splice import Sample
from ..stream import Stream
from ..tower import Seen, Tower
from ..vlm import VisionLanguage, apart, grouped, images_of
from . import Placed

SHOWN = "class_attention"


@dataclass(frozen=True)
class Whole:
    """A pipeline that plugins may be put into."""

    block: VisionLanguage
    name: str = "the pipeline"

    def refuse(self, why: str, module: nn.Module) -> SeamError:
        return SeamError(f"{self.name}: {type(module).__name__} {why}")


@dataclass(frozen=True)
class Damro:
    """Contrast with the `top` image tokens of each picture that the tower's class token attends to most (mean over
    heads, in the last block that the tower is read behind). `alpha`: how strongly; 0 is none at all. `beta`: how likely
    a word must be by the picture, as a share of the likeliest."""

    into: ClassVar[str] = "pipeline"
    top: int = 10
    alpha: float = 0.5
    beta: float = 0.1

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"top={self.top}: at least one token of a picture is an outlier")
        if self.alpha < 0:
            raise ValueError(f"alpha={self.alpha}: 0, which is no contrast, or more")
        if not 0 < self.beta <= 1:
            raise ValueError(f"beta={self.beta}: a share above 0 and up to 1")

    def hosts(self, model: nn.Module) -> list[Whole]:
        found = [m for m in model.modules() if isinstance(m, VisionLanguage)]
        if len(found) != 1 or found[0] is not model:
            raise SeamError(f"{type(model).__name__} is no VisionLanguage, whose words DAMRO contrasts")
        return [Whole(found[0])]

    def place(self, hosts: Sequence[Whole]) -> list[Placed]:
        (whole,) = hosts
        vlm = whole.block
        if not isinstance(vlm.tower, Tower):
            raise whole.refuse("gives the decoder no token for each patch, of which DAMRO picks some", vlm.tower)
        if not isinstance(vlm.spec, Project):
            raise whole.refuse("makes other tokens than one of each patch, of which DAMRO picks some", vlm.connector)
        at = vlm.tower.taps[-1]
        host = next((h for h in hosts_of(vlm.tower) if (h.stage, h.index) == at), None)
        if host is None:
            raise whole.refuse("has no block behind which it is read, at which DAMRO looks", vlm.tower)
        if missing := [o for o in ("queries", "keys") if o not in host.mixer.offers]:
            raise host.refuse(f"shows no {' and no '.join(missing)}, which this plugin goes by")
        if not host.special:
            raise host.refuse("has no class token among its tokens, by whose attention DAMRO goes")
        if self.alpha == 0:
            return []
        seam = f"tower.{host.name}.after_mixer"
        return [Placed(whole, "against", Contrast(self)), Placed(whole, seam, Attended())]


class Attended(nn.Module):
    """(Tokens, probe) -> the same Tokens; shows how much the class token attends to each patch (B H*W), a patch that
    was merged by its token, one that was dropped by 0."""

    def forward(self, t: Tokens, probe: Probe) -> Tokens:
        if t.spread is not None:
            raise ValueError("DAMRO goes by tokens that patches are in; here patches are sums of tokens (soft_merge, "
                             "clustering)")  # fmt: skip
        source = patch_positions(t) if t.source is None else t.source
        note(SHOWN, class_attention(t, probe).gather(1, source.clamp(min=0)).where(source >= 0, 0))
        return t


class Contrast(nn.Module):
    """Logits given all of the picture, and given its outliers, both (B vocabulary) -> logits."""

    def __init__(self, settings: Damro):
        super().__init__()
        self.top, self.alpha, self.beta = settings.top, settings.alpha, settings.beta

    def forward(self, whole: Tensor, outliers: Tensor) -> Tensor:
        own, other = whole.float().log_softmax(-1), outliers.float().log_softmax(-1)
        unlikely = own < own.amax(-1, keepdim=True) + math.log(self.beta)
        return ((1 + self.alpha) * own - self.alpha * other).masked_fill(unlikely, -torch.inf)

    def prompts(self, vlm: VisionLanguage, samples: Sequence[Sample]) -> tuple[Stream, Stream]:
        """What is read: the prompts, and the prompts with outliers alone. All keep their position ids."""
        groups, features, chosen = grouped(vlm.tower.in_chans, images_of(samples)), [], []
        for group in groups:
            with noting() as notes:
                seen = vlm.tower(group.image)
            features.append(vlm.connector(seen))
            chosen.append(of_tokens(dict(notes)[SHOWN], seen)[..., None])
        stream = vlm.spliced(samples, apart(groups, features), side="left")
        stays = stream.text_or_last()
        if groups:
            outliers = torch.cat([outlying(score[:, 0], self.top) for score in apart(groups, chosen)])
            stays = stays | torch.zeros_like(stays).masked_scatter(stream.image > 0, outliers)
        return stream, stream.where(stays)


def of_tokens(score: Tensor, seen: Seen) -> Tensor:
    """(B n): the scores (B H*W) of the tokens that the connector gets; special ones are no outliers."""
    score = torch.cat([score.new_zeros(len(score), seen.special), score], 1)
    if score.shape[1] != seen.x.shape[1]:
        raise ValueError(f"DAMRO goes by {score.shape[1]} patches, and the tower hands on {seen.x.shape[1]} tokens: "
                         "fewer=False gives each patch its own")  # fmt: skip
    return score


def outlying(score: Tensor, top: int) -> Tensor:
    """(n): True for the `top` highest of the scores (n)."""
    best = score.topk(min(top, len(score))).indices
    return torch.zeros_like(score, dtype=torch.bool).scatter(0, best, True)
