"""ViT-Res and ViT-ResNAS: the authors' numbers, their definition language, and the reduction between stages."""

import pytest
import torch
import torch.nn.functional as F
from golden import golden
from plain import vit_resnas as plain
from recorded import agree, captured

from patchloom.vision.block import exact_ratio
from patchloom.vision.families.vit_resnas import MEDIUM, PLAIN, TINY, parse
from patchloom.vision.mixers.attention import Global
from patchloom.vision.model import Classifier
from patchloom.vision.position import Position
from patchloom.vision.stems.vit_resnas import ResidualReduction
from patchloom.vision.tokens import Tokens
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import VARIANTS, create_model, list_models, model_info

FACTS = {  # parameters, GMACs
    "vit_res_tiny": (42_781_736, 1.79), "vit_resnas_tiny": (41_498_552, 1.78), "vit_resnas_small": (64_605_108, 2.85),
    "vit_resnas_medium": (97_323_672, 4.51), "vit_resnas_medium_280": (None, 7.22),
    "vit_resnas_medium_336": (None, 10.74), "vit_resnas_medium_392": (None, 15.20),
}  # fmt: skip


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def test_matches_the_original():
    record = golden.load("vit_resnas/vit_resnas_tiny")
    model, state = create_model("vit_resnas_tiny").eval(), record.state_dict()
    report = load_published(model, state)
    assert not report.fresh
    assert not report.resized
    assert set(report.matched) == set(state)
    last = {f"stage{i + 1}": f"backbone.stages.{i}.blocks.{s.depth - 1}" for i, s in enumerate(model.backbone.specs)}
    found = captured(model, record.input(), {**last, **{f"reduce{i}": f"backbone.stages.{i}.down" for i in (1, 2)}})
    agree(record, found)


@torch.inference_mode()
def test_two_tokens_and_plain_patches_match_the_original():
    record = golden.load("vit_resnas/distilled_plain_patch")
    model, state = create_model("distilled_plain_patch"), record.state_dict()
    report = load_published(model, state)
    assert not report.fresh
    assert set(report.matched) == set(state)
    model.set_distilled_training()
    pair = model.train()(record.input())  # the original gives the pair in evaluation as well
    record.compare("logits", pair[0], 1e-5)
    record.compare("distillation_logits", pair[1], 1e-5)
    torch.testing.assert_close(model.eval()(record.input()), (pair[0] + pair[1]) / 2)
    assert model_info("distilled_plain_patch").parameters == record.meta["parameters"]
    assert "distilled_plain_patch" not in list_models()


@pytest.mark.parametrize("name", FACTS)
def test_parameters_and_macs_are_those_of_the_paper(name):
    info, (parameters, gmacs) = model_info(name), FACTS[name]
    if parameters is None:  # Medium with larger tables
        side = VARIANTS[name].size[0] // 14
        more = sum(d * ((side >> i) ** 2 - (16 >> i) ** 2) for i, d in enumerate((240, 640, 880)))
        parameters = FACTS["vit_resnas_medium"][0] + more
    assert info.parameters == info.trainable == parameters
    assert info.macs / 1e9 == pytest.approx(gmacs, rel=0.01)


@torch.inference_mode()
def test_equals_the_plain_form():
    theirs, ours = plain.build().eval(), create_model(plain.VARIANT).eval()
    assert not load_published(ours, theirs.state_dict()).fresh
    x = numbers(2, 3, 224, 224)
    want = theirs(x)
    torch.testing.assert_close(ours(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
    torch.testing.assert_close(ours.fold()(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


@torch.inference_mode()
def test_a_pyramid_leaves_the_heads_out():
    state = plain.build().state_dict()
    pyramid, model = create_model("vit_resnas_tiny", features_only=True).eval(), create_model("vit_resnas_tiny").eval()
    report = load_published(pyramid, state)
    load_published(model, state)
    assert {n.split(".")[0] for n in report.dropped} == {"norm", "cls_head", "patch_head"}
    x = numbers(1, 3, 224, 224)
    for got, want in zip(pyramid(x), model.forward_intermediates(x)[1], strict=True):
        torch.testing.assert_close(got, want)
    assert pyramid.strides == [14, 28, 56]


def test_tables_are_resized_as_the_authors_resize_them():
    """Bicubic without antialiasing, the class token's entry kept."""
    state, model = plain.build().state_dict(), create_model("vit_resnas_tiny", img_size=280)
    report = load_published(model, state)
    places = {
        "pos_embed": "backbone.stem.position.table",
        "blocks.5.pos_embed": "backbone.stages.1.down.position.table",
        "blocks.12.pos_embed": "backbone.stages.2.down.position.table",
    }
    assert sorted(report.resized) == sorted(places.values())
    for (theirs, ours), k in zip(places.items(), (1, 0, 0), strict=True):
        table, got = state[theirs], model.state_dict()[ours]
        side = round((table.shape[1] - k) ** 0.5)
        m = table[:, k:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        m = F.interpolate(m, (side * 5 // 4,) * 2, mode="bicubic", align_corners=False).flatten(2).mT
        torch.testing.assert_close(got, torch.cat([table[:, :k], m], 1))


@pytest.mark.parametrize("size", [(97, 131), (160, 288), (64, 64)])
@torch.inference_mode()
def test_any_size_goes(size):
    model = create_model("vit_resnas_tiny", num_classes=5).eval()
    assert model(numbers(1, 3, *size)).isfinite().all()


def test_patches_have_a_head_of_their_own_in_training():
    model, x = create_model("vit_resnas_tiny", num_classes=5), numbers(2, 3, 112, 112)
    model.set_patch_training()
    logits, patches = model.train()(x)
    assert logits.shape == (2, 5)
    assert patches.shape == (2, 4, 5)
    assert model.eval()(x).shape == (2, 5)


def test_the_rate_of_drop_path_counts_blocks_only():
    model = create_model("vit_resnas_tiny", drop_path_rate=0.3, device="meta")
    drops = [b.add2.drop for s in model.backbone.stages for b in s.blocks]
    assert drops == pytest.approx([0.02 * i for i in range(16)])
    assert VARIANTS["vit_resnas_medium"].drop_path == 0.3
    assert VARIANTS["vit_resnas_medium_280"].drop_path == 0.75


# -------------------------------------------------------------------------------------------------------- reduction


@torch.inference_mode()
def test_the_reduction_at_odd_sides_averages_what_is_there():
    reduce = ResidualReduction(Position((2, 2))).build(4, 6)
    x = numbers(2, 1 + 5 * 3, 4)
    t = reduce(Tokens(x, (5, 3), (0,)))
    assert (t.grid, t.special, t.x.shape) == ((3, 2), (0,), (2, 1 + 6, 6))
    y, m = reduce.norm(x), x[:, 1:].unflatten(1, (5, 3))
    pooled = torch.stack([m[:, i : i + 2, j : j + 2].mean((1, 2)) for i in (0, 2, 4) for j in (0, 2)], 1)
    new = reduce.conv(y[:, 1:].unflatten(1, (5, 3)).permute(0, 3, 1, 2)).flatten(2).mT
    new = new + reduce.position.resized((3, 2))
    want = torch.cat([reduce.linear(y[:, :1]), new], 1)
    want[..., :4] += torch.cat([x[:, :1], pooled], 1)
    torch.testing.assert_close(t.x, want)


@torch.inference_mode()
def test_the_reduction_works_without_a_class_token():
    t = ResidualReduction(Position((2, 2))).build(4, 4)(Tokens(numbers(2, 16, 4), (4, 4)))
    assert (t.grid, t.special, t.x.shape) == ((2, 2), (), (2, 4, 4))


def test_the_reduction_never_loses_channels():
    with pytest.raises(ValueError, match="8 to 6"):
        ResidualReduction(Position((2, 2))).build(8, 6)


# ------------------------------------------------------------------------------------------------------- definitions


def test_the_definition_of_the_record_is_that_of_the_variant():
    def tuples(value):
        return tuple(tuples(v) for v in value) if isinstance(value, list | tuple) else value

    for name, ours in (("vit_resnas_tiny", TINY), ("distilled_plain_patch", PLAIN)):
        assert tuples(golden.load(f"vit_resnas/{name}").meta["config"]["network_def"]) == tuples(ours)


def test_a_network_of_ones_own():
    network = parse(((5, 16, 8), (1, (16, 2, 4), (16, 33), 1), (1, (16, 3, 4), (16, 40), 0), (3, 16, 24),
                     (1, (24, 1, 5), (24, 29), 1), (2, 24, 7)), size=112, drop_path=0.1)  # fmt: skip
    model = Classifier(network.backbone(3, 0.0), network.classes, network.head, img_size=network.size).eval()
    assert [s.depth for s in network.stages] == [1, 1]
    assert model.backbone.stem.conv2.conv.weight.shape == (8, 8, 3, 3)
    first, second = (s.blocks[0] for s in model.backbone.stages)
    assert first.ffn.fc1.weight.shape == (33, 16)
    assert second.ffn.fc1.weight.shape == (29, 24)
    assert second.mixer.qkv.weight.shape == (15, 24)
    assert model.backbone.stages[1].down.position.table.shape == (1, 16, 24)
    assert model(numbers(1, 3, 112, 112)).shape == (1, 7)


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        (((7, 16), (2, 16, 10)), "begins with"),
        (((4, 16), (1, (24, 2, 8), (16, 32), 1), (2, 16, 10)), "not 16 wide"),
        (((4, 16), (1, (16, 2, 8), (16, 32)), (2, 16, 10)), "no entry"),
        (((4, 16), (3, 16, 32), (1, (32, 2, 8), (32, 32), 1), (2, 32, 10)), "stage without a block"),
        (((4, 16), (1, (16, 2, 8), (16, 32), 1)), "ends with its one head"),
        (((4, 16), (1, (16, 2, 8), (16, 32), 1), (2, 16, 10), (2, 16, 10)), "ends with its one head"),
    ],
)
def test_a_wrong_definition_is_named(definition, message):
    with pytest.raises(ValueError, match=message):
        parse(definition)
    with pytest.raises(ValueError, match="tokens=3"):
        parse(MEDIUM, tokens=3)


def test_hidden_widths_are_exact():
    for dim in range(1, 900, 7):
        for hidden in (1, 49, 115, 720, 1024, 3199):
            assert int(dim * exact_ratio(hidden, dim)) == hidden
    assert any(int(d * (h / d)) != h for d in range(1, 900, 7) for h in (1, 49, 115, 720, 1024, 3199))


def test_attention_takes_any_number_of_heads_of_any_width():
    assert Global(3, width=5).build(16, 0).proj.weight.shape == (16, 15)
    assert Global(width=4).build(16, 0).heads == 4
    with pytest.raises(ValueError, match="heads, width or both"):
        Global().build(16, 0)
