"""What plugins share that leave out patches: at which blocks, how many stay, and in which order tokens stand then."""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..tokens import Tokens, patch_positions, select
from . import Host, reducible


def check_keep(keep: float) -> None:
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep!r}: the share of the patches that stay, above 0 and up to 1")


def check_at(at: tuple[int, ...] | None) -> None:
    if at is not None and (not at or at[0] < 0 or list(at) != sorted(set(at))):
        raise ValueError(f"at={at!r}: numbers of blocks, counted from 0 and rising, written 3+6+9; None for the usual")


def blocks_at(hosts: Sequence[Host], at: Sequence[int] | None) -> list[Host]:
    """The blocks `at` of the last stage; None: at a quarter, half and three quarters of it."""
    stage = [h for h in hosts if h.stage == hosts[-1].stage]
    if at is None:
        at = sorted({len(stage) * i // 4 for i in (1, 2, 3)})
    if at[-1] >= len(stage):
        raise ValueError(f"at={at}: the last stage of this model has {len(stage)} blocks, 0 to {len(stage) - 1}")
    return [stage[i] for i in at]


def check_behind(hosts: Sequence[Host], at: Collection[Host]) -> None:
    """Raises SeamError where a block from one of `at` to the end of its stage needs all tokens; between stages all are
    there again."""
    for host in behind(hosts, at):
        reducible(host)


def behind(hosts: Sequence[Host], at: Collection[Host]) -> list[Host]:
    """The blocks from one of `at` to the end of its stage."""
    return [h for h in hosts if any(a.stage == h.stage and a.place <= h.place for a in at)]


def check_gaps(hosts: Sequence[Host]) -> None:
    """Raises SeamError where a block needs all tokens and is none that scans, which does with what `leave` leaves."""
    for host in hosts:
        (scanning if scans(host) else reducible)(host)


def scans(host: Host) -> bool:
    """Whether its mixer takes account of `Tokens.place`."""
    return "scan" in host.mixer.offers


def scanning(host: Host, shown: Sequence[str] = ("scan",)) -> Host:
    """The host, if its mixer scans, shows what is wanted, and nothing in the block needs a full grid; else raises
    SeamError. Mixers that show a `scan` take account of `Tokens.place`."""
    offers = host.mixer.offers
    if "scan" not in offers:
        raise host.refuse("has no selective scan, whose tokens this plugin prunes")
    if missing := [n for n in shown if n not in offers]:
        raise host.refuse(f"shows no {' and no '.join(missing)}, by which the release scores; score=clip will do")
    ffn, last = getattr(host.block, "ffn", None), getattr(host.block, "last", None)
    needy = ffn if getattr(ffn, "needs_grid", False) else None if isinstance(last, nn.Identity) else last
    if needy is not None:
        raise host.refuse("needs a full grid, so its tokens cannot become fewer", needy)
    return host


def staying(keep: float, n: int) -> int:
    """ceil(keep n)"""
    return min(n, math.ceil(keep * n))  # a keep above 1 by rounding


def lead(t: Tokens, count: int) -> int:
    """How many of `count` patches stand before the special tokens, which keep to the front, the middle or the end."""
    n, first = t.x.shape[1] - len(t.special), min(t.special, default=0)
    return 0 if first == 0 else count if first == n else count // 2


def beside(special: Tensor, patches: Tensor, first: int) -> Tensor:
    """B k … and B K … -> B K+k …, `first` of the patches before the special tokens."""
    return torch.cat([patches[:, :first], special, patches[:, first:]], 1)


def beside_special(t: Tokens, patches: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """What `select` takes to leave the patches (B K), counted among patches: tokens (B K+k), and which are special."""
    kept = patch_positions(t).gather(1, patches)
    if not t.special:
        return kept, ()
    first = lead(t, kept.shape[1])
    special = torch.tensor(t.special, device=kept.device).expand(len(kept), -1)
    return beside(special, kept, first), tuple(range(first, first + len(t.special)))


def leave(t: Tokens, patches: Tensor, aligned: bool) -> Tokens:
    """`t` with the special tokens and the patches (B K), counted among patches, alone; `aligned`: scans behind it know
    what is missing."""
    if aligned and t.place is None:
        t = replace(t, place=torch.arange(t.x.shape[1], device=patches.device).expand(len(t.x), -1))
    return select(t, *beside_special(t, patches))


def drawn(t: Tokens, count: int) -> Tensor:
    """B K: `count` patches of each image, in any order; by torch's generator, others at every call."""
    b, n = t.x.shape[0], t.x.shape[1] - len(t.special)
    return torch.rand(b, n, device=t.x.device).argsort(1)[:, :count]
