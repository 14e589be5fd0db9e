"""VL-Adapter's task controllers: the originals' numbers, merging, and where LoRA finds q and v."""

import pytest
import torch
from golden import golden
from plugin_parts import image, made
from torch import Tensor, nn

from patchloom.vision.adapters import AdapterError, adapt, adapter, merge
from patchloom.vision.adapters.beside import OnBranch
from patchloom.vision.adapters.controllers import Recall, TaskLora, VlAdapter, queries_and_values
from patchloom.vision.adapters.tasks import choose
from patchloom.vision.layers import Linear
from patchloom.vision.plugins import Host, hosts_of
from patchloom.vision.tokens import Tokens

PLAIN, WINDOWS = "global attention, class token", "shifted windows"
TASKS = ("vqa", "gqa")
PARTS = {  # of a projection: theirs -> ours
    "weight": "weight", "bias": "bias", "b": "bias", "W_left": "left", "W_right": "right", "phm_rule": "rule.full",
}  # fmt: skip
SPECS = {
    "multiple": VlAdapter(tasks=TASKS, share="multiple"),
    "single": VlAdapter(tasks=TASKS),
    "half_shared": VlAdapter(tasks=TASKS, share="half", norm="both"),
    "compacter": VlAdapter(tasks=TASKS, share="multiple", kind="compacter"),
    "low_rank": VlAdapter(tasks=TASKS, share="multiple", kind="low_rank"),
}


def renamed(state: dict[str, Tensor], name: str, own: set[str]) -> dict[str, Tensor]:
    """Those of one controller with our names; a second name of what tasks share is left out."""
    found = {}
    for theirs, value in state.items():
        controller, _, rest = theirs.partition(".")
        if controller != name:
            continue
        if rest.startswith(("pre_layer_norm", "post_layer_norm")):
            ours = {"pre": "before", "post": "behind"}[rest.partition("_")[0]] + "." + rest.rpartition(".")[2]
        else:
            _, task, sampler, part = rest.split(".")
            ours = f"body.{sampler.partition('_')[0]}.{TASKS.index(task)}.{PARTS[part]}"
        if ours in own:
            found[ours] = value
    return found


@pytest.mark.parametrize("name", list(SPECS))
@torch.inference_mode()
def test_an_adapter_is_the_originals(name):
    record, spec = golden.load("vl_adapter/controllers"), SPECS[name]
    host = Host("block", hosts_of(made(PLAIN))[0].block, 0, 0, 1, 0, 32)
    layer = OnBranch(32, spec.body(host), spec)
    layer.load_state_dict(renamed(record.state_dict(), name, set(layer.state_dict())))
    x = record.input()
    for task in TASKS:
        record.compare(f"{name}.{task}", layer(Tokens(x, None, task=task), x), 1e-5)


@torch.inference_mode()
def test_lora_is_the_originals():
    record = golden.load("vl_adapter/controllers")
    state, x, told = record.state_dict(), record.input(), Recall(TASKS)
    c = record.meta["config"]
    layer = TaskLora(Linear(32, 32), [(32, True)], c["lora_dim"], c["lora_alpha"], told)
    ours = {f"base.{n}": state[f"lora.{n}"] for n in ("weight", "bias")}
    for i, task in enumerate(TASKS):
        ours |= {f"down.{i}.weight": state[f"lora.lora_As.{task}"], f"up.{i}.0.weight": state[f"lora.lora_Bs.{task}"]}
    layer.load_state_dict(ours)
    for task in TASKS:
        told(Tokens(x, None, task=task))
        record.compare(f"lora.{task}", layer(x), 1e-5)


def test_all_of_the_record_is_compared():
    outputs = golden.load("vl_adapter/controllers").meta["outputs"]
    assert {o.partition(".")[0] for o in outputs} == {*SPECS, "lora"}


@pytest.mark.parametrize(("share", "down", "up"), [("single", 1, 1), ("multiple", 3, 3), ("half", 1, 3)])
def test_what_tasks_share_is_there_once(share, down, up):
    model = made(WINDOWS)
    adapt(model, VlAdapter(tasks=("a", "b", "c"), share=share))
    body = model.backbone.stages[1].blocks[1].around_ffn.body
    assert (len(body.down), len(body.up)) == (down, up)


def test_the_norms_learn_too():
    model = made(PLAIN)
    adapt(model, adapter("vl_adapter"))
    learns = {n for n, p in model.named_parameters() if p.requires_grad}
    assert "backbone.stages.0.blocks.1.norm2.weight" in learns
    other = made(PLAIN)
    adapt(other, adapter("vl_adapter:norms=false"))
    assert not any("norm" in n for n, p in other.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", [PLAIN, WINDOWS, "attention that fades with distance", "factorised windows"])
@torch.inference_mode()
def test_lora_merges_into_plain_layers(kind):
    model, x = made(kind), image()
    names = list(model.state_dict())
    adapt(model, adapter("vl_lora"))
    for p in model.parameters():
        if p.requires_grad:
            p.add_(torch.randn_like(p) * 0.05)
    want = model(x)
    unmerge = merge(model)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
    unmerge()
    assert torch.equal(model(x), want)


def test_adapters_of_several_tasks_are_not_merged():
    model = made(PLAIN)
    adapt(model, adapter("vl_lora:tasks=a+b"))
    choose(model, "b")
    with pytest.raises(AdapterError, match="adapters for 2 tasks cannot be merged"):
        merge(model)
    assert isinstance(model.backbone.stages[0].blocks[0].mixer.qkv, TaskLora)


@pytest.mark.parametrize(
    ("kind", "want"),
    [
        (PLAIN, {"qkv": [(16, True), (16, False), (16, True)]}),
        ("attention that fades with distance", {"qk": [(16, True), (16, False)], "v": [(16, True)]}),
        ("attention of convolved tokens", {"q": [(16, True)], "v": [(16, True)]}),
        ("pooling", {}),
    ],
)
def test_where_q_and_v_are(kind, want):
    assert dict(queries_and_values(hosts_of(made(kind))[0])) == want


@torch.inference_mode()
def test_keys_are_left_as_they_were():
    model, x = made(PLAIN), torch.randn(1, 5, 16)
    plain = model.backbone.stages[0].blocks[0].mixer.qkv(x)
    adapt(model, adapter("vl_lora"))
    layer = model.backbone.stages[0].blocks[0].mixer.qkv
    for ups in layer.up:
        for up in ups:
            nn.init.normal_(up.weight)
    q, k, v = (layer(x) - plain).chunk(3, -1)
    assert not k.any()
    assert q.any()
    assert v.any()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("vl_lora:r=0", "r=0: it takes at least 1"),
        ("vl_lora:alpha=0", r"alpha=0\.0: a number above 0"),
        ("vl_adapter:share=some", "single"),
        ("vl_adapter:kind=round", "linear"),
        ("vl_adapter:reduction=0", "reduction=0"),
        ("vl_adapter:tasks=a+a", "each of them once"),
    ],
)
def test_settings_that_cannot_be(words, message):
    with pytest.raises(ValueError, match=message):
        adapter(words)


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        (PLAIN, "vl_lora:r=17", r"backbone\.stages\.0\.blocks\.0\.mixer\.qkv: r=17 is more than it has channels, 16"),
        ("pooling", "vl_lora", r"backbone\.stages\.0\.blocks\.0: Pooling makes no q or v in a linear layer"),
        (PLAIN, "vl_adapter:reduction=64", r"backbone\.stages\.0\.blocks\.0: Block has 16 channels"),
    ],
)
def test_models_that_it_does_not_fit(kind, words, message):
    model = made(kind)
    with pytest.raises(AdapterError, match=message):
        adapt(model, adapter(words))
    assert model.adapters is None
    assert not any(isinstance(m, TaskLora) for m in model.modules())
