"""DynamicViT: the authors' numbers through their names, the laws of plugins, what is refused."""

from dataclasses import replace

import pytest
import torch
from golden import golden
from plugin_parts import every_parameter_learns, refused
from torch import Tensor, nn

from patchloom.vision.block import PreNorm, Seams
from patchloom.vision.mixers.attention import Global
from patchloom.vision.model import Classifier
from patchloom.vision.plugins import attach, attached, noting, plugin, plugins_of
from patchloom.vision.plugins.dynamic_vit import Decide, DynamicViT, FastPath, Predictor, UnderPolicy
from patchloom.vision.tokens import Tokens
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import VARIANTS, create_model, describe, list_models, rebuild

NAMES = ("deit_tiny_distilled_patch16_224", "cct_2_3x2_32", "convnext_tiny", "swin_tiny", "caformer_s18")


def small(name: str) -> Classifier:
    """The network of that name, narrow and shallow, its third stage four blocks deep, with weights that all matter."""
    network = VARIANTS[name]
    if len(network.stages) == 1:
        stages = (replace(network.stages[0], dim=32, depth=4, mixer=Global(4)),)
    else:
        parts = [(s, 24 * 2**i, (1, 1, 4, 1)[i]) for i, s in enumerate(network.stages)]
        stages = tuple(replace(s, dim=d, depth=n, scale=None if s.scale is None else 0.5) for s, d, n in parts)
    model = Classifier(replace(network, stages=stages).backbone(3, 0.0), 10, network.head, img_size=64)
    model.family = network.family
    return golden.fill_module(model).eval()


def with_plugin(name: str, spec: DynamicViT | None = None) -> Classifier:
    model = small(name)
    attach(model, spec or DynamicViT())
    return golden.fill_module(model)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def hosts(model: nn.Module) -> list[Seams]:
    return [m for m in model.modules() if isinstance(m, Seams)]


# --------------------------------------------------------------------------------------------------------- golden


@pytest.mark.parametrize(
    ("path", "variant"), [("deit_256_07", "deit_256_patch16_224"), ("deit_s_07", "deit_small_patch16_224")]
)
@torch.inference_mode()
def test_a_plain_one_is_the_originals(path, variant):
    record = golden.load(f"dynamicvit/{path}")
    model = create_model(variant, tokens="dynamicvit:keep=0.7").eval()
    report = load_published(model, record.state_dict())
    assert not report.fresh
    assert not report.dropped
    assert sum(p.numel() for p in model.parameters()) == record.meta["parameters"]
    with noting() as notes:
        last, taken = model.backbone.walk(record.input(), [(0, 3), (0, 6), (0, 9)])
    scores = [value for name, value in notes if name == "score"]
    for i, score, t in zip((3, 6, 9), scores, taken, strict=True):
        record.compare(f"score{i}", score, 1e-5)
        record.compare(f"tokens{i}", t.x, 1e-5)
    record.compare("logits", model.logits(model.finished(last)), 1e-5)
    assert (last.source >= 0).sum() == 67
    assert model.forward_intermediates(record.input(), [11], intermediates_only=True)[0].shape[2:] == (14, 14)


@pytest.mark.parametrize(("path", "variant"), [("convnext_t_07", "convnext_tiny"), ("swin_t_07", "swin_tiny")])
@torch.inference_mode()
def test_a_hierarchical_one_is_the_originals(path, variant):
    record = golden.load(f"dynamicvit/{path}")
    model = create_model(variant, tokens=DynamicViT(0.7)).eval()
    assert not load_published(model, record.state_dict()).fresh
    assert sum(p.numel() for p in model.parameters()) == record.meta["parameters"]
    with noting() as notes:
        logits = model(record.input())
    scores = [value for name, value in notes if name == "score"]
    for i, score in enumerate(scores):
        record.compare(f"score{i}", score.view(record.meta["outputs"][f"score{i}"]["shape"]), 1e-5)
    assert len(scores) == 3
    record.compare("logits", logits, 1e-5)


@torch.inference_mode()
def test_a_block_under_a_policy_is_the_originals():
    record = golden.load("dynamicvit/masked_block")
    state, given = record.state_dict(), record.input()
    block = PreNorm().build(32, 0, Global(4).build(32, 0), 4.0, None, 0.0)
    ours = {"attn.": "mixer.", "mlp.": "ffn."}
    theirs = {n.removeprefix("block."): v for n, v in state.items() if n.startswith("block.")}
    for a, b in ours.items():
        theirs = {n.replace(a, b): v for n, v in theirs.items()}
    block.load_state_dict(theirs)
    block.mixer.attending = UnderPolicy(0.0)
    x, policy = given["x"], given["policy"].float()
    record.compare("block", block(Tokens(x, None, (0,), policy=policy)).x, 1e-5)
    predictor = Predictor(32)
    named = {n.removeprefix("predictor."): v for n, v in state.items() if n.startswith("predictor.")}
    predictor.load_state_dict({n.replace("in_conv", "enter").replace("out_conv", "judge"): v for n, v in named.items()})
    record.compare("score", predictor(x[:, 1:], policy[:, 1:]), 1e-5)


# ------------------------------------------------------------------------------------------------- published weights


def test_a_backbone_s_file_leaves_the_plugin_fresh_and_half_a_plugin_is_refused():
    record = golden.load("dynamicvit/deit_256_07")
    state = record.state_dict()
    bare = {n: v for n, v in state.items() if not n.startswith("score_predictor")}
    model = create_model("deit_256_patch16_224", tokens="dynamicvit")
    fresh = load_published(model, bare).fresh
    assert len(fresh) == 30
    assert all(".before_block.predictor." in n for n in fresh)
    half = {n: v for n, v in state.items() if not n.startswith("score_predictor.2")}
    with pytest.raises(ValueError, match=r"nothing fills backbone\.stages\.0\.blocks\.9\.before_block\.predictor"):
        load_published(model, half)
    with pytest.raises(ValueError, match=r"no place for score_predictor\.0\.in_conv\.0\.weight"):
        load_published(create_model("deit_256_patch16_224"), state)


def test_a_file_of_both_is_opened_by_create_model(tmp_path):
    record = golden.load("dynamicvit/deit_256_07")
    torch.save({"model": record.state_dict()}, path := tmp_path / "dynamic-vit_256_r0.7.pth")
    model = create_model("deit_256_patch16_224", tokens="dynamicvit", checkpoint_path=path)
    torch.testing.assert_close(
        model.backbone.stages[0].blocks[6].before_block.predictor.judge[4].bias,
        record.state_dict()["score_predictor.1.out_conv.4.bias"],
    )
    assert "deit_256_patch16_224" not in list_models()


@torch.inference_mode()
def test_a_description_remembers_what_is_attached(image):
    spec = DynamicViT((0.8, 0.5), (2, 5))
    model = create_model("deit_tiny_patch16_224", num_classes=10, img_size=64, tokens=spec).eval()
    again = rebuild(describe(model)).eval()
    assert plugins_of(again) == [spec]
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(image), model(image))
    own = small("swin_tiny")
    assert "tokens" not in describe(own)
    with attached(own, DynamicViT()):
        own.family = None
        assert plugins_of(rebuild(describe(own))) == [DynamicViT()]
    assert plugins_of(own) == []


# ------------------------------------------------------------------- the laws, with three decisions (see test_laws.py)


@torch.inference_mode()
def test_keeping_all_changes_nothing(name, image):
    model = small(name)
    plain = model(image)
    for spec in (DynamicViT(1.0), DynamicViT((1.0, 1.0, 1.0))):
        with attached(model, spec):
            assert torch.equal(model(image), plain)
    with attached(model, DynamicViT()):
        assert not torch.equal(model(image), plain)


def test_two_training_steps_reach_every_parameter(name, image):
    torch.manual_seed(0)
    model = small(name)
    attach(model, DynamicViT())
    every_parameter_learns(model, image)


@pytest.mark.parametrize("size", [(97, 131), (160, 288)])
@torch.inference_mode()
def test_any_size_and_an_image_alone_is_as_in_a_batch(name, size):
    model = with_plugin(name, DynamicViT((0.6, 0.5, 0.3)))
    x = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(1))
    with noting() as notes:
        got = model(x)
    scores = [v for n, v in notes if n == "score"]
    t = model.backbone.walk(x, [(2 if len(model.backbone.specs) > 1 else 0, 0)])[1][0]
    n = t.grid[0] * t.grid[1]
    wide = [n] * 3 if len(model.backbone.specs) > 1 else [n, int(n * 0.6), int(n * 0.5)]
    assert [s.shape[1] for s in scores] == wide
    torch.testing.assert_close(got[1:2], model(x[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "training"), [("deit_tiny_distilled_patch16_224", True), ("convnext_tiny", False), ("convnext_tiny", True)]
)
def test_it_compiles_without_breaks(name, training, image):
    model = with_plugin(name).train(training)
    with torch.no_grad():
        torch.manual_seed(0)
        want = model(image)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.manual_seed(0)
        torch.testing.assert_close(compiled(image), want, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------- what is kept, and how


@torch.inference_mode()
def test_the_rest_takes_the_fast_path_and_nothing_else():
    model = with_plugin("swin_tiny", DynamicViT((0.5,), (1,)))
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    seen = {}
    path = model.backbone.stages[2].blocks[2].around_ffn
    assert isinstance(path, FastPath)
    path.register_forward_hook(lambda _, args, out: seen.update(args=args, out=out))
    model(x)
    (t, y, normed, then), block = seen["args"], model.backbone.stages[2].blocks[2]
    assert torch.equal(y, t.x)
    assert t.policy.sum(1).flatten().tolist() == [8, 8]  # of 4 x 4
    slow, fast = t.x + block.ffn(block.norm2(t.x)), t.x + path.path(t.x)
    torch.testing.assert_close(seen["out"], torch.where(t.policy > 0, slow, fast))
    assert model.backbone.last(x).policy is None
    path.train()  # all go both ways, and the policy chooses
    torch.testing.assert_close(path(t, y, normed, then), seen["out"])


def test_training_hides_what_is_dropped_and_evaluation_takes_it_out():
    """With the decisions of training put into evaluation the class token is the same, to the eps of the softmax."""
    model = with_plugin("deit_tiny_distilled_patch16_224", DynamicViT((0.5,), (1,)))
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    with torch.no_grad(), noting() as notes:
        t = model.train().features(x)
    decision = dict(notes)["decision"][0]
    assert set(decision.unique().tolist()) == {0.0, 1.0}
    assert t.policy.shape == (1, 18, 1)
    assert (t.policy[:, :2] == 1).all()
    place = model.backbone.stages[0].blocks[1].before_block
    place.share = (int(decision.sum()) + 0.5) / 16
    score = decision - torch.arange(16) / 100  # so that they stay in their order
    place.predictor.forward = lambda x, counts: torch.stack([score, -score], -1)[None]
    with torch.no_grad():
        short = model.eval().features(x)
    assert short.x.shape[1] == 2 + int(decision.sum())
    torch.testing.assert_close(short.x[:, :2], t.x[:, :2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(short.x[0, 2:], t.x[0, 2:][decision > 0], rtol=1e-4, atol=1e-4)


def test_a_patch_that_was_dropped_stays_dropped():
    torch.manual_seed(0)
    model = with_plugin("cct_2_3x2_32").train()
    with noting() as notes, torch.no_grad():
        model(torch.randn(4, 3, 64, 64))
    first, second, third = [v for n, v in notes if n == "decision"]
    assert (second <= first).all()
    assert (third <= second).all()
    assert third.sum() < second.sum() < first.sum() < first.numel()


# ------------------------------------------------------------------------------------------------------- settings


def test_places_and_shares_are_those_published():
    def where(name: str, spec: DynamicViT) -> tuple[list[int], list[float]]:
        with torch.device("meta"):
            model = create_model(name, tokens=spec)
        stage = model.backbone.stages[2 if len(model.backbone.specs) > 1 else 0]
        chosen = [(i, b.before_block) for i, b in enumerate(stage.blocks) if isinstance(b.before_block, Decide)]
        return [i for i, _ in chosen], [round(d.share, 6) for _, d in chosen]

    assert where("deit_base_patch16_224", DynamicViT(0.7)) == ([3, 6, 9], [0.7, 0.49, 0.343])
    assert where("convnext_tiny", DynamicViT(0.9)) == ([1, 2, 3], [0.9, 0.7, 0.5])
    assert where("convnext_base", DynamicViT(0.7)) == ([3, 6, 9], [0.7, 0.5, 0.3])
    assert where("swin_tiny", DynamicViT(0.7)) == ([1, 2, 3], [0.7, 0.5, 0.3])
    assert where("swin_small", DynamicViT(0.7)) == ([2, 4, 6], [0.7, 0.5, 0.3])
    assert where("swin_tiny", DynamicViT((0.5, 0.5), (0, 4))) == ([0, 4], [0.5, 0.5])
    assert plugin("dynamicvit:keep=0.9+0.7,at=2+5") == DynamicViT((0.9, 0.7), (2, 5))
    assert plugin("dynamicvit") == DynamicViT()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"keep": 0.0}, "keep=0.0: a share above 0"),
        ({"keep": 1.5}, "keep=1.5"),
        ({"keep": (0.5, 0.7)}, "do not rise"),
        ({"keep": ()}, "keep=()"),
        ({"at": (3, 3)}, "from 0 and rising"),
        ({"at": (-1,)}, "from 0 and rising"),
        ({"keep": (0.5,), "at": (1, 2)}, "as many shares as blocks"),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        DynamicViT(**settings)
    assert words in str(error.value)


def test_settings_that_do_not_fit_the_model():
    model = small("swin_tiny")
    with pytest.raises(ValueError, match=r"at=\(7,\): .* has 4 blocks"):
        attach(model, DynamicViT(at=(7,)))
    with pytest.raises(ValueError, match=r"keep=0.4: it falls by 0.2 at each of 3 blocks"):
        attach(model, DynamicViT(0.4))
    with pytest.raises(ValueError, match=r"pruned before 3 blocks; give as many shares"):
        attach(model, DynamicViT((0.7, 0.5)))
    assert all(getattr(h, s) is None for h in hosts(model) for s in h.seams)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("convnext_isotropic_small", r"0: DepthwiseConv needs a full grid"),
        ("vim_tiny", r"0: MambaMixer has no seam 'attending'"),
        ("rmt_tiny", r"stages\.2\.blocks\.0: ManhattanAttention has no MLP behind it that takes each token by itself"),
        ("sam_vit_b", r"stands in the last of 2 stages"),
    ],
)
def test_what_it_cannot_work_on_is_refused_by_name(name, words):
    refused(name, DynamicViT(), words)
