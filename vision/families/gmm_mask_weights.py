"""The authors of Gaussian mixture masks (https://arxiv.org/abs/2309.05375) published no weights."""

from ..published import Weights

WEIGHTS: dict[str, tuple[Weights, ...]] = {}
