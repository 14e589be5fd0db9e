"""Published checkpoints of whole segmenters: the backbone by its family's rules, the rest by the head's."""

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from ..network import Rules
from ..weights import Attempt, Model, Report, load_published


def load_parts(
    model: nn.Module, state: Mapping[str, Tensor], rules: Rules, prefix: str = "backbone.", own: Rules | None = None
) -> Report:
    """Fills `model`, whose backbone is `model.backbone`, strictly; `prefix` is what the backbone's names in the file
    begin with. `own`: the rules of a backbone that is of no family of the suite.

    Raises ValueError, and changes nothing, where a name fits no rule, a tensor of ours stays empty, or a shape differs.
    """
    trunk = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    rest = {n: v for n, v in state.items() if not n.startswith(prefix)}
    backbone = model.backbone
    assert isinstance(backbone, nn.Module)
    found = attempt(Rest(model), rest, rules)
    if own is None:
        report = load_published(backbone, trunk)
    else:
        other = attempt(backbone, trunk, own)
        other.apply()
        report = other.report
    found.apply()
    report.matched = {prefix + n: f"backbone.{o}" for n, o in report.matched.items()} | found.report.matched
    report.dropped = [prefix + n for n in report.dropped] + found.report.dropped
    report.fresh = [f"backbone.{n}" for n in report.fresh] + found.report.fresh
    return report


class Rest(nn.Module):
    """All of a model but its backbone."""

    def __init__(self, model: nn.Module):
        super().__init__()
        for name, part in model.named_children():
            if name != "backbone":
                self.add_module(name, part)


def attempt(part: nn.Module, state: Mapping[str, Tensor], rules: Rules) -> Attempt:
    tried = Attempt(cast(Model, part), state, "published", rules, False)
    if tried.problems:
        more = f", and {len(tried.problems) - 3} more" if len(tried.problems) > 3 else ""
        raise ValueError(f"these weights do not fit this model: {'; '.join(tried.problems[:3])}{more}")
    return tried
