"""Bottlenecks behind and beside the branches of a block: what the originals compute, and what is asked wrongly."""

import pytest
import torch
from adapter_golden import filled, layer, of, run, small_vit
from golden import golden
from plugin_parts import image, made
from recorded import agree, captured

from patchloom.vision.adapters import AdapterError, adapt, adapter, counts, in_words
from patchloom.vision.adapters.beside import OnBranch
from patchloom.vision.adapters.bottleneck import Houlsby, Pfeiffer, bottleneck
from patchloom.vision.heads.classification import Head
from patchloom.vision.norm import Norm
from patchloom.vision.plugins import SeamError, attach, hosts_of, plugin
from patchloom.vision.tokens import Tokens
from patchloom.vision.zoo import create_model

# --------------------------------------------------------------------------------------------------------- golden


def test_adaptformer_beside_the_mlp_is_the_originals():
    record = golden.load("adapters/adaptformer_parallel")
    model = filled(small_vit(4, 96), "adaptformer:width=16", record)
    agree(record, captured(model, record.input(), {"tokens": "backbone.stages.0.blocks.3"}))


def test_adaptformer_behind_the_mlp_with_a_norm_and_a_learned_scale_is_the_originals():
    record = golden.load("adapters/adaptformer_sequential_ln")
    model = small_vit(3, 64, Head(Norm(eps=1e-6), pool="mean", late=True))
    model = filled(model, "adaptformer:width=16,parallel=false,norm=in,scale=learned", record)
    agree(record, captured(model, record.input(), {"tokens": "backbone.stages.0.blocks.2"}))


def test_pfeiffer_is_the_one_of_vpt():
    record = golden.load("adapters/vpt_pfeiffer")
    model = filled(small_vit(3, 64), "pfeiffer:reduction=8", record)
    agree(record, captured(model, record.input(), {"tokens": "norm"}))


FFN = {"adapter_module_FFN.linear_downsample": "around_ffn.body.down",
       "adapter_module_FFN.linear_upsample": "around_ffn.body.up"}  # fmt: skip
BOTH = {**FFN, **{n.replace("FFN", "MHSA"): o.replace("around_ffn", "on_mixer") for n, o in FFN.items()}}


@pytest.mark.parametrize(
    ("output", "spelling", "names"),
    [
        ("pfeiffer_par", "parallel:act=gelu", FFN),
        ("pfeiffer_seq", "pfeiffer", FFN),
        ("houlsby_par", "houlsby:parallel=true", BOTH),
        ("houlsby_seq", "houlsby", BOTH),
    ],
)
def test_layers_of_ast_are_the_originals(output, spelling, names):
    record = golden.load("adapters/ast_layers")
    block = layer(spelling, of(record, output), names)
    record.compare(output, run(block, record.input()), 1e-5)


@pytest.mark.parametrize(
    ("output", "spelling", "first"),
    [("normal", "pfeiffer:reduction=4,act=relu", 0), ("normal_ln", "pfeiffer:reduction=2,act=relu,norm=in", 1)],
)
@torch.inference_mode()
def test_those_of_ep_alm_are_the_originals(output, spelling, first):
    record = golden.load("ep_alm/adapters")
    spec = adapter(spelling)
    joined = OnBranch(32, bottleneck(32, 32 // int(spec.reduction), (spec.act,)), spec)
    names = {"adapter.0": "before", f"adapter.{first}": "body.down", f"adapter.{first + 2}": "body.up"}
    state = {names[n.rpartition(".")[0]] + n[n.rindex(".") :]: v for n, v in of(record, output).items()}
    joined.load_state_dict(state)
    x = record.input()
    record.compare(output, joined(Tokens(x, None), x), 1e-5)


@pytest.mark.parametrize(("output", "scale"), [("parallel", "1"), ("scaled_parallel", "learned")])
@torch.inference_mode()
def test_those_of_ep_alm_beside_a_layer_are_the_originals(output, scale):
    record = golden.load("ep_alm/adapters")
    state = of(record, output)
    joined = OnBranch(32, bottleneck(32, 8, ("relu",)), adapter(f"parallel:reduction=4,scale={scale}"))
    names = {"adapter.0.": "body.down.", "adapter.2.": "body.up.", "adapter_scale": "scale"}
    joined.load_state_dict({
        next(names[k] + n.removeprefix(k) for k in names if n.startswith(k)): v
        for n, v in state.items() if not n.startswith("module.")
    })  # fmt: skip
    x = record.input()
    layer = torch.nn.functional.linear(x, state["module.weight"], state["module.bias"])
    record.compare(output, joined(Tokens(x, None), layer), 1e-5)


# --------------------------------------------------------------------------------------------------------- where


def test_it_goes_behind_the_mlp_or_where_there_is_none_behind_the_mixer():
    filled_seams = {}
    for name in ("deit_tiny_patch16_224", "rmt_tiny", "efficientformer_l1", "vim_tiny"):
        with torch.device("meta"):
            model = create_model(name, adapter="pfeiffer")
        filled_seams[name] = {s for h in hosts_of(model) for s in h.block.seams if getattr(h.block, s) is not None}
    assert filled_seams == {
        "deit_tiny_patch16_224": {"around_ffn"},
        "rmt_tiny": {"on_ffn"},
        "efficientformer_l1": {"on_ffn", "around_ffn"},
        "vim_tiny": {"on_mixer"},
    }


def test_published_sizes():
    """AdaptFormer's 1.26 M are with a head of 100 classes."""
    with torch.device("meta"):
        model = create_model("vit_base_patch16_224", num_classes=100, adapter="adaptformer")
    assert counts(model)[0] == 12 * (2 * 768 * 64 + 64 + 768) + 769 * 100 == 1_266_532


def test_norms_may_learn_with_it_and_come_back_as_they_were():
    model, x = made("shifted windows"), image()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    remove = adapt(model, Pfeiffer(norms=True))
    block = model.backbone.stages[0].blocks[0]
    assert block.norm1.weight.requires_grad
    assert block.norm2.bias.requires_grad
    assert model.norm.weight.requires_grad
    with torch.no_grad():
        block.norm1.weight.add_(1)
    remove()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert torch.equal(model(x), made("shifted windows")(x))


@pytest.mark.parametrize("kind", ["global attention, class token", "factorised windows", "selective scan, both ways"])
@pytest.mark.parametrize("text", ["houlsby:parallel=true", "houlsby"])
@torch.inference_mode()
def test_a_folded_model_is_the_same(kind, text):
    model, x = made(kind), image()
    adapt(model, adapter(text))
    for p in model.parameters():
        if p.requires_grad:
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
    torch.testing.assert_close(model.fold()(x), model(x), rtol=1e-5, atol=1e-5)


def test_it_stacks_with_plugins_that_merge_tokens_either_way_round():
    outputs = []
    for adapter_first in (True, False):
        torch.manual_seed(0)
        model = made("global attention, class token")
        steps = [lambda m=model: adapt(m, Houlsby()), lambda m=model: attach(m, plugin("tome:r=2"))]
        for step in steps if adapter_first else reversed(steps):
            step()
        with torch.no_grad():
            for n, p in model.named_parameters():
                if n.endswith("body.up.weight"):
                    p.fill_(0.1)
        outputs.append(model(image()))
    torch.testing.assert_close(*outputs)


# --------------------------------------------------------------------------------------------------------- wrong input


def test_a_bottleneck_wider_than_the_block_or_of_nothing_is_refused_by_name():
    model = made("shifted windows")
    names = list(model.state_dict())
    first = r"backbone\.stages\.0\.blocks\.0: Block has 16 channels, and "
    with pytest.raises(AdapterError, match=first + "width=64 makes a bottleneck of 64; 1 to 16 will do"):
        adapt(model, adapter("adaptformer:width=64"))
    with pytest.raises(AdapterError, match=first + "reduction=64 makes a bottleneck of 0"):
        adapt(model, adapter("pfeiffer:reduction=64"))
    assert list(model.state_dict()) == names
    assert all(p.requires_grad for p in model.parameters())


def test_a_model_without_blocks_is_refused():
    with pytest.raises(AdapterError, match="Sequential has no blocks with seams, so Pfeiffer"):
        Pfeiffer().place(torch.nn.Sequential(torch.nn.Linear(3, 3)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pfeiffer:width=0", "width=0: a bottleneck has at least 1"),
        ("pfeiffer:reduction=0.5", "reduction=0.5: by 1 or more"),
        ("pfeiffer:act=swish", "swish"),
        ("pfeiffer:dropout=1", "dropout=1.0: a probability below 1"),
        ("adaptformer:scale=0", "scale=0: a number other than 0, or learned"),
        ("adaptformer:scale=learnt", "did you mean learned"),
        ("houlsby:where=mlp", "where"),
        ("houlsby:rank=3", "option 'rank' of adapter 'houlsby'"),
    ],
)
def test_settings_that_fit_no_model_say_so(text, words):
    with pytest.raises(ValueError, match=words):
        adapter(text)


@pytest.mark.parametrize(("field", "value"), [("act", "swish"), ("where", "mlp"), ("norm", "before"), ("scale", "x")])
def test_so_do_they_in_python(field, value):
    with pytest.raises(ValueError, match=f"{field}='{value}'"):
        Houlsby(**{field: value})


def test_a_taken_seam_is_refused_either_way_round():
    model = made("shifted windows")
    detach = attach(model, plugin("window_merge:share=0.4,side=4"))
    with pytest.raises(AdapterError, match=r"around_ffn is taken by WindowMergeLayer"):
        adapt(model, Pfeiffer())
    detach()
    adapt(model, Pfeiffer())
    with pytest.raises(SeamError, match=r"'around_ffn' of .* is taken by AroundFfn"):
        attach(model, plugin("window_merge:share=0.4,side=4"))


def test_words_there_and_back():
    for text in ("houlsby", "adaptformer:scale=learned,width=16", "pfeiffer:norm=in,norms=true"):
        assert in_words(adapter(text)) == text
