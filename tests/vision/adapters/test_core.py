"""What every adapter goes by: freezing, switching, taking off, merging, one head each."""

import json
from copy import deepcopy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from patchloom.vision.adapters import (
    AdapterError,
    Put,
    adapt,
    adapter,
    adapter_of,
    counts,
    from_words,
    in_words,
    load_own_state,
    merge,
    own_state,
    switch,
    unadapted,
)  # fmt: skip
from patchloom.vision.adapters.probe import Probe
from patchloom.vision.layers import Linear
from patchloom.vision.plugins import attach, plugins_of
from patchloom.vision.plugins.merge import Merge
from patchloom.vision.plugins.words import retoken, strip
from patchloom.vision.zoo import create_model, describe, rebuild

FIRST = "backbone.stages.0.blocks.0"


class Twice(nn.Module):
    """base(x) + gain base(x)."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base, self.gain = base, nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (1 + self.gain) * self.base(x)


class Shift(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.by = nn.Parameter(torch.zeros(dim))

    def forward(self, t, y):
        return y + self.by


@dataclass(frozen=True)
class Wrapped:
    """A layer around one of the trunk's, and a bias in place of one of its."""

    where: str = "mixer.qkv"

    def place(self, model: nn.Module) -> list[Put]:
        owner, _, name = f"{FIRST}.{self.where}".rpartition(".")
        norm = model.get_submodule(f"{FIRST}.norm1")
        around = Twice(model.get_submodule(f"{FIRST}.{self.where}"))
        return [Put(owner, name, around), Put(f"{FIRST}.norm1", "bias", nn.Parameter(norm.bias.detach().clone()))]

    def merged(self, layer: nn.Module) -> nn.Module:
        whole = Linear(layer.base.in_features, layer.base.out_features)
        with torch.no_grad():
            whole.weight.copy_((1 + layer.gain) * layer.base.weight)
            whole.bias.copy_((1 + layer.gain) * layer.base.bias)
        return whole


@dataclass(frozen=True)
class Seamed:
    seam: str = "on_mixer"

    def place(self, model: nn.Module) -> list[Put]:
        return [Put(FIRST, self.seam, Shift(192))]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return create_model("deit_tiny_patch16_224", num_classes=5).eval()


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))


def learned(model: nn.Module, image: torch.Tensor) -> None:
    """One step of all that learns."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.5)
    model(image).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("spec", [Probe(), Wrapped(), Seamed()], ids=lambda s: type(s).__name__)
def test_what_is_taken_off_leaves_the_model_as_it_was(model, image, spec):
    before, state = model(image), {k: v.clone() for k, v in model.state_dict().items()}
    remove = adapt(model.train(), spec)
    torch.testing.assert_close(model.eval()(image), before)
    learned(model.train(), image)
    assert not torch.equal(model.eval()(image), before)
    remove()
    remove()
    assert model.adapters is None
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.train().modules())
    assert torch.equal(model.eval()(image), before)


def test_only_what_is_the_adapters_learns_and_the_trunk_is_in_evaluation(model, image):
    adapt(model, Wrapped())
    own = own_state(model)
    bias = f"{FIRST}.norm1.bias"
    assert list(own) == [bias, f"{FIRST}.mixer.qkv.gain", "head.weight", "head.bias"]
    assert [n for n, p in model.named_parameters() if p.requires_grad] == list(own)
    assert counts(model)[0] == sum(v.numel() for v in own.values())
    model.train()
    acting = {n for n, m in model.named_modules() if m.training}
    assert acting == {"", f"{FIRST}.mixer.qkv", "head", "head_drop"}
    learned(model, image)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_adapters_of_one_model_take_turns(model, image):
    adapt(model, Wrapped(), "one")
    learned(model, image)
    one = model(image)
    adapt(model, Seamed(), "two")
    model.reset_classifier(3)
    learned(model, image)
    two = model(image)
    assert two.shape == (2, 3)
    switch(model, "one")
    assert torch.equal(model(image), one)
    assert adapter_of(model) == Wrapped()
    switch(model, "two")
    assert torch.equal(model(image), two)
    assert model.num_classes == 3
    with unadapted(model):
        assert model.num_classes == 5
        assert adapter_of(model) is None
    with pytest.raises(AdapterError, match="no adapter 'three'; it has one, two"):
        switch(model, "three")
    with pytest.raises(AdapterError, match="an adapter 'two' already"):
        adapt(model, Probe(), "two")
    assert torch.equal(model(image), two)


def test_what_learns_in_one_leaves_the_other_alone(model, image):
    adapt(model, Seamed(), "one")
    one = model(image)
    adapt(model, Seamed(), "two")
    learned(model, image)
    switch(model, "one")
    assert torch.equal(model(image), one)


def test_merging_is_the_same_and_undone(model, image):
    adapt(model, Wrapped())
    learned(model, image)
    tuned = model(image)
    unmerge = merge(model)
    torch.testing.assert_close(model(image), tuned, rtol=1e-5, atol=1e-6)
    assert type(model.get_submodule(f"{FIRST}.mixer.qkv")) is Linear
    with pytest.raises(AdapterError, match="'default' is merged into the weights: first call"):
        switch(model, None)
    with pytest.raises(AdapterError, match="none to merge"):
        merge(model)
    unmerge()
    unmerge()
    assert torch.equal(model(image), tuned)


def test_what_is_no_weight_cannot_be_merged(model):
    with pytest.raises(AdapterError, match="none to merge"):
        merge(model)
    adapt(model, Seamed())
    with pytest.raises(AdapterError, match="cannot be merged: its Shift is more than a weight"):
        merge(model)


def test_refusals_leave_the_model_alone(model):
    with pytest.raises(AdapterError, match="Sequential is no model of this suite"):
        adapt(nn.Sequential(nn.Linear(2, 2)), Probe())
    with pytest.raises(AdapterError, match="has no 'around_all'"):
        adapt(model, Seamed("around_all"))
    attach(model, Merge(1))
    with pytest.raises(AdapterError, match=r"seam .*blocks\.0\.after_mixer is taken by MergeLayer"):
        adapt(model, Seamed("after_mixer"))
    assert model.adapters is None
    assert all(p.requires_grad for p in model.parameters())


def test_token_plugins_come_and_go_beside_it(model, image):
    adapt(model, Seamed())
    learned(model, image)
    alone = model(image)
    attach(model, Merge(2))
    assert model(image).shape == (2, 5)
    assert not torch.equal(model(image), alone)
    assert retoken(model, Merge(0)) == []
    torch.testing.assert_close(model(image), alone)
    strip(model)
    assert plugins_of(model) == []
    assert torch.equal(model(image), alone)


def test_a_copy_has_adapters_of_its_own(model, image):
    adapt(model, Seamed(), "one")
    adapt(model, Wrapped(), "two")
    copy = deepcopy(model)
    learned(copy, image)
    assert not torch.equal(copy(image), model(image))
    switch(copy, "one")
    assert adapter_of(model) == Wrapped()
    torch.testing.assert_close(copy(image), model(image))


def test_described_and_rebuilt(image):
    torch.manual_seed(0)
    model = create_model("deit_tiny_patch16_224", num_classes=5, tokens="tome:r=2", adapter="probe").eval()
    again = rebuild(json.loads(json.dumps(describe(model)))).eval()
    again.load_state_dict(model.state_dict())
    assert adapter_of(again) == Probe()
    assert torch.equal(again(image), model(image))


def test_own_tensors_are_saved_and_loaded_strictly(model, image):
    adapt(model, Wrapped())
    learned(model, image)
    saved = {k: v.clone() for k, v in own_state(model).items()}
    tuned = model(image)
    learned(model, image)
    load_own_state(model, saved)
    assert torch.equal(model(image), tuned)
    with pytest.raises(AdapterError, match=r"lacks head\.bias"):
        load_own_state(model, {k: v for k, v in saved.items() if k != "head.bias"})
    with pytest.raises(AdapterError, match=r"has shape \(2,\), where it is \(5,\) here"):
        load_own_state(model, {**saved, "head.bias": torch.zeros(2)})
    with pytest.raises(AdapterError, match="has not, more"):
        load_own_state(model, {**saved, "more": torch.zeros(2)})


def test_a_pyramid_has_its_norms_for_its_own():
    torch.manual_seed(0)
    model = create_model("swin_tiny", features_only=True, dense=True, adapter="probe")
    assert [n for n, p in model.named_parameters() if p.requires_grad] == list(own_state(model))
    assert all(n.startswith("norms.") for n in own_state(model))
    assert not model.backbone.training
    model.train()
    assert not model.backbone.training
    assert model.norms.training


def test_what_is_off_follows_the_model(model, image):
    adapt(model, Wrapped(), "one")
    adapt(model, Probe(), "two")
    model.double()
    for name in ("one", "two", None):
        switch(model, name)
        assert {p.dtype for p in model.parameters()} == {torch.float64}
        model(image.double())


@pytest.mark.parametrize(
    "words",
    ["lora:alpha=nan", "pissa:alpha=0", "adalora:dropout=-1", "vera:d=inf", "boft:dropout=inf", "delora:strength=nan",
     "adalora:orthogonal=-1", "adalora:begin=nan", "vl_lora:alpha=inf", "diffscaler:scale=nan", "lora:r=0"],
)  # fmt: skip
def test_settings_that_no_model_takes(words):
    name = words.partition(":")[2].partition("=")[0]
    with pytest.raises(ValueError, match=rf"{name}="):
        adapter(words)


def test_what_is_no_adapter(model):
    for wrong in (None, {"class_path": "patchloom.vision.mixers.pool.Pool", "init_args": {}}):
        with pytest.raises(ValueError, match=r"a spelling \(lora:r=8\) or one of vision/adapters is wanted"):
            from_words(wrong)


def test_spellings():
    assert adapter("probe") == Probe()
    assert in_words(Probe()) == "probe"
    with pytest.raises(ValueError, match="adapter 'prob' in 'prob' is not known; did you mean probe"):
        adapter("prob")
    with pytest.raises(ValueError, match="there are"):
        create_model("deit_tiny_patch16_224", adapter="xyz")
    with pytest.raises(ValueError, match="for models of this suite"):
        create_model("timm:resnet18", adapter="probe")
