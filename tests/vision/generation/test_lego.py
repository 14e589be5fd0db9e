"""LEGO: the authors' numbers brick by brick through the rules of their files, sizes as published, pieces that know
nothing of each other, bricks left out, larger images."""

import math

import pytest
import torch
from denoiser_parts import awake, batch, small_lego
from golden import golden
from recorded import loaded

from patchloom.vision.generation.edm import Edm
from patchloom.vision.generation.guidance import Guidance
from patchloom.vision.generation.lego import Lego, Skip
from patchloom.vision.generation.process import training_call
from patchloom.vision.generation.samplers import DDIM, sample
from patchloom.vision.zoo import create_model, list_models, model_info

# ------------------------------------------------------------------------------------------------------------- records


NAMES = ["lego_s_pg_64", "lego_s_u_32", pytest.param("lego_l_pg_64", marks=pytest.mark.slow)]


def denoised(network, x, sigma):
    """D(x; sigma) of every brick, where the network gives F."""
    s, d = sigma.view(-1, 1, 1, 1), 0.5
    both = (s * s + d * d).sqrt()
    return [(d / both) ** 2 * x + s * d / both * f for f in network(x / both, sigma.log() / 4)]


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_the_network_is_the_record_s(name):
    record = golden.load(f"lego/{name}")
    model, given = loaded(name, record), record.input()
    x, sigma, y = given["x"], given["sigma"], None
    if (rows := given.get("class_labels")) is not None:
        y = rows.argmax(1).where(rows.any(1), 1000)
        assert torch.equal(model.labels(y), model.labels(rows))
    *few, last = denoised(lambda x, t: model.predictions(x, t, y), x, sigma)
    found = {"denoised": last} | {f"denoised_brick{i}": d for i, d in enumerate(few, 1)}
    if "x_double" in given:
        found["denoised_double"] = denoised(lambda x, t: [model(x, t)], given["x_double"], sigma[:1])[0]
    if "denoised_cfg4" in record.meta["outputs"]:

        def guided(x, t):
            cond, null = model(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y[:1], model.null(y[:1])])).chunk(2)
            return [null + 4 * (cond - null)]

        found["denoised_cfg4"] = denoised(guided, x[:1], sigma[:1])[0]
    assert set(found) == set(record.meta["outputs"])
    for output, value in found.items():
        record.compare(output, value, 1e-5)


def test_sizes_are_the_published_ones():
    """What the fact file says of them, tables of places included as they were frozen parameters."""
    for name, parameters in (("lego_s_pg_64", 33_750_360), ("lego_s_u_32", 61_578_800), ("lego_l_pg_64", 501_627_096)):
        model = create_model(name, device="meta")
        assert sum(v.numel() for v in model.state_dict().values()) == parameters
    assert model_info("lego_s_u_32").parameters == 61_578_800
    assert sum(p.numel() for p in create_model("lego_xl_u_32", device="meta").parameters()) / 1e9 == pytest.approx(
        1.26, 0.01
    )
    assert sum(p.numel() for p in create_model("lego_l_pg_64_old", device="meta").parameters()) / 1e9 == pytest.approx(
        0.46, 0.01
    )


def test_every_published_chain_has_its_name():
    names = set(list_models("lego_*", kind="denoiser"))
    want = {f"{w}_{k}_{s}" for w in ("l", "xl") for k in ("pg", "pr", "u") for s in (32, 64)}
    want |= {"s_pg_64", "s_pr_64", "s_u_32", "s_u_64", "l_pg_64_old", "l_pr_64_old"}
    assert names == {f"lego_{n}" for n in want}
    sizes = {n: [(b.size, b.patch, b.depth) for b in create_model(n, device="meta").specs] for n in sorted(names)}
    assert sizes["lego_l_pr_32"] == [(32, 2, 12), (16, 8, 8), (4, 2, 4)]
    assert sizes["lego_xl_u_64"] == [(64, 2, 14), (16, 8, 12), (4, 2, 4), (16, 8, 12), (64, 2, 14)]
    assert sizes["lego_s_u_64"] == [(64, 2, 6), (16, 8, 4), (4, 2, 2), (16, 8, 4), (64, 2, 6)]
    assert create_model("lego_l_pg_64", num_classes=0, in_chans=4, device="meta").labels is None


# -------------------------------------------------------------------------------------------------------------- pieces


@torch.inference_mode()
def test_pieces_know_nothing_of_each_other():
    brick = awake(small_lego()).bricks[0]
    x, c = torch.randn(1, 5, 16, 16), torch.randn(1, 16)
    other = x.clone()
    other[..., 4:8, 8:12] += 1
    changed = (brick(x, c) - brick(other, c)).abs().amax(1)[0] > 0
    assert changed[4:8, 8:12].all()
    assert changed.sum() == 16
    alone = brick(x[..., 4:8, 8:12], c)
    assert torch.allclose(brick(x, c)[..., 4:8, 8:12], alone, atol=1e-6)


@pytest.mark.parametrize("size", [(16, 16), (32, 48), (8, 16), (13, 22), (12, 12)])
@torch.inference_mode()
def test_any_size_and_one_alone_as_in_a_batch(size):
    model = awake(small_lego()).eval()
    x, t, y = batch(model, 3, size)
    whole = model(x, t, y)
    assert whole.shape == x.shape
    assert torch.allclose(whole[1:2], model(x[1:2], t[1:2], y[1:2]), atol=1e-5)


def test_sides_that_bricks_take():
    model = small_lego()
    assert [model.fitting(n) for n in (1, 8, 9, 16, 17, 40)] == [4, 8, 16, 16, 32, 48]


# ------------------------------------------------------------------------------------------------------------ skipping


@torch.inference_mode()
def test_bricks_are_left_out_where_the_noise_says_so():
    model = awake(small_lego()).eval()
    x, t, y = batch(model, 3)
    first, second, last = model.predictions(x, t, y)
    assert not torch.allclose(second, last)
    calls = []
    model.bricks[2].register_forward_hook(lambda _, given, __: calls.append(len(given[0])))
    with model.skipping(Skip((2,), below=0.5)):  # t = ln(sigma) / 4: -1, -0.25, 0.5 are 0.018, 0.37, 7.4
        some = model(x, t, y)
        assert torch.allclose(some[:2], second[:2], atol=1e-6)
        assert torch.allclose(some[2], last[2], atol=1e-6)
        assert calls == [1]
    with model.skipping(Skip((1, 2))):
        assert torch.allclose(model(x, t, y), first, atol=1e-6)
        assert calls == [1]
    with model.skipping(Skip((1,), above=math.exp(-0.5 * 4), below=1.0), Skip((2,), above=1.0)):
        mixed = model(x, t, y)
        assert torch.allclose(mixed[0], last[0], atol=1e-6)
        assert torch.allclose(mixed[2], second[2], atol=1e-6)
        assert not torch.allclose(mixed[1], last[1], atol=1e-6)
    assert torch.equal(model(x, t, y), last)


def test_sampling_spares_the_bricks_of_a_part_of_the_way():
    model = awake(small_lego()).eval()
    calls = [0, 0, 0]

    def count(i):
        def hook(*_):
            calls[i] += 1

        return hook

    for i, brick in enumerate(model.bricks):
        brick.register_forward_hook(count(i))
    process, noise, y = Edm(reduce="sum"), torch.randn(2, 3, 16, 16), torch.tensor([1, 2])
    levels = process.levels(6)
    late = sum(level.sigma < 1.0 for level in levels[:-1])
    assert 0 < late < 6
    whole = sample(process, model, noise, y, sampler=DDIM(6), guidance=Guidance(2.0))
    assert calls == [6, 6, 6]
    with model.skipping(Skip((2,), below=1.0)):
        spared = sample(process, model, noise, y, sampler=DDIM(6), guidance=Guidance(2.0))
    assert calls == [12, 12, 12 - late]
    assert not torch.allclose(whole, spared)


def test_training_leaves_none_out():
    model = awake(small_lego(dropout=0.0))
    x, t, y = batch(model)
    with model.skipping(Skip((2,))):
        assert len(model.predictions(x, t, y)) == 3


def test_a_brick_that_cannot_be_skipped_is_refused():
    model = small_lego()
    with (
        pytest.raises(ValueError, match="brick 0 cannot be skipped: the others take what it gives"),
        model.skipping(Skip((0,))),
    ):
        pass
    with pytest.raises(ValueError, match=r"brick 3 cannot be skipped: there are 0 \.\. 2"), model.skipping(Skip((3,))):
        pass
    assert model.skips == ()


# ------------------------------------------------------------------------------------------------------------ training


def test_all_bricks_learn_and_it_begins_as_nothing():
    model = small_lego(dropout=0.0)
    x, t, y = batch(model)
    assert not any(out.any() for out in model.predictions(x, t, y))
    process = Edm(reduce="sum")
    for _ in range(2):
        with torch.no_grad():
            awake(model)
        model.zero_grad()
        process.loss(training_call(model), x, y, generator=torch.Generator().manual_seed(0)).loss.mean().backward()
        assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_checkpointing_and_half_precision():
    model = awake(small_lego(dropout=0.0))
    x, t, y = batch(model)
    plain = torch.autograd.grad(model(x, t, y).square().sum(), list(model.parameters()))
    model.set_grad_checkpointing()
    again = torch.autograd.grad(model(x, t, y).square().sum(), list(model.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(plain, again, strict=True))
    model.eval()
    with torch.inference_mode():
        want = model(x, t, y)
        with torch.autocast("cpu", torch.bfloat16):
            cast = model(x, t, y)
        own = model.bfloat16()(x.bfloat16(), t, y)
    assert all((got.float() - want).norm() < 0.05 * want.norm() for got in (cast, own))


def test_labels_and_shares_of_them():
    model = awake(small_lego()).eval()
    x, t, y = batch(model)
    rows = torch.nn.functional.one_hot(y, 5).float()
    with torch.inference_mode():
        assert torch.equal(model(x, t, y), model(x, t, rows))
        assert torch.equal(model(x, t, model.null(y)), model(x, t, model.null(rows)))
        assert torch.equal(model.labels(model.null(y)), model.labels.linear.bias.expand(2, -1))
        nothing = model(x, t, model.null(y))
        model.reset_classifier(7)
        assert torch.equal(model(x, t, torch.tensor([6, 7])), nothing)  # 7 is none, and classes begin as none
    with pytest.raises(ValueError, match=r"shares of classes of shape \(2, 7\) are wanted; got \(2, 5\)"):
        model(x, t, rows)
    with pytest.raises(ValueError, match="class 8 is out of range"):
        model(x, t, torch.tensor([8, 0]))
    assert Lego(**small_lego().arguments()).arguments() == small_lego().arguments()
    with pytest.raises(ValueError, match="guidance needs a null class"):
        small_lego(num_classes=None).null(None)
