"""Pruning of scanned tokens: against the masked model, whose tokens stay as zeros, and walks over the whole map."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from plugin_parts import disturbed
from torch import nn
from vision_tiny import tiny

from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.mixers.mamba import Mamba, MambaMixer
from patchloom.vision.mixers.window import Window
from patchloom.vision.model import Classifier
from patchloom.vision.plugins import SeamError, attach, attached, hosts_of, plugin
from patchloom.vision.plugins.scan_pruning import PruneByScan, ScanPruning, left
from patchloom.vision.pyramid import Pyramid
from patchloom.vision.tokens import Tokens, rows
from patchloom.vision.zoo import VARIANTS, create_model

NAMES = ("vim_tiny", "plainmamba_l2", "vmamba_tiny_s1l8", "vmamba_vanilla_tiny")
CUTS = (2, 4)


def network(name, depth=6):
    """A tiny form of the variant; its deepest stage has `depth` blocks, of 32 channels or more."""
    net = tiny(VARIANTS[name])
    stages = list(net.stages)
    deep = 2 if len(stages) > 1 else 0
    stages[deep] = replace(stages[deep], depth=depth, dim=48 if deep else 32)
    return replace(net, stages=tuple(stages))


def small(name, make=None, **options):
    net = network(name, **options)
    torch.manual_seed(0)
    if make is None:
        model = Classifier(net.backbone(3, 0.0), 7, net.head, img_size=net.size)
    else:
        model = make(net.backbone(3, 0.0))
    return disturbed(model.eval())


def cuts(model, keep=0.6, **options):
    """Two cuts inside the deepest stage."""
    hosts = hosts_of(model)
    first = max(hosts, key=lambda h: h.depth).place
    return ScanPruning(keep, tuple(first + c for c in CUTS), **options)


def image(size=(96, 96), batch=2):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))


def passed(model, x):
    """What each block gave."""
    found = []
    hooks = [h.block.register_forward_hook(lambda _m, _i, out: found.append(out)) for h in hosts_of(model)]
    model(x)
    for hook in hooks:
        hook.remove()
    return found


# --------------------------------------------------------------------------------------------- the masked model (Vim)


class Zeroed(nn.Module):
    """The release's masking path: tokens stay, but what is not kept (B N) is zero; shows the scan that it saw."""

    def __init__(self, kept):
        super().__init__()
        self.kept, self.scan = kept, None

    def forward(self, t, probe):
        self.scan = probe["scan"]
        return replace(t, x=t.x * self.kept[..., None])


def pointwise(model):
    """Its convolutions see one token only, and give zeros for zeros: what a masked model's do not."""
    for mixer in model.modules():
        if isinstance(mixer, MambaMixer):
            for direction in (mixer.ahead, mixer.back):
                nn.init.zeros_(direction.conv.bias)
    return model.double()


@torch.inference_mode()
def test_a_pruned_vim_is_the_masked_one():
    net = tiny(VARIANTS["vim_tiny"])
    stage = replace(net.stages[0], depth=6, mixer=Mamba(kernel=1))
    torch.manual_seed(0)
    model = pointwise(disturbed(Classifier(Backbone([stage], net.stem), 7, net.head)).eval())
    x = image((96, 128)).double()
    plugin_ = cuts(model)
    plain = model(x)
    with attached(model, plugin_):
        pruned, seen = model(x), passed(model, x)
    hosts = hosts_of(model)
    layers = []
    for c in CUTS:
        kept = torch.zeros(2, 49, dtype=torch.float64).scatter(1, seen[c - 1].place, 1.0)
        layers.append(Zeroed(kept))
        hosts[c - 1].block.after_mixer = layers[-1]
    masked, stayed = model(x), passed(model, x)
    torch.testing.assert_close(pruned, masked, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(pruned, plain)
    for one, other in zip(seen[1:], stayed[1:], strict=True):  # every token of every block
        torch.testing.assert_close(one.x, rows(other.x, one.place), rtol=1e-9, atol=1e-9)
    # what is chosen in the masked model by the same score is what was chosen here
    before = seen[CUTS[0] - 1].place
    score = rows(layers[1].scan, before).relu().sum(-1).float()
    middle = seen[CUTS[0] - 1].special
    score[:, list(middle)] = torch.inf
    chosen = before.gather(1, score.topk(left(before.shape[1] - 1, 0.6, True) + 1).indices)
    assert torch.equal(chosen.sort(1).values, seen[CUTS[1] - 1].place.sort(1).values)
    # the class token is the only one out of order, in the middle, and is the one it was
    for t in seen[1:]:
        (c,), n = t.special, t.x.shape[1]
        assert n == 2 * c + 1
        assert (t.place[:, c] == 24).all()
        assert (torch.cat([t.place[:, :c], t.place[:, c + 1 :]], 1).diff(dim=1) > 0).all()


def test_the_order_of_the_tokens_does_not_matter():
    torch.manual_seed(0)
    mixer = disturbed(Mamba().build(16, 0)).double()
    x, place = torch.randn(2, 9, 16).double(), torch.stack([torch.randperm(30)[:9] for _ in range(2)])
    order = torch.stack([torch.randperm(9) for _ in range(2)])
    probes = {}, {}
    y = mixer(Tokens(x, None, place=place), probes[0])
    other = mixer(Tokens(rows(x, order), None, place=place.gather(1, order)), probes[1])
    torch.testing.assert_close(rows(y, order), other)
    for name in ("scan", "back", "gate"):
        torch.testing.assert_close(rows(probes[0][name], order), probes[1][name])


# ----------------------------------------------------------------------------------------------------- what is dropped


def test_how_many_stay():
    assert [left(196, 0.7, True), left(138, 0.7, True), left(96, 0.7, True)] == [138, 96, 68]
    assert [left(196, k, True) for k in (0.8, 0.75, 0.65, 1.0)] == [156, 146, 128, 196]  # the release's n, less one
    assert left(196, 0.7, False) == 138
    assert left(195, 1.0, True) == 194  # the middle is exact
    assert [left(n, 0.1, True) for n in (1, 2, 3, 30)] == [1, 2, 2, 2]


def test_the_best_stay_in_order_and_special_tokens_too():
    score = torch.tensor([[5.0, 1, 9, 0, 2, 7, 3], [0, 8, 1, 6, 3, 2, 7]])
    for special, want in (
        ((3,), [[2, 3, 5], [1, 3, 6]]), ((0, 1), [[0, 1, 2, 5], [0, 1, 3, 6]]), ((6,), [[2, 5, 6], [1, 3, 6]]),
        ((), [[0, 2, 5], [1, 3, 6]]),
    ):  # fmt: skip
        share = 2 / (7 - len(special)) if special else 3 / 7
        t = Tokens(torch.arange(7.0).expand(2, -1)[..., None], None, special)
        got = PruneByScan(share - 1e-6, True, "clip")(t, {"scan": score[..., None]})
        assert got.x[..., 0].tolist() == got.place.tolist() == want
        assert [want[0][i] for i in got.special] == list(special)


@torch.inference_mode()
@pytest.mark.parametrize("name", NAMES)
def test_those_are_kept_of_which_the_scan_says_most(name):
    model, x = small(name), image((96, 128))
    host = hosts_of(model)[cuts(model).at[0] - 1]
    shown = []
    host.block.after_mixer = Peek(shown)
    model(x)
    host.block.after_mixer = None
    score = shown[0].relu().sum(-1)
    with attached(model, cuts(model, align=False)):
        t = passed(model, x)[host.place]
    assert t.place is None
    present = t.source >= 0
    if t.special:
        score = torch.cat([score[:, :24], score[:, 25:]], 1)
    worst, top = score.masked_fill(~present, torch.inf).amin(1), score.masked_fill(present, -torch.inf).amax(1)
    assert (worst >= top).all()


class Peek(nn.Module):
    def __init__(self, shown):
        super().__init__()
        self.shown = shown

    def forward(self, t, probe):
        self.shown.append(probe["scan"])
        return t


@torch.inference_mode()
def test_the_release_judges_by_the_opposite_token():
    model, x = small("vim_tiny"), image()
    host = hosts_of(model)[1]
    caught = {}
    hooks = [
        host.mixer.back.register_forward_hook(lambda _m, _i, out: caught.update(back=out)),
        host.mixer.in_proj.register_forward_hook(lambda _m, _i, out: caught.update(z=out.chunk(2, -1)[1])),
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    score = (caught["back"] * F.silu(caught["z"])).sum(-1)  # B 37
    score[:, 18] = -torch.inf
    with attached(model, ScanPruning(0.5, 2, align=False, score="release")):
        t = passed(model, x)[1]
    source = torch.cat([t.source[:, :18], torch.full((2, 1), 9), t.source[:, 18:]], 1)
    chosen = (36 - score.topk(18).indices).sort(1).values
    want = torch.cat([chosen[:, :9], torch.full((2, 1), 18), chosen[:, 9:]], 1)
    assert t.special == (9,)
    assert torch.equal(source.gather(1, want), torch.arange(19).expand(2, -1))


@torch.inference_mode()
def test_a_pyramid_has_its_map_back_and_shows_what_was_dropped():
    model, x = small("vmamba_tiny_s1l8"), image((160, 96))
    with attached(model, cuts(model)):
        found = passed(model, x)
    ends = [t for t, h in zip(found, hosts_of(model), strict=True) if h.index == h.depth - 1]
    assert [t.grid for t in ends] == [(40, 24), (20, 12), None, (5, 3)]  # all are there again for the step down
    at = [i for i, t in enumerate(found) if t.grid is None]
    assert [found[i].x.shape[1] for i in at] == [36, 36, 22, 22, 22]
    first, second, last = found[at[0]], found[at[2]], found[at[-1]].restored()
    assert last.grid == (10, 6)
    gone = second.source < 0
    assert torch.equal(last.x[gone], second.lost[gone])
    early = first.source < 0  # these hold what they did even before
    torch.testing.assert_close(last.x[early], first.lost[early], rtol=0, atol=0)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["vim_tiny", "plainmamba_l2"])
@pytest.mark.parametrize("align", [True, False])
def test_maps_for_dense_heads_hold_what_was_dropped(name, align):
    model, x = small(name, lambda backbone: Pyramid(backbone, range(6))), image((97, 131), 1)
    plain = model(x)
    with attached(model, cuts(model, align=align)):
        pruned = model(x)
    same = [(a == b).all(1) for a, b in zip(pruned, plain, strict=True)]  # 1 H W, block by block
    assert same[0].all()
    assert same[1].all()  # the cut is behind the block: what goes holds what it held
    assert not same[5].all()
    for late in (4, 5):  # what went in the first cut stays as it was there, what went in the second as it was there
        kept = (pruned[late] == pruned[1]).all(1)
        assert 0 < kept.sum() < kept.numel()
        assert (pruned[late] == pruned[3]).all(1).sum() > kept.sum()


@torch.inference_mode()
def test_norms_of_maps_take_what_was_dropped_too():
    model, x = small("vim_tiny"), image()
    with attached(model, cuts(model)):
        bare, normed = (model.forward_intermediates(x, 1, norm=n, intermediates_only=True)[0] for n in (False, True))
    torch.testing.assert_close(model.norm(bare.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), normed)


# ---------------------------------------------------------------------------------------------------------- the laws


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(96, 96), (97, 131), (160, 288)], ids=str)
@torch.inference_mode()
def test_any_size_and_nothing_changes_where_all_stay(name, size):
    model, x = small(name), image(size)
    plain = model(x)
    with attached(model, cuts(model, keep=1.0)):
        assert torch.equal(model(x), plain)
        assert all(h.block.after_mixer is None and h.block.after_block is None for h in hosts_of(model))
    with attached(model, cuts(model)):
        pruned = model(x)
        assert pruned.isfinite().all()
        assert not torch.allclose(pruned, plain)
        torch.testing.assert_close(model(x[1:]), pruned[1:], rtol=1e-4, atol=1e-5)
    assert torch.equal(model(x), plain)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("align", [True, False])
def test_two_steps_reach_every_parameter_and_checkpointing_changes_no_gradient(name, align):
    model = small(name).train()
    names = list(model.state_dict())
    detach = attach(model, cuts(model, align=align))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        model(image()).square().mean().backward()
        optimizer.step()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    gradients = []
    for on in (False, True):
        model.set_grad_checkpointing(on)
        model.zero_grad()
        model(image()).square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    torch.testing.assert_close(*gradients)
    detach()
    assert list(model.state_dict()) == names


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[:3])
def test_compiled_is_the_same(name):
    """One graph; that inductor makes the same of it is among the laws of all plugins."""
    model, x = small(name, depth=2), image((64, 64))
    first = max(hosts_of(model), key=lambda h: h.depth).place
    with attached(model, ScanPruning(0.6, first + 1)), torch.inference_mode():
        want = model(x)
        torch.compiler.reset()
        got = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------- settings, refusals


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("vim_small", (5, 10, 15)), ("vim_tiny", (10, 20)), ("plainmamba_l1", (10, 20)), ("plainmamba_l2", (5, 10, 15)),
        ("plainmamba_l3", (7, 15, 22)), ("vmamba_tiny_s1l8", (5, 7, 9)), ("vmamba_small_s2l15", (7, 10, 13)),
    ],
)  # fmt: skip
def test_where_models_are_cut(name, at):
    with torch.device("meta"):
        model = create_model(name)
    detach = attach(model, plugin("scan_pruning"))
    hosts = hosts_of(model)
    assert tuple(h.place + 1 for h in hosts if isinstance(h.block.after_mixer, PruneByScan)) == at
    detach()


def test_spellings():
    assert plugin("scan_pruning:keep=0.8,at=3,align=false,score=release") == ScanPruning(0.8, 3, False, "release")
    assert plugin("scan_pruning:keep=1") == ScanPruning(1.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"keep": 0.0}, "above 0 and up to 1"), ({"keep": (0.5, 1.5)}, "above 0 and up to 1"), ({"keep": ()}, "up to"),
        ({"at": 0}, "from 1 on"), ({"at": (3, 3)}, "rising"), ({"at": ()}, "rising"), ({"score": "x"}, "clip or r"),
    ],
)  # fmt: skip
def test_settings_say_what_would_do(settings, words):
    with pytest.raises(ValueError, match=words):
        ScanPruning(**settings)


def test_settings_that_fit_no_model_of_this_depth():
    model = small("vim_tiny")
    with pytest.raises(ValueError, match="this model has 6 blocks"):
        attach(model, ScanPruning(0.5, 7))
    with pytest.raises(ValueError, match=r"one for each of 2 cuts, after \(1, 3\) blocks"):
        attach(model, ScanPruning((0.5, 0.6, 0.7), (1, 3)))


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "swin_tiny", "vssd_tiny", "vir_small_patch16_224"])
@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_models_without_a_selective_scan_are_refused_by_name(name, keep):
    with torch.device("meta"):
        model = create_model(name)
    with pytest.raises(SeamError, match=r"blocks\.\d+: \w+ has no selective scan"):
        attach(model, ScanPruning(keep))
    assert all(getattr(h.block, s) is None for h in hosts_of(model) for s in h.block.seams)


def test_the_rest_of_a_stage_must_scan_too_and_other_stages_need_not():
    stages = [Stage(Mamba(), 16, 3), Stage(Window(2), 32, 2)]
    model = disturbed(Classifier(Backbone(stages), 7)).eval()
    with pytest.raises(SeamError, match="WindowAttention has no selective scan"):
        attach(model, ScanPruning(0.5, (1, 4)))
    x = image((64, 64))
    plain = model(x)
    with attached(model, ScanPruning(0.5, 1)), torch.inference_mode():
        assert not torch.allclose(model(x), plain)


def test_what_needs_the_whole_map_in_a_block_is_refused():
    model = small("plainmamba_l1", depth=2)
    with pytest.raises(SeamError, match=r"blocks\.0: ConvNorm needs a full grid"):
        attach(model, ScanPruning(0.5, 1))


@pytest.mark.parametrize("name", ["plainmamba_l2", "vmamba_tiny_s1l8"])
def test_the_release_scores_vim_only(name):
    model = small(name)
    with pytest.raises(SeamError, match=r"\w+Scan shows no back and no gate, by which the release scores; score=clip"):
        attach(model, cuts(model, score="release"))


def test_a_single_direction_is_scored_by_what_it_gave():
    model = disturbed(Classifier(Backbone([Stage(Mamba(both=False), 16, 3)], patch=16), 7)).eval()
    with pytest.raises(SeamError, match="shows no back"):
        attach(model, ScanPruning(0.5, 1, score="release"))
    with attached(model, ScanPruning(0.5, 1)), torch.inference_mode():
        assert passed(model, image())[-1].x.shape[1] == 18
