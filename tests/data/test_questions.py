"""Questions on drawn pictures: their words, that they are true, that what is held out is neither shown nor named."""

import re

import numpy as np
import pytest

from patchloom.data.dialogues import HELD, ShapesDialogues
from patchloom.data.questions import CAPTION, colour_question, count_question, more_turns, named, own_turn
from patchloom.data.sample import COLOURS, KINDS, RELATIONS
from patchloom.data.shapes import Shapes

PREPARED = {"input_size": (3, 64, 64), "mean": (0.5,) * 3, "std": (0.5,) * 3}


def drawn(task: str, count: int = 120, **options) -> Shapes:
    return Shapes(count, 64, task, 3, "train", **options)


def true_answer(question: str, sample) -> str:
    """Read anew, from the words."""
    pairs = list(zip(sample.kinds, sample.colours, strict=True))
    if found := re.fullmatch(r"what colour is the (\w+)\?", question):
        (colour,) = {c for k, c in pairs if k == found[1]}
        return colour
    if found := re.fullmatch(r"how many (?:(\w+) )?(\w+?)(?:es|s) are there\?", question):
        colour, kind = found[1], {"cross": "cross", "objec": "object", "object": "object"}.get(found[2], found[2])
        kind = next((k for k in KINDS if k.startswith(kind)), None)  # circl -> circle
        return str(sum((colour in (None, c)) and (kind in (None, k)) for k, c in pairs))
    relation = next(r for r in RELATIONS if f" {r} the " in question)
    first, second = (
        tuple(re.search(r"(\w+) (\w+)\??$", part).groups()) for part in question.split(f" {relation} the ")
    )
    middle = {
        (c, k): (b[:2] + b[2:]) / 2 for (k, c), b in zip(pairs, sample.boxes, strict=True)
    }  # those are there once
    step = middle[first] - middle[second]
    holds = {"left of": step[0] < 0, "right of": step[0] > 0, "above": step[1] < 0, "below": step[1] > 0}
    return "yes" if holds[relation] else "no"


@pytest.mark.parametrize("task", ["question", "caption"])
def test_what_is_asked_besides_is_true(task):
    shapes, seen = drawn(task), {"colour": 0, "count": 0, "relation": 0}
    r = np.random.default_rng(0)
    for sample in shapes:
        turns = more_turns(sample, r, 6)
        assert len({t.question for t in turns}) == len(turns)
        assert own_turn(sample).question not in {t.question for t in turns}
        for turn in turns:
            assert turn.answer == true_answer(turn.question, sample), (turn, sample.kinds, sample.colours)
            seen[turn.about] += 1
    assert min(seen.values()) > 60


def test_the_words_are_those_of_the_pictures_own_questions():
    for sample in drawn("question", 60):
        turn = own_turn(sample)
        if turn.about == "colour":
            assert turn.question == colour_question(sample.kinds[0])
            assert turn.answer == sample.colours[0]
        elif turn.about == "count":
            assert turn.answer == true_answer(turn.question, sample)
    assert count_question("cross", None) == "how many crosses are there?"
    assert count_question("circle", "red") == "how many red circles are there?"
    assert count_question(None, "red") == "how many red objects are there?"
    assert named(("star", "orange")) == "an orange star"


def test_yes_is_as_frequent_as_no_and_numbers_are_many():
    r, turns = np.random.default_rng(1), []
    for sample in drawn("question", 300):
        turns += more_turns(sample, r, 6)
    said = [t.answer for t in turns if t.about == "relation"]
    assert 0.4 < said.count("yes") / len(said) < 0.6
    numbers = [t.answer for t in turns if t.about == "count"]
    assert {"0", "1", "2", "3", "4", "5"} <= set(numbers)
    assert numbers.count("1") < 0.5 * len(numbers)


def test_what_is_held_out_is_neither_shown_nor_named_in_training():
    data = ShapesDialogues(300, 40, 80, batch_size=8, workers=0, preprocessing=PREPARED)
    data.setup()
    words = [f"{colour} {kind}" for kind, colour in HELD]
    train = data.splits.train
    for index in range(300):
        shapes = train.captions if index % 4 == 3 else train.questions
        sample = shapes.draw(index)
        assert not set(zip(sample.kinds, sample.colours, strict=True)) & set(HELD)
        for turn in train.load(index)[1].turns:
            assert not any(w in f"{turn.question} {turn.answer}" for w in words)
    test = data.splits.test
    for index in range(80):
        shapes = test.captions if index % 4 == 3 else test.questions
        assert next(zip(shapes.draw(index).kinds, shapes.draw(index).colours, strict=True)) in HELD
        assert len(test.load(index)[1].turns) == 1


def test_every_epoch_draws_anew_and_the_same_again():
    data = ShapesDialogues(16, 8, 8, batch_size=4, workers=0, preprocessing=PREPARED)
    data.setup()
    first, again, later = (data.splits.train.load(0, epoch)[1] for epoch in (0, 0, 1))
    assert first == again != later
    images, dialogues = next(iter(data.train_dataloader()))
    assert [len(own) for own in images] == [1] * 4
    assert images[0][0].shape == (3, 64, 64)
    assert all(1 <= len(d.turns) <= 6 for d in dialogues)
    assert {t.about for d in dialogues for t in d.turns} <= {"colour", "count", "relation", "caption"}
    texts = list(data.texts())
    assert all(any(c in t for t in texts) for c in COLOURS)
    assert any(CAPTION in t for t in texts)
    with pytest.raises(ValueError, match="turns = 0"):
        ShapesDialogues(turns=0)
