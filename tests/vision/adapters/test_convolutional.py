"""Adapters with a convolution inside."""

import pytest
import torch
from adapter_golden import layer, of, run
from golden import golden
from plugin_parts import image, made

from patchloom.vision.adapters import AdapterError, adapt, adapter
from patchloom.vision.adapters.convolutional import Conformer, ConvpassBody
from patchloom.vision.plugins import SeamError, attach, plugin
from patchloom.vision.tokens import Tokens

NAMES = {"pwise_conv1": "enter", "dwise_conv": "conv", "bnorm": "norm", "pwise_conv2": "up"}


@pytest.mark.parametrize(
    ("output", "spelling"),
    [
        ("conformer_par", "conformer:reduction=8"),
        ("conformer_houlsby_seq", "conformer:reduction=8,where=both,parallel=false"),
    ],
)
def test_conformers_in_layers_of_ast_are_the_originals(output, spelling):
    record = golden.load("adapters/ast_layers")
    state = {n: v for n, v in of(record, output).items() if ".lnorm." not in n}  # a norm whose result is overwritten
    names = {}
    for theirs, seam in (("adapter_module_FFN", "around_ffn"), ("adapter_module_MHSA", "on_mixer")):
        if f"{theirs}.bnorm.weight" in state:
            state[f"{theirs}.bnorm.running_mean"] -= state.pop(f"{theirs}.dwise_conv.bias")  # a norm follows: no bias
            for linear in ("pwise_conv1", "pwise_conv2"):
                state[f"{theirs}.{linear}.weight"] = state[f"{theirs}.{linear}.weight"][..., 0]
            names |= {f"{theirs}.{n}": f"{seam}.body.{o}" for n, o in NAMES.items()}
    record.compare(output, run(layer(spelling, state, names), record.input()), 1e-5)


@pytest.mark.parametrize("special", [(), (0,), (2,), (6, 5)])
def test_convpass_sees_special_tokens_as_images_of_one_pixel(special):
    torch.manual_seed(0)
    body = ConvpassBody(8, 4, 3)
    for p in body.parameters():
        torch.nn.init.normal_(p)
    patches = torch.randn(2, 6, 8)
    want = body(Tokens(patches, (2, 3)))
    x = torch.randn(2, 6 + len(special), 8)
    rest = [i for i in range(x.shape[1]) if i not in special]
    x[:, rest] = patches
    got = body(Tokens(x, (2, 3), special))
    torch.testing.assert_close(got[:, rest], want)
    for i in special:
        torch.testing.assert_close(got[:, i : i + 1], body(Tokens(x[:, i : i + 1], (1, 1))))


def test_a_fresh_convolution_is_the_identity():
    body = ConvpassBody(8, 4, 3)
    torch.nn.init.normal_(body.up.weight)
    x = torch.randn(2, 6, 8)
    want = body.up(body.act(body.act(body.down(x))))
    torch.testing.assert_close(body(Tokens(x, (2, 3))), want)


def test_convpass_and_reduced_tokens_refuse_each_other():
    model = made("global attention, class token")
    detach = attach(model, plugin("tome:r=2"))
    with pytest.raises(AdapterError, match=r"Convpass.* convolves over a full grid, of which Merge"):
        adapt(model, adapter("convpass"))
    detach()
    adapt(model, adapter("convpass"))
    with pytest.raises(SeamError, match="OnBranch needs a full grid, so its tokens cannot become fewer"):
        attach(model, plugin("tome:r=2"))


def test_the_conformers_batch_norm_learns_its_statistics_and_the_trunks_do_not():
    model = made("convolutions, then windows")  # has batch norms
    adapt(model, Conformer(reduction=4))
    own = {id(b) for n, b in model.named_buffers() if ".body." in n}
    before = {n: b.clone() for n, b in model.named_buffers()}
    model.train()(image())
    moved = {n for n, b in model.named_buffers() if not torch.equal(b, before[n])}
    assert moved
    assert {id(b) for n, b in model.named_buffers() if n in moved} <= own


@pytest.mark.parametrize("text", ["conformer:kernel=4", "convpass:kernel=0", "convpass:width=0"])
def test_settings_that_fit_no_model_say_so(text):
    with pytest.raises(ValueError, match=text.partition(":")[2]):
        adapter(text)
