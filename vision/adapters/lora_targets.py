"""Which layers of a model an adapter of the LoRA house stands around: those that the modules declare."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from torch import nn

from ..plugins import hosts_of, plugged
from ..prepbn import ProgressiveNorm
from . import HEADS, AdapterError
from .lora_split import FUSED, Rows, rows_of

WORDS = ("all", "mixers", "mlps")
Unfit = Callable[[nn.Module], str | None]  # why a layer cannot be adapted; None where it can


@dataclass(frozen=True)
class Target:
    """A declared layer of a model, or `part` of a fused one (the rows of `q` in `qkv`)."""

    path: str
    layer: nn.Module
    owner: nn.Module  # which declares it
    part: str | None = None

    @property
    def name(self) -> str:
        return self.path if self.part is None else f"{self.path}.{self.part}"

    def called(self, word: str) -> bool:
        """Whether `word` is the end of its path, or of that of the layer with a norm (`qkv.linear`) that it is in."""
        wanted, path = word.split("."), self.name.split(".")
        inner = path[-1:] in (["linear"], ["conv"])
        return any(p[-len(wanted) :] == wanted for p in ([path, path[:-1]] if inner else [path]))

    def of(self, part: str) -> "Target":
        """The part of this fused layer as a layer of its own."""
        assert isinstance(self.layer, nn.Linear)
        start, stop = rows_of(self.path, self.layer, self.owner)[part]
        return Target(self.path, Rows(self.layer, start, stop), self.owner, part)


def declared(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[Target]:
    """The layers of these kinds that modules of the bare model name as their `projections`, heads and plugins aside."""
    out, found = (*(f"{h}." for h in HEADS), *plugged(model)), []
    for path, module in model.named_modules():
        for name in getattr(module, "projections", ()):
            layer, whole = getattr(module, name, None), f"{path}.{name}".lstrip(".")
            if isinstance(layer, kinds) and not whole.startswith(out):
                found.append(Target(whole, layer, module))
    return found


def norms(model: nn.Module) -> list[Target]:
    """The norms of the blocks that have a scale, perhaps a shift, and no running means; not those that are a batch norm
    when they evaluate, as the trunk does."""
    found: dict[str, Target] = {}
    for host in hosts_of(model):
        gone = tuple(f"{n}." for n, m in host.block.named_modules(prefix=host.name) if isinstance(m, ProgressiveNorm))
        for path, module in host.block.named_modules(prefix=host.name):
            own = set(module.state_dict())
            plain = own in ({"weight"}, {"weight", "bias"}) and "norm" in path.rpartition(".")[2]
            if plain and not path.startswith(gone):
                found[path] = Target(path, module, host.block)
    return list(found.values())


def choose(
    model: nn.Module, words: Sequence[str], offered: Sequence[Target], unfit: Unfit, who: object
) -> list[Target]:
    """The targets that are meant.

    No word: what the mixers declare, or where none declares anything, what the MLPs do. `mixers`, `mlps`: what these
    declare; `all`: whatever is declared. These leave out what is `unfit` (no wider than a rank, say); a layer that is
    named must fit. Any other word ends the path of a layer (`qkv`, `mixer.proj`), or is part of a fused one (`q`).
    """
    chosen: dict[str, Target] = {}
    for word in words or ("",):
        found = preset(model, word, offered) if word in ("", *WORDS) else named(model, word, offered, who)
        reasons = [(t, unfit(t.layer)) for t in found]
        if word not in ("", *WORDS) and (bad := next(((t, why) for t, why in reasons if why), None)):
            raise AdapterError(f"{bad[0].name}: {type(bad[0].layer).__name__} {bad[1]}; {who} wants it")
        if reasons and all(why for _, why in reasons):
            (t, why), n = reasons[0], len(reasons)
            raise AdapterError(f"{t.name}: {type(t.layer).__name__} {why}; {who} fits none of its {n} layers")
        chosen |= {t.name: t for t, why in reasons if not why}
    if not chosen:
        there = listed(offered or declared(model, (nn.Linear, nn.Conv2d)))
        raise AdapterError(
            f"{called(model)}: no mixer or MLP declares a layer that {who} can stand around; it has {there}"
        )
    whole = {t.path for t in chosen.values() if t.part is None}
    if both := next((t for t in chosen.values() if t.part and t.path in whole), None):
        raise AdapterError(f"{both.path}: {who} wants both all of it and its part {both.part!r}; name one")
    return list(chosen.values())


def preset(model: nn.Module, word: str, offered: Sequence[Target]) -> list[Target]:
    """The targets that a word of `WORDS`, or none, stands for."""
    offered = [t for t in offered if not isinstance(t.layer, nn.Conv2d) or is_linear(t.layer)]
    if word == "all":
        return offered
    mixers, blocks = rooms(model)
    inside = [t for t in offered if t.path.startswith(mixers)]
    rest = [t for t in offered if t.path.startswith(blocks) and not t.path.startswith(mixers)]
    return rest if word == "mlps" or (word == "" and not inside) else inside


def rooms(model: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The paths, a dot behind each, of mixers and of the blocks that they are in. A model whose blocks are not of this
    suite (a language model's) says so itself."""
    if callable(own := getattr(model, "rooms", None)):
        return own()  # type: ignore[no-any-return]
    hosts = hosts_of(model)
    return tuple(f"{h.name}.mixer." for h in hosts if h.mixer is not None), tuple(f"{h.name}." for h in hosts)


def is_linear(conv: nn.Conv2d) -> bool:
    """Whether a convolution is a linear layer at each place."""
    return conv.weight[0].numel() == conv.in_channels


def named(model: nn.Module, word: str, offered: Sequence[Target], who: object) -> list[Target]:
    """The layers that are called `word`, and the parts of fused ones that are, where no layer is."""
    found = [t for t in offered if t.called(word)]
    head, _, part = word.rpartition(".")
    for t in () if found else offered:
        fused = t.path.rpartition(".")[2]
        if part in FUSED.get(fused, ()) and isinstance(t.layer, nn.Linear) and (not head or t.called(head)):
            found.append(t.of(part))
    if not found:
        names = sorted({name for t in offered for name in names_of(t)})
        close = get_close_matches(word, names, 3)
        hint = f" (did you mean {' or '.join(close)}?)" if close else ""
        raise AdapterError(
            f"{called(model)}: no layer is called {word!r}{hint}, for {who}; there are {listed(offered)}"
        )
    return found


def names_of(t: Target) -> list[str]:
    last = t.path.split(".")
    short = last[-2] if last[-1] in ("linear", "conv") and not last[-2].isdigit() else last[-1]
    return [short, *FUSED.get(last[-1], ())]


def listed(offered: Sequence[Target]) -> str:
    names = sorted({name for t in offered for name in names_of(t)})
    return ", ".join([*names, *WORDS]) if names else "none"


def called(model: nn.Module) -> str:
    return getattr(model, "name", None) or type(model).__name__
