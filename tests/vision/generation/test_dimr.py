"""DiMR: the authors' numbers through the rules of their files, sizes as published, norms by the time, any size."""

import pytest
import torch
from denoiser_parts import batch, small_dimr
from golden import golden
from recorded import loaded

from patchloom.vision.generation.dimr import Branch, DiMR
from patchloom.vision.generation.gaussian import Gaussian
from patchloom.vision.generation.process import training_call
from patchloom.vision.generation.time_norm import TimeDependent, TimeLayerNorm, TimeRMSNorm
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model, list_models, model_info

# ------------------------------------------------------------------------------------------------------------- records


RECORDS = [("dimr/tiny_3r", "dimr_tiny_3r"), pytest.param("dimr/dimr_xl_2r", "dimr_xl_2r", marks=pytest.mark.slow)]


@pytest.mark.parametrize(("path", "name"), RECORDS)
@torch.inference_mode()
def test_the_network_is_the_record_s(path, name):
    record = golden.load(path)
    model, given = loaded(name, record), record.input()
    x, t, y = given["x"], given["log_snr"], given["y"]
    found = {}
    first, last = model.branches[0].blocks[0], model.branches[-1].blocks[0]
    hooks = [first.register_forward_hook(lambda _, __, out: found.update(stage1_block1=out.x)),
             last.register_forward_hook(lambda _, __, out: found.update(last_stage_block1=out.map()))]  # fmt: skip
    *coarse, found["eps"] = model.predictions(x, t, y)
    for hook in hooks:
        hook.remove()
    found |= {f"eps_stage{i}": c for i, c in enumerate(coarse, 1)}
    found["eps_equal_times"] = model(x, t[:1].expand(2), y)
    assert set(found) == set(record.meta["outputs"])
    for output, value in found.items():
        record.compare(output, value, 1e-5)


def test_sizes_are_the_published_ones():
    for name, parameters, giga in (("dimr_xl_2r", 505_046_408, 160), ("dimr_g_2r", 1_056_352_904, 331)):
        info = model_info(name)
        assert info.parameters == info.trainable == parameters
        assert info.macs / 1e9 == pytest.approx(giga, rel=0.01)
        assert info.weights == ["in1k"]
    assert list_models("dimr_*", kind="denoiser") == ["dimr_g_2r", "dimr_xl_2r"]


def test_a_file_for_another_size_has_its_places_resized():
    state = golden.load("dimr/tiny_3r").state_dict()
    model = create_model("dimr_tiny_3r", img_size=(64, 64))
    report = load_published(model, state)
    assert report.resized == [f"branches.{i}.table" for i in range(3)]
    odd = {n: v[:-1] if "position_embeddings" in n else v for n, v in state.items()}
    with pytest.raises(ValueError, match="position_embeddings"):
        load_published(model, odd)


# --------------------------------------------------------------------------------------------------------------- norms


def test_parameters_follow_the_time_between_two_vectors():
    p = TimeDependent(3, 1.0)
    assert torch.equal(p(torch.tensor([-1.0, 2.0])), torch.ones(2, 3))  # the same at all times to begin with
    with torch.no_grad():
        p.param0.copy_(torch.tensor([2.0, 0.0, 1.0]))
        p.nodecay_weight.fill_(1.0)
        p.nodecay_bias.copy_(torch.tensor([0.0, 0.5, 0.0]))
    p.requires_grad_(False)
    s = torch.sigmoid(torch.tensor(0.5 * 2 + 0.5))
    assert p(torch.tensor([0.0]))[0, 0] == 1.5
    assert p(torch.tensor([0.5]))[0, 1] == pytest.approx(1 - float(s))


def test_norms_are_their_formulas():
    x, tau = torch.randn(2, 3, 4, 6), torch.tensor([-0.5, 0.7])
    layer, root = TimeLayerNorm(6), TimeRMSNorm(6)
    for p in (*layer.parameters(), *root.parameters()):
        torch.nn.init.normal_(p)
    weight, bias, scale = layer.weight(tau), layer.bias(tau), root.scale(tau)
    for i in range(2):
        want = torch.nn.functional.layer_norm(x[i], (6,), weight[i], bias[i])
        assert torch.allclose(layer(x, tau)[i], want, atol=1e-5)
        want = x[i] / x[i].square().mean(-1, keepdim=True).sqrt() * scale[i]
        assert torch.allclose(root(x, tau)[i], want, atol=1e-5)
    assert not root(torch.zeros(1, 2, 6), tau[:1]).isnan().any()
    assert layer(x.bfloat16(), tau).dtype == torch.bfloat16


def test_what_follows_the_time_does_not_decay():
    model = small_dimr()
    free = model.no_weight_decay()
    timed = {n for n, _ in model.named_parameters() if ".nodecay_" in n}
    assert timed
    assert timed | {"labels.table.weight", "branches.0.table"} <= free | {"labels.table.weight"}
    assert not any("param0" in n or "mixer.qkv" in n for n in free)


# ------------------------------------------------------------------------------------------------------------- network


@pytest.mark.parametrize("size", [(16, 16), (8, 20), (13, 22), (32, 16)])
@torch.inference_mode()
def test_any_size_and_one_alone_as_in_a_batch(size):
    model = small_dimr().eval()
    x, t, y = batch(model, 3, size)
    found, one = model.predictions(x, t, y), model(x[1:2], t[1:2], y[1:2])
    assert [tuple(f.shape[2:]) for f in found] == [(-(-size[0] // r), -(-size[1] // r)) for r in (4, 2, 1)]
    assert torch.allclose(found[-1][1:2], one, atol=1e-5)
    assert torch.equal(found[-1], model(x, t, y))


def test_places_of_a_smaller_image_are_the_first_ones():
    net = small_dimr().branches[1]
    table = net.table.view(8, 8, -1)
    assert torch.equal(net.places((3, 5)).view(3, 5, -1), table[:3, :5])
    assert net.places((8, 20)).shape == (1, 160, 12)


def test_class_and_time_tell():
    model = small_dimr().eval()
    x, t, y = batch(model)
    with torch.inference_mode():
        plain, other, later = model(x, t, y), model(x, t, model.null(y)), model(x, t + 1, y)
    assert not torch.allclose(plain, other)
    assert torch.equal(plain, later)  # norms begin as the same at all times


def test_all_branches_learn():
    model = small_dimr(dropout=0.0)
    x, _, y = batch(model)
    process = Gaussian(betas="sd", variance="small", time="log_snr", scales=(0.25, 0.5, 1.0))
    losses = process.loss(training_call(model), x, y, generator=torch.Generator().manual_seed(0))
    losses.loss.mean().backward()
    still = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert {n.rpartition(".")[2] for n in still} <= {
        "nodecay_weight",
        "nodecay_bias",
    }  # both ends are one to begin with
    with torch.no_grad():
        for p in model.parameters():
            p += 0.01 * torch.randn_like(p)
    process.loss(training_call(model), x, y, generator=torch.Generator().manual_seed(0)).loss.mean().backward()
    assert all(p.grad.any() for p in model.parameters())


def test_checkpointing_and_half_precision():
    model = small_dimr(dropout=0.0)
    x, t, y = batch(model)
    plain = torch.autograd.grad(model(x, t, y).square().sum(), list(model.parameters()), allow_unused=True)
    model.set_grad_checkpointing()
    again = torch.autograd.grad(model(x, t, y).square().sum(), list(model.parameters()), allow_unused=True)
    pairs = [(a, b) for a, b in zip(plain, again, strict=True) if a is not None]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)
    assert len(pairs) < len(plain)  # the heads of the coarser branches are not asked
    model.eval()
    with torch.inference_mode():
        want = model(x, t, y)
        with torch.autocast("cpu", torch.bfloat16):
            cast = model(x, t, y)
        own = model.bfloat16()(x.bfloat16(), t, y)
    assert all((got.float() - want).norm() < 0.05 * want.norm() for got in (cast, own))


def test_without_labels_and_its_description():
    model = small_dimr(num_classes=0)
    assert model.labels is None
    assert model(*batch(model)[:2]).shape == (2, 4, 16, 16)
    assert DiMR(**small_dimr().arguments()).arguments() == small_dimr().arguments()
    model = small_dimr()
    model.reset_classifier(3)
    assert model(batch(model)[0], batch(model)[1], torch.tensor([2, 3])).shape == (2, 4, 16, 16)  # 3 is none


def test_wrong_branches_are_refused():
    with pytest.raises(ValueError, match="odd number of blocks"):
        Branch(16, 4, 2)
    with pytest.raises(ValueError, match=r"ratios \[2, 4\]"):
        DiMR((Branch(16, 3, 2, heads=2), Branch(8, 3, 4)))
    with pytest.raises(ValueError, match="the first branch has heads"):
        DiMR((Branch(16, 3, 2), Branch(8, 3, 1)))
    model = small_dimr()
    x, t, _ = batch(model)
    with pytest.raises(ValueError, match="class 6 is out of range"):
        model(x, t, torch.tensor([6, 0]))
