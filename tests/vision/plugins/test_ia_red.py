"""IA-RED²: the record of the authors' tool under its own names, and that an image that is cut is one that is masked."""

import re

import pytest
import torch
from golden import golden
from plugin_parts import refused
from torch import Tensor, nn

from patchloom.vision.plugins import attach, attached, hosts_of, noting, plugin
from patchloom.vision.plugins.ia_red import IaRed, Interpreter, interpreters_of
from patchloom.vision.tokens import Tokens
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    model = create_model(request.param, num_classes=10, img_size=96)
    attach(model, IaRed())
    return golden.fill_module(model).eval()


# --------------------------------------------------------------------------------------------------------------- golden


def published(record: golden.Record) -> dict[str, Tensor]:
    """The file as published, in which every block stands twice."""
    state = record.state_dict()
    copies = {
        n: re.fullmatch(r"groups\.(\d)\.block_list\.(\d)\.(.+)", n) for n in record.meta["state"] if n not in state
    }
    return state | {n: state[f"blocks.{4 * int(m[1]) + int(m[2])}.{m[3]}"] for n, m in copies.items()}


def test_the_authors_tool_under_its_own_names():
    record = golden.load("ia_red/deit_small")
    state = published(record)
    assert set(state) == set(record.meta["state"])
    model = create_model("deit_small_patch16_224", tokens="ia_red").eval()
    report = load_published(model, state)
    assert not report.fresh
    assert [n for n in report.dropped if "agent" in n] == [
        f"groups.{g}.agent.qk.{part}[2]" for g in range(3) for part in ("weight", "bias")
    ]
    assert len(set(state) - set(report.matched) - set(report.dropped)) == 0
    with torch.inference_mode(), noting() as notes:
        record.compare("logits", model(record.input()), 1e-5)
    seen = dict(notes)
    for name in (f"{kind}{g}" for kind in ("probability", "policy") for g in range(3)):
        record.compare(name, seen[name], 1e-5)
    record.compare("flops", torch.stack([seen[f"policy{g}"].mean(1) for g in range(3)]).mean(0), 1e-6)


def test_a_copy_that_differs_is_refused():
    state = published(golden.load("ia_red/deit_small"))
    state["groups.1.block_list.2.norm1.weight"] = state["groups.1.block_list.2.norm1.weight"] + 1
    model = create_model("deit_small_patch16_224", tokens="ia_red")
    with pytest.raises(ValueError, match=r"groups\.1\.block_list\.2\.norm1\.weight is another name of blocks\.6"):
        load_published(model, state)
    with pytest.raises(ValueError, match=r"no place for groups\.0\.agent"):
        load_published(create_model("deit_small_patch16_224"), golden.load("ia_red/deit_small").state_dict())


def test_a_plain_backbones_weights_leave_the_interpreters_fresh():
    state = {n: v for n, v in golden.load("ia_red/deit_small").state_dict().items() if not n.startswith("groups.")}
    report = load_published(create_model("deit_small_patch16_224", tokens="ia_red"), state)
    assert {n.rsplit(".", 2)[0].rsplit(".", 2)[-1] for n in report.fresh} == {"before_block"}


# ---------------------------------------------------------------------------------------------------- masked and cut


@torch.inference_mode()
def test_an_image_alone_is_really_cut_and_gives_the_same(model):
    images, counts = normal(3, 3, 96, 96), []
    for host in hosts_of(model):
        host.block.register_forward_hook(lambda _m, _i, out: counts.append(out.x.shape[1]))
    with noting() as notes:
        together = model(images)
    policies = [v for n, v in notes if n.startswith("policy")]
    full = policies[0].shape[1]
    assert counts == [full] * 12
    assert policies[0].sum() > policies[1].sum() > policies[2].sum() > 3 * len(model.backbone.special)
    for i in range(3):
        counts.clear()
        torch.testing.assert_close(model(images[i : i + 1]), together[i : i + 1], rtol=1e-5, atol=1e-5)
        assert counts == [int(p[i].sum()) for p in policies for _ in range(4)]


@torch.inference_mode()
def test_maps_are_the_same_too(model):
    images = normal(2, 3, 96, 96)
    maps = model.forward_intermediates(images, [3, 7, 11], intermediates_only=True)
    alone = model.forward_intermediates(images[:1], [3, 7, 11], intermediates_only=True)
    for a, b in zip(maps, alone, strict=True):
        torch.testing.assert_close(a[:1], b, rtol=1e-5, atol=1e-5)
        assert (b == 0).all(1).any()  # of a patch that was dropped


@torch.inference_mode()
def test_nobody_sees_what_was_dropped(model):
    """What is put into dropped tokens changes nothing behind them."""
    image, first = normal(2, 3, 96, 96), hosts_of(model)[5].block  # in the middle of the second group

    def disturb(_: nn.Module, args: tuple[Tokens]) -> None:
        args[0].x.add_(1000 * (1 - args[0].policy))

    want = model(image)
    handle = first.register_forward_pre_hook(disturb)
    torch.testing.assert_close(model(image), want, rtol=1e-6, atol=1e-6)
    handle.remove()


@torch.inference_mode()
def test_the_score_is_its_formula():
    torch.manual_seed(0)
    layer = Interpreter(8, 2, 0, 0.5).eval()
    x, before = normal(2, 5, 8), torch.tensor([[1.0, 1, 0, 1, 1], [1, 1, 1, 1, 0]])
    with noting() as notes:
        out = layer(Tokens(x, (2, 2), (0,), policy=before[..., None]))
    y = x * before[..., None]
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    q, k = layer.q(y), layer.k(y)
    want = sum((q[:, :1, h] * k[..., h]).sum(-1).div(2).sigmoid() for h in (slice(4), slice(4, 8))) / 2 * before
    seen = dict(notes)
    torch.testing.assert_close(seen["probability0"], want)
    policy = (want > 0.5).float()
    policy[:, 0] = 1
    assert torch.equal(seen["policy0"], policy)
    assert torch.equal(out.x, x * policy[..., None])
    assert torch.equal(out.source >= 0, policy[:, 1:] > 0)


@torch.inference_mode()
def test_one_that_is_off_and_a_threshold_of_0_drop_nothing(model):
    image = normal(2, 3, 96, 96)
    for interpreter in interpreters_of(model):
        interpreter.on.fill_(False)
    off, alone = model(image), model(image[:1])
    for interpreter in interpreters_of(model):
        interpreter.threshold = 0
    plain = model(image)
    torch.testing.assert_close(off, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone, plain[:1], rtol=1e-5, atol=1e-5)


def test_whether_one_is_on_is_part_of_the_state(model):
    interpreters_of(model)[1].on.fill_(False)
    torch.manual_seed(1)
    other = create_model(model.name, num_classes=10, img_size=96, tokens="ia_red")
    other.load_state_dict(model.state_dict())
    assert [bool(i.on) for i in interpreters_of(other)] == [True, False, True]


# ------------------------------------------------------------------------------------------------------------- settings


def test_groups_of_any_number():
    assert IaRed().starts(12) == [0, 4, 8]
    assert IaRed().starts(14) == [0, 4, 9]
    model = create_model("deit_tiny_patch16_224", img_size=32)
    with attached(model, IaRed(2, heads=4)):
        layers = [(h.index, h.block.before_block.heads) for h in hosts_of(model) if h.block.before_block is not None]
    assert layers == [(0, 4), (6, 4)]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("swin_tiny", r"stages\.3\.blocks\.0: \w+ needs a full grid"),
        ("cct_7_3x1_32", r"blocks\.0: SelfAttention has no class token"),
        ("vim_tiny", r"blocks\.0: \w+ lets nobody mask its attention"),
    ],
)
def test_others_are_refused_by_name(name, words):
    refused(name, IaRed(), words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("groups=0", "groups=0: at least 1"),
        ("groups=13", "groups=13: the last stage has 12 blocks"),
        ("heads=0", "heads=0: at least 1"),
        ("heads=5", "heads=5: 192 channels do not divide"),
        ("threshold=1", "threshold=1.0: of a probability"),
    ],
)
def test_what_does_not_fit_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        attach(create_model("deit_tiny_patch16_224", img_size=32), plugin(f"ia_red:{text}"))
