"""What can be asked of a drawn picture: the words of the questions, and more of them from what is true of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from itertools import combinations
from typing import NamedTuple

import numpy as np

from .sample import COLOURS, KINDS, RELATIONS, Sample

Pair = tuple[str, str]  # kind, colour
CAPTION = "describe the picture."
CLEAR = 1.5  # so much further along one axis than along the other the middles of two objects are that are compared


class Turn(NamedTuple):
    """A question and its answer. `about`: which kind it is, for the numbers; `others`: what is as right."""

    question: str
    answer: str
    about: str = ""
    others: tuple[str, ...] = ()


def named(pair: Pair) -> str:
    """("star", "orange") -> "an orange star"."""
    kind, colour = pair
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {kind}"


def colour_question(kind: str) -> str:
    return f"what colour is the {kind}?"


def count_question(kind: str | None, colour: str | None) -> str:
    """Of a kind, a colour or both."""
    things = "objects" if kind is None else f"{kind}es" if kind.endswith("s") else f"{kind}s"
    return f"how many {things if colour is None else f'{colour} {things}'} are there?"


def relation_question(first: Pair, relation: str, second: Pair) -> str:
    return f"is the {first[1]} {first[0]} {relation} the {second[1]} {second[0]}?"


def told(first: Pair, relation: str, second: Pair) -> str:
    """The caption."""
    return f"{named(first)} {relation} {named(second)}"


def own_turn(sample: Sample) -> Turn:
    """The question that the sample came with, or its caption."""
    if sample.question is not None and sample.answer is not None:
        return Turn(sample.question, sample.answer, sample.about or "")
    assert sample.caption is not None
    return Turn(CAPTION, sample.caption, "caption")


def more_turns(sample: Sample, r: np.random.Generator, most: int, without: Collection[Pair] = ()) -> list[Turn]:
    """Up to `most` other questions that the picture answers, of each sort about as many, in any order; none names a
    pair of `without`."""
    seen = {own_turn(sample).question}
    sorts = [shuffled(colours(sample), r), counts(sample, r, set(without)), shuffled(relations(sample, r), r)]
    asked: list[Turn] = []
    for turns in sorts:
        asked += turns[: -(-most // 3)]
    asked = [turn for turn in asked if turn.question not in seen]
    return shuffled(asked, r)[:most]


def shuffled(turns: list[Turn], r: np.random.Generator) -> list[Turn]:
    return [turns[int(i)] for i in r.permutation(len(turns))]


def colours(sample: Sample) -> list[Turn]:
    """Of each kind that is there once."""
    there = Counter(sample.kinds)
    pairs = zip(sample.kinds, sample.colours, strict=True)
    return [Turn(colour_question(kind), colour, "colour") for kind, colour in pairs if there[kind] == 1]


def counts(sample: Sample, r: np.random.Generator, without: set[Pair]) -> list[Turn]:
    """A number that is true first, then what it is of, so that ones do not crowd out the rest; several before one and
    none."""
    pairs = list(zip(sample.kinds, sample.colours, strict=True))
    tally = Counter[tuple[str | None, str | None]]()
    for kind, colour in pairs:
        tally.update([(kind, None), (None, colour), (kind, colour)])
    absent = (KINDS[int(r.integers(len(KINDS)))], list(COLOURS)[int(r.integers(len(COLOURS)))])
    for what in ((absent[0], None), (None, absent[1]), absent):
        tally[what] += 0
    by_number: dict[int, list[tuple[str | None, str | None]]] = {}
    found: list[tuple[int, tuple[str | None, str | None]]] = []
    for what, number in tally.items():
        if what not in without:
            by_number.setdefault(number, []).append(what)
    for number, things in by_number.items():
        if number <= 6:
            found += [(number, things[int(i)]) for i in r.permutation(len(things))[:2]]
    order = sorted((found[int(i)] for i in r.permutation(len(found))), key=lambda each: each[0] < 2)  # rarer ones first
    return [Turn(count_question(*what), str(number), "count") for number, what in order]


def relations(sample: Sample, r: np.random.Generator) -> list[Turn]:
    """Of pairs that are there once and stand clearly so; yes as often as no."""
    pairs = list(zip(sample.kinds, sample.colours, strict=True))
    there = Counter(pairs)
    middle = (sample.boxes[:, :2] + sample.boxes[:, 2:]) / 2
    found = []
    for both in combinations(range(len(pairs)), 2):
        i, j = both if r.integers(2) else both[::-1]
        if there[pairs[i]] > 1 or there[pairs[j]] > 1:
            continue
        step = middle[i] - middle[j]
        axis = int(abs(step[1]) > abs(step[0]))
        if abs(step[axis]) < CLEAR * abs(step[1 - axis]):
            continue
        says = bool(r.integers(2))
        at = 2 * axis + int(step[axis] > 0)  # of RELATIONS: left of, right of, above, below
        relation = RELATIONS[at if says else at ^ 1]
        found.append(Turn(relation_question(pairs[i], relation, pairs[j]), "yes" if says else "no", "relation"))
    return found
