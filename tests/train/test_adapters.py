"""A run that trains an adapter: it alone moves and has state, and the run says so; what commands make of it."""

import json
import logging
import math
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from classify_parts import CLASSES, Colours, trainer
from fit_parts import RECIPE, differences, error_line, patchloom, recipe, run_folder
from lightning.pytorch.callbacks import StochasticWeightAveraging
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from patchloom.data.shapes import Shapes
from patchloom.train import checkpoint, cli
from patchloom.train.adapted import load_adapted, trained
from patchloom.train.callbacks.checkpoints import Checkpoints, PlainFiles
from patchloom.train.callbacks.learning import Learning
from patchloom.train.checkpoint import load_model
from patchloom.train.classify import Classify
from patchloom.train.ema import Average, Ema
from patchloom.train.learning import learning, summary
from patchloom.train.mixing import Mixing
from patchloom.train.optim import Constant, parameter_groups
from patchloom.vision.adapters import AdapterError, Put, adapt, adapter_of, counts, own_state, switch, unadapted
from patchloom.vision.adapters.files import read_card, save_adapter
from patchloom.vision.adapters.trunk import digest
from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.block import PreNorm
from patchloom.vision.mixers.pool import Pool
from patchloom.vision.model import Classifier
from patchloom.vision.norm import BatchNorm, Norm
from patchloom.vision.zoo import create_model


class Shift(nn.Module):
    """x + b of what a layer says; `heard` is how much of it."""

    def __init__(self, base: nn.Module, dim: int, heard: float):
        super().__init__()
        self.base, self.shift, self.heard = base, nn.Parameter(torch.zeros(dim)), heard

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.heard * self.shift


@dataclass(frozen=True)
class Shifts:
    """A shift behind each second layer of an MLP, and biases of convolutions in place of the trunk's."""

    heard: float = 1.0

    def place(self, model: nn.Module) -> list[Put]:
        named = list(model.named_modules())
        mlps = [(n, m) for n, m in named if hasattr(m, "fc2")]
        shifts = [Put(n, "fc2", Shift(m.fc2, m.fc2.out_features, self.heard)) for n, m in mlps]
        if self.heard == 0:
            return shifts
        convs = [(n, m) for n, m in named if isinstance(m, nn.Conv2d) and m.bias is not None]
        return [*shifts, *(Put(n, "bias", nn.Parameter(m.bias.detach().clone())) for n, m in convs)]


@dataclass(frozen=True)
class Nothing:
    def place(self, model: nn.Module) -> list[Put]:
        return []


def network(seed: int = 0, norm: str = "layer", classes: int = 5) -> Classifier:
    """Two stages of pooling with dropout inside the MLPs, before the head, and of whole blocks."""
    torch.manual_seed(seed)
    block = PreNorm(norm=Norm(norm), drop=0.2)
    stages = [Stage(Pool(), 16, 1, block=block), Stage(Pool(), 32, 2, block=block)]
    return Classifier(Backbone(stages, drop_path=0.2), classes, drop_rate=0.1, img_size=8)


def sgd(groups: list[dict]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def fit(folder: Path, module: Classify, epochs: int = 1, **options: object):
    t = trainer(folder, max_epochs=epochs, **options)
    t.fit(module, Colours())
    return t


def saving_fit(folder: Path, module: Classify) -> None:
    saving = Checkpoints()
    fit(folder, module, callbacks=[saving.resume, saving], plugins=[PlainFiles()], enable_checkpointing=True)


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_only_the_adapter_learns(tmp_path, norm):
    """The trunk stays in evaluation mode, moves by no bit, has no gradient and no state; the head fits the data."""
    modes: list[dict[type, bool]] = []

    class Look(Learning):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            super().on_before_optimizer_step(trainer, module, optimizer)
            modes.append({type(m): m.training for m in module.model.modules()})
            ours = {id(p) for group in optimizer.param_groups for p in group["params"]}
            assert ours == {id(p) for p in module.model.parameters() if p.requires_grad}
            assert all(p.grad is None for p in module.model.parameters() if id(p) not in ours)

    model = network(norm=norm)
    before = digest(model)
    module = Classify(model, optimizer=sgd, adapter=Shifts(), mixing=Mixing(0.2, 0.0))
    shifts = [m.shift.detach().clone() for m in model.modules() if isinstance(m, Shift)]
    t = fit(tmp_path, module, callbacks=[Look()])
    assert model.num_classes == len(CLASSES)
    assert digest(model) == before
    now = [m.shift for m in model.modules() if isinstance(m, Shift)]
    assert not any(torch.equal(a, b) for a, b in zip(shifts, now, strict=True))
    assert all(mode[Shift] and not mode[nn.LayerNorm if norm == "layer" else BatchNorm] for mode in modes)
    assert len(modes) == t.global_step == 9
    assert len(t.optimizers[0].state) == sum(p.requires_grad for p in model.parameters())
    assert counts(model)[0] < counts(model)[1] / 4


def test_the_average_shares_what_is_frozen(tmp_path):
    model = network()
    adapt(model, Shifts())
    average = Average(model, Ema(0.5))
    pairs = [*zip(average.module.named_parameters(), model.parameters(), strict=True)]
    assert {n for (n, p), q in pairs if p is not q} == {n for n, p in model.named_parameters() if p.requires_grad}
    average.to(torch.float64)
    model.to(torch.float64)
    assert sum(p is q for (_, p), q in pairs) == sum(not p.requires_grad for p in model.parameters())

    module = Classify(network(), optimizer=sgd, adapter=Shifts(), ema=Ema(0.9))
    saving_fit(tmp_path, module)
    other = [n for n, p in module.ema.module.named_parameters() if not torch.equal(p, module.model.get_parameter(n))]
    assert set(other) == {n for n, p in module.model.named_parameters() if p.requires_grad}
    saved, _, _ = checkpoint.load_model(str(tmp_path / "last.ckpt"))
    module.eval()
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(saved(x), module(x))
    plain = sum(p.numel() * p.element_size() for p in module.model.parameters())
    assert (tmp_path / "last.ckpt").stat().st_size < 2 * plain + 60_000  # the trunk is in it once


def test_layer_decay_and_scales_reach_an_adapters_own():
    model = network()
    adapt(model, Shifts())
    scale = {id(p): g["lr_scale"] for g in parameter_groups(model, 0.5) for p in g["params"]}
    names = {n: scale[id(p)] for n, p in model.named_parameters() if p.requires_grad}
    assert names["head.weight"] == 1
    inside = [s for n, s in names.items() if "blocks" in n]
    assert inside == sorted(inside)
    assert inside[0] < inside[-1] == 1  # timm's rule: what is behind the blocks is of the last one's layer
    for group in parameter_groups(model, scales={"head.*": 10.0}):
        heads = {id(p) for p in model.head.parameters()}
        assert group["lr_scale"] == (10 if id(group["params"][0]) in heads else 1)


def test_the_summary_says_what_learns(caplog, tmp_path):
    assert summary(network()) == f"all {sum(p.numel() for p in network().parameters()):,} parameters learn"
    model = network()
    adapt(model, Shifts())
    own, total = counts(model)
    rows = {r.modules: r for r in learning(model)}
    assert rows["backbone.stages.*.blocks.*.ffn.fc2"][1:] == ("shift", 3, 16 + 2 * 32)
    assert rows["head"][1:] == ("weight, bias", 1, 5 * 33)
    text = summary(model)
    assert text.startswith(f"{own:,} of {total:,} parameters learn ({own / total:.2%}), Shifts(heard=1.0)")
    assert sum(r.parameters for r in rows.values()) == own
    assert "and 1 more kinds" in summary(model, most=2)
    with caplog.at_level(logging.INFO, "patchloom.train"):
        fit(tmp_path, Classify(network(), optimizer=sgd, adapter="probe"), callbacks=[Learning()])
    assert any("parameters learn" in r.message and "probe" in r.message for r in caplog.records)


def test_a_run_that_would_train_nothing_stops(tmp_path):
    with pytest.raises(ValueError, match=r"adapter Nothing\(\) would train nothing but the head here"):
        fit(tmp_path, Classify(network(), adapter=Nothing()))
    fit(tmp_path, Classify(network(), adapter="probe"), callbacks=[Learning()])
    deaf = Classify(network(), optimizer=sgd, adapter=Shifts(heard=0.0))
    with pytest.raises(ValueError, match=r"3 of its 3 tensors got no gradient in 2 steps, as .*fc2\.shift: it would"):
        fit(tmp_path, deaf, callbacks=[Learning()])


def test_what_would_break_the_trunk_is_refused(tmp_path):
    swa = StochasticWeightAveraging(0.05, 0.5)
    with pytest.raises(ValueError, match=r"begins the statistics of batch norms anew, and .*norm1 is frozen"):
        fit(tmp_path, Classify(network(norm="batch", classes=8), adapter=Shifts()), 4, callbacks=[swa])
    model = network(classes=8)  # its copy is made before the data is known
    before, swa = digest(model), StochasticWeightAveraging(0.05, 0.5)
    fit(tmp_path, Classify(model, optimizer=sgd, schedule=Constant(), adapter=Shifts()), 4, callbacks=[swa])
    assert digest(model) == before


def test_a_saved_one_is_gone_on_with(tmp_path):
    """Its head too, where the classes are the same; else a fresh one."""
    first = Classify(network(), optimizer=sgd, adapter=Shifts())
    fit(tmp_path, first, 2)
    folder = save_adapter(first.model, tmp_path / "adapter", classes=first.classes)
    again = Classify(network(), adapter=str(folder))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again.model.eval()(x), first.model.eval()(x))
    t = trainer(tmp_path)
    first_result = t.validate(first, Colours(), verbose=False)
    assert trainer(tmp_path).validate(again, Colours(), verbose=False) == first_result
    with pytest.raises(ValueError, match="the checkpoint knows 8 classes, the data has 8"):
        trainer(tmp_path).validate(again, Colours(classes=[f"c{i}" for i in range(8)]), verbose=False)
    head = again.model.head.weight.detach().clone()
    fit(tmp_path, again, limit_train_batches=1)
    assert (again.model.head.weight - head).abs().max() < 0.1
    other = Classify(network(), adapter=str(folder))
    trainer(tmp_path, limit_train_batches=0).fit(other, Colours(classes=[f"c{i}" for i in range(8)]))
    assert not torch.equal(other.model.head.weight, first.model.head.weight)
    shift = [n for n, _ in other.model.named_parameters() if n.endswith("shift")]
    assert all(torch.equal(other.model.get_parameter(n), first.model.get_parameter(n)) for n in shift)


def test_a_checkpoint_holds_all_of_the_model(tmp_path):
    """With its adapter and without; one of another adapter is told in a line."""
    module = Classify(network(), optimizer=sgd, adapter=Shifts())
    saving_fit(tmp_path, module)
    torch.manual_seed(9)
    model, classes, _ = checkpoint.load_model(str(tmp_path / "last.ckpt"))
    x = torch.randn(2, 3, 8, 8)
    assert adapter_of(model) == Shifts()
    assert torch.equal(model(x), module.model.eval()(x))
    assert (classes, model.num_classes) == (CLASSES, 8)
    with unadapted(model):
        assert torch.equal(model(x), network().eval()(x))
    assert digest(model) == digest(network())
    path = str(tmp_path / "last.ckpt")
    for adapter, said in ((None, "none"), ("probe", "probe")):
        t = trainer(tmp_path, plugins=[PlainFiles()])
        with pytest.raises(ValueError, match=rf"trained with adapter Shifts.*, the model has {said}: set the same"):
            t.test(Classify(network(), adapter=adapter), Colours(), ckpt_path=path, verbose=False)
    assert counts(trained(path))[0] == counts(module.model)[0]


@pytest.mark.parametrize("words", ["corda:r=2", "eva:r=2"])
def test_one_that_begins_as_images_have_it_sees_them_first(tmp_path, words):
    module = Classify(network(), optimizer=sgd, adapter=words)
    before = {n: t.clone() for n, t in own_state(module.model).items()}
    trainer(tmp_path, limit_train_batches=0).fit(module, Colours())
    moved = {n for n, t in own_state(module.model).items() if n in before and not t.equal(before[n])}
    begun = {n for n in before if ".lora_A.default" in n or (words.startswith("corda") and ".lora_" in n)}
    assert {n for n in moved if "lora_" in n} == begun
    again = {n: t.clone() for n, t in own_state(module.model).items()}
    if words.startswith("corda"):  # what it has begun as stays, in a second run too
        trainer(tmp_path, limit_train_batches=0).fit(module, Colours())
        assert all(t.equal(again[n]) for n, t in own_state(module.model).items())


def test_on_published_weights_its_folder_is_enough(tmp_path, monkeypatch):
    """By the backbone's name, by a file of its weights, or neither; made for images as it was trained on."""
    import timm

    name, x = "deit_tiny_patch16_224", torch.randn(2, 3, 48, 64)
    weights = timm.create_model(name).state_dict()
    torch.save(weights, file := tmp_path / "weights.pth")
    monkeypatch.setattr("patchloom.vision.download.open_weights", lambda weights_of: weights)
    model = create_model(name, pretrained=True, img_size=(48, 64), num_classes=4, adapter="lora:r=2")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p)) if p.requires_grad else p
    folder = save_adapter(model, tmp_path / "a", classes=list("abcd"))
    for loaded in (load_model(str(folder)), load_adapted(name, folder), load_adapted(f"{name}={file}", folder)):
        assert torch.equal(loaded[0](x), model.eval()(x))
        assert (loaded[1], tuple(loaded[2]["input_size"])) == (list("abcd"), (3, 48, 64))
    with pytest.raises(
        AdapterError, match=r"is an adapter of deit_tiny_patch16_224, and not of deit_small_patch16_224"
    ):
        load_adapted("deit_small_patch16_224", folder)
    weights["blocks.3.mlp.fc1.bias"] += 1e-6
    with pytest.raises(AdapterError, match=r"trained on other weights of deit_tiny.* made with img_size="):
        load_model(str(folder))


# -------------------------------------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A trained backbone, and a run with an adapter on it."""
    folder = tmp_path_factory.mktemp("runs")
    done = patchloom("fit", "-c", recipe(folder), "--trainer.max_epochs", "1", "--test", "false", cwd=folder)
    assert done.returncode == 0, done.stderr
    base = run_folder(folder)
    other = folder / "adapted"
    other.mkdir()
    text = RECIPE.replace("{class_path: fit_parts.small}", "{class_path: patchloom.train.adapted.trained, "
                          f"init_args: {{spec: {base}}}}}")  # fmt: skip
    done = patchloom("fit", "-c", recipe(other, "tuned", text), "--adapter", "lora:r=2", "--json", cwd=other)
    assert done.returncode == 0, done.stderr
    (folder / "told.json").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return {"folder": folder, "base": base, "run": run_folder(other)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory, runs) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    classes, shapes = read_card(runs["run"] / "adapter").classes, Shapes(20, (32, 32), "class", 0, "test")
    for i in range(20):
        sample = shapes.draw(i)
        (folder / classes[sample.label]).mkdir(exist_ok=True)
        Image.fromarray(sample.image).save(folder / classes[sample.label] / f"{i}.png")
    return folder


def said(capsys, *words: object) -> str:
    assert cli.main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def refused(capsys, *words: object) -> str:
    assert cli.main([str(word) for word in words]) == 1
    return capsys.readouterr().err


def test_the_run_tells_and_keeps_its_adapter(runs):
    told, folder = json.loads((runs["folder"] / "told.json").read_text()), runs["run"] / "adapter"
    assert told["adapter"].endswith("/adapter")
    assert {p.name for p in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    err = (runs["folder"] / "stderr").read_text()
    assert "parameters learn (" in err
    assert "lora:r=2" in err
    assert "Warning" not in err
    card = read_card(folder)
    assert card.words == "lora:r=2"
    assert card.trunk == digest(checkpoint.load_model(str(runs["base"]))[0])
    content = checkpoint.read(runs["run"] / "last.ckpt")
    own = [n for n in content["state_dict"] if n.startswith("model.") and ("lora_" in n or n.startswith("model.head"))]
    assert len(content["optimizer_states"][0]["state"]) == len(own)


@pytest.mark.slow
def test_killed_and_resumed_with_an_adapter(tmp_path):
    strike = f"callbacks: [{{class_path: fit_parts.Strike, init_args: {{step: 17, number: {int(signal.SIGKILL)}}}}}]"
    struck = RECIPE.replace("log_every_n_steps: 1}", f"log_every_n_steps: 1, {strike}}}")
    ends = []
    for name, text in (("whole", RECIPE), ("struck", struck)):
        (tmp_path / name).mkdir()
        line = ("fit", "-c", recipe(tmp_path / name, "small", text), "--adapter", "bias", "--test", "false")
        done = patchloom(*line, cwd=tmp_path / name)
        assert done.returncode == (0 if name == "whole" else -signal.SIGKILL), done.stderr
        ends.append(run_folder(tmp_path / name))
    line = ("fit", "--resume", ends[1], "--test", "false", "--trainer.callbacks", "null")
    done = patchloom(*line, cwd=tmp_path / "struck")
    assert done.returncode == 0, done.stderr
    assert differences(*ends) == []
    a, b = (load_file(end / "adapter" / "adapter_model.safetensors") for end in ends)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[n], b[n]) for n in a)
    done = patchloom("fit", "--resume", ends[1], "--adapter", "norm", "--trainer.max_epochs", 4, cwd=tmp_path)
    assert "the checkpoint was trained with adapter bias, the model has norm: set the same" in error_line(done)


def test_wrong_words_on_the_line_are_one_line(tmp_path):
    done = patchloom("fit", "-c", recipe(tmp_path), "--adapter", "lorra:r=2", cwd=tmp_path)
    assert "adapter 'lorra' in 'lorra:r=2' is not known; did you mean lora" in error_line(done)
    assert not list(tmp_path.rglob("config.yaml"))


def test_eval_and_predict_take_it(runs, photos, capsys):
    """On the backbone, from the run's folder or its own, and as the run's checkpoint: one answer."""
    line = ("eval", "folder", "--data", photos, "--json", "--workers", "0")
    results = [
        json.loads(said(capsys, *line[:2], model, *line[2:], *more))
        for model, more in (
            (runs["run"], ()),
            (runs["base"], ("--adapter", runs["run"])),
            (runs["base"], ("--adapter", runs["run"] / "adapter")),
        )
    ]
    assert results[0]["acc1"] == results[1]["acc1"] == results[2]["acc1"]
    picture = next(photos.rglob("*.png"))
    tops = [
        json.loads(said(capsys, "predict", model, picture, "--json", "--workers", "0", *more))[0]["top"]
        for model, more in ((runs["run"], ()), (runs["base"], ("--adapter", runs["run"])))
    ]
    assert [t["class"] for t in tops[0]] == [t["class"] for t in tops[1]]
    assert [t["probability"] for t in tops[0]] == pytest.approx([t["probability"] for t in tops[1]], abs=1e-5)
    widths = [
        json.loads(said(capsys, "features", model, photos, "--json", "--out", runs["folder"] / "f.safetensors", *more))
        for model, more in ((runs["run"], ()), (runs["base"], ("--adapter", runs["run"])))
    ]
    assert widths[0]["width"] == widths[1]["width"]


def test_what_cannot_be_is_refused(runs, photos, capsys, tmp_path):
    picture, adapter = next(photos.rglob("*.png")), runs["run"] / "adapter"
    err = refused(capsys, "predict", "cct_7_3x1_32", picture, "--adapter", adapter)
    assert "is an adapter of 1 x Pool of 8, 1 x Pool of 16, and not of cct_7_3x1_32" in err
    err = refused(capsys, "predict", adapter, picture)
    assert "which is no published variant; give the adapter to what it was trained on: MODEL --adapter" in err
    err = refused(capsys, "predict", runs["base"], picture, "--adapter", "lora:r=2")
    assert "no adapter in lora:r=2: no such folder" in err
    err = refused(capsys, "predict", runs["base"], picture, "--adapter", adapter, "--random-weights")
    assert "it was trained on others; leave the option out" in err
    save_adapter(wrong := fitted(), tmp_path / "other", classes=CLASSES)
    assert wrong.num_classes == 5
    err = refused(capsys, "predict", runs["base"], picture, "--adapter", tmp_path / "other")
    assert "is an adapter of 1 x Pool of 16, 2 x Pool of 32, and this model is 1 x Pool of 8, 1 x Pool of 16" in err


def fitted() -> Classifier:
    model = network()
    adapt(model, Shifts())
    return model


def test_list_and_show(runs, capsys):
    listed = {row["name"]: row for row in json.loads(said(capsys, "adapters", "list", "--json"))}
    assert {"probe", "lora", "bias", "norm"} <= listed.keys()
    assert all(row["what"] for row in listed.values())
    assert listed["lora"]["options"]["r"] == "8"
    assert all(len(line) < 130 for line in said(capsys, "adapters", "list").splitlines())
    assert "alpha" in said(capsys, "adapters", "show", "lora")
    (row,) = json.loads(said(capsys, "adapters", "list", runs["folder"], "--json"))
    assert (row["words"], row["num_classes"]) == ("lora:r=2", 10)
    assert "lora:r=2" in said(capsys, "adapters", "list", runs["folder"])
    shown = json.loads(said(capsys, "adapters", "show", runs["run"], "--json"))
    assert shown["trunk"] == row["trunk"]
    assert sum(math.prod(shape) for shape in shown["tensors"].values()) == shown["parameters"]
    assert row["backbone"] in said(capsys, "adapters", "show", runs["run"])
    text = said(capsys, "adapters", "show", "lora:r=4", "--model", "deit_tiny_patch16_224")
    assert "parameters learn" in text
    assert "lora_A" in text
    assert "no adapter is saved below" in refused(capsys, "adapters", "list", Path(__file__).parent)
    assert "did you mean lora" in refused(capsys, "adapters", "show", "lorra")


def test_merge_makes_a_plain_model(runs, capsys, tmp_path, monkeypatch):
    out = tmp_path / "merged.safetensors"
    for words in (
        (runs["run"],),
        (runs["run"], "--model", runs["base"]),
        (runs["run"] / "adapter", "--model", runs["base"]),
    ):
        assert said(capsys, "adapters", "merge", *words, "--out", out).strip() == str(out)
        merged, classes, _ = checkpoint.load_model(str(out))
        whole, names, _ = checkpoint.load_model(str(runs["run"]))
        assert adapter_of(merged) is None
        assert merged.state_dict().keys() == checkpoint.load_model(str(runs["base"]))[0].state_dict().keys()
        x = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(merged(x), whole(x), rtol=1e-5, atol=1e-5)
        assert classes == names
    assert "the weights are written as .safetensors" in refused(
        capsys, "adapters", "merge", runs["run"], "--out", tmp_path / "a.ckpt"
    )
    assert "no adapter is on, so there is none to merge" in refused(
        capsys, "adapters", "merge", runs["base"], "--out", out
    )


def test_bench_takes_settings_and_folders(runs, capsys):
    line = ("--train", "--batch", "2", "--size", "32", "--repeats", "1", "--no-memory", "--json", "--channels-last")
    for model, adapter in (("cct_7_3x1_32", "lora:r=4"), (runs["base"], "lora:r=4"), (runs["base"], runs["run"])):
        told = json.loads(said(capsys, "bench", model, "--adapter", adapter, *line))
        assert 0 < told["trainable"] < told["parameters"] / 2


def test_several_folders_on_one_model(runs):
    """What the issue promises: one frozen backbone, adapters switched without reading again."""
    from patchloom.vision.adapters.files import load_adapter

    model, classes, _ = checkpoint.load_model(str(runs["base"]))
    x = torch.randn(2, 3, 32, 32)
    bare = model(x)
    for name in ("a", "b"):
        load_adapter(model, runs["run"] / "adapter", name)
    whole = checkpoint.load_model(str(runs["run"]))[0](x)
    switch(model, "a")
    torch.testing.assert_close(model(x), whole, rtol=1e-6, atol=1e-6)
    switch(model, None)
    assert torch.equal(model(x), bare)
    assert len(classes) == 10


@pytest.mark.slow
def test_two_processes(tmp_path):
    """The frozen part takes no part in the exchange of gradients; the adapter that is kept is the same for both."""
    line = ("--trainer.max_steps", 4, "--trainer.devices", 2, "--trainer.strategy", "ddp", "--json")
    done = patchloom("fit", "-c", recipe(tmp_path), "--adapter", "lora:r=2", *line, cwd=tmp_path, limit=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("parameters learn (") == 1
    told = json.loads(done.stdout)
    assert told["test"]
    assert read_card(tmp_path / told["adapter"]).words == "lora:r=2"
