"""Every variant by name: `create_model`, `list_models`, and what a model says of itself."""

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from . import adapters
from .adapters import adapt
from .description import adapter_within, describe, rebuild
from .families import FAMILIES
from .generation import DENOISERS
from .generation.create import create_denoiser, is_denoiser
from .generation.create import macs as macs_of_denoiser
from .generation.denoiser import Denoiser, Variant
from .model import Classifier, Head, pool_size
from .network import Network
from .plugins import attach
from .plugins.words import from_words
from .published import Weights
from .pyramid import Pyramid
from .weights import load_published, published

MODULES = {  # timm's modules -> our families
    "vision_transformer": "vit",
    "deit": "vit",
    "swin_transformer": "swin",
    "tiny_vit": "tinyvit",
    "efficientformer_v2": "efficientformer",
}
VARIANTS: dict[str, Network] = {name: n for family in FAMILIES.values() for name, n in family.VARIANTS.items()}
ALIASES: dict[str, str] = {a: n for f in FAMILIES.values() for a, n in getattr(f, "ALIASES", {}).items()}  # short names


@dataclass(frozen=True)
class Resolved:
    """What a name stands for."""

    name: str
    network: Network
    weights: tuple[Weights, ...]
    tag: str | None = None
    dense: bool = False
    size: int | None = None

    @property
    def default(self) -> Weights | None:
        """The weights of the tag, or the variant's first."""
        if self.tag is None:
            return next((w for w in self.weights if w.form == "classifier"), None)
        return next(w for w in self.weights if w.tag == self.tag)


def resolve(name: str) -> Resolved:
    """`variant`, `variant.tag`; a variant with `_dense`, `_feat`, `_oblong` or an image size behind it names its
    detection form, the same on a map that is not square, or the same at that size; both may stand there."""
    whole, _, tag = name.partition(".")
    base, dense, size = ALIASES.get(whole, whole), False, None
    while base not in VARIANTS and (m := re.fullmatch(r"(.+)_(dense|feat|oblong|\d+)", base)):
        base, dense = ALIASES.get(m[1], m[1]), dense or m[2] in ("dense", "feat")
        size = int(m[2]) if m[2].isdigit() else size
    if base not in VARIANTS:
        base = whole
        raise ValueError(f"no model {name!r}; {near(base, VARIANTS)}")
    weights = published(base)
    if tag and tag not in {w.tag for w in weights}:
        raise ValueError(f"no weights {tag!r} of {base}; there are {', '.join(w.tag for w in weights) or 'none'}")
    return Resolved(base, VARIANTS[base], weights, tag or None, dense, size)


def near(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 3, 0.5)
    return f"did you mean {' or '.join(close)}?" if close else "`patchloom models` lists them"


def create_model(
    name: str,
    pretrained: bool = False,
    num_classes: int | None = None,
    *,
    features_only: bool = False,
    dense: bool = False,
    out_indices: Sequence[int] | int | None = None,
    img_size: int | tuple[int, int] | None = None,
    in_chans: int | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float | None = None,
    global_pool: str | None = None,
    checkpoint_path: str | Path | None = None,
    tokens: Any = None,
    adapter: Any = None,
    feature_cls: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> nn.Module:
    """A published network by name, with timm's meanings: `swin_tiny`, `swin_tiny.ms_in1k`, `timm:resnet50`.

    name: a variant, a variant and the tag of its weights, or `timm:` and any model of timm's; or a denoiser, whose
        `options` are arguments of the network and `img_size` the size of its latents (generation/create.py).
    pretrained: load the published weights (downloaded into the cache once); another `num_classes` makes a fresh head.
    num_classes: None means the published number, 0 no head.
    features_only: give the maps (B C H/s W/s) after each stage (`out_indices` chooses; the last n if it is a number)
        instead of logits; `dense`: in the authors' detection form, where it differs.
    img_size: what `default_cfg` says, and the grid that a learned position embedding is made for. Any model takes any
        size all the same.
    in_chans: channels of the image, None for 3 (a denoiser's as published).
    drop_rate: dropout before the head. drop_path_rate: stochastic depth of the last
        block. global_pool: "" leaves the features unpooled. checkpoint_path: a local file of weights, loaded by
        the same rules. tokens, adapter: a plugin or adapter, as a dataclass or spelt out (`tome:r=8`). device, dtype:
        where and as what the weights are made.
    Raises ValueError for an unknown name (with near ones) or option, and where weights do not fit; TypeError for an
    argument that does not exist.
    """
    if is_denoiser(name):
        refuse_for_denoiser(
            name, features_only=features_only, dense=dense, out_indices=out_indices, drop_rate=drop_rate,
            drop_path_rate=drop_path_rate, global_pool=global_pool, feature_cls=feature_cls,
        )  # fmt: skip
        return create_denoiser(name, pretrained=pretrained, checkpoint_path=checkpoint_path, num_classes=num_classes,
                               in_chans=in_chans, img_size=img_size, tokens=tokens, adapter=adapter, device=device,
                               dtype=dtype, **options)  # fmt: skip
    in_chans = 3 if in_chans is None else in_chans
    if name.startswith("timm:"):
        given = {
            "num_classes": num_classes, "out_indices": out_indices, "img_size": img_size, "global_pool": global_pool,
            "drop_path_rate": drop_path_rate, "checkpoint_path": checkpoint_path, "device": device, "dtype": dtype,
            "feature_cls": feature_cls,
        }  # fmt: skip
        refuse_for_timm(name, dense=dense, tokens=tokens, adapter=adapter)
        from .foreign import create_timm

        options |= {k: v for k, v in given.items() if v is not None}
        if features_only:
            options["features_only"] = True
        return create_timm(name.removeprefix("timm:"), pretrained, in_chans=in_chans, drop_rate=drop_rate, **options)
    if options:
        raise TypeError(f"create_model({name!r}) got an unexpected argument {next(iter(options))!r}")
    found = resolve(name)
    if in_chans < 1:
        raise ValueError(f"in_chans {in_chans}: an image has at least 1 channel")
    if drop_path_rate is not None and not 0 <= drop_path_rate <= 1:
        raise ValueError(f"drop_path_rate {drop_path_rate} is no probability")
    if feature_cls not in (None, "getter"):
        raise ValueError(f"feature_cls {feature_cls!r}: features are taken by one way only; leave it out")
    arguments: dict[str, Any] = {
        "num_classes": num_classes, "img_size": img_size, "in_chans": in_chans, "drop_rate": drop_rate,
        "drop_path_rate": drop_path_rate, "global_pool": global_pool,
    }  # fmt: skip
    features = features_only or found.dense
    if (out_indices is not None or dense) and not features:
        raise ValueError("out_indices and dense choose feature maps: ask for them with features_only=True")
    with torch.device(device) if device is not None else torch.device(torch.get_default_device()):
        model: Classifier | Pyramid
        if features:
            model = build_pyramid(found, **arguments, out_indices=out_indices, dense=dense or found.dense)
        else:
            model = build_classifier(found, **arguments)
    if dtype is not None:
        model.to(dtype)
    model.arguments = {k: v for k, v in arguments.items() if v is not None}
    if tokens is not None:
        attach(model, from_words(tokens))
    load(model, found, pretrained, checkpoint_path)
    if adapter is not None:
        adapt(model, adapters.from_words(adapter))
    return model


def refuse_for_timm(name: str, **arguments: Any) -> None:
    for key, value in arguments.items():
        if value:
            raise ValueError(f"{key}={value!r} is for models of this suite; {name} comes from timm as it is")


def refuse_for_denoiser(name: str, **arguments: Any) -> None:
    for key, value in arguments.items():
        if value:
            raise ValueError(f"{key}={value!r} is for classifiers and their features; {name} is a denoiser")


def plan(found: Resolved, img_size: int | tuple[int, int] | None) -> Network:
    if img_size is None:
        img_size = found.size
    if img_size is None:
        return found.network
    size = (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])
    if min(size) < 1:
        raise ValueError(f"img_size {img_size}: sides of at least 1 pixel are wanted")
    return found.network.sized(size)


def build_classifier(found: Resolved, num_classes: int | None, img_size: Any, in_chans: int, drop_rate: float,
                     drop_path_rate: float | None, global_pool: str | None) -> Classifier:  # fmt: skip
    network, weights = plan(found, img_size), found.default
    backbone = network.backbone(in_chans, drop_path_rate or 0.0)
    classes = network.classes if num_classes is None else num_classes
    if num_classes is None and found.tag is not None and weights is not None and weights.form == "classifier":
        classes = weights.num_classes
    model = Classifier(
        backbone, classes, network.head, drop_rate=drop_rate, global_pool=global_pool, img_size=network.size
    )
    finish(model, found, network)
    return model


def build_pyramid(found: Resolved, num_classes: int | None, img_size: Any, in_chans: int, drop_rate: float,
                  drop_path_rate: float | None, global_pool: str | None, out_indices: Any,
                  dense: bool) -> Pyramid:  # fmt: skip
    if num_classes or global_pool or drop_rate:
        raise ValueError("features_only=True gives maps: num_classes, global_pool and drop_rate belong to a classifier")
    network = plan(found, img_size)
    if dense and network.dense is None:
        raise ValueError(f"{found.name} has no detection form of its own; leave dense out")
    backbone = network.backbone(in_chans, drop_path_rate or 0.0, dense)
    model = Pyramid(backbone, out_indices, network.dense.norm if dense and network.dense is not None else None)
    model.dense = dense
    finish(model, found, network)
    return model


def finish(model: Classifier | Pyramid, found: Resolved, network: Network) -> None:
    """Its name, the initialisation of its family, and the preprocessing that its weights name."""
    model.name, model.family = found.name + (f".{found.tag}" if found.tag else ""), network.family
    if network.initialise is not None:
        network.initialise(model)
    weights = found.default
    cfg = {
        **model.default_cfg,
        "input_size": (model.in_chans, *network.size),
        "architecture": found.name,
        "num_classes": network.classes,
    }
    if weights is not None:
        keys = ("url", "tag", "license", "mean", "std", "interpolation", "crop_pct", "crop_mode")
        cfg |= {key: getattr(weights, key) for key in keys}
    if isinstance(model, Classifier):
        cfg |= {"num_classes": model.num_classes, "pool_size": pool_size(model.backbone, network.size)}
    model.default_cfg = cfg


def load(model: Classifier | Pyramid, found: Resolved, pretrained: bool, path: str | Path | None) -> None:
    if pretrained and path is not None:
        raise ValueError(f"pretrained=True and checkpoint_path={str(path)!r} exclude each other")
    if not pretrained and path is None:
        return
    from .download import open_file, open_weights

    weights = found.default
    if path is not None:
        state, other = open_file(Path(path)), False
    elif weights is None:
        raise ValueError(f"nobody published weights of {found.name}; `patchloom weights list` shows what there is")
    else:
        state = open_weights(weights)
        other = isinstance(model, Classifier) and model.num_classes != weights.num_classes
    load_published(model, adapted(state, model), fresh_head=other)


def adapted(state: Mapping[str, torch.Tensor], model: Classifier | Pyramid) -> dict[str, torch.Tensor]:
    """The first convolution for another number of image channels: summed for one, repeated and rescaled for others, as
    timm does."""
    n = model.in_chans
    first = next((k for k, v in state.items() if v.ndim == 4 and v.shape[1] == 3 and v.shape[-1] > 1), None)
    if n == 3 or first is None:
        return dict(state)
    w = state[first].float()
    w = w.sum(1, keepdim=True) if n == 1 else w.repeat(1, -(-n // 3), 1, 1)[:, :n] * (3 / n)
    return {**state, first: w.to(state[first].dtype)}


def natural(name: str) -> list[Any]:
    return [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)]


def strings(value: str | Iterable[str]) -> list[str]:
    return [value] if isinstance(value, str) and value else list(value)


def list_models(
    filter: str | Iterable[str] = "", pretrained: bool = False, exclude_filters: str | Iterable[str] = "",
    module: str | Iterable[str] = "", include_tags: bool | None = None, name_matches_cfg: bool = False,
    kind: Literal["classifier", "denoiser"] = "classifier",
) -> list[str]:  # fmt: skip
    """Names of the published variants, sorted naturally: those that fit one of the shell patterns in `filter` and none
    of `exclude_filters`. `module`: of these families only, by our names or timm's. `pretrained`: only those with
    weights. `include_tags`: one row a file of weights (what `pretrained` implies, as in timm). `name_matches_cfg` is
    what all ours do. `kind`: classifiers, or denoisers."""
    if include_tags is None:
        include_tags = pretrained
    wanted, unwanted = strings(filter), strings(exclude_filters)
    families = [MODULES.get(m, m) for m in strings(module)]
    names: list[str] = []
    if kind not in ("classifier", "denoiser"):
        raise ValueError(f"kind {kind!r}: there are classifiers and denoisers")
    table: Mapping[str, Network | Variant] = VARIANTS if kind == "classifier" else DENOISERS
    for name, network in table.items():
        tags = [w.tag for w in published(name) if w.form == kind]
        if not network.listed or (families and network.family not in families) or (pretrained and not tags):
            continue
        names += [f"{name}.{t}" for t in tags] or [name] if include_tags else [name]

    def fits(name: str, patterns: list[str]) -> bool:
        bare = name.partition(".")[0]  # a pattern without a tag is for all of a name's tags
        return any(fnmatch.fnmatch(name if "." in p else bare, p) for p in patterns)

    kept = [n for n in names if (not wanted or fits(n, wanted)) and not fits(n, unwanted)]
    return sorted(kept, key=natural)


def get_pretrained_cfg_value(name: str, key: str) -> Any:
    """One value of `default_cfg`, without building the model's weights; None where it has none."""
    return cast(Classifier, create_model(name, device="meta")).default_cfg.get(key)


@dataclass(frozen=True)
class ModelInfo:
    """parameters: as published, frozen tensors included; macs: multiply-accumulates for one image of `input`."""

    name: str
    family: str
    parameters: int
    trainable: int
    macs: int
    input: tuple[int, int, int]
    weights: list[str]


def model_info(name: str) -> ModelInfo:
    """What a name stands for, without allocating it."""
    from .count import macs, parameters

    model = create_model(name, device="meta").eval()
    if isinstance(model, Denoiser):
        total, trainable = parameters(model)
        tags = [w.tag for w in published(name.partition(".")[0])]
        return ModelInfo(name, str(model.family), total, trainable, macs_of_denoiser(model),
                         (model.in_channels, *model.size), tags)  # fmt: skip
    channels, height, width = cast(Classifier, model).default_cfg["input_size"]
    size = (channels, height, width)
    total, trainable = parameters(model)
    if name.startswith("timm:"):
        return ModelInfo(name, "timm", total, trainable, macs(model, size), size, [])
    found = resolve(name)
    total += found.network.unread
    return ModelInfo(
        name, found.network.family, total, trainable, macs(model, size), size, [w.tag for w in found.weights]
    )


__all__ = [
    "VARIANTS",
    "Head",
    "ModelInfo",
    "adapter_within",
    "create_model",
    "describe",
    "get_pretrained_cfg_value",
    "list_models",
    "model_info",
    "rebuild",
]
