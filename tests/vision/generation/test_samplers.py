"""Samplers where the answer is known: of normally distributed images, the exact network and the exact way are known."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from patchloom.vision.generation.dpm import DPMFast, DPMSolver
from patchloom.vision.generation.edm import Edm
from patchloom.vision.generation.flow import Flow
from patchloom.vision.generation.gaussian import Gaussian
from patchloom.vision.generation.guidance import Guidance
from patchloom.vision.generation.process import Level, Process, draw
from patchloom.vision.generation.samplers import (
    DDIM,
    SAMPLERS,
    Ancestral,
    Euler,
    Heun,
    default_sampler,
    reverse,
    sample,
)

MEAN, DEVIATION = 0.7, 0.4
GAUSSIAN, EDM, FLOW = Gaussian(variance="small"), Edm(0.5), Flow()


@dataclass
class Exact:
    """The best network for images that are normal with MEAN and DEVIATION; it counts its calls and rows."""

    process: Process
    rows: list[int] = field(default_factory=list)

    def level(self, t: float) -> Level:
        """What the network is told, in words."""
        if isinstance(self.process, Edm):
            return self.process.level(math.exp(4 * t))
        if isinstance(self.process, Flow):
            return Level(1 - t / 1000, t / 1000, t, t / 1000)
        a = self.process.tables().alphas_cumprod.log()
        low = min(int(t), len(a) - 2)
        return self.process.level(float((a[low] + (t - low) * (a[low + 1] - a[low])).exp()), t)

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        self.rows.append(len(x))
        at = self.level(float(t[0]))
        if isinstance(self.process, Edm):
            skip, out, inward = (float(w) for w in self.process.weights(torch.tensor(at.sigma, dtype=torch.float64)))
            x = x / inward
        total = (at.alpha * DEVIATION) ** 2 + at.sigma**2
        x0 = MEAN + at.alpha * DEVIATION**2 / total * (x - at.alpha * MEAN)
        if isinstance(self.process, Edm):
            return (x0 - skip * x) / out
        noise = (x - at.alpha * x0) / at.sigma
        return noise - x0 if isinstance(self.process, Flow) else noise


def exact_end(process: Process, noise: Tensor, steps: int | str) -> Tensor:
    """Where the deterministic way from there ends."""
    first, last = process.levels(steps)[0], process.levels(steps)[-1]
    spread = [math.hypot(level.alpha * DEVIATION, level.sigma) for level in (first, last)]
    x = process.start(noise, first)
    return last.alpha * MEAN + spread[1] / spread[0] * (x - first.alpha * MEAN)


NOISE = torch.randn(2, 1, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
WAYS = {  # sampler of n steps, process, the order of its error, the n where that shows
    "ddim": (lambda n: DDIM(f"uniform{n}"), GAUSSIAN, 1, 40),
    "euler-edm": (Euler, EDM, 1, 40),
    "euler-flow": (Euler, FLOW, 1, 40),
    "heun": (lambda n: Heun(f"uniform{n}"), GAUSSIAN, 2, 40),
    "heun-edm": (Heun, EDM, 2, 40),
    "heun-flow": (Heun, FLOW, 2, 40),
    "dpm++2": (lambda n: DPMSolver(f"uniform{n}", 2), GAUSSIAN, 2, 80),
    "dpm++3": (lambda n: DPMSolver(f"uniform{n}", 3), GAUSSIAN, 3, 80),
    "dpm++2-edm": (lambda n: DPMSolver(n, 2), EDM, 2, 40),
    "dpm-fast2": (lambda n: DPMFast(n, 2), EDM, 2, 40),
    "dpm-fast3": (lambda n: DPMFast(n, 3), EDM, 3, 40),
    "dpm-fast2-flow": (lambda n: DPMFast(n, 2), FLOW, 2, 80),
}


@pytest.mark.parametrize("way", WAYS)
def test_converges_to_the_exact_way_at_its_order(way):
    make, process, order, first = WAYS[way]
    errors = []
    for n in (first, 4 * first):
        sampler = make(n)
        network = Exact(process)
        found = sample(process, network, NOISE, sampler=sampler)
        errors.append(float((found - exact_end(process, NOISE, sampler.steps)).abs().max()))
        ends = process.levels(sampler.steps)[-1].sigma == 0
        assert network.rows == [2] * ((2 * n - ends) if isinstance(sampler, Heun) else n)
    assert errors[1] < 0.02
    assert errors[0] / errors[1] > 4**order * 0.6, errors  # a quarter of the step errs 4^order less


def test_the_sampler_of_dimr_ends_at_the_first_step():
    """250 calls over times from 1 to 1/1000; what is left is the noise of the first step."""
    process = Gaussian(betas="sd", variance="small")
    network, sampler = Exact(process), DPMFast("uniform250")
    found = sample(process, network, NOISE, sampler=sampler)
    assert network.rows == [2] * 250
    assert sampler.orders(process.levels(sampler.steps)) == [3] * 83 + [1]
    assert process.levels(sampler.steps)[-1].alpha == pytest.approx((1 - 0.00085) ** 0.5)
    torch.testing.assert_close(found, exact_end(process, NOISE, "uniform250"), atol=5e-3, rtol=0)


@pytest.mark.parametrize("sampler", [Ancestral(200), DDIM(200, eta=1.0), DDIM(200, eta=0.5), Ancestral("150,50")])
def test_drawn_images_have_the_mean_and_deviation_of_the_true_ones(sampler):
    process = Gaussian(variance="small")
    noise = draw((64, 1, 16, 16), torch.Generator().manual_seed(0))
    network = Exact(process)
    found = sample(process, network, noise, sampler=sampler, generator=torch.Generator().manual_seed(1))
    assert len(network.rows) == 200
    assert abs(found.mean() - MEAN) < 0.02
    assert abs(found.std() - DEVIATION) < 0.02


def test_churn_keeps_the_distribution_too():
    noise = draw((64, 1, 16, 16), torch.Generator().manual_seed(0))
    sampler = Heun(40, churn=10, churn_min=0.05, churn_max=10, churn_noise=1.003)
    options = {"sampler": sampler, "generator": torch.Generator().manual_seed(1)}
    found = sample(EDM, Exact(EDM), noise, **options)
    assert (found - sample(EDM, Exact(EDM), noise, sampler=Heun(40))).abs().mean() > 0.05
    assert abs(found.mean() - MEAN) < 0.02
    assert abs(found.std() - DEVIATION) < 0.02


def test_backwards_and_forwards_again():
    x0 = MEAN + DEVIATION * torch.randn(2, 1, 4, 4)
    network = Exact(GAUSSIAN)
    noise = reverse(GAUSSIAN, network, x0, steps=500)
    assert network.rows == [2] * 500
    torch.testing.assert_close(sample(GAUSSIAN, Exact(GAUSSIAN), noise, sampler=DDIM(500)), x0, atol=0.02, rtol=0)
    torch.testing.assert_close(noise, (x0 - MEAN) / DEVIATION, atol=0.05, rtol=0)


def conditional(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return torch.sin(x) * y.view(-1, 1, 1, 1)


@pytest.mark.parametrize(("sampler", "process", "calls"), [
    (Ancestral(10), GAUSSIAN, 10), (DDIM("ddim50"), GAUSSIAN, 50), (DDIM(50, 1.0), GAUSSIAN, 50), (Euler(7), FLOW, 7),
    (DPMSolver(20), GAUSSIAN, 20), (DPMSolver(1), FLOW, 1), (DPMSolver(7, 3), FLOW, 7), (DPMFast(20), GAUSSIAN, 20),
    (DPMFast("uniform25"), GAUSSIAN, 25), (DPMFast(9), EDM, 9), (DPMFast(1), EDM, 1), (DPMFast(2), FLOW, 2),
    (Heun(9), EDM, 17), (Heun(1), EDM, 1), (DDIM(1), GAUSSIAN, 1),
])  # fmt: skip
def test_costs_its_calls_over_a_double_batch_and_tells_every_step(sampler, process, calls):
    rows, told = [], []

    def counted(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        rows.append(len(x))
        return conditional(x, t, y)

    y = torch.tensor([1.0, 2.0, 0.5])
    noise = torch.randn(3, 1, 5, 3)
    found = sample(
        process, counted, noise, y, sampler=sampler, guidance=Guidance(3.0), null=0 * y, callback=told.append
    )
    assert rows == [6] * calls
    assert found.isfinite().all()
    assert found.shape == noise.shape
    assert told[-1].step == told[-1].of == len(process.levels(sampler.steps)) - 1
    assert told[-1].level == process.levels(sampler.steps)[-1]
    rows.clear()
    sample(process, counted, noise, y, sampler=sampler)
    assert rows == [3] * calls


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_every_image_by_its_own_generator_whatever_the_batch(name):
    sampler = SAMPLERS[name](20) if name == "ddpm" else DDIM(20, 1.0)
    y = torch.tensor([1.0, 2.0, 0.5])

    def run(rows: list[int]) -> Tensor:
        generators = [torch.Generator().manual_seed(5 + i) for i in rows]
        noise = draw((len(rows), 2, 3, 5), generators)
        return sample(GAUSSIAN, conditional, noise, y[rows], sampler=sampler, generator=generators)

    together = run([0, 1, 2])
    assert together.equal(run([0, 1, 2]))
    torch.testing.assert_close(together, torch.cat([run([0]), run([2, 1]).flip(0)])[[0, 1, 2]], atol=1e-6, rtol=1e-5)
    assert not together[0].equal(together[1])
    with pytest.raises(ValueError, match="2 generators for 3 samples"):
        draw((3, 1), [torch.Generator()] * 2)


def test_the_published_samplers():
    assert default_sampler(Gaussian()) == Ancestral(250)
    assert default_sampler(Gaussian(100)) == Ancestral(100)
    assert default_sampler(Gaussian(time="log_snr")) == DPMFast("uniform250")
    assert default_sampler(Edm()) == Heun(18)
    assert default_sampler(Flow()) == Euler(50)


@pytest.mark.parametrize(("process", "sampler", "message"), [
    (GAUSSIAN, DDIM(1001), "1001.*more than the schedule has, which is 1000"),
    (Gaussian(100), Ancestral(250), "250.*100 steps"), (GAUSSIAN, DPMFast("uniform1000"), "1 to 999"),
    (GAUSSIAN, DDIM("ddim300"), "no whole stride"), (GAUSSIAN, DDIM("600,100"), "section 1 has 500"),
    (GAUSSIAN, DDIM("linspace1000"), "at most 999"), (GAUSSIAN, DDIM("fast"), "'fast': a number"),
    (GAUSSIAN, DDIM(0), "0: a number"), (EDM, Ancestral(10), "Ancestral.*discrete steps, which Edm has not"),
    (FLOW, DDIM(10, eta=0.5), "DDIM.*steps, which Flow has not"), (EDM, Heun("ddim50"), "whole number of steps"),
    (EDM, Euler(0), "at least 1"), (GAUSSIAN, Heun(10, churn=1), "churn 1: Gaussian"),
    (GAUSSIAN, DDIM("uniform50", eta=1.0), "uniform50.*wanted"),
])  # fmt: skip
def test_what_cannot_be_is_said_before_the_network_is_asked(process, sampler, message):
    with pytest.raises(ValueError, match=message):
        sample(process, lambda *_: pytest.fail("asked"), torch.randn(1, 1, 2, 2), sampler=sampler)


def test_wrong_arguments():
    for wrong in (lambda: DDIM(eta=2), lambda: DPMSolver(order=4), lambda: DPMFast(order=0)):
        with pytest.raises(ValueError, match=r"eta 2|order 4|order 0"):
            wrong()
    with pytest.raises(ValueError, match="clip 0"):
        sample(FLOW, conditional, torch.randn(1, 1, 2, 2), sampler=Euler(1), clip=0)
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        sample(FLOW, conditional, torch.randn(2, 1, 2, 2), torch.ones(3), sampler=Euler(1))
    with pytest.raises(ValueError, match="reverse goes by discrete steps"):
        reverse(FLOW, conditional, torch.randn(1, 1, 2, 2))


def test_clips_the_images_that_it_goes_by():
    seen = []
    found = sample(EDM, lambda x, t, y: 9 * x, torch.randn(2, 3, 4, 4), sampler=Heun(5), clip=1.0,
                   callback=lambda p: seen.append(p.x0.abs().max()))  # fmt: skip
    assert max(seen) == 1
    assert found.abs().max() <= 1


def test_states_in_half_precision_come_back_in_it():
    for process, sampler in ((GAUSSIAN, Ancestral(5)), (EDM, Heun(3)), (FLOW, Euler(3))):
        kinds = set()

        def network(x: Tensor, t: Tensor, y: None, kinds: set[torch.dtype] = kinds) -> Tensor:
            kinds.add(x.dtype)
            return x

        noise = torch.randn(1, 1, 3, 3, dtype=torch.bfloat16)
        assert sample(process, network, noise, sampler=sampler).dtype == torch.bfloat16
        assert kinds == {torch.bfloat16}


@pytest.mark.gpu
@pytest.mark.parametrize(("process", "sampler"), [
    (GAUSSIAN, Ancestral(20)), (GAUSSIAN, DDIM(20, 1.0)), (GAUSSIAN, DPMSolver("uniform20")), (EDM, Heun(9, churn=3)),
    (FLOW, Euler(9)), (FLOW, DPMFast(9)),
])  # fmt: skip
def test_the_same_on_a_gpu(process, sampler):
    found = []
    for device in ("cpu", "cuda"):
        generators = [torch.Generator().manual_seed(i) for i in range(3)]
        noise = draw((3, 2, 5, 4), generators, device)
        y = torch.tensor([1.0, 0.5, 0.2], device=device)
        options = {"sampler": sampler, "guidance": Guidance(2.0), "null": 0 * y, "generator": generators}
        found.append(sample(process, conditional, noise, y, **options).cpu())
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
    x0 = torch.randn(4, 2, 5, 4, device="cuda")
    learned = Gaussian() if process is GAUSSIAN else process
    answer = torch.randn(4, 2 * learned.outputs, 5, 4, device="cuda")
    losses = [learned.loss(lambda x, *_: answer.to(x.device), x, generator=torch.Generator().manual_seed(0)).loss.cpu()
              for x in (x0, x0.cpu())]  # fmt: skip
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-4)
