"""Processes in training: losses of every kind, masked and of several predictions; schedules; what is refused."""

import math

import pytest
import torch
from torch import Tensor

from patchloom.vision.generation.denoiser import Denoiser
from patchloom.vision.generation.edm import Edm
from patchloom.vision.generation.flow import Flow
from patchloom.vision.generation.gaussian import Gaussian, coarser
from patchloom.vision.generation.guidance import Guidance
from patchloom.vision.generation.process import Masked, Process, each_mean, training_call
from patchloom.vision.generation.samplers import DDIM, sample
from patchloom.vision.generation.schedules import kept_steps
from patchloom.vision.parts import plain, unplain

PROCESSES = (Gaussian(variance="large"), Gaussian(predicts="velocity", variance="small", betas="cosine"), Edm(), Flow(),
             Flow(predicts="image"))  # fmt: skip
SMALL = Gaussian(variance="small")


class Toy(Denoiser):
    """A convolution whose answer depends on everything; several predictions, and masking, as far as it is told."""

    def __init__(self, out_channels: int = 3, time: str = "step", coarse: bool = False):
        super().__init__(3, out_channels, (8, 8), num_classes=4, time=time)
        self.conv, self.embed, self.coarse = (
            torch.nn.Conv2d(3, out_channels, 3, padding=1),
            torch.nn.Embedding(5, 3),
            coarse,
        )

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None) -> list[Tensor]:
        fine = self.conv(x + self.embed(y)[..., None, None] + torch.sin(t).view(-1, 1, 1, 1))
        return [coarser(fine, (4, 4)), fine] if self.coarse else [fine]

    def masked(self, x: Tensor, t: Tensor, y: Tensor | None, ratio: float) -> tuple[Tensor, Tensor]:
        kept = torch.zeros(len(x), 16, dtype=torch.bool)
        kept[:, : round(16 * (1 - ratio))] = True
        return self.predict(x, t, y)[-1], kept


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize("process", [*PROCESSES, Gaussian(), Gaussian(objective="rescaled_kl"), Edm(time="step")])
def test_trains_deterministically_by_the_generator(process):
    network, (x0, y) = Toy(process.outputs * 3, process.time).eval(), batch()
    process.check(network)
    runs = [process.loss(network, x0, y, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert runs[0].loss.equal(runs[1].loss)
    assert not runs[0].loss.equal(runs[2].loss)
    for values in (runs[0].loss, runs[0].error, runs[0].t):
        assert values.shape == (4,)
        assert values.isfinite().all()
    runs[0].loss.mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    assert (runs[0].bound is not None) == (process.outputs == 2)
    assert not runs[0].error.requires_grad


@pytest.mark.parametrize("process", PROCESSES)
def test_the_perfect_network_has_no_loss(process):
    x0, noise = torch.randn(2, 3, 6, 5), torch.randn(2, 3, 6, 5)
    t = torch.tensor([3, 700]) if isinstance(process, Gaussian) else torch.tensor([0.3, 0.8])

    def perfect(x: Tensor, told: Tensor, y: None) -> Tensor:
        if isinstance(process, Flow):
            torch.testing.assert_close(told, 1000 * t)
            return x0 if process.predicts == "image" else noise - x0
        if isinstance(process, Gaussian):
            return noise if process.predicts == "noise" else process.velocity(x0, t, noise)
        sigma = (4 * told).exp().view(-1, 1, 1, 1)
        skip, out, inward = process.weights(sigma)
        return (x0 - skip * x / inward) / out

    losses = process.loss(perfect, x0, noise=noise, t=t)
    assert losses.loss.max() < 1e-8
    assert process.loss(lambda *a: perfect(*a) + 1, x0, noise=noise, t=t).loss.min() > 0.5


@pytest.mark.parametrize("process", PROCESSES)
def test_dropped_patches_neither_count_nor_learn(process):
    x0, y = batch()
    output = torch.randn(4, 3, 8, 8, requires_grad=True)
    kept = torch.rand(4, 16) < 0.4
    kept[:, 0] = True
    given = {"noise": torch.randn_like(x0), "generator": torch.Generator().manual_seed(0)}
    loss = process.loss(lambda *_: Masked(output, kept), x0, y, **given).loss
    loss.sum().backward()
    where = kept.view(4, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3).expand_as(output)
    assert (output.grad[where] != 0).all()
    assert (output.grad[~where] == 0).all()
    given["generator"].manual_seed(0)
    full = process.loss(lambda *_: Masked(output, torch.ones_like(kept)), x0, y, **given).loss
    given["generator"].manual_seed(0)
    torch.testing.assert_close(full, process.loss(lambda *_: output, x0, y, **given).loss)
    assert (loss - full).abs().min() > 1e-5


def test_masked_means_at_sizes_that_patches_do_not_divide():
    values, kept = torch.randn(1, 2, 5, 7), torch.zeros(1, 12, dtype=torch.bool)
    kept[0, [0, 11]] = True  # the first patch of 2 x 2, and the last, of which 1 x 1 is left
    wanted = torch.cat([values[0, :, :2, :2].reshape(2, -1), values[0, :, 4:, 6:].reshape(2, -1)], 1).mean()
    torch.testing.assert_close(each_mean(values, kept)[0], wanted)
    with pytest.raises(ValueError, match="11 tokens do not make up 5 x 7"):
        each_mean(values, kept[:, :11])


def test_several_predictions():
    x0, y = batch()
    network, noise, t = Toy(coarse=True).eval(), torch.randn(4, 3, 8, 8), torch.tensor([1, 10, 100, 900])
    weighted = Gaussian(variance="small", scales=[0.25, 1.0])
    assert weighted.scales == (0.25, 1.0)
    given = {"noise": noise, "t": t}
    coarse, fine = training_call(network)(SMALL.noised(x0, t, noise), SMALL.told(t), y)
    errors = [((noise.unfold(2, 2, 2).unfold(3, 2, 2).sum((-1, -2)) / 2 - coarse) ** 2).mean((1, 2, 3)),
              ((noise - fine) ** 2).mean((1, 2, 3))]  # fmt: skip
    torch.testing.assert_close(weighted.loss(training_call(network), x0, y, **given).loss, errors[0] / 4 + errors[1])
    torch.testing.assert_close(SMALL.loss(training_call(network), x0, y, **given).loss, (errors[0] + errors[1]) / 2)
    torch.testing.assert_close(SMALL.loss(network, x0, y, **given).loss, errors[1])  # `forward` is the last alone
    for process in (Edm(), Flow()):
        with pytest.raises(ValueError, match=r"shape \(4, 3, 8, 8\).*gave \(4, 3, 4, 4\)"):
            process.loss(training_call(network), x0, y)
        one = process.loss(network, x0, y, noise=noise, t=t / 1000).loss
        twice = process.loss(lambda *a: [network(*a), network(*a)], x0, y, noise=noise, t=t / 1000).loss
        torch.testing.assert_close(one, twice)
    with pytest.raises(ValueError, match="2 weights for the 1 predictions"):
        weighted.loss(network, x0, y)
    with pytest.raises(ValueError, match="no whole number of times coarser"):
        coarser(noise, (3, 3))


def test_the_call_of_training_masks():
    network, (x0, y) = Toy().eval(), batch()
    found = training_call(network, 0.75)(x0, torch.zeros(4), y)
    assert isinstance(found, Masked)
    assert found.kept.sum(1).tolist() == [4] * 4
    for ratio in (1.0, -0.1):
        with pytest.raises(ValueError, match="a share of the patches below 1"):
            training_call(network, ratio)


def test_the_bound_trains_the_variance_alone():
    x0 = torch.randn(2, 3, 4, 4)
    output = torch.randn(2, 6, 4, 4, requires_grad=True)
    losses = Gaussian().loss(lambda *_: output, x0, t=torch.tensor([0, 500]))
    torch.testing.assert_close(losses.loss, losses.error + losses.bound)
    options = {"noise": torch.randn_like(x0), "t": torch.tensor([0, 500])}
    both = Gaussian().loss(lambda *_: output, x0, **options).loss
    error = SMALL.loss(lambda *_: output[:, :3], x0, **options).loss
    gradient, alone = (torch.autograd.grad(loss.sum(), output)[0] for loss in (both, error))
    torch.testing.assert_close(gradient[:, :3], alone[:, :3])
    assert (gradient[:, 3:] != 0).all()
    rescaled = (
        Gaussian(objective="rescaled_mse")
        .respaced(250)
        .loss(lambda *_: output, x0, **(options | {"t": torch.tensor([0, 9])}))
    )
    same = Gaussian().respaced(250).loss(lambda *_: output, x0, **(options | {"t": torch.tensor([0, 9])}))
    torch.testing.assert_close(rescaled.bound, same.bound / 4)
    kl, whole = (Gaussian(objective=o).loss(lambda *_: output, x0, **options) for o in ("kl", "rescaled_kl"))
    torch.testing.assert_close(whole.loss, 1000 * kl.loss)
    assert (torch.autograd.grad(kl.loss.sum(), output)[0][:, :3] != 0).any()


def test_losses_are_computed_in_float32_whatever_the_network_gives():
    x0 = torch.randn(2, 3, 4, 4)
    for process in (*PROCESSES, Gaussian()):
        answer = torch.randn(2, 3 * process.outputs, 4, 4)
        low = process.loss(lambda *_, a=answer: a.bfloat16(), x0.bfloat16(), generator=torch.Generator().manual_seed(0))
        assert low.loss.dtype == torch.float32
        full = process.loss(
            lambda *_, a=answer: a.bfloat16().float(), x0.bfloat16().float(), generator=torch.Generator().manual_seed(0)
        )
        assert low.loss.equal(full.loss)


def test_step_numbers_kept():
    assert kept_steps(1000, "ddim50") == tuple(range(0, 1000, 20))
    assert kept_steps(1000, 4) == kept_steps(1000, "4") == (0, 333, 666, 999)
    assert kept_steps(10, "10") == tuple(range(10))
    assert kept_steps(11, "2,1,2") == (0, 3, 4, 8, 10)
    assert kept_steps(1000, 1) == (0,)
    assert kept_steps(100, "linspace4") == (25, 50, 74, 99)
    assert len(kept_steps(1000, "10,20")) == 30


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Gaussian(betas="quadratic"), "'quadratic': there are linear, cosine, sd"),
    (lambda: Gaussian(steps=0), "steps 0: a process has at least one"), (lambda: Gaussian(steps=10), "nothing is left"),
    (lambda: Gaussian(predicts="score"), "'score': noise, image, velocity"),
    (lambda: Gaussian(variance="x"), "variance 'x'"),
    (lambda: Gaussian(objective="l1"), "'l1'"), (lambda: Gaussian(time="c_noise"), "time 'c_noise'"),
    (lambda: Edm(sigma_min=90), "sigma_min < sigma_max"), (lambda: Edm(reduce="max"), "'max'"),
    (lambda: Flow(0.0), "shift above 0"), (lambda: Flow(predicts="noise"), "predicts velocity or image"),
])  # fmt: skip
def test_a_process_that_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_networks_that_do_not_go_with_the_process_are_refused():
    for process, network in ((Gaussian(), Toy(3)), (SMALL, Toy(6)), (Edm(), Toy(3)), (SMALL, Toy(3, "log_snr"))):
        with pytest.raises(ValueError, match=r"twice its input|and Toy reads"):
            process.check(network)
    Gaussian(variance="small", time="log_snr").check(Toy(3, "log_snr"))
    for network, y, message in ((Toy(6), [0], "twice its input"), (Toy(3), [0], "in training mode"),
                                (Toy(3).eval(), [5], "class 5 is out of range")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            sample(SMALL, network, torch.randn(1, 3, 8, 8), torch.tensor(y), sampler=DDIM(2))
    alone = Toy(3).eval()
    alone.has_null = False
    with pytest.raises(ValueError, match="guidance needs a null class, and Toy was trained without one"):
        sample(SMALL, alone, torch.randn(1, 3, 8, 8), torch.tensor([1]), sampler=DDIM(2), guidance=Guidance(2.0))
    with pytest.raises(ValueError, match="takes 6 channels for an image of 3"):
        Gaussian().loss(Toy(3), *batch())


@pytest.mark.parametrize("process", [*PROCESSES, Gaussian(scales=(0.25, 1)).respaced("10,20")])
def test_is_plain_values_and_back(process: Process):
    assert unplain(plain(process)) == process
    assert hash(unplain(plain(process))) == hash(process)


def test_dimr_is_told_its_log_snr():
    told = Gaussian(time="log_snr").told(torch.tensor([0, 499, 999]))
    torch.testing.assert_close(told, torch.tensor([-3.992, 0.0, 4.0]))
    assert [level.t for level in Gaussian(time="log_snr").levels(2)] == pytest.approx([4.0, -3.992, -4.0])


def test_times_of_a_flow():
    generator = torch.Generator().manual_seed(0)
    told = [Flow(**o).loss(lambda x, *_: x, torch.zeros(4000, 1, 1, 1), generator=generator).t / 1000
            for o in ({}, {"times": "logit_normal"}, {"shift": 3.0})]  # fmt: skip
    assert [round(float(t.mean()), 1) for t in told[:2]] == [0.5, 0.5]
    assert told[0].std() == pytest.approx(12**-0.5, rel=0.05)
    assert told[1].std() == pytest.approx(0.208, rel=0.05)  # of the sigmoid of a unit normal number
    assert told[2].mean() > 0.6
    assert [round(level.t) for level in Flow(3.0).levels(2)] == [1000, 750, 0]


def test_a_predicted_image_is_judged_by_its_velocity():
    process, (x0, noise, answer) = Flow(predicts="image"), torch.randn(3, 3, 3, 4, 4).unbind(0)
    t = torch.tensor([0.8, 0.05, 0.01])  # the last is below what an error is divided by
    found = process.loss(lambda *_: answer, x0, noise=noise, t=t)
    at = t.view(-1, 1, 1, 1)
    velocity = ((1 - at) * x0 + at * noise - answer) / at
    same = Flow().loss(lambda *_: velocity, x0, noise=noise, t=t)
    torch.testing.assert_close(found.loss[:2], same.loss[:2])
    torch.testing.assert_close(found.loss[2], ((x0 - answer)[2] / 0.05).square().mean())
    level = process.levels(10)[3]
    x = level.alpha * x0 + level.sigma * noise
    torch.testing.assert_close(process.denoised(answer, x, level), answer)
    torch.testing.assert_close(Flow().denoised((x - answer) / level.sigma, x, level), answer)


def test_edm_weighs_as_published():
    process, x0 = Edm(0.9, -0.6, 1.2), torch.randn(2, 3, 4, 4)
    given = {"noise": torch.randn_like(x0), "t": torch.tensor([-1.0, 2.0])}
    found, summed = (p.loss(lambda x, *_: x, x0, **given) for p in (process, Edm(0.9, -0.6, 1.2, reduce="sum")))
    sigma = torch.tensor([math.exp(-1.8), math.exp(1.8)])
    torch.testing.assert_close(found.t, sigma.log() / 4)
    torch.testing.assert_close(found.loss, found.error * (sigma**2 + 0.81) / (0.9 * sigma) ** 2)
    torch.testing.assert_close(summed.loss, 48 * found.loss)
    torch.testing.assert_close(Edm(0.9, time="step").told(sigma), 250 * sigma.log())
