"""What maps a backbone gives, and which of them were asked for."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .backbone import Backbone
from .tokens import Tokens


class FeatureInfo(list[dict[str, Any]]):
    """What maps a model gives: a list of {num_chs, reduction, module}, and their columns by name."""

    def __init__(self, rows: Sequence[dict[str, Any]], out_indices: Sequence[int] | None = None):
        super().__init__(rows)
        self.out_indices = tuple(range(len(rows)) if out_indices is None else out_indices)

    def channels(self) -> list[int]:
        return [row["num_chs"] for row in self]

    def reduction(self) -> list[int]:
        return [row["reduction"] for row in self]

    def module_name(self) -> list[str]:
        return [row["module"] for row in self]


def feature_rows(backbone: Backbone, prefix: str) -> list[dict[str, Any]]:
    """A row for each place where `backbone` can show a map."""
    return [
        {"num_chs": backbone.channels[i], "reduction": backbone.strides[i], "module": prefix + backbone.module_at(i, j)}
        for i, j in backbone.taps
    ]


def nchw(t: Tokens) -> Tensor:
    """(B C H W), in channels_last memory; reduced tokens are unmerged."""
    return t.whole().permute(0, 3, 1, 2)


def spread(depth: int, count: int = 4) -> list[int]:
    """`count` evenly spaced indices below depth, the last one being the last: 12 -> 2, 5, 8, 11."""
    count = min(count, depth)
    return [round(depth * (i + 1) / count) - 1 for i in range(count)]


def take(taps: list[tuple[int, int]], indices: int | Sequence[int] | None) -> list[tuple[int, int]]:
    """Those of `taps` that `indices` names: None all, n the last n, a list those (negative: from the end), in order."""
    if indices is None:
        return taps
    if isinstance(indices, int):
        if not 0 < indices <= len(taps):
            raise ValueError(f"{indices} feature maps were asked for; there are {len(taps)}")
        return taps[-indices:]
    for i in indices:
        if not -len(taps) <= i < len(taps):
            raise ValueError(f"feature index {i} is out of range; there are {len(taps)}")
    return sorted({taps[i] for i in indices})


def undecayed(model: nn.Module) -> set[str]:
    """Tables of positions, special tokens, and the parameters of modules that say `no_weight_decay = True`."""
    named = {n for n, _ in model.named_parameters() if n.rsplit(".", 1)[-1] == "table" or ".tokens." in n}
    modules = {
        n: m for n, m in model.named_modules() if m is not model and getattr(m, "no_weight_decay", False) is True
    }
    return named | {f"{n}.{p}" for n, m in modules.items() for p, _ in m.named_parameters(recurse=False)}


def layer_groups(coarse: bool) -> dict[str, Any]:
    """Regular expressions that sort the parameters of what has a `backbone` into stem and blocks (or stages), in timm's
    words; whatever is behind the backbone joins the last of them."""
    if coarse:
        return {
            "stem": r"^backbone\.stem\.",
            "blocks": [(r"^backbone\.stages\.(\d+)\.", None), (r"^(?!backbone)", (99999,))],
        }
    return {
        "stem": r"^backbone\.stem\.",
        "blocks": [
            (r"^backbone\.stages\.(\d+)\.down", (0,)),
            (r"^backbone\.stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^(?!backbone)", (99999,)),
        ],
    }
