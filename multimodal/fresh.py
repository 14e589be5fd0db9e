"""Towers and language models with fresh weights, as a recipe spells them in a few words."""

from difflib import get_close_matches
from typing import Any

from ..vision.backbone import Backbone, Stage
from ..vision.mixers.attention import Global
from ..vision.model import Classifier
from ..vision.position import Position
from ..vision.stems.convolutions import ConvLayers, Layer
from .decoder import ANATOMIES, Decoder, decoder
from .tower import Tower


def small_tower(size: tuple[int, int], dim: int, depth: int, heads: int, ratio: float = 2.0) -> Tower:
    """A vision transformer behind three strided convolutions, which make a token of 8 x 8 pixels: it learns from few
    pictures. `size` (H, W) of those that its positions are made for; others have them resampled."""
    layers = (Layer(32, stride=2, act="relu"), Layer(64, stride=2, act="relu"), Layer(stride=2))
    stem = ConvLayers(layers, position=Position((-(-size[0] // 8), -(-size[1] // 8)), std=0.2))
    backbone = Backbone([Stage(Global(heads), dim, depth, ratio)], stem)
    return Tower(Classifier(backbone, num_classes=0, img_size=size))


def language(settings: dict[str, Any]) -> Decoder:
    """A decoder with fresh weights, of the settings of a config.json of transformers: `model_type`, hidden_size, … .
    Raises ValueError for a type that is not known and for a setting that the type does not have."""
    from transformers import AutoConfig

    kind = settings.get("model_type")
    if kind not in ANATOMIES:
        raise ValueError(f"model_type {kind!r}: there are {', '.join(ANATOMIES)}")
    known = AutoConfig.for_model(kind).to_dict()
    for name in settings:
        if name not in known:
            close = get_close_matches(name, known, 3)
            raise ValueError(
                f"{kind} has no setting {name!r}" + (f"; did you mean {', '.join(close)}?" if close else "")
            )
    return decoder(AutoConfig.for_model(**settings))
