"""What of a model learns, in rows to be read."""

import re
from collections import defaultdict
from typing import NamedTuple

from torch import nn

from ..vision.adapters import HEADS, adapter_of, counts, in_words
from .tables import table


class Row(NamedTuple):
    """Modules with the same parameters at like places: their name with * for numbers, which of their parameters learn,
    how many modules these are, and how many numbers."""

    modules: str
    tensors: str
    count: int
    parameters: int


def learning(model: nn.Module) -> list[Row]:
    """All that learns, in the order of the model."""
    by_module: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, p in model.named_parameters():
        if p.requires_grad:
            module, _, leaf = name.rpartition(".")
            by_module[module].append((leaf, p.numel()))
    rows: dict[tuple[str, str], list[int]] = defaultdict(list)
    for module, parts in by_module.items():
        rows[re.sub(r"(?<=\.)\d+", "*", module), ", ".join(leaf for leaf, _ in parts)].append(sum(n for _, n in parts))
    return [Row(*key, len(sizes), sum(sizes)) for key, sizes in rows.items()]


def summary(model: nn.Module, most: int = 16) -> str:
    """One line where all learns; else how much does, and where."""
    own, total = counts(model)
    if own == total:
        return f"all {total:,} parameters learn"
    adapter = adapter_of(model)
    by = "" if adapter is None else f", {in_words(adapter)}"
    rows = learning(model)
    cells = [(r.modules, r.tensors, f"{r.count} x" if r.count > 1 else "", f"{r.parameters:,}") for r in rows[:most]]
    if more := rows[most:]:
        cells.append((f"and {len(more)} more kinds", "", "", f"{sum(r.parameters for r in more):,}"))
    shown = table(("what learns", "tensors", "", "parameters"), cells, right=("", "parameters"))
    return f"{own:,} of {total:,} parameters learn ({own / total:.2%}){by}\n{shown}"


def outside_heads(model: nn.Module) -> dict[str, nn.Parameter]:
    """What learns below the heads."""
    heads = tuple(f"{head}." for head in HEADS)
    return {n: p for n, p in model.named_parameters() if p.requires_grad and not n.startswith(heads)}
