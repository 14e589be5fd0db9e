"""CvT: the authors' numbers; the class token's way around the convolutions; transformers' names."""

import pytest
import torch
from golden import golden
from plain import cvt as plain
from recorded import agree, sizes_are

from patchloom.vision.families.transformers_keys import family_of, to_published
from patchloom.vision.layers import QuickGELU
from patchloom.vision.mixers.conv_attention import ConvAttention
from patchloom.vision.tables import WEIGHTS
from patchloom.vision.tokens import Tokens
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model

FACTS = {  # parameters, GMACs
    "cvt_13": (19_997_480, 4.57), "cvt_13_384": (19_997_480, 16.27), "cvt_21": (31_622_696, 7.18),
    "cvt_21_384": (31_622_696, 24.85), "cvt_w24_384": (277_196_392, 194.22),
}  # fmt: skip


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["cvt_13", "cvt_13_oblong", pytest.param("cvt_w24_384", marks=pytest.mark.slow)])
@torch.inference_mode()
def test_matches_the_original(name):
    record = golden.load(f"cvt/{name}")
    model, x = create_model(name).eval(), record.input()
    report = load_published(model, record.state_dict())
    assert not report.fresh
    assert not report.resized
    maps = model.forward_intermediates(x, return_prefix_tokens=True)[1]
    found = {f"stage{i}": m for i, (m, _) in enumerate(maps, 1)} | {"cls_token": maps[-1][1], "logits": model(x)}
    agree(record, found)
    record.compare("logits", model.fold()(x), 1e-5)


def test_parameters_and_macs_are_those_of_the_paper():
    sizes_are(FACTS)


@torch.inference_mode()
def test_equals_the_plain_form():
    torch.manual_seed(0)
    theirs, ours, x = plain.build().eval(), create_model(plain.VARIANT).eval(), numbers(2, 3, 97, 131)
    report = load_published(ours, theirs.state_dict())
    assert set(report.matched) | set(report.dropped) == set(theirs.state_dict())
    want = theirs(x)
    torch.testing.assert_close(ours(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


@torch.inference_mode()
def test_special_tokens_go_around_the_convolutions():
    torch.manual_seed(0)
    mixer, x = ConvAttention(8, 2, 3, 2).eval(), numbers(1, 13, 8)
    with pytest.raises(ValueError, match="special tokens at"):
        mixer(Tokens(x, (3, 4), special=(12,)))
    seen = []
    mixer.conv_q.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    mixer.k.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    assert mixer(Tokens(x, (3, 4), special=(0,))).shape == x.shape
    assert torch.equal(seen[0], x[:, 1:].view(1, 3, 4, 8))
    assert torch.equal(seen[1][:, 0], x[:, 0])
    assert seen[1].shape == (1, 1 + 2 * 2, 8)


def test_scale_activation_and_stochastic_depth_are_the_authors():
    model = create_model("cvt_13", drop_path_rate=0.1)
    blocks = [[*s.blocks] for s in model.backbone.stages]
    assert [s[0].mixer.scale for s in blocks] == pytest.approx([64**-0.5, 192**-0.5, 384**-0.5])
    assert all(type(b.ffn.act) is QuickGELU for s in blocks for b in s)
    drops = [[b.add2.drop for b in s] for s in blocks]
    assert drops[:2] == [[0], [0, 0]]
    assert drops[2] == pytest.approx([0.1 * j / 9 for j in range(10)])
    assert model.head.bias.abs().max() > 0
    assert "backbone.stages.2.down.tokens.0" in model.no_weight_decay()


@pytest.mark.parametrize("size", [(97, 131), (160, 288), (64, 64)])
@torch.inference_mode()
def test_any_size_goes(size):
    assert create_model("cvt_13").eval()(numbers(1, 3, *size)).shape == (1, 1000)


def test_transformers_names_become_the_published_ones():
    """Names as transformers' file has them; its network has another activation, so the table does not list it."""
    state = plain.build().state_dict()
    long = {"q": "query", "k": "key", "v": "value"}
    theirs = {}
    for name, value in state.items():
        stage, _, rest = name.partition(".")
        at = f"cvt.encoder.stages.{stage.removeprefix('stage')}."
        if stage in ("norm", "head"):
            theirs[("cvt.layernorm." if stage == "norm" else "classifier.") + rest] = value
        elif rest == "cls_token":
            theirs[at + rest] = value
        elif rest.startswith("patch_embed"):
            rest = rest.replace("patch_embed.", "").replace("proj.", "projection.").replace("norm.", "normalization.")
            theirs[f"{at}embedding.convolution_embeddings.{rest}"] = value
        else:
            _, j, part, *more = rest.split(".")
            block, leaf = f"{at}layers.{j}.", more[-1]
            if part == "attn" and more[0].startswith("conv_proj"):
                kind = "convolution" if more[1] == "conv" else "normalization"
                inner = f"convolution_projection_{long[more[0][-1]]}.convolution_projection.{kind}.{leaf}"
                theirs[f"{block}attention.attention.{inner}"] = value
            elif part == "attn" and more[0] != "proj":
                theirs[f"{block}attention.attention.projection_{long[more[0][-1]]}.{leaf}"] = value
            else:
                where = {"attn": "attention.output.dense", "norm1": "layernorm_before", "norm2": "layernorm_after",
                         "mlp": "intermediate.dense" if more[0] == "fc1" else "output.dense"}[part]  # fmt: skip
                theirs[f"{block}{where}.{leaf}"] = value
    assert len(theirs) == len(state)
    assert family_of(theirs) == "cvt"
    back = to_published("cvt", theirs)
    assert set(back) == set(state)
    assert all(back[name] is state[name] for name in state)
    assert all(w.source == "published" for n in FACTS for w in WEIGHTS[n])
