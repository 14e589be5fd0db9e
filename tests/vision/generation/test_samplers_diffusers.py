"""Schedules and samplers against diffusers' own schedulers, where both define the same numbers."""

import pytest
import torch
from torch import Tensor

from patchloom.vision.generation.dpm import DPMFast, DPMSolver
from patchloom.vision.generation.edm import Edm
from patchloom.vision.generation.flow import Flow
from patchloom.vision.generation.gaussian import Gaussian
from patchloom.vision.generation.samplers import DDIM, Euler, sample

schedulers = pytest.importorskip("diffusers.schedulers")
NOISE = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(1))
BETAS = {"linear": ("linear", 1e-4, 0.02), "sd": ("scaled_linear", 0.00085, 0.012)}


def network(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    """Something smooth that depends on everything."""
    return torch.sin(1.3 * x) + 0.2 * x.roll(1, -1) * torch.cos(t / 300).view(-1, 1, 1, 1)


def vp(kind: str, betas: str = "linear", **options: object):
    name, first, last = BETAS[betas]
    return getattr(schedulers, kind)(beta_schedule=name, beta_start=first, beta_end=last, **options)


def run(scheduler, steps: int, x: Tensor = NOISE) -> Tensor:
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(seen, t.float().expand(len(x))), t, x).prev_sample
    return x


def close(found: Tensor, wanted: Tensor, tolerance: float = 2e-5) -> None:
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("name", ["linear", "sd", "cosine"])
def test_betas(name):
    ours = Gaussian(betas=name).tables().betas.float()
    theirs = (
        schedulers.DDPMScheduler(beta_schedule="squaredcos_cap_v2") if name == "cosine" else vp("DDPMScheduler", name)
    )
    torch.testing.assert_close(ours, theirs.betas, rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("predicts", "kind"), [("noise", "epsilon"), ("image", "sample"), ("velocity", "v_prediction")]
)
def test_ddim_of_every_prediction(predicts, kind):
    theirs = vp("DDIMScheduler", prediction_type=kind, clip_sample=False, timestep_spacing="leading")
    close(sample(Gaussian(predicts=predicts), network, NOISE, sampler=DDIM("ddim50")), run(theirs, 50))


@pytest.mark.parametrize("betas", ["linear", "sd"])
@pytest.mark.parametrize(("variance", "kind"), [
    ("learned", "learned_range"), ("large", "fixed_large"), ("small", "fixed_small"),
])  # fmt: skip
def test_a_step_of_ddpm_with_every_variance(betas, variance, kind):
    theirs = vp("DDPMScheduler", betas, variance_type=kind, clip_sample=True)
    process, output = Gaussian(betas=betas, variance=variance), torch.randn(2, 6 if variance == "learned" else 3, 5, 4)
    for t in (999, 500, 1, 0):
        wanted = theirs.step(output, t, NOISE, generator=torch.Generator().manual_seed(t)).prev_sample
        fresh = torch.randn(NOISE.shape, generator=torch.Generator().manual_seed(t))
        found, x0 = process.ancestral(output, NOISE, torch.tensor([t, t]), fresh, clip=1.0)
        close(found, wanted, 1e-4)  # theirs computes its tables in float32
        assert x0.abs().max() <= 1


def test_the_velocity_that_is_learned():
    process, theirs = Gaussian(predicts="velocity", variance="small"), vp("DDPMScheduler")
    x0, noise, t = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.tensor([3, 700])
    close(process.noised(x0, t, noise), theirs.add_noise(x0, noise, t))
    close(process.velocity(x0, t, noise), theirs.get_velocity(x0, noise, t))
    losses = process.loss(lambda *_: theirs.get_velocity(x0, noise, t), x0, noise=noise, t=t)
    assert losses.loss.max() < 1e-10


@pytest.mark.parametrize("betas", ["linear", "sd"])
@pytest.mark.parametrize(("order", "steps"), [(1, 20), (2, 20), (3, 20), (2, 8), (3, 8), (3, 3)])
def test_dpm_solver_multistep(betas, order, steps):
    theirs = vp("DPMSolverMultistepScheduler", betas, solver_order=order, final_sigmas_type="zero")
    ours = sample(Gaussian(betas=betas), network, NOISE, sampler=DPMSolver(f"linspace{steps}", order))
    close(ours, run(theirs, steps), 1e-4)  # theirs keeps its noise levels in float32


@pytest.mark.parametrize("steps", [20, 9])
def test_dpm_solver_single_step(steps):
    """Of second order: in the third, diffusers computes the middle of a group by the rule of the second."""
    theirs = vp("DPMSolverSinglestepScheduler", solver_order=2, final_sigmas_type="zero", lower_order_final=True)
    ours = DPMFast(f"linspace{steps}", 2)
    theirs.set_timesteps(steps)
    theirs.order_list = [k + 1 for n in ours.orders(Gaussian().levels(ours.steps)) for k in range(n)]
    theirs.set_timesteps = lambda _: None
    close(sample(Gaussian(), network, NOISE, sampler=ours), run(theirs, steps), 1e-4)


def test_euler_on_a_flow():
    for shift in (1.0, 3.0):
        theirs = schedulers.FlowMatchEulerDiscreteScheduler(shift=shift)
        theirs.set_timesteps(sigmas=[1 - i / 25 for i in range(25)])
        x = NOISE
        for t in theirs.timesteps:
            x = theirs.step(network(x, t.expand(len(x))), t, x).prev_sample
        close(sample(Flow(shift), network, NOISE, sampler=Euler(25)), x)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_edm_preconditioning_by_two_schedulers(order):
    options = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0}
    theirs = schedulers.EDMDPMSolverMultistepScheduler(**options, solver_order=order, final_sigmas_type="zero")
    ours = sample(Edm(), network, NOISE, sampler=DPMSolver(18, order))
    close(ours, run(theirs, 18, NOISE * 80.0), 1e-4)
    if order == 1:
        theirs = schedulers.EDMEulerScheduler(**options)
        close(sample(Edm(), network, NOISE, sampler=Euler(18)), run(theirs, 18, NOISE * 80.0), 1e-4)
