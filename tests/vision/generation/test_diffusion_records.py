"""The mathematics of diffusion against the authors' own: tables, statistics, losses, steps and whole runs, at 1e-6."""

import pytest
import torch
from golden import golden
from torch import Tensor

from patchloom.vision.generation.edm import Edm
from patchloom.vision.generation.gaussian import Gaussian, coarser, weighed
from patchloom.vision.generation.process import Masked, each_mean
from patchloom.vision.generation.samplers import Heun, sample

TOLERANCE = 1e-6
PROCESSES = {
    "dit/diffusion_1000": Gaussian(),
    "dit/diffusion_250": Gaussian().respaced("250"),
    "dit/diffusion_xstart_fixed_large": Gaussian(predicts="image", variance="large").respaced("ddim50"),
}


def at_step(process: Gaussian, inputs: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """Everything that a record has of one step."""
    x0, noise, fresh, output = (inputs[k] for k in ("x_start", "noise", "sample_noise", "model_output"))
    if process.variance != "learned":
        output = output[:, : x0.shape[1]]
    i = torch.tensor([index])
    x = process.noised(x0, i, noise)
    step, losses = process.step(output, x, i), process.loss(lambda x, t, y: output, x0, noise=noise, t=i)
    found = {
        "q_sample": x, "posterior_mean": process.posterior(x0, x, i)[0], "p_mean": step.mean,
        "p_log_variance": step.log_variance, "pred_xstart": step.x0,
        "p_mean_clipped": process.step(output, x, i, clip=1.0).mean, "vb_bits": process.bound(output, x0, x, i),
        "p_sample": process.ancestral(output, x, i, fresh)[0], "ddim_eta0": process.ddim(output, x, i)[0],
        "ddim_eta1": process.ddim(output, x, i, 1.0, fresh)[0], "ddim_reverse": process.ddim_reverse(output, x, i)[0],
        "loss_mse": losses.error, "loss_loss": losses.loss,
    }  # fmt: skip
    if losses.bound is not None:
        found["loss_vb"] = losses.bound
    return {f"{name}_t{index}": value for name, value in found.items()}


@pytest.mark.parametrize("path", PROCESSES)
def test_steps_and_losses_are_those_of_dit(path):
    record, process = golden.load(path), PROCESSES[path]
    inputs, of = record.input(), process.tables()
    indices = record.meta["config"]["indices"]
    found = {
        "betas": of.betas, "alphas_cumprod": of.alphas_cumprod, "posterior_variance": of.posterior_variance,
        "posterior_log_variance_clipped": of.posterior_log_variance_clipped,
        "timestep_map": process.told(torch.arange(process.length)),
        "model_timesteps": process.told(torch.tensor(indices)), "prior_bits": process.prior(inputs["x_start"]),
    }  # fmt: skip
    for index in indices:
        found |= at_step(process, inputs, index)
    assert set(found) == set(record.meta["outputs"])
    for name, value in found.items():
        record.compare(name, value, TOLERANCE)


def toy(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
    """The network of the EDM record."""
    assert x.dtype == torch.float32
    return torch.tanh(x) * torch.cos(t).view(-1, 1, 1, 1) + 0.1 * y.mean((1, 2, 3)).view(-1, 1, 1, 1)


def test_edm_is_that_of_microdit():
    record = golden.load("micro_diffusion/edm")
    given, process = record.input(), Edm(0.9, -0.6, 1.2)
    y, kept = given["y"], given["mask"] == 0
    found = {}
    for sigma, x in ((0.5, given["x"]), (80, 80 * given["x"])):
        level = process.level(sigma)
        seen = process.scaled(x, level)
        found[f"denoised_sigma{sigma}"] = process.denoised(toy(seen, torch.full((2,), level.t), y), x, level)
    drawn = {"noise": given["noise"], "t": given["rnd"]}
    found["loss"] = process.loss(toy, given["x"], y, **drawn).loss.mean()
    found["masked_loss"] = process.loss(lambda *a: Masked(toy(*a), kept), given["x"], y, **drawn).loss.mean()
    for steps in (5, 18):
        found[f"sample_{steps}_steps"] = sample(process, toy, given["start"], y, sampler=Heun(steps))
    assert set(found) == set(record.meta["outputs"])
    for name, value in found.items():
        record.compare(name, value, TOLERANCE)


def test_targets_of_several_resolutions_are_those_of_dimr():
    record = golden.load("dimr/targets")
    given = record.input()
    found = {f"target{size}": coarser(given["eps"], (size, size)) for size in (64, 32, 16)}
    target = {32: coarser(found["target64"], (32, 32)), 64: found["target64"]}
    errors = [each_mean((target[s] - given[f"p{s}"]) ** 2) for s in (32, 64)]
    found["loss_2r"] = weighed(errors, tuple(record.meta["config"]["loss_coeffs_2r"]))
    assert set(found) == set(record.meta["outputs"])
    for name, value in found.items():
        record.compare(name, value, TOLERANCE)
    process = Gaussian(
        betas="sd", variance="small", time="log_snr", scales=(0.25, 1.0)
    )  # the same by the way of training
    losses = process.loss(lambda *_: [given["p32"], given["p64"]], torch.zeros_like(given["eps"]), noise=given["eps"])
    record.compare("loss_2r", losses.loss, TOLERANCE)
