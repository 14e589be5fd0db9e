"""SReT: the authors' numbers; weights that run twice; slices at any number of tokens."""

import pytest
import torch
from golden import golden
from plain import sret as plain
from recorded import agree, sizes_are

from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.block import PreNorm
from patchloom.vision.blocks.recursive import Recursive
from patchloom.vision.download import DownloadError, fetch
from patchloom.vision.mixers.attention import Global, SelfAttention
from patchloom.vision.mixers.sliced import SlicedAttention, spread
from patchloom.vision.mixers.window import Window
from patchloom.vision.plugins import attached, plugin
from patchloom.vision.tables import WEIGHTS, find_file
from patchloom.vision.tokens import Tokens
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model

RECORDS = ("sret_t", "sret_t_wo_slice", "sret_lt_16_14_1")
FACTS = {  # parameters, GMACs
    "sret_t_wo_slice": (4_755_979, 1.37), "sret_t": (4_755_979, 1.11), "sret_lt_wo_slice": (4_988_024, 1.42),
    "sret_lt": (4_988_024, 1.16), "sret_lt_16_14_1": (4_988_024, 1.23), "sret_s_wo_slice": (20_899_692, 4.67),
    "sret_s": (20_899_692, 4.17), "sret_t_wo_slice_384": (4_853_259, 6.4), "sret_s_wo_slice_384": (21_091_212, 18.4),
    "sret_s_wo_slice_512": (21_317_004, 42.8),
}  # fmt: skip
FACTS |= {f"{n}_distill": FACTS[n] for n in ("sret_t", "sret_t_wo_slice", "sret_lt", "sret_lt_wo_slice", "sret_s")}


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", RECORDS)
@torch.inference_mode()
def test_matches_the_original(name):
    record = golden.load(f"sret/{name}")
    model, x, found = create_model(name).eval(), record.input(), {}
    report = load_published(model, record.state_dict())
    assert not report.fresh
    assert not report.resized

    def keep(mixer, _, out):
        stage = next(i for i, s in enumerate(model.backbone.stages, 1) if s.blocks[0].block.mixer is mixer)
        found[f"stage{stage}.attn.use{1 + (f'stage{stage}.attn.use1' in found)}"] = out

    hooks = [s.blocks[0].block.mixer.register_forward_hook(keep) for s in model.backbone.stages]
    found["logits"] = model(x)
    for hook in hooks:
        hook.remove()
    found |= {f"stage{i}": m for i, m in enumerate(model.forward_intermediates(x)[1], 1)}
    agree(record, found)


@pytest.mark.slow
def test_parameters_and_macs_are_those_of_the_paper():
    sizes_are(FACTS)


@torch.inference_mode()
def test_equals_the_plain_form_whose_state_names_shared_weights_twice():
    theirs, ours = plain.build().eval(), create_model(plain.VARIANT).eval()
    state = theirs.state_dict()
    report = load_published(ours, state)
    assert set(report.matched) | set(report.dropped) == set(state)
    assert "transformers.1.blocks.2.attn.qkv.weight" in report.dropped
    x = numbers(2, 3, 224, 224)
    want = theirs(x)
    torch.testing.assert_close(ours(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
    torch.testing.assert_close(ours.fold()(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def test_a_second_name_must_hold_the_same_weights():
    model, state = create_model("sret_t"), dict(plain.build().state_dict())
    name = "transformers.0.blocks.2.mlp.fc1.bias"
    with pytest.raises(ValueError, match=r"transformers.0.blocks.2.mlp.fc1.bias is another name of .*differs"):
        load_published(model, {**state, name: state[name] + 1})
    del state["transformers.0.blocks.0.mlp.fc1.bias"]
    with pytest.raises(ValueError, match=r"which is absent"):
        load_published(model, state)


def test_positions_of_another_size_are_resampled():
    state = plain.build().state_dict()
    report = load_published(create_model("sret_t_wo_slice_384"), state)
    assert report.resized == ["backbone.stem.position.table"]
    assert create_model("sret_t_wo_slice_384").backbone.stem.position.table.shape == (1, 48 * 48, 64)


def test_the_rate_of_drop_path_is_the_first_of_the_stage():
    model = create_model("sret_t", drop_path_rate=0.2, device="meta")
    drops = [[b.block.add2.drop for b in s.blocks] for s in model.backbone.stages]
    assert drops[0] == pytest.approx([0, 0.01])
    assert drops[1] == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.08])
    assert drops[2] == pytest.approx([0.14, 0.15, 0.16])


def test_files_behind_a_page_are_put_in_place_by_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHLOOM_HOME", str(tmp_path))
    weights = WEIGHTS["sret_t"][0]
    place = tmp_path / "checkpoints" / "SReT_T.pth"
    with pytest.raises(
        DownloadError, match=rf"take SReT_T.pth from https://github.com/szq0214/SReT and put it at {place}"
    ):
        fetch(weights)
    place.parent.mkdir()
    torch.save({"model": plain.build().state_dict()}, place)
    assert fetch(weights) == place
    assert find_file(place) == ("sret_t", weights)
    model = create_model("sret_t", pretrained=True)
    assert torch.equal(model.head.weight, torch.load(place)["model"]["head.weight"])


# ------------------------------------------------------------------------------------------------------------ slices


@pytest.mark.parametrize("n", [1, 5, 7, 16, 35, 784])
def test_tokens_are_spread_by_a_permutation(n):
    assert sorted(spread(n)) == list(range(n))
    if n % 5:
        assert list(spread(n)) == [5 * i % n for i in range(n)]


@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize("n", [1, 3, 4, 17, 24, 31])
def test_a_slice_attends_to_itself_and_padding_to_nothing(n, turn):
    torch.manual_seed(0)
    mixer, x = SlicedAttention(8, 2, (4, 4)).eval(), numbers(2, n, 8)
    for layer in (mixer.qkv, mixer.proj):
        torch.nn.init.normal_(layer.weight)
    whole = SelfAttention(8, 2)
    whole.load_state_dict(mixer.state_dict())
    size = 1 + numbers(2, n, 1, seed=1).abs()
    probe, shown = {}, {}
    got = mixer(Tokens(x, None, size=size, turn=turn), probe)
    order, length = (torch.from_numpy(spread(n)) if turn else torch.arange(n)), -(-n // 4)
    want, keys = torch.empty_like(got), torch.empty_like(probe["keys"])
    for piece in order.split(length):
        want[:, piece] = whole(Tokens(x[:, piece], None, size=size[:, piece]), shown)
        keys[:, :, piece] = shown["keys"]  # B h N d
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(probe["keys"], keys)
    alone = mixer(Tokens(x, None, turn=turn))
    torch.testing.assert_close(alone, mixer(Tokens(x, None, size=torch.ones_like(size), turn=turn)))


def test_slices_are_drawn_at_random_in_training_and_fixed_in_evaluation():
    mixer, t = SlicedAttention(8, 2, (1, 2)), Tokens(numbers(1, 24, 8), None, turn=1)
    torch.nn.init.normal_(mixer.qkv.weight)
    assert not torch.equal(mixer(t), mixer(t))
    mixer.eval()
    assert torch.equal(mixer(t), mixer(t))
    assert torch.equal(mixer.train()(Tokens(t.x, None)), mixer.eval()(Tokens(t.x, None)))  # first turn: in order


def test_activation_checkpointing_draws_the_same_slices_again():
    torch.manual_seed(0)
    model, x = create_model("sret_t", num_classes=3).train(), numbers(2, 3, 64, 64)
    grads = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        torch.manual_seed(1)
        model(x).square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("size", [(97, 131), (160, 288), (64, 64)])
@torch.inference_mode()
def test_any_size_goes(size):
    assert create_model("sret_t").eval()(numbers(1, 3, *size)).isfinite().all()


# --------------------------------------------------------------------------------------------------------- recursion


@torch.inference_mode()
def test_any_block_may_run_twice():
    torch.manual_seed(0)
    block, mixer = Recursive(PreNorm(), times=3), Window(2, 2)
    once = Backbone([Stage(mixer, 8, 1)])
    thrice = Backbone([Stage(mixer, 8, 1, block=block)])
    names = once.state_dict()
    thrice.load_state_dict({n.replace("blocks.0.", "blocks.0.block."): v for n, v in names.items()})
    assert sum(p.numel() for p in once.parameters()) == sum(p.numel() for p in thrice.parameters())
    x = numbers(1, 3, 32, 32)
    t = once.stem(x)
    for _ in range(3):
        t = once.stages[0].blocks[0](t)
    torch.testing.assert_close(thrice.last(x).x, t.x)
    assert thrice.last(x).turn == 0


@torch.inference_mode()
def test_tokens_merge_at_every_turn():
    stage, x = Backbone([Stage(Global(2), 8, 1, block=Recursive(times=2))]).eval(), numbers(1, 3, 32, 32)
    want = stage.last(x).x
    with attached(stage, plugin("tome:r=4")):
        assert stage.last(x).x.shape[1] == 64 - 2 * 4
    with attached(stage, plugin("tome:r=0")):
        torch.testing.assert_close(stage.last(x).x, want)


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="times=0"):
        Recursive(times=0)
    with pytest.raises(ValueError, match=r"groups \(0,\)"):
        SlicedAttention(8, 2, (0,))
