"""What `patchloom tokens` weighs: settings that share weights, random pruning, and the verdict."""

import pytest
import torch
from token_parts import vit
from torch import nn

from patchloom.train.commands.tokens import choose, verdict
from patchloom.train.measure import Spread
from patchloom.train.tradeoff import Answers, Pictures, Point, counts, equally, twin
from patchloom.vision.plugins import plugins_of
from patchloom.vision.plugins.merge import Merge


def test_settings_share_the_models_weights() -> None:
    model = vit()
    other = twin(model, "tome:r=2")
    assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert plugins_of(other) == [Merge(2)]
    assert plugins_of(model) == []
    assert all(getattr(m, s) is None for m in model.modules() for s in getattr(m, "seams", ()))


@pytest.mark.parametrize("tokens", ["tome:r=1", "evit:keep=0.7", "evit:keep=0.6,fuse=false", "zero_tprune:keep=0.7"])
def test_random_pruning_leaves_as_many_tokens_behind_each_block(tokens: str) -> None:
    model, image = vit(), torch.randn(1, 3, 64, 64)
    left = counts(twin(model, tokens), image)
    assert left[-1] < counts(model, image)[-1]
    random = equally(left, model, image)
    assert random is not None
    assert counts(random, image) == left


def test_there_is_no_random_pruning_for_what_drops_nothing() -> None:
    model, image = vit(), torch.randn(1, 3, 64, 64)
    assert equally(counts(twin(model, "window_merge:share=0.4"), image), model, image) is None


def test_answers_are_compared_image_by_image() -> None:
    plain = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    same = Answers.of(plain, plain, torch.tensor([0, 0]))
    assert same == Answers(0.0, 0.0, 100.0, 50.0)
    other = Answers.of(torch.tensor([[0.0, 2.0], [0.0, 1.0]]), plain, None)
    p = plain[0].softmax(0)
    assert other.kl == pytest.approx(float((p * (plain[0] - torch.tensor([0.0, 2.0]))).sum()) / 2, rel=1e-5)
    assert other.change == pytest.approx((8 / 5) ** 0.5)
    assert other.agreement == 50
    assert other.acc1 is None


def test_columns_that_compete() -> None:
    pictures = Pictures([torch.zeros(2, 4), torch.ones(1, 4)], columns=[3, 1])
    assert torch.equal(pictures.logits(nn.Identity(), torch.device("cpu")), torch.tensor([[0.0, 0], [0, 0], [1, 1]]))


def point(tokens: str, ratio: float, kl: float, acc1: float | None = None, random: Answers | None = None) -> Point:
    spread = Spread(ratio, ratio - 0.01, ratio + 0.01)
    return Point("tome", tokens, 9, 10**9, Spread(ratio / 100, 0, 0), spread, Answers(kl, kl, 90, acc1), random)


def test_the_least_change_that_meets_the_target_is_chosen() -> None:
    points = [point("a", 0.8, 0.01), point("b", 0.59, 0.3), point("c", 0.5, 0.2), point("d", 0.4, 0.9)]
    assert choose(points, "0.6x").tokens == "c"
    assert choose(points, "8.5ms").tokens == "a"
    assert choose(points, "3ms") is None
    assert "no setting meets 0.3x: the fastest, d takes 0.40 of the plain time" in verdict(points, None, "0.3x")
    labelled = [point("b", 0.59, 0.3, 71.0), point("c", 0.5, 0.2, 70.0)]
    assert choose(labelled, "0.6x").tokens == "b"
    text = verdict(labelled, labelled[0], "0.6x")
    assert text.startswith("b meets 0.6x: 0.59 of the plain time (0.58 … 0.60), Acc@1 71.00, KL 0.3")


def test_what_does_not_pay_is_said() -> None:
    slow = [point("a", 1.2, 0.01), point("b", 0.995, 0.3)]
    assert choose(slow, "9999ms") is None
    assert verdict(slow, None, "0.6x").startswith("no setting pays: none is faster than the plain model here")


def test_random_pruning_that_is_no_worse_is_said() -> None:
    chosen = point("a", 0.5, 0.2, random=Answers(0.1, 0.1, 90, None))
    assert "to drop as many tokens at random is no worse: KL 0.1" in verdict([chosen], chosen, "0.6x")
    chosen = point("a", 0.5, 0.2, random=Answers(0.3, 0.3, 90, None))
    assert "random" not in verdict([chosen], chosen, "0.6x")
