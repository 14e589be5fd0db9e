"""An adapter's folder: what it holds, onto what it goes, and what it refuses."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from patchloom.vision import adapters
from patchloom.vision.adapters import AdapterError, Put, adapt, adapter_of, counts, switch, unadapted
from patchloom.vision.adapters.files import CONFIG, TENSORS, load_adapter, put_on, read_card, save_adapter, start_from
from patchloom.vision.adapters.trunk import covered, digest, uncover
from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.mixers.attention import Global
from patchloom.vision.model import Classifier
from patchloom.vision.plugins import attach, plugin
from patchloom.vision.pyramid import Pyramid
from patchloom.vision.zoo import create_model, describe, rebuild

CLASSES = ["rose", "tulip", "daisy"]
IMAGE = torch.randn(2, 3, 32, 40, generator=torch.Generator().manual_seed(1))


class Around(nn.Module):
    """W x + B A x"""

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base, self.down = base, nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


@dataclass(frozen=True)
class Both:
    """A layer around each projection, and norm biases of its own: the two kinds of places that there are."""

    rank: int = 2

    def place(self, model: nn.Module) -> list[Put]:
        named = list(model.named_modules())
        mixers = [(n, m.mixer) for n, m in named if hasattr(m, "mixer")]
        puts = [Put(f"{n}.mixer", "proj", Around(m.proj, self.rank)) for n, m in mixers]
        norms = [(n, m) for n, m in named if n.endswith("norm1")]
        return [*puts, *(Put(n, "bias", nn.Parameter(m.bias.detach().clone())) for n, m in norms)]


def network(seed: int = 0, classes: int = 5, dim: int = 16) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(Backbone([Stage(Global(2), dim, 2)], patch=8), classes, img_size=32).eval()


def trained(seed: int = 0, adapter: object = Both(), classes: int = 3, name: str = "default") -> Classifier:
    """The network with an adapter that has left its start."""
    model = network(seed)
    learn(model, adapter, classes, name)
    return model


def learn(model: Classifier, adapter: object, classes: int = 3, name: str = "default", seed: int = 5) -> None:
    adapt(model, adapter, name)
    model.reset_classifier(classes)
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn_like(p))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_adapter(trained(), tmp_path / "adapter", classes=CLASSES, preprocessing={"mean": (0.5, 0.5, 0.5)})


def test_it_comes_back_as_it_was(folder):
    model = network()
    card = load_adapter(model, folder)
    assert torch.equal(model(IMAGE), trained()(IMAGE))
    assert model.num_classes == card.num_classes == 3
    assert (card.classes, card.preprocessing) == (CLASSES, {"mean": [0.5, 0.5, 0.5]})
    assert adapter_of(model) == card.settings() == Both()
    assert card.parameters == counts(model)[0]


def test_the_files_are_small_and_say_what_they_are_of(folder):
    assert {path.name for path in folder.iterdir()} == {CONFIG, TENSORS}
    own = load_file(folder / TENSORS)
    assert sum(t.numel() for t in own.values()) == counts(trained())[0]
    config = json.loads((folder / CONFIG).read_text())
    assert config["backbone"] == "2 x Global of 16"
    assert config["trunk"] == digest(network()) == digest(trained())
    assert config["classes"] == CLASSES
    assert (folder / TENSORS).stat().st_mode & 0o044


def test_another_backbone_and_other_weights_are_errors(folder):
    with pytest.raises(AdapterError, match="is an adapter of 2 x Global of 16, and this model is 2 x Global of 32"):
        load_adapter(network(dim=32), folder)
    other = network(seed=1)
    before = other(IMAGE)
    with pytest.raises(AdapterError, match=r"was trained on other weights of 2 x Global of 16 .*load those first"):
        load_adapter(other, folder)
    assert torch.equal(other(IMAGE), before)
    assert counts(other)[0] == counts(other)[1]
    load_adapter(other, folder, other_weights=True)
    assert not torch.equal(other(IMAGE), before)
    with pytest.raises(AdapterError, match=r"2 x Global of 16, and this model is 2 x Global of 16|other weights"):
        load_adapter(Pyramid(network().backbone), folder)


def test_a_zoo_name_says_how_the_model_was_made(tmp_path):
    model = create_model("deit_tiny_patch16_224", img_size=64, num_classes=3, adapter="probe")
    card = read_card(save_adapter(model, tmp_path / "a"))
    assert card.backbone == "deit_tiny_patch16_224"
    assert card.arguments["img_size"] == [64, 64] or card.arguments["img_size"] == 64
    with pytest.raises(AdapterError, match=r"adapter of deit_tiny_patch16_224 made with img_size=64.* model is cct_7"):
        load_adapter(create_model("cct_7_3x1_32"), tmp_path / "a")


def test_several_on_one_trunk(tmp_path):
    """Switched without reading a file again; each has its own head, and the bare model comes back bit for bit."""
    model, bare = network(), network()(IMAGE)
    outputs = {}
    for i, (name, classes) in enumerate((("a", 3), ("b", 4), ("c", 5))):
        one = network()
        learn(one, Both(i + 1), classes, seed=i)
        outputs[name] = one(IMAGE)
        load_adapter(model, save_adapter(one, tmp_path / name), name)
    for name in "abcab":
        switch(model, name)
        assert torch.equal(model(IMAGE), outputs[name])
    switch(model, None)
    assert torch.equal(model(IMAGE), bare)


def test_damaged_and_foreign_files(folder, tmp_path):
    model, before = network(), network()(IMAGE)
    with pytest.raises(FileNotFoundError, match=r"no adapter in .*: it has no adapter_config"):
        load_adapter(model, tmp_path)
    content, path = (folder / TENSORS).read_bytes(), folder / TENSORS
    state = load_file(path)
    path.write_bytes(content[:200])
    with pytest.raises(AdapterError, match="damaged one"):
        load_adapter(model, folder)
    save_file(state, path)
    with pytest.raises(AdapterError, match="does not say of which backbone"):
        load_adapter(model, folder)
    card = json.loads((folder / CONFIG).read_text())
    save_file(state, path, {"patchloom": json.dumps({**card, "format": 9})})
    with pytest.raises(AdapterError, match="is of format 9, this patchloom reads 1"):
        load_adapter(model, folder)
    lost = next(iter(state))
    save_file({n: t for n, t in state.items() if n != lost}, path, {"patchloom": json.dumps(card)})
    with pytest.raises(AdapterError, match=f"lacks {lost}"):
        load_adapter(model, folder)
    save_file({**state, lost: torch.zeros(7, 7)}, path, {"patchloom": json.dumps(card)})
    with pytest.raises(AdapterError, match=f"{lost} of the adapter's file has shape"):
        load_adapter(model, folder)
    assert adapter_of(model) is None
    assert torch.equal(model(IMAGE), before)
    assert counts(model)[0] == counts(model)[1]


def test_a_refusal_leaves_the_one_before_on(folder, tmp_path):
    model = trained(adapter=Both(3))
    before = model(IMAGE)
    state = load_file(folder / TENSORS)
    card = json.loads((folder / CONFIG).read_text())
    save_file(dict(list(state.items())[1:]), folder / TENSORS, {"patchloom": json.dumps(card)})
    with pytest.raises(AdapterError, match="lacks"):
        load_adapter(model, folder, "second")
    assert torch.equal(model(IMAGE), before)
    with pytest.raises(AdapterError, match="no adapter of the model is on"):
        save_adapter(network(), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_token_plugins_are_not_the_trunk(folder):
    """An adapter goes onto a model whose tokens are merged, and onto one with a plugin that has parameters."""
    for words in ("tome:r=2", "soft_merge:tokens=8,at=1"):
        model = network()
        attach(model, plugin(words))
        assert digest(model) == digest(network())
        load_adapter(model, folder)
        assert model(IMAGE).shape == (2, 3)


def test_what_learnt_before_starts_another(folder):
    """All but the head, which stays as it is (PVP)."""
    model = network()
    adapt(model, Both())
    head = model.head.weight.detach().clone()
    start_from(model, folder)
    theirs, own = load_file(folder / TENSORS), adapters.own_state(model)
    assert torch.equal(model.head.weight, head)
    body = [n for n in theirs if not n.startswith("head")]
    assert len(body) == 6
    assert all(torch.equal(own[n], theirs[n]) for n in body)
    with pytest.raises(AdapterError, match=r"holds .*Both\(rank=2\), and the adapter that is on is .*rank=3"):
        start_from(trained(adapter=Both(3)), folder)
    with pytest.raises(AdapterError, match="the adapter that is on is none"):
        start_from(network(), folder)


def test_a_folder_stands_for_its_adapter(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "probe").mkdir()  # a folder does not hide a method
    model = network()
    assert put_on(model, "probe") is None
    for said in (str(folder), folder, "adapter", str(tmp_path)):
        model = network()
        assert put_on(model, said).classes == CLASSES
        assert torch.equal(model(IMAGE), trained()(IMAGE))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no adapter in .*nothing: it has no adapter_config.json, nor"):
        put_on(network(), str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="adapter 'runs/x' in 'runs/x' is not known"):
        put_on(network(), "runs/x")


def test_what_an_adapter_covers_travels_apart():
    """`state_dict` holds what is on; with `covered` the model is whole, with and without its adapter."""
    model = trained()
    there = covered(model)
    assert there["num_classes"] == 5
    assert set(there["state"]) == {
        "head.weight",
        "head.bias",
        *(f"backbone.stages.0.blocks.{i}.norm1.bias" for i in (0, 1)),
    }
    torch.manual_seed(7)
    other = rebuild(describe(model)).eval()
    other.load_state_dict(model.state_dict())
    uncover(other, there)
    assert torch.equal(other(IMAGE), model(IMAGE))
    assert digest(other) == digest(model)
    with unadapted(other):
        assert torch.equal(other(IMAGE), network()(IMAGE))
        assert counts(other)[0] == 0
    with pytest.raises(ValueError, match=r"head.weight of the trunk has shape \(2, 2\) in the file"):
        uncover(other, {**there, "state": {"head.weight": torch.zeros(2, 2)}})


def test_a_head_made_anew_stays_the_adapters_own():
    model = trained(classes=3)
    model.reset_classifier(7)
    assert model(IMAGE).shape == (2, 7)
    assert all(p.requires_grad for p in model.head.parameters())
    switch(model, None)
    assert torch.equal(model(IMAGE), network()(IMAGE))
    assert not any(p.requires_grad for p in model.parameters())


def test_what_is_off_follows_to_another_device():
    model = trained(adapter=adapters.adapter("lora:r=2"))
    learn(model, adapters.adapter("houlsby"), 4, "second")
    model.to("meta")
    for name in (None, "default", None, "second"):
        switch(model, name)
        assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"meta"}


SMALL = {"vera": "vera:r=16"}  # its rank may not be above the width


@pytest.mark.parametrize("name", adapters.ADAPTERS)
def test_every_method_comes_back(tmp_path, name):
    """Through its files, as a start for another, and through a description with what it covers; and below it the trunk
    is what it was."""
    words = SMALL.get(name, name)
    model, bare = network(dim=64), network(dim=64)(IMAGE)
    learn(model, adapters.adapter(words))
    output = model(IMAGE)
    assert digest(model) == digest(network(dim=64))
    folder = save_adapter(model, tmp_path / "a", classes=CLASSES)
    other = network(dim=64)
    load_adapter(other, folder)
    torch.testing.assert_close(other(IMAGE), output, rtol=1e-5, atol=1e-5)
    fresh = network(dim=64)
    adapt(fresh, adapters.adapter(words))
    start_from(fresh, folder)
    whole = rebuild(describe(model)).eval()
    whole.load_state_dict(model.state_dict())
    uncover(whole, covered(model))
    torch.testing.assert_close(whole(IMAGE), output, rtol=1e-6, atol=1e-6)
    with unadapted(whole):
        assert torch.equal(whole(IMAGE), bare)


# --------------------------------------------------------------------------------------------------------------- peft


def test_what_peft_knows_is_saved_as_peft_does(tmp_path):
    """Its files load in peft, onto the same bare network with as many classes, and here with all that they say."""
    from peft import PeftModel

    for name in ("lora:r=2", "dora:r=2,targets=qkv", "lora:r=2,targets=q+v", "pissa:r=2", "ia3", "vera:r=4"):
        model = trained(adapter=adapters.from_words(name))
        folder = save_adapter(model, tmp_path / name, classes=CLASSES)
        card = read_card(folder)
        assert (adapters.from_words(card.words), card.peft) == (adapters.from_words(name), True)
        assert json.loads((folder / CONFIG).read_text())["peft_type"]
        other = network()
        load_adapter(other, folder)
        torch.testing.assert_close(other(IMAGE), model(IMAGE), rtol=1e-5, atol=1e-5)
        assert adapter_of(other) == adapters.from_words(name)
        bare = network()
        bare.reset_classifier(3)
        theirs = PeftModel.from_pretrained(bare, str(folder)).eval()
        torch.testing.assert_close(theirs(IMAGE), model(IMAGE), rtol=1e-5, atol=1e-5)
    with pytest.raises(AdapterError, match="was trained on other weights"):
        load_adapter(network(1), folder)


def test_what_peft_saved_is_read(tmp_path):
    from peft import LoraConfig, get_peft_model

    base = network()
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["qkv", "fc1"], modules_to_save=["head"])
    theirs = get_peft_model(base, config).eval()
    for p in theirs.parameters():
        if p.requires_grad:
            p.data.add_(0.2 * torch.randn_like(p))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    card = read_card(tmp_path / "theirs")
    assert (card.words, card.trunk, card.peft) == ("LORA of peft", "", True)
    model = network()
    load_adapter(model, tmp_path / "theirs")
    torch.testing.assert_close(model(IMAGE), theirs(IMAGE), rtol=1e-5, atol=1e-5)
    again = network()
    load_adapter(again, save_adapter(model, tmp_path / "ours", classes=list("abcde")))
    torch.testing.assert_close(again(IMAGE), theirs(IMAGE), rtol=1e-5, atol=1e-5)
    (tmp_path / "theirs" / CONFIG).write_text("{")
    with pytest.raises(AdapterError, match="no JSON"):
        load_adapter(network(), tmp_path / "theirs")


def test_a_start_in_pefts_format(tmp_path):
    first = trained(adapter=adapters.from_words("lora:r=2"))
    save_adapter(first, tmp_path / "first")
    model = network()
    adapt(model, adapters.from_words("lora:r=2"))
    head = model.head.weight.detach().clone()
    start_from(model, tmp_path / "first")
    assert torch.equal(model.head.weight, head)
    own, theirs = adapters.own_state(model), adapters.own_state(first)
    assert all(torch.equal(own[n], theirs[n]) for n in own if not n.startswith("head"))
