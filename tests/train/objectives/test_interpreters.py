"""How interpreters learn: the policy gradient is that of the expected reward, and each has its turn."""

from itertools import product

import lightning.pytorch as L
import pytest
import torch
from classify_parts import Colours, tiny, trainer
from torch import Tensor
from torch.nn import functional as F

from patchloom.train.callbacks.interpreters import InterpreterCurriculum
from patchloom.train.classify import Classify
from patchloom.train.objectives.interpreters import PolicyGradient
from patchloom.train.objectives.losses import Binary, CrossEntropy
from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.mixers.attention import Global
from patchloom.vision.model import Classifier, Head
from patchloom.vision.norm import Norm
from patchloom.vision.plugins import attach, noting
from patchloom.vision.plugins.ia_red import IaRed, interpreters_of
from patchloom.vision.position import Position
from patchloom.vision.stem import Patchify


def network(groups: int, depth: int = 2, classes: int = 8) -> Classifier:
    """A transformer that sees 8 x 8 pixels as a class token and four patches."""
    torch.manual_seed(0)
    stem = Patchify(4, None, position=Position((2, 2), special=1))
    model = Classifier(Backbone([Stage(Global(2), 16, depth)], stem), classes, Head(Norm(), "token"), img_size=8)
    attach(model, IaRed(groups))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model


def batch(count: int = 3) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 8, 8, generator=g), torch.randint(8, (count,), generator=g)


def drawing(monkeypatch: pytest.MonkeyPatch, patches: Tensor) -> None:
    """The next draws are `patches` (B 4)."""
    monkeypatch.setattr(torch, "bernoulli", lambda p: torch.cat([torch.ones(len(p), 1), patches], 1))


@pytest.mark.parametrize("baseline", [True, False])
def test_the_gradient_is_that_of_the_expected_reward(monkeypatch, baseline):
    """Summed over all 16 draws, each as often as it happens."""
    model, (image, _) = network(1).train(), batch()
    own = list(interpreters_of(model)[0].parameters())
    loss = PolicyGradient(penalty=0.7, baseline=baseline)
    with noting() as notes, torch.no_grad():
        target = model(image).argmax(1)
    score = interpreters_of(model)[0].score(model.backbone.stem(image).x.detach(), 0)[:, 1:]  # B 4
    torch.testing.assert_close(score, dict(notes)["probability0"][:, 1:])
    value, total, rewards = 0.0, [torch.zeros_like(p) for p in own], []
    for draw in product((0.0, 1.0), repeat=4):
        u = torch.tensor(draw).expand(3, -1)
        chance = torch.where(u > 0, score, 1 - score).prod(1)  # B
        drawing(monkeypatch, u)
        reward, _ = loss_of_draw(model, loss, image, target)
        rewards.append(reward)
        value = value + (chance * reward).mean()
        # one image at a time, since each has its own chances
        for i in range(3):
            drawing(monkeypatch, u[:1])
            step = loss(model, [(image[i : i + 1], target[i : i + 1])])
            for sum_, g in zip(total, torch.autograd.grad(step, own), strict=True):
                sum_ += chance[i].detach() * g / 3
    assert len({float(r) for reward in rewards for r in reward}) > 3
    want = torch.autograd.grad(-value, own)
    torch.testing.assert_close(total, list(want), rtol=1e-4, atol=1e-6)


def loss_of_draw(model: Classifier, loss: PolicyGradient, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    interpreters_of(model)[0].sampling = True
    return loss.rewarded(model, image, target)


def test_the_reward_by_hand(monkeypatch):
    model, (image, _) = network(1).train(), batch()
    drawing(monkeypatch, torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]]))
    interpreters_of(model)[0].sampling = True
    answer = model(image).argmax(1)
    wrong = (answer + 1) % 8
    loss = PolicyGradient(penalty=0.7)
    reward, drawn = loss.rewarded(model, image, torch.stack([answer[0], answer[1], wrong[2]]))
    torch.testing.assert_close(reward, torch.tensor([3 / 5, 0, -0.7]))
    score = interpreters_of(model)[0].score(model.backbone.stem(image).x, 0)[:, 1:]
    want = score[0, 0].log() + (1 - score[0, 1:]).log().sum()
    torch.testing.assert_close(drawn[0], want)
    soft = F.one_hot(torch.stack([answer[0], answer[1], wrong[2]]), 8).float()
    torch.testing.assert_close(loss.rewarded(model, image, soft)[0], reward)


def test_a_token_that_is_gone_is_not_drawn_again():
    model, (image, _) = network(2).train(), batch()
    interpreters_of(model)[1].sampling = True
    with noting() as notes:
        model(image)
    seen = dict(notes)
    gone = seen["policy0"] == 0
    assert gone.any()
    assert not seen["policy1"][gone].any()
    assert seen["log_probability"].isfinite().all()


def gradients(model: Classifier, loss: Tensor) -> set[str]:
    model.zero_grad()
    loss.backward()
    return {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def test_each_learns_from_its_own_loss_alone():
    model, (image, target) = network(2).train(), batch(8)
    loss = PolicyGradient(CrossEntropy(0.1), baseline=False)
    inside = [f"backbone.stages.0.blocks.{i}.before_block." for i in (0, 1)]
    for group in (0, 1):
        loss.group = group
        got = gradients(model, loss(model, [(image, target)]))
        assert {n for n, _ in model.named_parameters() if n.startswith(inside[group])} == got
    loss.learns = "backbone"
    value = loss(model, [(image, target)])
    got = gradients(model, value)
    assert {n for n, _ in model.named_parameters() if not n.startswith(tuple(inside))} == got
    torch.testing.assert_close(value, F.cross_entropy(model(image), target, label_smoothing=0.1))


def test_checkpointing_gives_the_same_gradient():
    model, (image, target) = network(1).train(), batch(8)
    found = []
    for on in (False, True):
        model.set_grad_checkpointing(on)
        torch.manual_seed(3)
        loss = PolicyGradient(baseline=False)(model, [(image, target)])
        found.append(torch.autograd.grad(loss, list(interpreters_of(model)[0].parameters())))
    torch.testing.assert_close(*found)


def test_it_learns_to_drop_what_is_not_needed():
    """All that counts here stands in the class token: each drop pays."""
    model, (image, _) = network(1).train(), batch(16)
    with torch.no_grad():
        for p in model.backbone.stages[0].blocks.parameters():
            p.mul_(0.1)
    target = model(image).argmax(1).detach()
    optimizer = torch.optim.Adam(interpreters_of(model)[0].parameters(), 0.02)
    loss = PolicyGradient()

    def dropped() -> float:
        with noting() as notes, torch.no_grad():
            model(image)
        return 1 - float(dict(notes)["policy0"].mean())

    before = dropped()
    torch.manual_seed(0)
    for _ in range(60):
        optimizer.zero_grad()
        loss(model, [(image, target)]).backward()
        optimizer.step()
    assert dropped() > max(0.6, before)


# ----------------------------------------------------------------------------------------------------------- curriculum


class Look(L.Callback):
    """Who learnt, and who was in play, at each step."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str, list[bool]]] = []

    def on_before_backward(self, trainer, module, loss) -> None:
        on = [bool(i.on) for i in interpreters_of(module.model)]
        self.seen.append((module.loss.group, module.loss.learns, on))


def test_interpreters_take_turns_with_the_backbone(tmp_path):
    model, look = network(2), Look()
    t = trainer(tmp_path, max_epochs=6, callbacks=[InterpreterCurriculum(), look])
    t.fit(Classify(model, PolicyGradient()), Colours(length=16, batch_size=16))
    first, both = [True, False], [True, True]
    assert look.seen == [
        (0, "interpreter", first), (0, "backbone", first), (0, "backbone", first),
        (1, "interpreter", both), (1, "backbone", both), (1, "backbone", both),
    ]  # fmt: skip


@pytest.mark.parametrize(("epochs", "groups"), [(6, 3), (7, 3), (8, 3), (30, 3), (2, 1), (90, 3)])
def test_every_group_has_its_part(epochs, groups):
    turns = [InterpreterCurriculum().at(e, epochs, groups) for e in range(epochs)]
    assert turns == sorted(turns, key=lambda turn: (turn[0], not turn[1]))
    assert set(turns) == {(g, learns) for g in range(groups) for learns in (True, False)}


def test_what_does_not_fit_is_refused(tmp_path):
    data = Colours(length=16)

    def fit(model: Classifier, loss: torch.nn.Module, epochs: int = 4) -> None:
        trainer(tmp_path, max_epochs=epochs, callbacks=[InterpreterCurriculum()]).fit(Classify(model, loss), data)

    with pytest.raises(ValueError, match=r"the loss is CrossEntropy; set model\.loss to patchloom\.train"):
        fit(network(2), CrossEntropy())
    with pytest.raises(ValueError, match="max_epochs=3; this model takes 4 epochs at least"):
        fit(network(2), PolicyGradient(), 3)
    with pytest.raises(ValueError, match="Classifier has no interpreters: attach IaRed"):
        fit(tiny(), PolicyGradient())
    with pytest.raises(ValueError, match="share=1: the interpreter's part"):
        InterpreterCurriculum(1)
    with pytest.raises(ValueError, match="penalty=-1: what a wrong class costs"):
        PolicyGradient(penalty=-1)
    with pytest.raises(ValueError, match="Binary inside PolicyGradient: a loss of logits and one class"):
        PolicyGradient(Binary())
    image, target = batch()
    with pytest.raises(ValueError, match="one view of each image"):
        PolicyGradient()(network(1), [(image, target)] * 2)
    with pytest.raises(ValueError, match="learns='both', group=0: interpreter or backbone"):
        PolicyGradient(learns="both")
    with pytest.raises(ValueError, match="group=1: the model has 1 interpreters"):
        PolicyGradient(group=1)(network(1), [(image, target)])
