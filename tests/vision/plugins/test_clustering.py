"""Token clustering: the authors' numbers, and what becomes of class tokens, windows, stages and norms."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from golden import golden
from torch import Tensor, nn
from vision_tiny import tiny

from patchloom.kernels.clustering import cells, cluster, spread
from patchloom.vision.families.sam import sam
from patchloom.vision.mixers.window import WindowAttention
from patchloom.vision.network import Network
from patchloom.vision.plugins import SeamError, attached, hosts_of, plugin
from patchloom.vision.plugins.clustering import Clustering, ClusterLayer
from patchloom.vision.pyramid import Pyramid
from patchloom.vision.tokens import Tokens, unmerge
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import VARIANTS, create_model

SCALE = Clustering(at=1, scale=0.6)


def image(*size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))


def pyramid(name: str, dense: bool = False) -> Pyramid:
    """The variant with few channels and two blocks a stage, in weights without zeros."""
    torch.manual_seed(0)
    network = tiny(VARIANTS[name])
    model = Pyramid(network.backbone(3, 0.0, dense), None, network.dense.norm if dense and network.dense else None)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return model.eval()


# ----------------------------------------------------------------------------------------------------- the arithmetic


@pytest.mark.parametrize(
    ("name", "grid", "iterations", "reach", "temperature", "k"),
    [("layers", (6, 6), 5, 5, 0.05, 4), ("layers_rect", (4, 7), 3, 3, 0.02, 20)],
)
def test_the_layers_are_the_originals(name, grid, iterations, reach, temperature, k):
    record = golden.load(f"token_clustering/{name}")
    given = record.input()
    m, x = given["features"].permute(0, 2, 3, 1), given["x"]
    record.compare("initial", F.adaptive_avg_pool2d(given["features"], grid).flatten(2).mT, 1e-5)
    rows, columns = (torch.from_numpy(cells(n, c)) for n, c in zip(m.shape[1:3], grid, strict=True))
    record.compare("initial_labels", (rows[:, None] * grid[1] + columns).flatten().expand(len(m), -1), 0)
    c = cluster(m, grid, iterations, reach, temperature)
    labels, weight = spread(m.flatten(1, 2), c, temperature, k)
    record.compare("centroids", c, 1e-5)
    record.compare("labels", labels, 0)
    record.compare("reconstructed", unmerge(Tokens(x, grid, source=labels, spread=weight)), 1e-5)
    record.compare("unpooled", unmerge(Tokens(x, grid, source=labels)), 1e-6)


def test_gradients_pass_through_the_last_mean_alone():
    m = torch.randn(1, 6, 7, 4, dtype=torch.float64, requires_grad=True)
    c = cluster(m, (3, 3), 4, 3, 0.5)
    (grad,) = torch.autograd.grad(c.sum(), m)
    torch.testing.assert_close(grad.sum((0, 1, 2)), torch.full((4,), 9.0, dtype=torch.float64))  # means of places
    assert not spread(m.flatten(1, 2), c, 0.5, 4)[1].requires_grad


def test_weights_survive_distances_beyond_floats():
    f, c = 1000 * torch.randn(1, 12, 8), 1000 * torch.randn(1, 5, 8)
    labels, weight = spread(f, c, 0.02, 3)
    torch.testing.assert_close(weight.norm(dim=-1), torch.ones(1, 12))
    assert torch.equal(labels, torch.cdist(f, c).argmin(-1))
    assert torch.equal(weight.argmax(-1), labels)
    assert torch.equal(spread(f, c, 0.02, -1)[1], spread(f, c, 0.02, 9)[1])


# ------------------------------------------------------------------------------------------------------ golden: SAM


def small_sam() -> Network:
    return sam(48, 5, 4, (1, 4), window=8, size=320, out=24)


def test_a_clustered_sam_encoder_is_the_originals():
    record = golden.load("token_clustering/sam_encoder")
    model = Pyramid(small_sam().backbone(3, 0.0), (4, 5)).eval()
    model.family = "sam"
    assert sum(p.numel() for p in model.parameters()) == record.meta["parameters"]
    report = load_published(model, record.state_dict())
    assert not report.fresh
    assert not report.resized
    found: dict[str, Tokens] = {}
    with torch.inference_mode(), attached(model, plugin("clustering:at=2,grid=4,temperature=0.01,k=6")):
        blocks = model.backbone.stages[0].blocks
        blocks[2].before_block.register_forward_hook(lambda _m, _i, out: found.update(clustered=out))
        blocks[4].register_forward_hook(lambda _m, _i, out: found.update(last_block=out))
        whole, features = model(record.input())
    for name, t in found.items():
        record.compare(name, t.map(), 1e-5)
    record.compare("reconstructed", whole.permute(0, 2, 3, 1), 1e-5)
    record.compare("features", features, 1e-5)
    assert found["clustered"].source.shape == (1, 400)
    assert found["clustered"].window == 4
    assert found["clustered"].full == (20, 20)


# -------------------------------------------------------------------------------------------------- one map, no windows


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "special"), [("deit_tiny_distilled_patch16_224", (0, 1)), ("cct_7_3x1_32", ()), ("vim_tiny", (9,))]
)
def test_special_tokens_stay_what_and_where_they_were(name, special):
    model = pyramid(name)
    seen: list[Tokens] = []
    with attached(model, Clustering(at=1, grid=(3, 6))):
        layer = model.backbone.stages[0].blocks[1].before_block
        layer.register_forward_hook(lambda _m, given, out: seen.extend((given[0], out)))
        model(image(112, 128))
    before, after = seen
    assert after.special == special
    assert after.grid == (3, 6)
    assert after.full == before.grid
    assert torch.equal(after.x[:, list(special)], before.x[:, list(before.special)])
    patches = before.grid[0] * before.grid[1]
    assert after.spread.shape == (2, patches, 18 + len(special))
    assert not after.spread[..., list(special)].any()
    assert not (after.source[..., None] == torch.tensor(special, dtype=torch.long)).any()
    # the present token of a place is the nearest of all
    distance = torch.cdist(before.patches(), after.x)
    distance[..., list(special)] = torch.inf
    nearest = distance.gather(-1, after.source[..., None])[..., 0]
    torch.testing.assert_close(nearest, distance.amin(-1), rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_the_map_comes_back_behind_the_norm():
    torch.manual_seed(0)
    model, x = create_model("vit_tiny_patch16_224", img_size=64).eval(), image(64, 96)
    with attached(model, Clustering(at=6, grid=(3, 4))):
        last = model.backbone.last(x)
        (got,) = model.forward_intermediates(x, 1, norm=True, intermediates_only=True)
        assert model.forward_features(x).shape[1] == 1 + 12
    want = (last.spread @ model.norm(last.x)).unflatten(1, (4, 6))
    torch.testing.assert_close(got.permute(0, 2, 3, 1), want)


@torch.inference_mode()
def test_maps_before_it_are_the_plain_ones():
    torch.manual_seed(0)
    model, x = create_model("vit_tiny_patch16_224", features_only=True, img_size=64).eval(), image(64, 64)
    plain = model(x)
    with attached(model, Clustering(at=6, scale=0.5)):
        got = model(x)
    for i, (a, b) in enumerate(zip(got, plain, strict=True)):
        assert a.shape == b.shape
        assert torch.equal(a, b) == (i < 2)  # behind blocks 2, 5, 8 and 11


# ------------------------------------------------------------------------------------------------------------ windows


@torch.inference_mode()
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("size", [(112, 168), (97, 131), (24, 200)], ids=str)
def test_swins_windows_become_smaller_until_the_stage_ends(size, dense):
    model = pyramid("swin_tiny", dense)
    seen: list[Tokens] = []
    plain = model(image(*size))
    for block in (b for s in model.backbone.stages for b in s.blocks):
        block.register_forward_hook(lambda _m, _i, out: seen.append(out))
    with attached(model, Clustering(at=1, scale=0.6, stage=0)):
        maps = model(image(*size))
    before, after, *later = seen
    side = 7 if dense else min(7, *before.grid)
    s = round(0.6 * side)
    assert after.window == s
    assert after.full == before.grid
    assert after.grid == tuple(-(-n // side) * s for n in before.grid)
    assert after.source.shape[1] == before.x.shape[1]
    assert after.source.max() < after.x.shape[1]
    assert [t.window for t in later] == [None] * 6
    assert [m.shape for m in maps] == [p.shape for p in plain]
    assert not torch.allclose(maps[0], plain[0])


def test_windows_are_clustered_by_themselves():
    plan = Clustering(at=0, grid=2)
    m = torch.randn(2, 10, 14, 8)
    t = ClusterLayer(plan, 7, True)(Tokens(m.flatten(1, 2), (10, 14)))
    assert (t.grid, t.full, t.window) == ((4, 4), (10, 14), 2)
    padded = F.pad(m, (0, 0, 0, 0, 0, 4))
    for i, y in enumerate((0, 7)):
        for j, x in enumerate((0, 7)):
            c = cluster(padded[:, y : y + 7, x : x + 7], (2, 2), 5, 5, 0.02)
            torch.testing.assert_close(t.map()[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten(1, 2), c)
            labels, weight = spread(padded[:, y : y + 7, x : x + 7].flatten(1, 2), c, 0.02, 20)
            rows = 7 if i == 0 else 3
            want = (weight @ c).unflatten(1, (7, 7))[:, :rows]
            torch.testing.assert_close(t.whole()[:, y : y + rows, x : x + 7], want)
            own = t.source.unflatten(1, (10, 14))[:, y : y + rows, x : x + 7]
            there = labels.unflatten(1, (7, 7))[:, :rows]
            assert torch.equal(own, (2 * i + there // 2) * 4 + 2 * j + there % 2)
    assert torch.equal(t.restored().x, t.whole().flatten(1, 2))


def test_a_smaller_window_has_the_interpolated_biases():
    """A table that grows linearly with the offset stays so, only steeper: an offset of a centroid is one of s/w."""
    mixer = WindowAttention(8, 1, 8, 4)
    with torch.no_grad():
        y, x = torch.meshgrid(*[torch.arange(-7.0, 8)] * 2, indexing="ij")
        mixer.table.copy_((3 * y + x).reshape(-1, 1))
    bias = mixer.bias(8, 8, 4, 0, 8)[0, 0].unflatten(0, (4, 4)).unflatten(2, (4, 4))
    step = bias[2, 1, 1, 1] - bias[1, 1, 1, 1]
    assert bias[1, 1, 1, 1].abs() < 1e-4
    torch.testing.assert_close(step, torch.tensor(3 * 15 / 7), rtol=1e-4, atol=0)
    torch.testing.assert_close(mixer.bias(4, 4, 4, 0, 4), mixer.bias(8, 8, 4, 0, 4))


@torch.inference_mode()
def test_shifts_shrink_with_their_windows():
    """Centroids that are the places themselves, two by two: the smaller windows must pair what the larger ones did."""
    torch.manual_seed(0)
    mixer = WindowAttention(8, 2, 8, 4).eval()
    nn.init.zeros_(mixer.table)
    m = torch.randn(1, 8, 12, 8)  # coarse
    fine = m.repeat_interleave(2, 1).repeat_interleave(2, 2)
    want = mixer(Tokens(fine.flatten(1, 2), (16, 24))).unflatten(1, (16, 24))[:, ::2, ::2]
    got = mixer(Tokens(m.flatten(1, 2), (8, 12), full=(16, 24), window=4)).unflatten(1, (8, 12))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------- settings, refusals


@torch.inference_mode()
@pytest.mark.parametrize("setting", ["scale=1", "scale=0.99", "grid=64", "grid=64+48"])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "cct_7_3x1_32", "swin_tiny", "sam_vit_b"])
def test_a_full_grid_is_left_alone(setting, name):
    model, x = pyramid(name), image(64, 80)
    if "+" in setting and name in ("swin_tiny", "sam_vit_b"):
        with pytest.raises(SeamError, match="square windows"), attached(model, plugin(f"clustering:at=1,{setting}")):
            pass
        return
    plain = model(x)
    with attached(model, plugin(f"clustering:at=1,{setting}")):
        for got, want in zip(model(x), plain, strict=True):
            assert torch.equal(got, want)


def placed(name: str, plan: Clustering) -> list[str]:
    model = create_model(name, device="meta")
    return [f"{p.host.stage}.{p.host.index}.{p.seam}" for p in plan.place(hosts_of(model))]


def test_where_it_acts():
    assert placed("vit_large_patch16_224", Clustering(10)) == ["0.10.before_block"]
    assert placed("swin_small", Clustering()) == ["2.9.before_block"]
    assert placed("swin_small", Clustering(1, stage=1)) == ["1.1.before_block"]
    assert placed("caformer_s18", Clustering(3)) == ["2.3.before_block"]
    assert placed("sam_vit_b", Clustering(6)) == ["0.6.before_block"]
    with pytest.raises(ValueError, match=r"at=18, stage=2: no block is left.* 2: 18, 3: 2 blocks"):
        placed("swin_small", Clustering(18, stage=2))
    with pytest.raises(ValueError, match=r"stage=4: no block is left"):
        placed("swin_small", Clustering(stage=4))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("convnext_tiny", r"stages\.2\.blocks\.5: DepthwiseConv needs a full grid"),
        ("gmm_vit_64", "MaskedAttention needs a full grid"),
        ("tnt_s_patch16_224", "SentenceAttention needs a full grid"),
        ("rmt_tiny", "needs a full grid"),
    ],
)
def test_who_refuses(name, words):
    with pytest.raises(SeamError, match=words):
        placed(name, Clustering(5))


def test_what_others_reduced_is_not_clustered():
    layer = ClusterLayer(SCALE)
    t = Tokens(torch.randn(1, 16, 4), (4, 4))
    for changed in (replace(t, grid=None), replace(t, size=torch.ones(1, 16, 1)), layer(t)):
        with pytest.raises(ValueError, match="detach that one"):
            layer(changed)
    assert layer(replace(layer(t), turn=1)).grid == (2, 2)  # a block that runs again


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("scale=0", "above 0 and at most 1"),
        ("scale=1.5", "above 0 and at most 1"),
        ("scale=0.5,grid=8", "say the same twice"),
        ("grid=0", "grid=0: 1 or more"),
        ("grid=3+0", "1 or more"),
        ("grid=3+4+5", "with \\+ between"),
        ("at=-1", "at=-1: 0 or more"),
        ("stage=-1", "stage=-1: 0 or more"),
        ("n_iters=0", "n_iters=0: 1 or more"),
        ("neighbourhood=4", "an odd number"),
        ("temperature=0", "above 0"),
        ("k=0", "or -1 for all"),
    ],
)
def test_misspelt_settings_say_what_would_do(text, words):
    with pytest.raises(ValueError, match=words):
        plugin(f"clustering:{text}")


def test_spellings():
    assert plugin("clustering:grid=28,at=10") == Clustering(10, grid=28)
    assert plugin("clustering:grid=28+20") == Clustering(grid=(28, 20))
    assert Clustering().sides((40, 20)) == (28, 14)
    assert Clustering(grid=28).sides((40, 20)) == (28, 20)
