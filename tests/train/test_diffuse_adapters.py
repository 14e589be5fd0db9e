"""One frozen denoiser, several data sets: LoRA and Diffscaler learn another, and switching brings the first back."""

import pytest
import torch
from generation_parts import RECIPE, Numbers, awake, fit
from torch import nn

from patchloom.train.cli import main
from patchloom.train.diffuse import Diffuse
from patchloom.train.ema import Ema
from patchloom.train.running import checkpoint
from patchloom.train.saved.adapted import load_adapted
from patchloom.train.saved.load_maker import load_maker
from patchloom.train.saved.maker import MakeSettings
from patchloom.vision.adapters import book, own_state, switch
from patchloom.vision.adapters.files import load_adapter, save_adapter

METHODS = ["lora:r=4", "diffscaler:r=4"]
KINDS = ["red", "green", "blue"]


def base() -> nn.Module:
    model = awake()
    model.class_names = [str(i) for i in range(10)]
    return model


def tuned(model: nn.Module, adapter: object, folder, classes=KINDS, seed: int = 0, **options) -> Diffuse:
    torch.manual_seed(seed)
    adam = lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.0)  # noqa: E731
    made = Diffuse(model, optimizer=adam, samples=None, ema=None, adapter=adapter, **options)
    fit(made, Numbers(classes=classes), folder, max_epochs=3)
    return made


def answer(model: nn.Module, label: int = 1) -> torch.Tensor:
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(x, torch.tensor([10.0, 500.0]), torch.tensor([label, label]))


@pytest.mark.parametrize("adapter", METHODS)
def test_another_data_set_is_learned_and_the_first_comes_back(adapter, tmp_path):
    model = base()
    before, state = answer(model, 7), {k: v.clone() for k, v in model.state_dict().items()}
    made = tuned(model, adapter, tmp_path)
    assert made.trainer.losses[-1] < made.trainer.losses[0]
    assert model.num_classes == 3
    other = answer(model)
    switch(model, None)
    assert model.num_classes == 10
    assert torch.equal(answer(model, 7), before)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    switch(model, "default")
    assert torch.equal(answer(model), other)
    assert (other - answer(base())).abs().max() > 1e-2


@pytest.mark.parametrize("adapter", METHODS)
def test_several_data_sets_leave_each_other_alone(adapter, tmp_path):
    """The second is trained on the same model; the first one's answers stay as they were, bit for bit."""
    model = base()
    tuned(model, adapter, tmp_path)
    save_adapter(model, tmp_path / "first", classes=KINDS)
    first = answer(model, 2)
    switch(model, None)
    fresh = base()
    tuned(fresh, adapter, tmp_path, classes=["a", "b"], seed=1)
    save_adapter(fresh, tmp_path / "second", classes=["a", "b"])
    second = answer(fresh, 1)
    load_adapter(model, tmp_path / "second", "second")
    assert model.num_classes == 2
    torch.testing.assert_close(answer(model, 1), second, atol=1e-6, rtol=1e-5)
    switch(model, "default")
    assert torch.equal(answer(model, 2), first)
    assert set(book(model).fitted) == {"default", "second"}


def test_labels_of_another_data_set_begin_as_no_class(tmp_path):
    model = base()
    null = model.labels.table.weight[-1].clone()
    torch.manual_seed(0)
    made = Diffuse(model, samples=None, ema=Ema(0.9), adapter="diffscaler:r=4")
    same_number = [f"other {i}" for i in range(10)]
    fit(made, Numbers(classes=same_number), tmp_path, max_epochs=1, limit_train_batches=0)
    assert torch.equal(model.labels.table.weight, null.expand(11, -1))
    assert "labels.table.weight" in own_state(model)
    kept = Diffuse(base(), samples=None, adapter="diffscaler:r=4", labels="keep")
    begun = kept.model.labels.table.weight.clone()
    fit(kept, Numbers(classes=same_number), tmp_path, max_epochs=1, limit_train_batches=0)
    assert torch.equal(kept.model.labels.table.weight, begun)
    own = Diffuse(base(), samples=None, adapter="lora:r=4")  # the classes that it knows already
    fit(own, Numbers(), tmp_path, max_epochs=1, limit_train_batches=0)
    assert torch.equal(own.model.labels.table.weight, begun)


@pytest.mark.parametrize("adapter", METHODS)
def test_at_the_beginning_nothing_changes(adapter):
    model = base()
    before = answer(model)
    made = Diffuse(model, samples=None, adapter=adapter)
    torch.testing.assert_close(answer(made.model), before, atol=1e-6, rtol=1e-6)
    learns = [n for n, p in made.model.named_parameters() if p.requires_grad]
    assert any("labels" in n for n in learns)
    assert not any(n.endswith("layer.weight") for n in learns)


@pytest.mark.parametrize("adapter", [METHODS[1]])
def test_from_run_to_run_by_the_command_line(adapter, tmp_path, monkeypatch):
    """A run, an adapter on it for other classes, images of either by choice of the folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(RECIPE.replace("max_epochs: 3", "max_epochs: 1"))
    assert main(["fit", "-c", "base.yaml", "--test", "false"]) == 0
    (first,) = (tmp_path / "runs" / "base").iterdir()
    old = RECIPE[RECIPE.index("    model:\n") : RECIPE.index("    optimizer")]
    new = f"    model: {{class_path: patchloom.train.saved.adapted.trained, init_args: {{spec: {first}}}}}\n"
    text = (
        RECIPE.replace(old, new)
        .replace("max_epochs: 3", "max_epochs: 1")
        .replace("train_length: 80", "train_length: 40")
    )
    (tmp_path / "tuned.yaml").write_text(text)
    words = ["fit", "-c", "tuned.yaml", "--adapter", adapter, "--model.labels", "fresh", "--test", "false"]
    assert main(words) == 0
    (second,) = (tmp_path / "runs" / "tuned").iterdir()
    assert (second / "adapter" / "adapter_model.safetensors").is_file()
    settings = MakeSettings(steps=2)
    made = {
        name: next(load_maker(str(run), adapter=folder).images([3, 4], settings))
        for name, run, folder in (
            ("base", first, None), ("tuned", second, None), ("base and adapter", first, str(second / "adapter"))
        )
    }  # fmt: skip
    assert torch.equal(made["tuned"], made["base and adapter"])
    assert not torch.equal(made["tuned"], made["base"])
    model, classes, _ = load_adapted(str(first), second)
    switch(model, None)
    bare = checkpoint.load_model(str(first))[0]
    assert torch.equal(answer(model), answer(bare))
    assert len(classes) == 10
