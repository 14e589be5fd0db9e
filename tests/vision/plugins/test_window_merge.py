"""Merging inside windows: the groups by a plain loop, every kind of residual, cut cells, and who refuses."""

import pytest
import torch
from torch import Tensor, nn
from vision_tiny import tiny_classifier

from patchloom.vision.block import Block
from patchloom.vision.layers import Mlp
from patchloom.vision.mixers.identity import NoMixing
from patchloom.vision.plugins import SeamError, attach, attached, hosts_of, noting, plugin
from patchloom.vision.plugins.window_merge import WindowMerge, WindowMergeLayer, board, sources
from patchloom.vision.residual import Add, join
from patchloom.vision.tokens import Tokens

HIERARCHICAL = ("swin_tiny", "cvt_13", "poolformer_s12", "caformer_s18", "convnext_tiny", "vssd_tiny")


def image(*size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))


def colour(y: int, x: int, side: int) -> int:
    return (y % side + x % side) % 2


def groups_by_loop(normed: Tensor, grid: tuple[int, int], side: int, r: int) -> list[list[int]]:
    """Of one image (N C): which patches become one, cell by cell and pair by pair."""
    h, w = grid
    x = normed / normed.norm(dim=-1, keepdim=True)
    pairs = []
    for i in range(h * w):
        yi, xi = divmod(i, w)
        if colour(yi, xi, side):
            continue
        others = [
            (float(x[i] @ x[j]), i, j) for j in range(h * w)
            if (j // w // side, j % w // side) == (yi // side, xi // side) and colour(j // w, j % w, side)
        ]  # fmt: skip
        if others:
            pairs.append(max(others))
    into = {i: j for _, i, j in sorted(pairs, reverse=True)[:r]}
    groups: dict[int, list[int]] = {}
    for i in range(h * w):
        groups.setdefault(into.get(i, i), []).append(i)
    return list(groups.values())


@pytest.mark.parametrize(
    ("grid", "side"), [((4, 4), 2), ((6, 9), 3), ((5, 7), 3), ((5, 7), 4), ((9, 10), 8), ((3, 2), 7)]
)
@pytest.mark.parametrize("special", [(), (0,), (2, 3)])
def test_every_patch_gets_the_answer_of_its_group(grid, side, special):
    n, k = grid[0] * grid[1], len(special)
    g = torch.Generator().manual_seed(0)
    x, normed = (torch.randn(2, n + k, 6, generator=g) for _ in range(2))
    most = sources(*grid, side)
    mlp = Mlp(6, 12)
    patches = [i for i in range(n + k) if i not in special]

    def then(x, normed, back=None):
        return x + (mlp(normed) if back is None else back(mlp(normed)))

    for r in (1, most // 2, most, most + 5):
        layer = WindowMergeLayer(min(r, most) / n + 1e-6, side)
        with noting() as notes:
            got = layer(Tokens(x, grid, special), x, normed, then)
        want = x + mlp(normed)
        for b in range(2):
            groups = groups_by_loop(normed[b, patches], grid, side, min(r, most))
            assert len(groups) == n - min(r, most)
            for group in groups:
                at = [patches[i] for i in group]
                want[b, at] = x[b, at] + mlp(normed[b, at].mean(0))
            shared = notes[0][1][b]
            assert all(len(shared[group].unique()) == 1 for group in groups)
            assert len(shared.unique()) == len(groups)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("h", "w", "side"), [(4, 6, 2), (5, 7, 3), (7, 7, 7), (1, 9, 4), (3, 2, 8)])
def test_a_board_has_every_patch_once(h, w, side):
    cells, there = board(h, w, side)
    assert cells.shape == there.shape == (-(-h // side) * -(-w // side), side**2)
    assert sorted(cells[there].tolist()) == list(range(h * w))
    first = (side**2 + 1) // 2
    for part, wanted in ((slice(None, first), 0), (slice(first, None), 1)):
        assert {colour(*divmod(int(p), w), side) for p in cells[:, part][there[:, part]]} <= {wanted}


def test_a_patch_alone_in_its_cell_is_no_source():
    assert sources(3, 3, 2) == 2 + 1 + 1  # the cells are 2 x 2, 2 x 1, 1 x 2 and 1 x 1
    assert sources(1, 1, 4) == 0


@pytest.mark.parametrize("add", [(None, False), (0.3, False), (None, True)], ids=["plain", "scaled", "scaled residual"])
@torch.inference_mode()
def test_the_stream_is_every_patchs_own(add):
    """Whatever joins the MLP's answer to the stream: the stream of a merged patch is not merged."""
    torch.manual_seed(0)
    last = join(6, *add, 0.0)
    if add[1]:
        last.scale.data.normal_()
    block = Block(NoMixing(), Mlp(6, 12), (nn.Identity(), nn.LayerNorm(6)), (Add(), last)).eval()
    t = Tokens(torch.randn(2, 16, 6), (4, 4))
    with attached(block, WindowMerge(share=0.5, side=4)), noting() as notes:
        got = block(t).x
    group = notes[0][1]
    x = 2 * t.x
    normed = block.norm2(x)
    share = (group[:, :, None] == group[:, None, :]).float()
    mean = share @ normed / share.sum(-1, keepdim=True)
    torch.testing.assert_close(got, last(x, block.ffn(mean)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", HIERARCHICAL)
@torch.inference_mode()
def test_the_mlp_sees_fewer_and_the_mixer_all(name):
    model, mixed, fed = tiny_classifier(name).eval(), [], []
    for host in hosts_of(model):
        host.block.mixer.register_forward_pre_hook(lambda _m, given: mixed.append(given[0]))
        host.block.ffn.register_forward_pre_hook(lambda _m, given: fed.append(given[0].shape[1]))
    with attached(model, WindowMerge(share=0.25, side=4)):
        model(image(96, 64))
    for t, rows in zip(mixed, fed, strict=True):
        patches = t.grid[0] * t.grid[1]
        assert t.x.shape[1] == patches + len(t.special)
        assert rows == t.x.shape[1] - min(patches // 4, sources(*t.grid, 4))


@pytest.mark.parametrize("name", HIERARCHICAL)
@pytest.mark.parametrize("size", [(97, 131), (160, 288)])
@torch.inference_mode()
def test_any_size(name, size):
    torch.manual_seed(0)
    model, x = tiny_classifier(name).eval(), image(*size)
    plain = model(x)
    with attached(model, WindowMerge(share=0.0)):
        assert torch.equal(model(x), plain)
    with attached(model, WindowMerge(share=0.4)):
        y = model(x)
        torch.testing.assert_close(model(x[1:]), y[1:], rtol=1e-4, atol=1e-5)
    assert y.isfinite().all()
    assert not torch.equal(y, plain)


@torch.inference_mode()
def test_folded_it_says_the_same():
    torch.manual_seed(0)
    model, x = tiny_classifier("swin_tiny_prepbn").eval(), image(64, 64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
    attach(model, WindowMerge(share=0.3, side=4))
    torch.testing.assert_close(model.fold()(x), model(x), rtol=1e-4, atol=1e-5)


def test_blocks_without_such_an_mlp_refuse_by_name():
    for name, words in (
        ("rmt_tiny", r"blocks\.0: ResidualConvMlp needs a full grid"),
        ("vmamba_vanilla_tiny", r"blocks\.0: \w+ has no MLP behind it"),
        ("tiny_vit_5m", r"stages\.0\.blocks\.0: \w+ has no MLP behind it"),
        ("efficientformer_l1", r"blocks\.0: InvertedBottleneck needs a full grid"),
    ):
        model = tiny_classifier(name)
        with pytest.raises(SeamError, match=words):
            attach(model, WindowMerge())
        assert all(getattr(h.block, s) is None for h in hosts_of(model) for s in h.block.seams)


def test_stages_before_start_are_left_alone():
    model = tiny_classifier("tiny_vit_5m")
    with attached(model, plugin("window_merge:share=0.3,start=1")):
        assert [h.block.around_ffn is not None for h in hosts_of(model)] == [h.stage >= 1 for h in hosts_of(model)]
    with pytest.raises(ValueError, match="start=4: the last stage of this model is 3"):
        attach(model, WindowMerge(start=4))


def test_reduced_tokens_are_refused_when_they_come():
    model = tiny_classifier("deit_tiny_patch16_224")
    attach(model, plugin("tome:r=2"))
    attach(model, WindowMerge())
    with pytest.raises(ValueError, match="no longer fill a grid"):
        model(image(64, 64))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("window_merge:share=0.6", "share=0.6: the part of the patches to merge away, 0 to 0.5"),
        ("window_merge:r=30", "r=30: patches to merge away in a cell of side=7, 0 to 25"),
        ("window_merge:r=3,share=0.1", "give one of them"),
        ("window_merge:side=1", "side=1: cells of 2 x 2"),
        ("window_merge:start=-1", "start=-1"),
        ("window_merge:shares=0.1", "did you mean share"),
    ],
)
def test_wrong_settings(text, words):
    with pytest.raises(ValueError, match=words):
        plugin(text)


def test_r_is_of_a_whole_cell():
    layers = [p.layer.share for p in WindowMerge(r=7).place(hosts_of(tiny_classifier("swin_tiny")))]
    assert layers == [1 / 7] * 8
