"""Adapters that several tasks share: which task a batch is for, and what follows from it."""

from copy import deepcopy

import pytest
import torch
from plugin_parts import by_energy, image, made, pyramid
from torch import Tensor, nn

from patchloom.vision.adapters import AdapterError, adapt, adapter, load_own_state, own_state, switch
from patchloom.vision.adapters.hyperformer import HyperFormer
from patchloom.vision.adapters.polyhistor import PolyhistorLite
from patchloom.vision.adapters.tasks import PerTask, choose, chosen, tasks_of, working_on
from patchloom.vision.plugins import attached, plugin

PLAIN, WINDOWS, SCAN = "global attention, class token", "shifted windows", "selective scan, both ways"
TURNS, GRIDS = "sliced attention, repeated", "convolutions, then talking heads"
WORDS = [
    "hyperformer:tasks=a+b",
    "hyperformer:tasks=a+b,plus=false,layer_norms=true",
    "polyhistor:tasks=a+b",
    "polyhistor_lite:tasks=a+b",
    "vl_adapter:tasks=a+b,share=multiple",
    "vl_adapter:tasks=a+b,share=half,norm=both",
    "vl_lora:tasks=a+b",
]
both = pytest.mark.parametrize("words", WORDS)


def adapted(kind: str, words: str) -> nn.Module:
    """With other own parameters, so that nothing is hidden by a zero."""
    model = made(kind)
    torch.manual_seed(0)
    adapt(model, adapter(words))
    with torch.no_grad():
        for p in learning(model):
            p.add_(torch.randn_like(p) * 0.1)
    return model


def learning(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def grads(model: nn.Module, loss: Tensor) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, learning(model), allow_unused=True))


@both
@pytest.mark.parametrize("kind", [PLAIN, WINDOWS])
@torch.inference_mode()
def test_each_task_has_an_answer_of_its_own_and_the_first_is_chosen(kind, words):
    model, x = adapted(kind, words), image()
    assert tasks_of(model) == ("a", "b")
    assert chosen(model) == "a"
    first = model(x)
    with working_on(model, "b"):
        assert chosen(model) == "b"
        second = model(x)
    assert torch.equal(model(x), first)
    assert not torch.allclose(first, second, rtol=1e-3, atol=1e-4)
    choose(model, "b")
    assert torch.equal(model(x), second)
    assert torch.equal(deepcopy(model)(x), second)


@both
@pytest.mark.parametrize("kind", [PLAIN, GRIDS, SCAN, TURNS])
def test_all_of_it_learns_and_the_trunk_is_left_alone(kind, words):
    model, x = made(kind), image()
    plain = model(x)
    names = list(model.state_dict())
    if words.startswith("vl_lora") and kind in (GRIDS, SCAN):
        with pytest.raises(AdapterError, match="makes no q or v in a linear layer"):
            adapt(model, adapter(words))
        return
    remove = adapt(model, adapter(words))
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain, rtol=2e-6, atol=2e-6 * float(plain.abs().max()))
    model.train()
    optimizer = torch.optim.SGD(learning(model), 0.01)
    reached: set[str] = set()
    for task in ("a", "b", "a", "b"):
        choose(model, task)
        optimizer.zero_grad()
        by_energy(model, x)
        optimizer.step()
        reached |= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {n for n, p in model.named_parameters() if p.requires_grad}
    remove()
    assert torch.equal(model.eval()(x), plain)
    assert list(model.state_dict()) == names


@both
def test_a_batch_of_one_task_leaves_what_is_another_s(words):
    """Parameters of one task alone get no gradient from another's batch, not even zeros, which an optimiser would
    act on."""
    model = adapted(PLAIN, words)
    mine, others = [], []
    for task in tasks_of(model):
        choose(model, task)
        got = grads(model, by_energy_of(model, image()))
        mine.append({i for i, g in enumerate(got) if g is not None})
        others.append({i for i, g in enumerate(got) if g is None})
    assert others[0]
    assert others[0].isdisjoint(others[1])
    assert mine[0] | mine[1] == set(range(len(learning(model))))


def by_energy_of(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


@both
@pytest.mark.parametrize("kind", [PLAIN, WINDOWS])
def test_checkpointing_computes_the_task_again_that_it_was(kind, words):
    """Also where the next batch's task is chosen before the backward pass."""
    found = []
    for on in (False, True):
        model = adapted(kind, words).train()
        model.set_grad_checkpointing(on)
        losses = []
        for task in ("a", "b"):
            choose(model, task)
            losses.append(by_energy_of(model, image()))
        choose(model, "a")
        found.append(grads(model, losses[0] + 2 * losses[1]))
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain)


@pytest.mark.slow
@both
@torch.no_grad()
def test_compiled_is_the_same_for_each_task(words):
    model, x = adapted(PLAIN, words), image()
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for task in ("a", "b", "a"):
        choose(model, task)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)


@both
@torch.inference_mode()
def test_half_precision_and_autocast(words):
    model, x = adapted(PLAIN, words), image((49, 75), batch=1)
    want = model(x)
    scale = float(want.abs().max())
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(x).float(), want, rtol=0.05, atol=0.05 * scale)
    half = model.bfloat16()(x.bfloat16())
    assert half.dtype is torch.bfloat16
    torch.testing.assert_close(half.float(), want, rtol=0.1, atol=0.1 * scale)


@both
@torch.inference_mode()
def test_its_own_tensors_are_all_that_there_is_to_save(words):
    model, x = adapted(WINDOWS, words), image()
    choose(model, "b")
    want, state = model(x), own_state(model)
    again = made(WINDOWS)
    adapt(again, adapter(words))
    load_own_state(again, state)
    choose(again, "b")
    assert torch.equal(again(x), want)


@torch.inference_mode()
def test_token_plugins_keep_the_task():
    model, x = adapted(PLAIN, "hyperformer:tasks=a+b"), image()
    for words in ("tome:r=2", "evit:keep=0.6", "dynamicvit:keep=0.6,at=1"):
        with attached(model, plugin(words)):
            first = model(x)
            with working_on(model, "b"):
                assert not torch.allclose(model(x), first, rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_each_adapter_of_a_model_has_tasks_of_its_own():
    model, x = adapted(PLAIN, "hyperformer:tasks=a+b"), image()
    choose(model, "b")
    want = model(x)
    adapt(model, adapter("polyhistor:tasks=c+d+e"), "other")
    assert tasks_of(model) == ("c", "d", "e")
    with pytest.raises(AdapterError, match="the adapter has no task 'b'; it has c, d, e"):
        choose(model, "b")
    switch(model, "default")
    assert chosen(model) == "b"
    assert torch.equal(model(x), want)
    switch(model, None)
    with pytest.raises(AdapterError, match="no adapter of Classifier that is on knows tasks"):
        choose(model, "a")
    assert not any(b.tasks for b in (model.backbone,))


@torch.inference_mode()
def test_a_task_that_is_not_there_leaves_the_choice_as_it_was():
    model = adapted(PLAIN, "hyperformer:tasks=a+b")
    with pytest.raises(AdapterError, match="no task 'c'; it has a, b"), working_on(model, "c"):
        raise AssertionError("the block is not entered")
    assert chosen(model) == "a"
    with pytest.raises(KeyError), working_on(model, "b"):
        raise KeyError
    assert chosen(model) == "a"


# --------------------------------------------------------------------------------------------------- a head for each


def decoder(channels: list[int], out: int) -> nn.Module:
    """Maps -> (B out h w) at the first one's size."""

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.each = nn.ModuleList([nn.Conv2d(c, out, 1) for c in channels])

        def forward(self, maps: list[Tensor]) -> Tensor:
            size = maps[0].shape[2:]
            sized = [nn.functional.interpolate(f(m), size) for f, m in zip(self.each, maps, strict=True)]
            return torch.stack(sized).sum(0)

    return Decoder()


@pytest.mark.parametrize("spec", [HyperFormer(("parts", "normals")), PolyhistorLite(("parts", "normals"))])
def test_dense_tasks_learn_together_on_a_frozen_pyramid(spec):
    trunk = pyramid(WINDOWS)
    frozen = {n: p.clone() for n, p in trunk.named_parameters()}
    adapt(trunk, spec)
    torch.manual_seed(0)
    model = PerTask(trunk, {"normals": decoder(trunk.channels, 3), "parts": decoder(trunk.channels, 5)}).train()
    x = image((64, 96))
    goals = {"parts": torch.randint(0, 5, (2, 16, 24)), "normals": torch.randn(2, 3, 16, 24)}
    optimizer = torch.optim.AdamW(learning(model), 3e-3)
    losses = []
    for _ in range(12):
        out = model(x)
        assert {n: y.shape for n, y in out.items()} == {"parts": (2, 5, 16, 24), "normals": (2, 3, 16, 24)}
        each = (
            nn.functional.cross_entropy(out["parts"], goals["parts"]),
            nn.functional.mse_loss(out["normals"], goals["normals"]),
        )
        losses.append([float(loss.detach()) for loss in each])
        optimizer.zero_grad()
        sum(each).backward()
        optimizer.step()
    assert losses[-1][0] < losses[0][0] - 0.02
    assert losses[-1][1] < losses[0][1] - 0.02
    assert chosen(model) == "parts"
    assert all(torch.equal(p, frozen[n]) for n, p in trunk.named_parameters() if n in frozen)
    assert not trunk.backbone.stages[0].blocks[0].mixer.training
    only = model(x, ["normals"])
    assert list(only) == ["normals"]


def test_classifying_tasks_have_heads_of_their_own():
    model = made(PLAIN)
    model.reset_classifier(0)
    adapt(model, HyperFormer(("fruit", "birds")))
    both = PerTask(model, {"fruit": nn.Linear(16, 3), "birds": nn.Linear(16, 11)})
    assert {n: y.shape for n, y in both(image()).items()} == {"fruit": (2, 3), "birds": (2, 11)}
    assert both.state_dict().keys() == deepcopy(both).state_dict().keys()
    with pytest.raises(ValueError, match="heads for fruit, where the adapter has the tasks fruit, birds: birds has no"):
        PerTask(model, {"fruit": nn.Linear(16, 3)})
