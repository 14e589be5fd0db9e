"""Compacter and the low-rank bottleneck."""

from copy import deepcopy

import pytest
import torch
from adapter_golden import of
from golden import golden
from plugin_parts import by_energy, image, made
from torch import nn

from patchloom.vision.adapters import AdapterError, adapt, adapter, counts, load_own_state, own_state, switch
from patchloom.vision.adapters.bottleneck import Bottleneck, bottleneck
from patchloom.vision.adapters.compacter import Compacter, Hypercomplex, LowRank, Rule
from patchloom.vision.tokens import Tokens
from patchloom.vision.zoo import create_model

NAMES = {
    "phm_rule": "rule.full", "phm_rule_left": "rule.left", "phm_rule_right": "rule.right", "weight": "weight",
    "bias": "bias", "W": "weight", "W_left": "left", "W_right": "right", "b": "bias",
}  # fmt: skip


def hypercomplex(rank: int | None, factored: bool = False) -> list[nn.Module]:
    return [Hypercomplex(size, Rule(4, factored), 4, rank) for size in ((32, 16), (16, 32))]


def body(kind: str) -> Bottleneck:
    if kind == "adapter":
        return bottleneck(32, 16, ("gelu_tanh",))
    if kind == "low_rank":
        layers = [LowRank((32, 16), 1), LowRank((16, 32), 1)]
    else:
        rank = {"phm": None, "compacter_rank": 3}.get(kind, 1)
        layers = hypercomplex(rank, kind == "factorized_rule")
    return Bottleneck(*layers, ("gelu_tanh",))


@pytest.mark.parametrize(
    "kind", ["phm", "compacter", "compacter_rank", "factorized_rule", "shared_rule", "low_rank", "adapter"]
)
@torch.inference_mode()
def test_bodies_are_the_originals(kind):
    record = golden.load("compacter/adapters")
    state = of(record, kind)
    if kind == "shared_rule":  # of the whole model; the aliases of it are no parameters
        state |= {f"{side}_sampler.phm_rule": record.state_dict()["phm_rule"] for side in ("down", "up")}
    ours = body(kind)
    ours.load_state_dict({f"{n.partition('_')[0]}.{NAMES[n.partition('.')[2]]}": v for n, v in state.items()})
    record.compare(kind, ours(Tokens(record.input(), None)), 1e-5)
    if kind == "compacter":
        record.compare("weight", ours.down.matrix(), 1e-5)


def test_the_rule_is_one_for_all_layers_and_stays_so():
    model = made("shifted windows")
    adapt(model, Compacter(reduction=4))
    assert len({id(m) for m in model.modules() if isinstance(m, Rule)}) == 1
    other = deepcopy(model)
    assert len({id(p) for n, p in other.named_parameters(remove_duplicate=False) if n.endswith("rule.full")}) == 1
    model.bfloat16()
    assert len({id(p) for n, p in model.named_parameters(remove_duplicate=False) if n.endswith("rule.full")}) == 1


def test_what_layers_share_is_saved_and_loaded():
    model, x = made("shifted windows"), image()
    adapt(model, Compacter(reduction=4))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)
    state = {n: t.clone() for n, t in own_state(model).items()}
    fresh = made("shifted windows")
    adapt(fresh, Compacter(reduction=4))
    load_own_state(fresh, state)
    assert torch.equal(fresh(x), model(x))


def test_two_on_one_model_have_a_rule_each():
    model = made("shifted windows")
    adapt(model, Compacter(reduction=4), "one")
    adapt(model, Compacter(reduction=4), "two")
    rules = {}
    for name in ("one", "two"):
        switch(model, name)
        rules[name] = {id(m) for m in model.modules() if isinstance(m, Rule)}
    assert not rules["one"] & rules["two"]


def test_published_size():
    """T5-base: 0.047 % of 222.9 M; here on the blocks of a ViT-B, ++: A once, d + b numbers a layer."""
    with torch.device("meta"):
        model = create_model("vit_base_patch16_224", num_classes=0, adapter="compacter:where=ffn")
    layer = (768 + 24) + 24 + (24 + 768) + 768
    assert counts(model)[0] == 4**3 + 12 * layer


def test_half_precision():
    model = made("global attention, class token").bfloat16()
    adapt(model, Compacter(reduction=4))
    by_energy(model, image().bfloat16())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_what_does_not_divide_is_refused_by_name():
    model = made("global attention, class token")  # 16 channels
    first = r"backbone\.stages\.0\.blocks\.0: Block has "
    with pytest.raises(AdapterError, match=first + "16 channels, which n=3 must divide"):
        adapt(model, Compacter(n=3))
    with pytest.raises(AdapterError, match=first + "bottlenecks of 4 x 1, which have no rank=2; 1 to 1 will do"):
        adapt(model, Compacter(rank=2))
    with pytest.raises(AdapterError, match=first + "bottlenecks of 2 channels, which have no rank=3; 1 to 2"):
        adapt(model, adapter("low_rank:rank=3,reduction=8"))


@pytest.mark.parametrize("text", ["compacter:n=0", "compacter:rank=0", "low_rank:rank=0", "compacter:rule=mine"])
def test_settings_that_fit_no_model_say_so(text):
    with pytest.raises(ValueError, match=text.partition("=")[0].partition(":")[2]):
        adapter(text)
