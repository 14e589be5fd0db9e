"""Our backbones in OpenMMLab's registry: an mmdetection or mmsegmentation config says `type='patchloom.swin_tiny'`.

    backbone=dict(type='patchloom.swin_tiny', out_indices=(0, 1, 2, 3), drop_path_rate=0.2,
                  init_cfg=dict(type='Pretrained', checkpoint='mask_rcnn_swin_tiny.pth', prefix='backbone.'))

Every name that `create_model` takes stands there, with the tag of its weights or without. mmengine finds the scope by
itself where this package is installed (it imports `patchloom.registry`); `custom_imports` is not needed.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.model.weight_init import PretrainedInit
from mmengine.registry import MODELS as ROOT
from mmengine.registry import Registry
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..vision.backbone import Backbone
from ..vision.download import open_file
from ..vision.pyramid import Pyramid
from ..vision.weights import load_published
from ..vision.zoo import create_model, load, resolve
from .openmmlab_names import as_published

SCOPE, OWN, THEIRS = "patchloom", "pyramid.", "backbone."


class Maps(BaseModule):
    """image (B C H W) -> a tuple of maps (B C_i H/s_i W/s_i), as detectors and segmenters of OpenMMLab take them; their
    `channels` and `strides` are what `in_channels` of a neck repeats.

    name: of the variant. out_indices: the stages (of a plain transformer: the blocks) whose maps are given, from 0.
    dense: in the authors' detection form, with a norm for each map; None: where there is one. pretrained: with the
    published weights. init_cfg: mmengine's; `Pretrained` takes local files by our rules, strictly. frozen_stages: the
    stem and that many stages (blocks) do not learn, -1: all learn. norm_eval: batch norms keep their statistics.
    with_cp: activations are computed anew in the backward pass. tokens, adapter, img_size, drop_path_rate: as
    `create_model` has them. Weights arrive in `init_weights`, which mmengine's runner calls, or in a checkpoint.

    A checkpoint may hold our names, or the authors', timm's or OpenMMLab's own, which are renamed as it is loaded, into
    the whole detector too (`load_from`). Raises ValueError for an option out of range, and where a file does not fit.
    """

    def __init__(
        self, name: str, *, out_indices: Sequence[int] | int | None = None, pretrained: bool = False,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None, frozen_stages: int = -1, norm_eval: bool = False,
        with_cp: bool = False, drop_path_rate: float | None = None, in_channels: int = 3,
        img_size: int | tuple[int, int] | None = None, dense: bool | None = None, tokens: Any = None,
        adapter: Any = None,
    ):  # fmt: skip
        super().__init__(init_cfg)
        self.found = resolve(name)
        if pretrained and any(map(is_file, self.cfgs())):
            raise ValueError(f"{name}: pretrained=True and init_cfg={init_cfg} exclude each other")
        if pretrained and self.found.default is None:
            raise ValueError(f"nobody published weights of {name}; leave pretrained out")
        model = create_model(
            name, features_only=True, out_indices=out_indices, drop_path_rate=drop_path_rate, in_chans=in_channels,
            img_size=img_size, tokens=tokens, adapter=adapter,
            dense=self.found.network.dense is not None if dense is None else dense,
        )  # fmt: skip
        assert isinstance(model, Pyramid)
        self.pyramid, self.pretrained, self.norm_eval = model, pretrained, norm_eval
        self.channels, self.strides = model.channels, model.strides
        self.still = frozen(model.backbone, frozen_stages, name)
        for part in self.still:
            part.requires_grad_(False)
        model.set_grad_checkpointing(with_cp)
        self.train()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.pyramid(image))

    def train(self, mode: bool = True) -> "Maps":
        super().train(mode)
        for part in self.still:
            part.eval()
        for m in self.modules() if self.norm_eval else ():
            if isinstance(m, _BatchNorm):
                m.eval()
        return self

    def cfgs(self) -> list[dict[str, Any]]:
        given = self.init_cfg or []
        return [given] if isinstance(given, Mapping) else list(given)

    def init_weights(self) -> None:
        """mmengine's initialisation, then the weights that were asked for."""
        begun, given, every = self.is_init, self.init_cfg, self.cfgs()
        self.init_cfg = [c for c in every if not is_file(c)] or None
        super().init_weights()  # and a warning where it ran before
        self.init_cfg = given
        if begun:
            return
        if self.pretrained:
            load(self.pyramid, self.found, True, None)
        for cfg in filter(is_file, every):
            self.take(opened(cfg["checkpoint"]), cfg["checkpoint"], cfg.get("prefix"))

    def take(self, state: Mapping[str, Tensor], source: str, prefix: str | None = None) -> None:
        """Fills the pyramid with the tensors behind `prefix`, under our names or anybody's, strictly. No prefix is
        "backbone." where a whole detector is given."""
        if prefix is None:
            ours = self.pyramid.state_dict().keys() & state.keys()
            prefix = THEIRS if not ours and any(n.startswith(THEIRS) for n in state) else ""
        elif prefix and not prefix.endswith("."):
            prefix += "."
        inside = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
        if not inside:
            known = ", ".join(list(state)[:3]) or "none"
            raise ValueError(f"{source}: no tensor's name begins with {prefix!r}; the first are {known}")
        if all(n.startswith(OWN) for n in inside):
            inside = {n.removeprefix(OWN): v for n, v in inside.items()}
        report = load_published(self.pyramid, as_published(inside))
        print_log(f"{self.found.name} from {source}: {report}", logger="current")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        inside = {n.removeprefix(prefix): v for n, v in state_dict.items() if n.startswith(prefix)}
        if any(not n.startswith(OWN) for n in inside):
            self.take(inside, "a checkpoint")
            for n in inside:
                del state_dict[prefix + n]
            state_dict |= {f"{prefix}{OWN}{n}": v for n, v in self.pyramid.state_dict().items()}
        super()._load_from_state_dict(state_dict, prefix, *rest)


def is_file(cfg: Mapping[str, Any]) -> bool:
    """Whether an `init_cfg` names a file of weights."""
    return cfg["type"] in ("Pretrained", PretrainedInit)


def opened(checkpoint: str) -> dict[str, Tensor]:
    """The tensors of a file, or of what lies at an address of mmengine's; nothing in them is run."""
    if "://" not in checkpoint:
        return open_file(Path(checkpoint))
    held = CheckpointLoader.load_checkpoint(checkpoint, "cpu")  # by torch.load, which takes tensors only
    return next((held[key] for key in ("state_dict", "model") if key in held), held)


def frozen(backbone: nn.Module, count: int, name: str) -> list[nn.Module]:
    """The stem and the first `count` stages, or blocks where there is one resolution; none for -1."""
    if count == -1:
        return []
    assert isinstance(backbone, Backbone)
    plain = len(set(backbone.strides)) == 1
    if len(backbone.strides) != len(backbone.stages):
        raise ValueError(f"frozen_stages {count}: {name} does not make its maps stage by stage; give -1")
    parts = [b for s in backbone.stages for b in s.blocks] if plain else list(backbone.stages)  # type: ignore[union-attr]
    if not 0 <= count <= len(parts):
        raise ValueError(
            f"frozen_stages {count}: {name} has {len(parts)} {'blocks' if plain else 'stages'}; -1 for none"
        )
    return [backbone.stem, *parts[:count]]


class Zoo(Registry):
    """Finds every name of `create_model`, without a list of them."""

    def get(self, key: str) -> Any:
        name = key.removeprefix(SCOPE + ".")
        try:
            resolve(name)
        except ValueError as error:
            if (other := super().get(key)) is None:  # nor is it what mmengine knows by that name
                raise error from None
            return other
        return partial(Maps, name)


MODELS = Zoo("model", parent=ROOT, scope=SCOPE)
