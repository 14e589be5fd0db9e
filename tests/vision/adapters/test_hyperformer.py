"""HyperFormer: the originals' numbers, and what is shared and what is not."""

import re

import pytest
import torch
from golden import golden
from plugin_parts import image, made
from torch import Tensor

from patchloom.vision.adapters import AdapterError, adapt, adapter, counts, own_state
from patchloom.vision.adapters.beside import OnBranch
from patchloom.vision.adapters.hyperformer import BEHIND, FFN, MIXER, Generator, HyperFormer, Hypernet, Told, Written
from patchloom.vision.adapters.tasks import working_on
from patchloom.vision.tokens import Tokens
from patchloom.vision.zoo import create_model

TASKS = ("vqa", "gqa")
PLACES = {"feed_forward": FFN, "self_attention": MIXER, "cross_attention": 2}  # the last is none of a vision model
NAMES = (
    (r"task_embed\.task_to_embeddings\.vqa", "told.tasks.0"),
    (r"task_embed\.task_to_embeddings\.gqa", "told.tasks.1"),
    (r"hypernet\.layer_id_embeddings\.", "told.places.0."),
    (r"hypernet\.adapters_block_type\.", "told.places.1."),
    (r"hypernet\.task_hypernet\.task_embeding_generator\.0\.", "told.enter."),
    (r"hypernet\.task_hypernet\.task_embeding_generator\.2\.", "told.leave."),
    (r"hypernet\.LayerNorm\.", "told.norm."),
    (r"hypernet\.(down|up)_sampler_hyper_net\.weight_generator\.0\.", r"generators.both.\1."),
    (r"hypernet\.(down|up)_sampler_hyper_net\.bias_generator\.0\.", r"generators.both.\1_bias."),
    (r"hypernet\.(\w+_\w+)_(down|up)_sampler_hyper_net\.weight_generator\.0\.", r"generators.\1.\2."),
    (r"hypernet\.(\w+_\w+)_(down|up)_sampler_hyper_net\.bias_generator\.0\.", r"generators.\1.\2_bias."),
    (r"hypernet\.(\w+_\w+)_pre_layernorm_hypernet\.weight_generator\.", r"generators.\1.norms.before_scale."),
    (r"hypernet\.(\w+_\w+)_pre_layernorm_hypernet\.bias_generator\.", r"generators.\1.norms.before_shift."),
    (r"hypernet\.(\w+_\w+)_post_layernorm_hypernet\.weight_generator\.", r"generators.\1.norms.after_scale."),
    (r"hypernet\.(\w+_\w+)_post_layernorm_hypernet\.bias_generator\.", r"generators.\1.norms.after_shift."),
)


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With our names; the first rule that fits counts."""
    found = {}
    for name, value in state.items():
        theirs, ours = next((t, o) for t, o in NAMES if re.match(t, name))
        found[re.sub(theirs, ours, name)] = value
    return found


@pytest.mark.parametrize(("path", "plus"), [("hyperformer_pp", True), ("hyperformer_norms", False)])
@torch.inference_mode()
def test_it_is_the_originals(path, plus):
    record = golden.load(f"hyperformer/{path}")
    c, x = record.meta["config"], record.input()
    dim, code = c["input_dim"], c["projected_task_embedding_dim"]
    many = (c["num_layers"], 3) if plus else (c["num_layers"],)
    told = Told(2, c["task_embedding_dim"], c["task_hidden_dim"], code, many)
    kinds = ["both"] if plus else list(PLACES)
    hyper = Hypernet(told, {k: Generator(code, dim, dim // c["reduction_factor"], c["layer_norms"]) for k in kinds})
    hyper.load_state_dict(renamed(record.state_dict()))
    assert sum(p.numel() for p in hyper.parameters()) == record.meta["parameters"]
    seen = set()
    for output in record.meta["outputs"]:
        task, layer, what = output.split(".")
        place = "feed_forward" if what in ("down_weight", "up_bias") else what
        kind, at = ("both", (int(layer), PLACES[place])) if plus else (place, (int(layer),))
        body = Written(TASKS, hyper, kind, at)
        t = Tokens(x, None, task=task)
        weights = body.written(t)
        found = {"down_weight": weights.down, "up_bias": weights.up_bias}
        record.compare(output, found[what] if what in found else OnBranch(dim, body, BEHIND)(t, x), 1e-5)
        seen.add(what)
    assert seen == {*PLACES, "down_weight", "up_bias"}


@pytest.mark.parametrize("words", ["hyperformer", "hyperformer:plus=false"])
def test_the_network_stands_in_the_model_once(words):
    model = made("shifted windows")
    adapt(model, adapter(words))
    own = own_state(model)
    assert len({t.data_ptr() for t in own.values()}) == len(own)
    beside = [n for n in own if ".blocks." in n]
    assert beside == []
    widths = {n.split(".")[4] for n in own if ".generators." in n}
    assert widths == (
        {f"{d}" for d in (16, 32, 48, 64)}
        if words == "hyperformer"
        else {f"{d}_{p}" for d in (16, 32, 48, 64) for p in ("ffn", "mixer")}
    )


@torch.inference_mode()
def test_blocks_and_places_have_adapters_of_their_own():
    """One set of generators, and what it writes differs by block, by place and by task."""
    model = made("global attention, class token")
    adapt(model, HyperFormer(("a", "b")))
    blocks = model.backbone.stages[0].blocks
    bodies = [seam.body for b in blocks for seam in (b.on_mixer, b.around_ffn)]
    written = [body.written(Tokens(torch.zeros(1), None, task=task)).down for body in bodies for task in ("a", "b")]
    assert len(written) == 8
    assert not any(torch.allclose(a, b) for i, a in enumerate(written) for b in written[:i])


@torch.inference_mode()
def test_layer_norms_are_written_and_act():
    model, x = made("global attention, class token"), image()
    plain = model(x)
    adapt(model, HyperFormer(("a", "b"), layer_norms=True))
    assert torch.equal(model(x), plain)
    for generator in model.backbone.tasks.shared.generators.values():
        generator.norms["after_scale"].weight.normal_()
    first = model(x)
    assert not torch.allclose(first, plain)
    with working_on(model, "b"):
        assert not torch.allclose(model(x), first)


def test_what_it_learns_at_full_size():
    """A plain hypernetwork is smaller than adapters of each block's own where there are many blocks of one width, and
    larger in a pyramid: what Polyhistor is for."""
    sizes = {}
    for name in ("deit_small_patch16_224", "swin_tiny"):
        for words in ("hyperformer", "houlsby", "polyhistor", "polyhistor_lite"):
            with torch.device("meta"):
                model = create_model(name, num_classes=10)
                adapt(model, adapter(words))
            sizes[name, words] = counts(model)[0] - sum(p.numel() for p in model.head.parameters())
    assert sizes["deit_small_patch16_224", "hyperformer"] < sizes["deit_small_patch16_224", "houlsby"] / 2
    assert sizes["swin_tiny", "hyperformer"] > sizes["swin_tiny", "houlsby"]
    assert sizes["swin_tiny", "polyhistor"] < sizes["swin_tiny", "hyperformer"] / 10
    assert sizes["swin_tiny", "polyhistor_lite"] < sizes["swin_tiny", "polyhistor"] / 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("hyperformer:code=0", "code=0: it takes at least 1"),
        ("hyperformer:tasks=a+a", r"tasks=\('a', 'a'\): a tuple of one name or more"),
        ("hyperformer:reduction=0", "reduction=0"),
        ("polyhistor:rank=0", "rank=0"),
        ("polyhistor_lite:scale=0", "scale=0"),
    ],
)
def test_settings_that_cannot_be(words, message):
    with pytest.raises(ValueError, match=message):
        adapter(words)


@pytest.mark.parametrize("tasks", ["fruit", (), ("",), ("a+b",), ("a,b",)])
def test_tasks_that_cannot_be(tasks):
    with pytest.raises(ValueError, match="tasks="):
        HyperFormer(tasks)


@pytest.mark.parametrize("words", ["hyperformer", "polyhistor", "polyhistor_lite"])
def test_a_bottleneck_of_nothing_is_refused(words):
    model = made("shifted windows")
    with pytest.raises(AdapterError, match=r"backbone\.stages\.0\.blocks\.0: Block has 16 channels, and reduction=64"):
        adapt(model, adapter(f"{words}:reduction=64"))
    assert model.adapters is None
    assert model.backbone.tasks is None
