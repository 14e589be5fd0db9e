"""timm's models under the contract of `Classifier`: `create_model("timm:resnet50", …)` ends here.

timm is imported inside functions only, so that `import patchloom.vision` costs nothing.
"""

import difflib
import inspect
import os
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .foreign_weights import expect_weights, load_file, one_line_errors

PREFIX = "timm:"
ELSEWHERE = ("hf-hub:", "hf_hub:", "local-dir:")  # names that timm finds outside its own tables
ANCHOR = re.compile(r"(?<![\[\\])\^")  # the ^ of a pattern, neither escaped nor the negation of a set
HEAD = "network."  # under which the state dict of timm's model lies in ours


class TimmClassifier(nn.Module):
    """`network`, a classifier of timm's: image (B C H W) -> logits (B classes).

    Parameter names are timm's with `network.` in front, in the state dict and in all that names parameters. `name` and
    `arguments` rebuild the model, with fresh weights.
    """

    def __init__(self, name: str, network: nn.Module, arguments: dict[str, Any]):
        super().__init__()
        self.name, self.arguments = PREFIX + name, dict(arguments)
        self.network: Any = network  # any of timm's classes, which have no type in common
        self.in_chans: int = arguments["in_chans"]
        self.img_size: tuple[int, int] | None = arguments.get("img_size")  # None: as timm has it
        self.default_cfg = _own_cfg(network, self.in_chans, self.img_size)

    @property
    def num_classes(self) -> int:
        return int(self.network.num_classes)

    @property
    def num_features(self) -> int:
        return int(self.network.num_features)

    @property
    def head_hidden_size(self) -> int:
        return int(self.network.head_hidden_size)

    @property
    def output_fmt(self) -> str:
        return _layout(self.network)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        return [{**info, "module": HEAD + info["module"]} for info in self.network.feature_info]

    def forward(self, image: Tensor) -> Tensor:
        return cast(Tensor, self.network(image))

    def forward_features(self, image: Tensor) -> Tensor:
        return cast(Tensor, self.network.forward_features(image))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        return cast(Tensor, self.network.forward_head(features, pre_logits=pre_logits))

    def forward_intermediates(
        self,
        image: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps of the stages (or blocks) `indices`, after what `forward_features` gives, or alone."""
        if not hasattr(self.network, "forward_intermediates"):
            raise NotImplementedError(
                f"{self.name} has no forward_intermediates in timm; features_only=True gives its maps"
            )
        out = self.network.forward_intermediates(
            image, indices=indices, norm=norm, stop_early=stop_early, output_fmt=output_fmt,
            intermediates_only=intermediates_only,
        )  # fmt: skip
        return cast("list[Tensor] | tuple[Tensor, list[Tensor]]", out)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.network.reset_classifier(num_classes, **({} if global_pool is None else {"global_pool": global_pool}))
        self.arguments["num_classes"] = num_classes
        if global_pool is not None:
            self.arguments["global_pool"] = global_pool

    def get_classifier(self) -> nn.Module:
        return cast(nn.Module, self.network.get_classifier())

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.network.set_grad_checkpointing(enable)

    def set_input_size(self, img_size: int | Sequence[int]) -> None:
        """Prepares the model for images of another size; a convolutional one only notes it."""
        size = _pair(img_size)
        if hasattr(self.network, "set_input_size"):
            self.network.set_input_size(img_size=size)
        elif self.default_cfg.get("fixed_input_size") and size != tuple(self.default_cfg["input_size"][1:]):
            raise ValueError(
                f"{self.name} cannot change its input size after it was built; use "
                f"create_model({self.name!r}, img_size={size})"
            )
        self.arguments["resized"] = self.img_size = size
        self.default_cfg = _own_cfg(self.network, self.in_chans, size)

    def no_weight_decay(self) -> set[str]:
        patterns: set[str] = getattr(self.network, "no_weight_decay", set)()
        return {HEAD + name for name, _ in self.network.named_parameters() if any(fnmatch(name, p) for p in patterns)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any] | Callable[[str], Any]:
        """timm's patterns for layer groups (a function of the name for some models), over our parameter names."""
        if not hasattr(self.network, "group_matcher"):
            raise NotImplementedError(
                f"{self.name} has no group_matcher in timm, so layer-wise decay cannot be used with it"
            )
        matcher = self.network.group_matcher(coarse=coarse)
        if callable(matcher):
            return lambda name: matcher(name.removeprefix(HEAD))
        return {group: _prefixed(spec) for group, spec in matcher.items()}

    def describe(self) -> dict[str, Any]:
        """Plain values from which `create_model(name, **arguments)` builds the same network."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in self.arguments.items()}
        return {"name": self.name, "arguments": plain}

    def extra_repr(self) -> str:
        return self.name


class TimmPyramid(nn.Module):
    """`network`, timm's feature extractor: image (B C H W) -> maps (B C_i H/s_i W/s_i), always NCHW."""

    def __init__(self, name: str, network: Any, arguments: dict[str, Any], cfg: dict[str, Any]):
        super().__init__()
        self.name, self.arguments, self.default_cfg = PREFIX + name, dict(arguments), cfg
        self.network, self.feature_info = network, network.feature_info
        self.channels: list[int] = list(network.feature_info.channels())
        self.strides: list[int] = list(network.feature_info.reduction())
        self._last = _layout(network) == "NHWC"

    def forward(self, image: Tensor) -> list[Tensor]:
        return [m.permute(0, 3, 1, 2) if self._last else m for m in self.network(image)]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.network.set_grad_checkpointing(enable)

    def extra_repr(self) -> str:
        return self.name


def create_timm(
    name: str,
    pretrained: bool = False,
    *,
    num_classes: int | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    img_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    resized: int | Sequence[int] | None = None,
    checkpoint_path: str | os.PathLike[str] = "",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> TimmClassifier | TimmPyramid:
    """timm's model `name` (`resnet50`, `resnet50.a1_in1k`, `hf-hub:…`); `options` (drop_rate …) are timm's.

    Vision transformers take any image size (timm's dynamic_img_size); what timm builds for one size takes `img_size`.
    `resized`: the size that `set_input_size` gives after the model is built (and its weights are loaded), which is not
    always what `img_size` gives: Swin keeps other windows.
    """
    import timm

    _check_name(name)
    _check_options(name, features_only, num_classes, out_indices, resized, checkpoint_path, options)
    given: dict[str, Any] = {"in_chans": in_chans, **{k: v for k, v in options.items() if v is not None}}
    if not features_only and num_classes is not None:
        given["num_classes"] = num_classes
    if features_only:
        given.update(features_only=True, **({} if out_indices is None else {"out_indices": tuple(out_indices)}))
    size = None if img_size is None else _pair(img_size)
    elsewhere = name.startswith(ELSEWHERE)
    if pretrained and not elsewhere:
        expect_weights(name)
    with one_line_errors(name) if pretrained or elsewhere else nullcontext():
        build = {**given, **_sizing(name, given, size)}
        with nullcontext() if device is None else torch.device(device):
            network = timm.create_model(name, pretrained=pretrained, **build)
    if checkpoint_path:
        load_file(network, Path(checkpoint_path), PREFIX + name, HEAD)
    network = network.to(device=device, dtype=dtype)
    arguments = given if size is None else {**given, "img_size": size}
    if features_only:
        return TimmPyramid(name, network, arguments, _own_cfg(network, in_chans, size))
    model = TimmClassifier(name, network, arguments)
    if resized is not None:
        model.set_input_size(_pair(resized))
    return model


def _check_name(name: str) -> None:
    """Raises with near names, or with the tags that there are."""
    import timm

    if name.startswith(ELSEWHERE):
        return
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(PREFIX + n for n in near)}?" if near else "timm.list_models() gives the names"
        raise ValueError(f"unknown model {PREFIX + name!r}: {hint}")
    tags = [n.partition(".")[2] for n in timm.list_models(base, include_tags=True) if "." in n]
    if tag and tag not in tags:
        known = f"it has {', '.join(tags)}" if tags else "it has no tags"
        raise ValueError(f"{PREFIX}{base} has no weights {tag!r}; {known}")


def _check_options(
    name: str, features_only: bool, num_classes: int | None, out_indices: Sequence[int] | None,
    resized: int | Sequence[int] | None, path: str | os.PathLike[str], options: dict[str, Any],
) -> None:  # fmt: skip
    """Raises for what does not go together; takes out of `options` what only our own backbones offer."""
    for option in ("tokens", "adapter", "dense"):
        if options.pop(option, None):
            raise ValueError(
                f"{option}= needs a patchloom model (list_models() has them); {PREFIX}{name} comes as it is"
            )
    if features_only:
        for option, value in (("num_classes", num_classes), ("resized", resized), ("checkpoint_path", path)):
            if value:
                raise ValueError(
                    f"{option}={value} with features_only=True: it belongs to a classifier of {PREFIX}{name}"
                )
    elif out_indices is not None:
        raise ValueError(f"out_indices={tuple(out_indices)} needs features_only=True ({PREFIX}{name})")


def _sizing(name: str, given: dict[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    """The options of timm's that make `name` take images of `size`, or of any size where timm can.

    They depend on the class behind the name, which only timm's builder knows: it is asked on the meta device.
    """
    import timm

    plain = {k: v for k, v in given.items() if k not in ("features_only", "out_indices", "feature_cls")}
    with torch.device("meta"):
        probe: Any = timm.create_model(name, **plain)
    accepted = {p for c in type(probe).__mro__ if issubclass(c, nn.Module) for p in inspect.signature(c).parameters}
    chosen: dict[str, Any] = {}
    patch = getattr(getattr(probe, "patch_embed", None), "patch_size", None)
    sides = size or probe.pretrained_cfg["input_size"][1:]
    whole = patch is not None and all(s % p == 0 for s, p in zip(sides, _pair(patch), strict=True))
    if whole and "dynamic_img_size" in accepted and "dynamic_img_size" not in given:  # not 384 px over patches of 14
        chosen["dynamic_img_size"] = True
    if size is not None and "img_size" in accepted:
        chosen["img_size"] = size
    return chosen


def _own_cfg(network: Any, in_chans: int, size: tuple[int, int] | None) -> dict[str, Any]:
    """timm's default_cfg as a plain dict, with our parameter names and the size that the model was made for."""
    cfg = dict(getattr(network, "pretrained_cfg", None) or network.default_cfg)
    for key in ("classifier", "first_conv"):
        names = cfg.get(key)
        if names is not None:
            cfg[key] = HEAD + names if isinstance(names, str) else tuple(HEAD + n for n in names)
    cfg["input_size"] = (in_chans, *(size or cfg["input_size"][1:]))
    return cfg


def _prefixed(spec: Any) -> Any:
    """A group's pattern, or its list of (pattern, order), that matches timm's names behind `network.`."""
    if isinstance(spec, str):
        return f"^{re.escape(HEAD)}(?:{ANCHOR.sub('', spec)})"
    return spec if spec is None else [(_prefixed(pattern), order) for pattern, order in spec]


def _layout(network: nn.Module) -> str:
    """NCHW or NHWC: what timm says of its maps, in an enumeration or a string."""
    layout = getattr(network, "output_fmt", "NCHW")
    return str(getattr(layout, "value", layout))


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
