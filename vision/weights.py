"""Published checkpoints into our models: strict renaming, and a report of what went where."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .adapters import Adapter, adapter_of, book, in_words, own_state, unadapted
from .count import is_counter
from .families import FAMILIES
from .generation import DENOISERS
from .generation import FAMILIES as GENERATORS
from .generation import family as generator
from .generation.denoiser import Denoiser
from .model import Classifier
from .network import Rules
from .plugins import Published, hosts_of, plugged, plugins_of
from .position import Embedding
from .published import Weights
from .pyramid import Pyramid

Model = Classifier | Pyramid | Denoiser
HEADS = ("head", "head_dist", "head_patches", "labels")


@dataclass
class Report:
    """What a checkpoint's tensors became: theirs -> ours, theirs that were left out, ours that stay as initialised,
    ours that were resampled to another grid or window."""

    source: str
    matched: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{len(self.matched)} tensors matched ({self.source} names)"]
        for title, names in (("dropped", self.dropped), ("fresh", self.fresh), ("resized", self.resized)):
            if names:
                more = f" and {len(names) - 6} more" if len(names) > 6 else ""
                parts.append(f"{len(names)} {title}: {', '.join(names[:6])}{more}")
        return "; ".join(parts)


def load_published(
    model: nn.Module, state_dict: Mapping[str, Tensor], *, source: str | None = None, fresh_head: bool = False
) -> Report:
    """Loads a checkpoint as its publisher named its tensors, strictly.

    source: whose names they are ("published", "timm", "ours"); None finds out. A pyramid leaves out exactly the head
    and the last norm that its family lists; its norms per stage stay fresh where a classifier's file has none. So do
    the weights of attached plugins where a file has none of them; else it must fill them all, under the names that the
    plugin says (`plugins.Published`), which an adapter may do too; the file of another adapter's model is that of its
    trunk and of the head that it has without the adapter.
    fresh_head: leave the checkpoint's head, or a denoiser's labels, out (another number of classes).
    Raises ValueError, and changes nothing, where a name fits no rule, a tensor of ours stays empty, or a shape differs.
    """
    if not isinstance(model, Model):
        raise ValueError(
            f"{type(model).__name__} is no model of this suite; load_published takes a Classifier, Pyramid or Denoiser"
        )
    adapter = adapter_of(model)
    fitted = [] if (there := book(model)) is None else [f.adapter for f in there.fitted.values()]
    if late := next((a for a in fitted if getattr(a, "begins_in_weights", False)), None):
        words = in_words(late)
        raise ValueError(
            f"{words} began with the weights that the model has now; take it off, load these, put it on again"
        )
    if adapter is not None and not holds(state_dict, model, adapter):  # nothing of the adapter: the file is the trunk's
        with unadapted(model):
            return load_published(model, state_dict, source=source, fresh_head=fresh_head)
    added: list[object] = [*plugins_of(model), adapter]
    extra = [p.published(hosts_of(model)) for p in added if isinstance(p, Published)]
    rules = {s: sum(extra, r) for s, r in rules_of(model).items()}
    if source is not None and source not in (*rules, "ours"):
        raise ValueError(f"source {source!r}: {model.name or 'this model'} has names of {', '.join((*rules, 'ours'))}")
    if source is not None:
        tried = [source]
    else:
        tried = ["ours", *rules] if set(state_dict) <= set(model.state_dict()) else [*rules, "ours"]
    attempts = [Attempt(model, state_dict, s, rules.get(s), fresh_head) for s in tried]
    best = min(attempts, key=lambda a: len(a.problems))
    if best.problems:
        raise ValueError(explain(model, state_dict, best))
    best.apply()
    return best.report


def holds(state: Mapping[str, Tensor], model: nn.Module, adapter: Adapter) -> bool:
    """Whether these are weights of the adapter too: under the names that it says somebody published, or under ours."""
    if not isinstance(adapter, Published):
        return False
    rules = adapter.published(hosts_of(model))
    theirs = (*(pattern for pattern, _ in (*rules.rename, *rules.stacked)), *rules.split)
    return any(matches(theirs, name) for name in state) or set(state) <= set(model.state_dict())


class Attempt:
    """One set of rules tried on a checkpoint: what goes where, and what stands in the way. Touches nothing yet."""

    def __init__(self, model: Model, state: Mapping[str, Tensor], source: str, rules: Rules | None, fresh_head: bool):
        self.model, self.rules, self.report = model, rules, Report(source)
        tuned = [name for name in own_state(model) if name.split(".")[0] not in HEADS]
        self.own, self.plugged = dict(model.state_dict()), (*plugged(model), *tuned)
        self.filled: dict[str, Tensor] = {}
        self.pieces: dict[str, dict[int, Tensor]] = {}
        self.problems: list[str] = []
        self.unknown = 0
        for name, value in state.items():
            if (first := self.first(name)) is not None:
                self.compare_copy(name, value, first, state.get(first))
            else:
                self.take(name, value, fresh_head)
        self.leave_at_one()
        self.report.fresh = [n for n in self.own if n not in self.filled]
        missing = [n for n in self.report.fresh if not self.may_be_fresh(n, fresh_head)]
        self.report.fresh = [n for n in self.report.fresh if not is_counter(self.own[n])]  # those stay as they are
        self.problems += [f"nothing fills {n} {tuple(self.own[n].shape)}" for n in missing]

    def leave_at_one(self) -> None:
        """Scales that a file may lack altogether."""
        wanted = [n for n in self.own if self.rules is not None and matches(self.rules.ones, n)]
        if not any(n in self.filled for n in wanted):
            self.filled |= {n: torch.ones_like(self.own[n]) for n in wanted}

    def first(self, name: str) -> str | None:
        """The name under which the same tensor stands in the file already."""
        copies = () if self.rules is None else self.rules.copies
        return next((m.expand(to) for theirs, to in copies if (m := re.fullmatch(theirs, name))), None)

    def compare_copy(self, name: str, value: Tensor, first: str, there: Tensor | None) -> None:
        if there is None or not torch.equal(there, value):
            fault = "is absent" if there is None else "differs"
            self.problems.append(f"{name} is another name of {first}, which {fault}")
        self.report.dropped.append(name)

    def take(self, name: str, value: Tensor, fresh_head: bool) -> None:
        pieces = self.apart(name, value)
        if pieces is None:
            return self.place(name, value, fresh_head)
        for i, piece in enumerate(pieces):
            self.place(f"{name}[{i}]", piece, fresh_head)
            if (ours := self.report.matched.pop(f"{name}[{i}]", None)) is not None:
                self.report.matched.setdefault(name, ours)

    def apart(self, name: str, value: Tensor) -> list[Tensor] | None:
        """The several tensors of ours that one of theirs holds; None where it is one."""
        if self.rules is None or value.ndim == 0:
            return None
        count = next((n for pattern, n in self.rules.stacked if re.fullmatch(pattern, name)), None)
        if count is not None and value.shape[0] % count == 0:
            one = value.ndim > 1 and value.shape[0] == count
            return [p[0] if one else p for p in value.chunk(count)]
        return list(torch.split(value, 1, 1)) if value.ndim > 1 and matches(self.rules.split, name) else None

    def place(self, name: str, value: Tensor, fresh_head: bool) -> None:
        ours, part, parts = self.ours(name)
        if ours is None and self.rules is not None and matches(self.rules.drop, name):
            self.compare(name, value)
            self.report.dropped.append(name)
            return
        head = ours is not None and ours.split(".")[0] in HEADS
        left_out = isinstance(self.model, Pyramid) and self.rules is not None and matches(self.rules.pyramid, name)
        if (ours is None and left_out) or (head and fresh_head):
            self.report.dropped.append(name)
        elif ours is None:
            self.unknown += 1
            self.problems.append(f"no place for {name} {tuple(value.shape)}")
        elif parts > 1:
            self.collect(name, ours, value, part, parts)
        elif ours in self.filled:
            self.problems.append(f"{name} and another tensor both fill {ours}")
        else:
            self.fill(name, ours, self.converted(name, ours, value))

    def collect(self, name: str, ours: str, value: Tensor, part: int, parts: int) -> None:
        """One of several tensors that make up one of ours; the last of them fills it."""
        pieces = self.pieces.setdefault(ours, {})
        if part in pieces:
            self.problems.append(f"{name} and another tensor both fill part {part + 1} of {ours}")
            return
        pieces[part] = self.converted(name, ours, value)
        self.report.matched[name] = ours
        if len(pieces) == parts:
            if len({p.shape[1:] for p in pieces.values()}) > 1:
                self.problems.append(f"{name} and the tensors beside it differ in shape, and all make up {ours}")
                return
            self.fill(name, ours, torch.cat([pieces[i] for i in range(parts)]))

    def converted(self, name: str, ours: str, value: Tensor) -> Tensor:
        if self.rules is None:
            return value
        if matches(self.rules.flatten, name) and value.shape[2:] == (1, 1):
            value = value.flatten(1)
        for pattern, convert in self.rules.convert:
            if re.fullmatch(pattern, ours):
                return convert(value, self.model.get_submodule(ours.rpartition(".")[0]))
        return value

    def ours(self, name: str) -> tuple[str | None, int, int]:
        """Our name, and which of how many parts of that tensor it fills."""
        if self.rules is None:
            return name if name in self.own else None, 0, 1
        rename = self.rules.rename
        if self.rules.number is not None:
            name = self.rules.number(name, self.model)
        if isinstance(self.model, Pyramid) and self.model.norms:
            rename = (*self.rules.dense, *rename)
        found = (m.expand(to) for theirs, to in rename if (m := re.fullmatch(theirs, name)))
        for n in (self.moved(n) for n in found):
            if (m := re.fullmatch(r"(.*)\[(\d)/(\d)\]", n)) and m[1] in self.own:
                return m[1], int(m[2]) - 1, int(m[3])
            if n in self.own:
                return n, 0, 1
        return None, 0, 1

    def moved(self, ours: str) -> str:
        """That name of ours where an adapter has moved what is called so."""
        for here, there in () if self.rules is None else self.rules.moved:
            new = there + ours.removeprefix(here)
            if ours.startswith(here) and new.partition("[")[0] in self.own:
                return new
        return ours

    def fill(self, name: str, ours: str, value: Tensor) -> None:
        want = self.own[ours].shape
        if value.shape != want and (resampled := self.resample(ours, value)) is not None:
            value = resampled
            self.report.resized.append(ours)
        if value.shape != want:
            self.problems.append(f"{name} is {tuple(value.shape)}, {ours} takes {tuple(want)}")
        self.filled[ours] = value
        self.report.matched[name] = ours

    def resample(self, ours: str, value: Tensor) -> Tensor | None:
        """A table of positions for another grid or window, resampled by the module that holds it; None for anything
        else."""
        name = ours.rpartition(".")[2]
        host = self.model.get_submodule(ours.rpartition(".")[0])
        return host.resample(name, value) if hasattr(host, "resample") else None  # type: ignore[operator]

    def compare(self, name: str, value: Tensor) -> None:
        """A buffer that can be computed must be what we compute."""
        assert self.rules is not None
        want = None if self.rules.check is None else self.rules.check(name, value, self.model)
        if want is not None and (want.shape != value.shape or not torch.equal(want.to(value), value)):
            self.problems.append(f"{name} is not the table that this architecture computes; is it another one's?")

    def may_be_fresh(self, ours: str, fresh_head: bool) -> bool:
        top = ours.split(".")[0]
        if top == "norms":  # per stage, trained with the task: absent from a classifier's file
            return not any(n.startswith("norms.") for n in self.filled)
        if ours.startswith(self.plugged) and not is_counter(self.own[ours]):  # a plugin's: absent from a plain file
            return not any(n.startswith(self.plugged) for n in self.filled)
        if fresh_head and top in HEADS:
            return True
        if top != "head" and is_counter(self.own[ours]):
            return True  # that files may lack
        host = self.model.get_submodule(ours.rpartition(".")[0])
        if ours.rpartition(".")[2] in getattr(host, "computed", ()):
            return True
        return isinstance(host, Embedding) and host.spec.kind == "sinusoid" and ours.endswith("table")

    def apply(self) -> None:
        own = self.own
        with torch.no_grad():
            for name, value in self.filled.items():
                own[name].copy_(value)


def matches(patterns: tuple[str, ...], name: str) -> bool:
    return any(re.fullmatch(p, name) for p in patterns)


def explain(model: Model, state: Mapping[str, Tensor], best: Attempt) -> str:
    """One line: what does not fit, and whose file it looks like."""
    title = f"these weights do not fit {model.name or 'this model'}"
    others = families_of(state) - {model.family}
    if best.unknown > len(state) // 2 and others:
        names = " or ".join(sorted(others))
        return f"{title}: their names are those of {names}; create one of its variants (see `patchloom models`)"
    shown = best.problems[:3]
    more = f", and {len(best.problems) - 3} more" if len(best.problems) > 3 else ""
    near = ""
    if best.unknown and (stray := next((n for n in state if best.ours(n)[0] is None), None)):
        close = difflib.get_close_matches(stray, [n for n in best.own if n not in best.filled], 1)
        near = f" (did you mean {close[0]}?)" if close else ""
    return f"{title}: {'; '.join(shown)}{near}{more}"


def families_of(state: Mapping[str, Tensor]) -> set[str]:
    """The families under whose rules every name of a checkpoint has a place."""

    def fits(r: Rules, n: str) -> bool:
        several = matches((*r.split, *(p for p, _ in r.stacked)), n)
        called = [n, f"{n}[0]"] if several else [n]  # a tensor that holds several of ours
        rules = (*r.rename, *r.dense, *r.copies)
        return any(re.fullmatch(p, c) for p, _ in rules for c in called) or matches((*r.drop, *r.pyramid), n)

    families = {**FAMILIES, **{name: generator(name) for name in GENERATORS}}
    return {f for f, m in families.items() if any(all(fits(r, n) for n in state) for r in m.RULES.values())}


def rules_of(model: Model) -> dict[str, Rules]:
    """Whose names a model's tensors may have, and what they become."""
    if not model.family:
        return {}
    known = generator(model.family) if isinstance(model, Denoiser) else FAMILIES[model.family]
    rules: dict[str, Rules] = known.RULES
    return rules


def published(name: str) -> tuple[Weights, ...]:
    """The weights of a variant, the default first."""
    if name in DENOISERS:
        rows: tuple[Weights, ...] = generator(name.partition("_")[0]).WEIGHTS.get(name, ())
        return rows
    return next((m.WEIGHTS.get(name, ()) for m in FAMILIES.values() if name in m.VARIANTS), ())


__all__ = ["Report", "Weights", "load_published", "published"]
