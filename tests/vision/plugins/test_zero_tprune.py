"""Zero-TPrune: the early code's records, each stage by its definition, and what the schedule saves."""

import pytest
import torch
from golden import golden
from plugin_parts import refused
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from patchloom.vision.count import macs
from patchloom.vision.plugins import attach, attached, hosts_of, noting, plugin
from patchloom.vision.plugins import zero_tprune as zt
from patchloom.vision.plugins.zero_tprune import RankLayer, ZeroTPrune, combined, page_rank
from patchloom.vision.tokens import Tokens, unmerge
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model

ALL_HEADS = {"v_min": 0.0, "v_max": torch.inf}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def graphs(count: int, n: int, sharp: float = 1.0) -> Tensor:
    return (sharp * normal(count, n, n)).softmax(-1)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return golden.fill_module(create_model("deit_tiny_patch16_224", num_classes=10, img_size=64)).eval()


# ----------------------------------------------------------------------------------------------- golden: the early code


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_importance_is_the_early_codes(tau):
    record = golden.load("zero_tprune/importance")
    given = record.input()
    graph = (given["scores"] / tau).softmax(-1).flatten(0, 1)  # 2*3 N N
    start = torch.full((6, 1, 17), 1 / 17)

    def importance(steps: int, present: Tensor | None = None) -> Tensor:
        return combined(page_rank(graph, start, steps, present).view(2, 3, 17)[..., 1:], 16, **ALL_HEADS)

    for steps in (1, 5, 30):
        record.compare(f"wpr{steps}_tau{tau}", importance(steps), 1e-5)
    if tau == 0.5:
        record.compare("one_vote_tau0.5", importance(1), 1e-5)
    present = given["mask"].repeat_interleave(3, 0)[:, None]
    record.compare(f"wpr5_masked_tau{tau}", importance(5, present), 1e-5)


def test_a_pruned_deit_is_the_early_codes():
    record = golden.load("zero_tprune/deit_tiny_i_stage")
    model = create_model("deit_tiny_patch16_224").eval()
    load_published(model, record.state_dict())
    attach(model, ZeroTPrune.early((2, 5, 8), (0.9, 0.8, 0.7)))
    found: list[Tokens] = []
    for i in (2, 5, 8):
        hosts_of(model)[i].block.register_forward_hook(lambda _m, _i, out: found.append(out))
    with torch.inference_mode(), noting() as notes:
        record.compare("logits", model(record.input()), 1e-5)
    importance, kept = ([v for n, v in notes if n == name] for name in ("importance", "kept"))
    for i, t, rank, keep in zip((2, 5, 8), found, importance, kept, strict=True):
        record.compare(f"importance{i}", rank, 1e-5)
        record.compare(f"keep{i}", torch.zeros_like(rank).scatter(1, keep[:, 1:] - 1, 1.0), 1e-6)
        record.compare(f"tokens{i}", t.x, 1e-5)


# ----------------------------------------------------------------------------------------------------------- the stages


def test_page_rank_is_a_power_of_the_graph():
    graph, start = graphs(4, 9), normal(4, 1, 9).softmax(-1)
    for steps in (1, 2, 30):
        want = start @ torch.linalg.matrix_power(graph.double(), steps).float()
        torch.testing.assert_close(page_rank(graph, start, steps), want, rtol=1e-5, atol=1e-7)


def test_page_rank_of_those_that_are_left_is_that_of_their_own_graph():
    graph, left = graphs(3, 9), [0, 2, 3, 7]
    start, present = normal(3, 1, 9).softmax(-1), torch.zeros(3, 1, 9)
    present[..., left] = 1
    own = graph[:, left][:, :, left]
    own = own / own.sum(-1, keepdim=True)
    got = page_rank(graph, start * present, 6, present)
    torch.testing.assert_close(got[..., left], page_rank(own, start[..., left], 6))
    assert not got[present == 0].any()


def test_heads_are_left_out_by_their_variance():
    even = torch.full((10,), 0.1)
    mild = torch.tensor([0.15, 0.05] * 5)  # n s is 1.5 or 0.5: variance 0.25
    single = torch.tensor([1.0] + [0.0] * 9)  # variance 9
    rank = torch.stack([torch.stack([even, mild, single]), torch.stack([even, single, even])])
    got = combined(rank, 10, 0.01, 0.7)
    torch.testing.assert_close(got[0], mild)
    torch.testing.assert_close(got[1], rank[1].square().mean(0).sqrt())  # all are outside: all count
    torch.testing.assert_close(combined(rank, 10, **ALL_HEADS), rank.square().mean(1).sqrt())
    # tokens that are gone are none of the distribution
    gone = torch.cat([rank, torch.zeros(2, 3, 4)], -1)
    torch.testing.assert_close(combined(gone, 10, 0.01, 0.7)[:, :10], got)


@pytest.mark.parametrize("n", [8, 9])
def test_duplicates_are_those_of_the_lesser_half_with_the_nearest_of_the_other(n):
    keys, rough = normal(2, n, 4), normal(2, n, seed=1)
    got = zt.duplicates(keys, rough, 2)
    for image in range(2):
        order = sorted(range(n), key=lambda i: -rough[image, i])
        important, lesser = order[: n - n // 2], order[n - n // 2 :]
        near = {
            a: max(float(torch.cosine_similarity(keys[image, a], keys[image, b], dim=0)) for b in important)
            for a in lesser
        }
        assert set(got[image].tolist()) == set(sorted(near, key=near.get)[-2:])


def by_hand(q: Tensor, k: Tensor, special: int, stay: int, alike: int, steps: int) -> list[int]:
    """What one image (h N d) keeps, by loops over heads, votes and pairs."""
    (h, n, d), patches = q.shape, range(special, q.shape[1])
    graph = [(q[i] @ k[i].T / d**0.5).softmax(-1) for i in range(h)]
    start = torch.ones(n)
    start[0] = n**0.5
    start /= start.sum()

    def importance(present: list[int], steps: int) -> dict[int, float]:
        total, heads = dict.fromkeys(present, 0.0), 0
        left = [p for p in present if p >= special]
        ranks = []
        for a in graph:
            a = a[present][:, present]
            s, a = start[present], a / a.sum(-1, keepdim=True)
            for _ in range(steps):
                s = a.T @ s
            ranks.append(s)
        shares = [r[special:] * len(left) / r[special:].sum() for r in ranks]
        good = [r for r, z in zip(ranks, shares, strict=True) if 0.01 <= float(z.var(correction=0)) <= 0.7] or ranks
        for r in good:
            heads += 1
            total = {p: total[p] + float(r[i]) ** 2 for i, p in enumerate(present)}
        return {p: (total[p] / heads) ** 0.5 for p in left}

    everyone = list(range(n))
    rough, mean = importance(everyone, 1), k.mean(0)
    order = sorted(patches, key=lambda p: -rough[p])
    half = len(order) - len(order) // 2
    near = {a: max(float(torch.cosine_similarity(mean[a], mean[b], dim=0)) for b in order[:half]) for a in order[half:]}
    gone = sorted(near, key=near.get)[len(near) - alike :]
    final = importance([p for p in everyone if p not in gone], steps)
    return [*range(special), *sorted(sorted(final, key=final.get)[-stay:])]


@pytest.mark.parametrize(("special", "steps"), [((0,), 7), ((0, 1), 1)])
def test_all_stages_together_are_what_loops_give(special, steps):
    q, k = 2 * normal(3, 2, 17, 4), normal(3, 2, 17, 4, seed=1)
    patches = 17 - len(special)
    layer, x = RankLayer(ZeroTPrune(similar=0.5), 0.5, steps), normal(3, 17, 4)
    keep = layer(Tokens(x, None, special), {"queries": q, "keys": k}).keep
    stay = int(patches * 0.5)
    want = [by_hand(a, b, len(special), stay, (patches - stay) // 2, steps) for a, b in zip(q, k, strict=True)]
    assert keep.tolist() == want


def test_the_class_token_votes_heavier():
    q, k = normal(1, 2, 10, 4), normal(1, 2, 10, 4, seed=1)
    start = torch.ones(2, 1, 10)
    start[..., 0] = 10**0.5
    graph, rest = zt.attention_graph(q, k), {"similar": 0.0, **ALL_HEADS}
    for heavy, first in ((True, start), (False, torch.ones(2, 1, 10))):
        votes = page_rank(graph, first / first.sum(-1, keepdim=True), 1).view(1, 2, 10)
        want = combined(votes[..., 1:], 9, **ALL_HEADS)
        layer = RankLayer(ZeroTPrune(heavy=heavy, **rest), 0.5, 1)
        with noting() as notes:
            layer(Tokens(normal(1, 10, 4), None, (0,)), {"queries": q, "keys": k})
        torch.testing.assert_close(dict(notes)["importance"], want)


# ----------------------------------------------------------------------------------------------------------- the model


@torch.inference_mode()
def test_tokens_leave_behind_the_block_and_patches_know_it(model):
    image, seen = normal(2, 3, 64, 64), []
    block = hosts_of(model)[2].block
    block.ffn.register_forward_hook(lambda _m, i, _o: seen.append(i[0].shape[1]))
    block.register_forward_hook(lambda _m, i, out: seen.append((i[0], out)))
    with attached(model, ZeroTPrune(0.5, (2,))), noting() as notes:
        model(image)
    tokens, (before, after) = seen
    assert tokens == before.x.shape[1] == 17
    assert after.x.shape[1] == 9
    assert after.special == (0,)
    assert after.keep is None
    keep = dict(notes)["kept"]
    assert (keep[:, 1:] > keep[:, :-1]).all()
    for i in range(2):
        patches = (keep[i, 1:] - 1).tolist()
        assert [p for p, at in enumerate(after.source[i].tolist()) if at >= 0] == patches
        assert torch.equal(unmerge(after)[i, patches], after.x[i, 1:])


def test_the_usual_schedule_takes_the_papers_share_of_macs():
    model = create_model("deit_small_patch16_224").eval()
    with sdpa_kernel(SDPBackend.MATH):  # else the products of attention are not counted
        plain = macs(model, (3, 224, 224))
        attach(model, plugin("zero_tprune"))
        pruned = macs(model, (3, 224, 224))
    assert [(h.place, h.block.after_mixer.steps) for h in hosts_of(model) if h.block.after_mixer] == [
        (2, 30), (5, 5), (8, 1)
    ]  # fmt: skip
    assert 1 - pruned / plain == pytest.approx(0.349, abs=0.001)


def test_a_class_token_is_not_needed():
    torch.manual_seed(0)
    model = create_model("cct_7_3x1_32", num_classes=5).eval()
    with torch.inference_mode(), attached(model, ZeroTPrune(0.5)):
        assert model(normal(2, 3, 32, 32)).isfinite().all()


def test_half_precision_decides_as_single_does(model):
    layer = RankLayer(ZeroTPrune(), 0.5, 30)
    t, q, k = Tokens(normal(1, 17, 4), None, (0,)), *(normal(1, 2, 17, 4, seed=s).bfloat16() for s in (0, 1))
    want = layer(t, {"queries": q.float(), "keys": k.float()}).keep
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(t, {"queries": q, "keys": k}).keep, want)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("swin_tiny", r"stages\.3\.blocks\.0: \w+ needs a full grid"),
        ("vim_tiny", r"blocks\.5: \w+ shows no queries and no keys"),
        ("convnext_tiny", r"stages\.3\.blocks\.0: \w+ needs a full grid"),
    ],
)
def test_others_are_refused_by_name(name, words):
    refused(name, ZeroTPrune(), words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("keep=0", "keep=0.0: the share of the patches that stay"),
        ("keep=0.9+1.5", "keep=1.5: the share of the patches that stay"),
        ("at=5+2", r"at=\(5, 2\): numbers of blocks, counted from 0 and rising"),
        ("steps=0", "steps=0: at least one step"),
        ("similar=2", "similar=2.0: a share"),
        ("tau=0", "tau=0.0: a temperature above 0"),
        ("v_min=2", "v_min=2.0, v_max=0.7: 0 <= v_min <= v_max"),
        ("at=12", "the last stage of this model has 12 blocks, 0 to 11"),
        ("keep=0.9+0.8", r"keep=\(0.9, 0.8\): one for each of the 3 blocks"),
        ("at=1+2,steps=3+2+1", r"steps=\(3, 2, 1\): one for each of the 2 blocks"),
    ],
)
def test_what_does_not_fit_is_refused(model, text, words):
    with pytest.raises(ValueError, match=words):
        attach(model, plugin(f"zero_tprune:{text}"))
