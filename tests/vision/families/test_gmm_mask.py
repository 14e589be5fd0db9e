"""Gaussian mixture masks: the authors' numbers, what a mask does on other grids, and its element-wise alternative."""

import pytest
import torch
import torch.nn.functional as F
from golden import golden
from plain import gmm_mask as plain
from recorded import captured, loaded

from patchloom.kernels.windows import windows
from patchloom.vision.heads.class_layers import ClassLayers
from patchloom.vision.mixers.gaussian_mask import ElementMask, GaussianMixture, beside_special, distance, log_distance
from patchloom.vision.mixers.window import WindowAttention
from patchloom.vision.tokens import Tokens
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model, list_models, model_info

STAGES = "backbone.stages."
MASKED = {  # the first and the last attention layer with a mask
    "gmm_vit": (f"{STAGES}0.blocks.0.mixer", f"{STAGES}0.blocks.8.mixer"),
    "gmm_swin": (f"{STAGES}0.blocks.0.mixer", f"{STAGES}2.blocks.3.mixer"),
    "gmm_cait": (f"{STAGES}0.blocks.0.mixer", f"{STAGES}0.blocks.23.mixer"),
    "gmm_t2t": ("backbone.stem.layers.0.attention", f"{STAGES}0.blocks.11.mixer.mixer"),
}
FACTS = {  # parameters, and millions of multiply-accumulates without attention's own products
    "gmm_vit": (2_710_492, 171), "gmm_swin": (7_108_738, 237), "gmm_pit": (7_007_836, 239), "gmm_t2t": (6_526_084, 417),
    "gmm_cait": (9_038_948, 542),  # the paper says 306
}  # fmt: skip
PRODUCTS = {  # millions: q k' and weights v, and the mixing of heads
    "gmm_vit": 9 * 2 * 64**2 * 192 / 1e6, "gmm_swin": 2 * (256 * 96 * 2 + 64 * 192 * 6 + 16 * 384 * 4) * 16 / 1e6,
    "gmm_pit": 2 * (257**2 * 96 * 2 + 65**2 * 192 * 6 + 17**2 * 384 * 4) / 1e6,
    "gmm_t2t": 2 * (256**2 * 64 + 64**2 * 256 * 12) / 1e6, "gmm_cait": 2 * 24 * 64**2 * (256 + 16) / 1e6,
}  # fmt: skip


def image(side=32, batch=2):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


def direct(mixture, grid):
    """(h N N), by the formula for each pair of tokens."""
    y, x = (p.flatten().double() for p in torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij"))
    r2 = (y[:, None] - y).square() + (x[:, None] - x).square()
    g = torch.exp(-r2.float()).sqrt()
    return (mixture.alpha * g ** (1 / (mixture.sigma.square() + 1e-5))).sum(0)


def test_the_mask_alone_is_the_originals():
    record = golden.load("gmm_mask/mask")
    mask = GaussianMixture(1, 5)
    mask.load_state_dict({n.removeprefix("mask."): v for n, v in record.state_dict().items()})
    with torch.no_grad():
        record.compare("masked", record.input() * mask((8, 8)), 1e-5)
    y, x = (p.flatten() for p in torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij"))
    table = torch.from_numpy(distance(8, 8))[(y[:, None] - y).abs(), (x[:, None] - x).abs()]
    record.compare("distance", table[None, None], 1e-7)
    assert table.min() == pytest.approx(5.24074908e-22, rel=1e-6)  # of a denormal number: exp(-49) is 5.2428857e-22


@pytest.mark.parametrize("name", MASKED)
def test_matches_the_original(name):
    record = golden.load(f"gmm_mask/{name}")
    model = loaded(name, record)
    first, last = MASKED[name]
    found = captured(model, record.input(), {"first": f"{first}.qkv", "last": f"{last}.qkv"})
    record.compare("logits", found["logits"], 1e-5)
    for end, path in (("first", first), ("last", last)):
        layer, qkv = model.get_submodule(path), found[end]
        score, grid = scores(layer, qkv)
        record.compare(f"{end}_mask_input", score, 1e-5)
        with torch.inference_mode():
            record.compare(f"{end}_mask", score * layer.mask(grid), 1e-5)


def scores(layer, qkv):
    """The scores from the projection, (B h N N), and the grid that they are on."""
    if isinstance(layer, WindowAttention):
        qkv = windows(qkv, 4)
    side = round(qkv.shape[1] ** 0.5)
    q, k, _ = qkv.unflatten(-1, (3, getattr(layer, "heads", 1), -1)).permute(2, 0, 3, 1, 4)
    return q @ k.mT * getattr(layer, "scale", q.shape[-1] ** -0.5), (side, side)


@pytest.mark.parametrize("name", FACTS)
def test_counts_are_the_published(name):
    info = model_info(name)
    parameters, macs = FACTS[name]
    assert info.parameters == parameters
    assert info.macs / 1e6 - PRODUCTS[name] == pytest.approx(macs, rel=0.01)
    assert model_info(f"{name}_64").input == (3, 64, 64)


def test_all_variants_are_there():
    names = {f"gmm_{b}{k}{s}" for b in ("vit", "swin", "cait", "pit", "t2t") for k in ("", "_plain", "_slm")
             for s in ("", "_64")}  # fmt: skip
    assert set(list_models("gmm_*")) == names


@pytest.mark.parametrize("name", ["gmm_vit", "gmm_vit_plain", "gmm_vit_64", "gmm_pit", "gmm_pit_plain", "gmm_pit_64"])
def test_is_the_plain_form(name):
    torch.manual_seed(0)
    theirs, ours = plain.build(name).eval(), create_model(name).eval()
    state = golden.filled({n: v.shape for n, v in theirs.state_dict().items()})
    state |= {n: v for n, v in theirs.state_dict().items() if n.endswith("mask")}
    theirs.load_state_dict(state)
    report = load_published(ours, state)
    assert not report.fresh
    assert len(report.dropped) == sum(n.endswith("mask") for n in state)
    x = image(64 if "64" in name else 32)
    with torch.no_grad():
        want = theirs(x)
        torch.testing.assert_close(ours(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize("grid", [(8, 8), (3, 5), (1, 1), (16, 16), (2, 14)])
def test_a_mask_is_computed_for_any_grid(grid):
    torch.manual_seed(0)
    mixture = GaussianMixture(3, 5)
    torch.testing.assert_close(mixture(grid), direct(mixture, grid), rtol=1e-5, atol=1e-5)


def test_distance_ends_where_float32_does():
    """As published: G is 0 from r² = 104 on, even under Gaussians wide enough to reach there."""
    mixture = GaussianMixture(1, 1)
    torch.nn.init.constant_(mixture.sigma, 30.0)
    torch.nn.init.constant_(mixture.alpha, 1.0)
    mask = mixture((1, 16))
    assert (mask[0, 0, :11] > 0.9).all()
    assert not mask[0, 0, 11:].any()
    mask.square().sum().backward()
    assert mixture.sigma.grad.isfinite().all()
    assert mixture.sigma.grad.any()
    assert log_distance(1, 8)[0, 0, 7] == pytest.approx(-24.5)


def test_gradients_are_those_of_the_formula():
    torch.manual_seed(0)
    mixture, weights = GaussianMixture(2, 5), torch.randn(2, 25, 25)
    torch.nn.init.uniform_(mixture.sigma, 0.5, 3)
    ours = torch.autograd.grad((mixture((5, 5)) * weights).sum(), list(mixture.parameters()))
    want = torch.autograd.grad((direct(mixture, (5, 5)) * weights).sum(), list(mixture.parameters()))
    torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("special", [(0,), (0, 1), (4,), (2, 0)])
def test_special_tokens_are_left_alone(special):
    mask = torch.rand(3, 4, 4)
    whole = beside_special(mask, special)
    rest = [i for i in range(4 + len(special)) if i not in special]
    torch.testing.assert_close(whole[:, rest][:, :, rest], mask)
    assert (whole[:, list(special)] == 1).all()
    assert (whole[:, :, list(special)] == 1).all()


def test_element_wise_masks_begin_at_zero_and_are_resized():
    model = create_model("gmm_vit_slm")
    mask = model.backbone.stages[0].blocks[0].mixer.mask
    assert isinstance(mask, ElementMask)
    assert mask.matrix.shape == (64, 64)
    assert not mask.matrix.any()
    torch.nn.init.constant_(mask.matrix, 0.7)
    torch.testing.assert_close(mask((4, 6)), torch.full((1, 24, 24), 0.7))
    larger = create_model("gmm_vit_slm", img_size=(48, 64))
    assert larger.backbone.stages[0].blocks[0].mixer.mask.matrix.shape == (12 * 16,) * 2
    assert create_model("gmm_t2t_slm").backbone.stem.layers[0].attention.mask.matrix.shape == (256, 256)
    assert create_model("gmm_swin_slm").backbone.stages[0].blocks[0].mixer.mask.matrix.shape == (16, 16)
    sides = [s.blocks[0].mixer.mask.grid for s in create_model("gmm_pit_slm").backbone.stages]
    assert sides == [(16, 16), (8, 8), (4, 4)]


@pytest.mark.parametrize("suffix", ["", ".mask", ".weight"])
def test_element_wise_masks_load(suffix):
    state = plain.build("gmm_vit").state_dict()
    state = {n: v for n, v in state.items() if not n.endswith(("sigma", "alpha", "mask"))}
    for i in range(9):
        state[f"transformer.layers.{i}.0.fn.mask{suffix}"] = torch.full((1, 1, 64, 64), float(i))
    model = create_model("gmm_vit_slm")
    assert not load_published(model, state).fresh
    assert (model.backbone.stages[0].blocks[7].mixer.mask.matrix == 7).all()
    resized = create_model("gmm_vit_slm", img_size=48)
    assert f"{STAGES}0.blocks.0.mixer.mask.matrix" in load_published(resized, state).resized
    torch.testing.assert_close(resized.backbone.stages[0].blocks[7].mixer.mask.matrix, torch.full((144, 144), 7.0))


def test_distance_tables_of_a_checkpoint_are_checked():
    state = plain.build("gmm_vit").state_dict()
    model = create_model("gmm_vit")
    assert "mask" in load_published(model, state).dropped
    load_published(model, state | {"mask": state["mask"] * (1 + 1e-6)})  # another machine's exponential
    with pytest.raises(ValueError, match=r"transformer\.layers\.3\.0\.fn\.mask\.mask is not the table"):
        load_published(model, state | {"transformer.layers.3.0.fn.mask.mask": state["mask"] * 2})
    larger = create_model("gmm_vit", img_size=64)
    assert load_published(larger, state).resized == ["backbone.stem.position.table"]


def test_a_checkpoint_gives_features_without_its_head():
    for name in MASKED:
        record = golden.load(f"gmm_mask/{name}")
        pyramid = create_model(name, features_only=True)
        assert not load_published(pyramid, record.state_dict()).fresh


def test_layer_scales_begin_as_published():
    model = create_model("gmm_cait", drop_path_rate=0.2)
    blocks = model.backbone.stages[0].blocks
    for add in ("add1", "add2"):
        begin = [getattr(b, add).gamma[0].item() for b in blocks]
        assert begin == pytest.approx([0.1] * 18 + [1e-5] * 6)
    assert {a.drop for b in (*blocks, *model.neck.blocks) for a in (b.add1, b.add2)} == {0.2}  # one rate for all
    assert [b.add1.gamma[0].item() for b in model.neck.blocks] == pytest.approx([0.1] * 2)


def test_masked_tokens_cannot_be_merged_and_others_can():
    with pytest.raises(ValueError, match="needs a full grid"):
        create_model("gmm_vit", tokens="tome:r=2")
    for name in ("gmm_vit_plain", "gmm_cait_plain"):
        assert create_model(name, tokens="tome:r=2").eval()(image()).isfinite().all()


def test_class_layers_weigh_merged_tokens_by_their_size():
    torch.manual_seed(0)
    neck = ClassLayers(heads=2, width=8).build(16)
    x = torch.randn(2, 3, 16)
    twice = neck(Tokens(x[:, [0, 1, 1, 2]], None)).x[:, 0]
    size = torch.tensor([1.0, 2.0, 1.0]).expand(2, 3)[..., None]
    merged = neck(Tokens(x, None, size=size, source=torch.tensor([[0, 1, 1, -1]] * 2)))
    assert merged.size[:, 0].eq(1).all()
    assert merged.source.tolist() == [[1, 2, 2, -1]] * 2
    assert merged.x.shape == (2, 4, 16)
    assert merged.special == (0,)
    torch.testing.assert_close(merged.x[:, 0], twice)


@pytest.mark.parametrize("name", ["gmm_vit", "gmm_swin", "gmm_cait", "gmm_pit", "gmm_t2t"])
@torch.inference_mode()
def test_folding_changes_no_number(name):
    torch.manual_seed(0)
    model = create_model(name).eval()
    x = image()
    want = model(x)
    torch.testing.assert_close(model.fold()(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize("name", ["gmm_vit", "gmm_swin_slm", "gmm_cait", "gmm_pit", "gmm_pit_slm", "gmm_t2t_slm_64"])
@torch.inference_mode()
def test_any_size(name):
    model = create_model(name, num_classes=5).eval()
    for size in ((97, 31), (40, 72), (7, 7)):
        assert model(F.interpolate(image(batch=1), size)).shape == (1, 5)
