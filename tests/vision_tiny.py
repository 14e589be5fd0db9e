"""Every variant in a tiny form: its own stem, blocks, mixers and head, a few channels wide and two blocks deep."""

import re
from dataclasses import fields, is_dataclass, replace

from patchloom.vision.block import EachBlock
from patchloom.vision.language import LanguageLayers
from patchloom.vision.mixers.each import Each
from patchloom.vision.mixers.factorized import Factorized
from patchloom.vision.model import Classifier
from patchloom.vision.network import Network
from patchloom.vision.pyramid import Pyramid
from patchloom.vision.stem import Patchify
from patchloom.vision.two_branches import TwoBranched
from patchloom.vision.zoo import VARIANTS

NO_EFFECT = {  # parameters of the original that no output depends on: their gradient is zero up to rounding
    r"poolformer_.*": r".*norm1\.bias",  # pooling minus identity cancels constants
    r"(cct|cvt)_.*": r"attention_pool\.score\.(bias|b)",  # so does a softmax
    r"cvt_(13|21|w24).*": r".*stages\.2\.blocks\.1\.mixer\.conv_q\..*",  # only the class token goes on: unconvolved
    r"resformer_.*": r".*blocks\.1\.mixer\.local\..*",  # of the last block only the class token goes on, which has none
    r"gmm_pit.*": r".*stages\.2\.blocks\.1\.mixer\.mask\..*",  # only the class token goes on, which no mask weighs
    # samples begin where no query tells them to be; a classifier sees the last of four maps
    r"vit_comer_.*": r".*(query_norm\..*|backbone\.(norms\.[012]|up|convolutions\.out\.0)\..*)",
    r"gmm_cait_slm.*": r".*mixer\.before",  # its matrix begins at 0, and so do all scores that this mixes
}


def tiny_mixer(mixer):
    if isinstance(mixer, Each):
        return Each(tuple(tiny_mixer(m) for m in ends(mixer.mixers)))
    names = {f.name for f in fields(mixer)} if is_dataclass(mixer) else set()
    if "mixer" in names:
        return replace(mixer, mixer=tiny_mixer(mixer.mixer))
    if "heads" in names and mixer.heads is not None:
        mixer = replace(mixer, heads=1 if isinstance(mixer, Factorized) else 2)  # its heads have sevenths of the parts
    if "width" in names and mixer.width is not None:
        mixer = replace(mixer, width=8)
    return mixer


def ends(parts):
    """The first and the last of a stage's blocks: what a tiny stage keeps of those that differ."""
    return tuple(parts) if len(parts) < 2 else (parts[0], parts[-1])


def tiny_stage(stage, index):
    scale = None if stage.scale is None else 0.1  # 1e-6 would hide what stands behind it
    ratio = ends(stage.ratio) if isinstance(stage.ratio, tuple) else stage.ratio
    block = EachBlock(ends(stage.block.blocks)) if isinstance(stage.block, EachBlock) else stage.block
    return replace(
        stage, dim=16 * (index + 1), depth=min(2, stage.depth), mixer=tiny_mixer(stage.mixer), scale=scale, ratio=ratio,
        block=block, drop_path=None if stage.drop_path is None else ends(stage.drop_path),
    )  # fmt: skip


def tiny(network: Network) -> Network:
    stages = tuple(tiny_stage(s, i) for i, s in enumerate(network.stages))
    dense = network.dense
    if dense is not None and dense.stages is not None:
        dense = replace(dense, stages=tuple(tiny_stage(s, i) for i, s in enumerate(dense.stages)))
    if isinstance(network, TwoBranched):  # gamma 0 would hide what stands behind it
        branch = replace(network.branch, fields=1.0, heads=2, values=0.5, width=8, gamma=0.1)
        return replace(network, stages=stages, branch=branch)
    if isinstance(network.head.neck, LanguageLayers):
        neck = replace(network.head.neck, width=16, heads=2, hidden=24)
        network = replace(network, head=replace(network.head, neck=neck))
    return replace(network, stages=stages, dense=dense)


def tiny_classifier(name: str, classes: int = 7, drop_path: float = 0.0) -> Classifier:
    network = tiny(VARIANTS[name])
    model = Classifier(network.backbone(3, drop_path), classes, network.head, img_size=network.size)
    model.family = network.family
    return model


def tiny_pyramid(name: str, dense: bool = False, out_indices: list[int] | None = None) -> Pyramid:
    network = tiny(VARIANTS[name])
    norm = network.dense.norm if dense and network.dense else None
    return Pyramid(network.backbone(3, 0.0, dense), out_indices, norm)


def distinct() -> list[str]:
    """One name for each different tiny network: variants that differ in width, depth or classes only are one here."""
    seen: dict[Network, str] = {}
    for name, network in VARIANTS.items():
        key = replace(tiny(network), classes=0, size=(0, 0), drop_path=0.0, unread=0, listed=True)
        if isinstance(key.stem, Patchify):  # nor does the size of the patches make another structure
            key = replace(key, stem=replace(key.stem, patch=1))
        seen.setdefault(key, name)
    return list(seen.values())


def without_effect(model: str, parameter: str) -> bool:
    return any(re.fullmatch(m, model) and re.fullmatch(p, parameter) for m, p in NO_EFFECT.items())
