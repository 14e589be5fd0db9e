"""Guidance in all its forms, and inpainting."""

import math

import pytest
import torch
from torch import Tensor

from patchloom.vision.generation.dpm import DPMSolver
from patchloom.vision.generation.edm import Edm
from patchloom.vision.generation.flow import Flow
from patchloom.vision.generation.gaussian import Gaussian
from patchloom.vision.generation.guidance import Guidance, combined, guided
from patchloom.vision.generation.inpainting import Inpaint
from patchloom.vision.generation.process import Level, draw
from patchloom.vision.generation.samplers import DDIM, Ancestral, Euler, Heun, sample

HALF = Level(math.sqrt(0.5), math.sqrt(0.5), 500.0, 0.5)
SMALL = Gaussian(variance="small")


def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Twice the channels, as with a learned variance; the condition goes into all."""
    return torch.cat([x, x + 1], 1) * y.view(-1, 1, 1, 1)


def answers(guidance: Guidance | None, level: Level = HALF, channels: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """(guided, conditional, null)."""
    x, y = torch.randn(2, channels, 3, 3), torch.tensor([2.0, 3.0])
    null = torch.full_like(y, 0.5)
    found = guided(network, Gaussian(), y, guidance, null)(x, level)
    return found, network(x, x, y), network(x, x, null)


def test_all_channels_but_those_of_the_variance():
    found, conditional, null = answers(Guidance(4.0))
    torch.testing.assert_close(found[:, :4], (null + 4 * (conditional - null))[:, :4])
    assert found[:, 4:].equal(conditional[:, 4:])
    assert answers(None)[0].shape == found.shape


def test_three_channels_as_dit_has_it():
    found, conditional, null = answers(Guidance(1.5, channels=3))
    torch.testing.assert_close(found[:, :3], (null + 1.5 * (conditional - null))[:, :3])
    assert found[:, 3:].equal(conditional[:, 3:])
    with pytest.raises(ValueError, match="guidance of 3 channels: the image has 1"):
        answers(Guidance(1.5, channels=3), channels=1)


def test_power_cosine_as_dimr_has_it():
    guidance = Guidance(3.0, power=2.0)
    for n in (1000, 600, 1):
        level = Level(1.0, 1.0, 0.0, n / 1000)
        wanted = (3.0 - 1) * (1 - math.cos((1 - n / 1000) ** 2.0 * math.pi)) / 2 + 1
        assert guidance.weight(level) == pytest.approx(wanted)
    assert guidance.weight(Level(1.0, 1.0, 0.0, 1.0)) == 1
    found, conditional, null = answers(guidance)
    torch.testing.assert_close(found[:, :4], combined(conditional, null, guidance.weight(HALF), 4)[:, :4])


def test_an_interval_costs_a_double_batch_inside_only():
    rows = []

    def counted(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        rows.append(len(x))
        return x * y.view(-1, 1, 1, 1)

    y = torch.ones(2)
    for guidance, doubled in ((Guidance(3.0, interval=(0.2, 5.0)), None), (Guidance(1.0), 0), (Guidance(3.0), 10)):
        rows.clear()
        sample(Edm(), counted, torch.randn(2, 1, 3, 3), y, sampler=Euler(10), guidance=guidance, null=0 * y)
        inside = sum(0.2 <= level.sigma <= 5 for level in Edm().levels(10)) if doubled is None else doubled
        assert rows.count(4) == inside
        assert len(rows) == 10
    assert Guidance(3.0, interval=(0, 80)).weight(Flow().levels(1)[0]) == 1  # noise alone: sigma / alpha is infinite


def test_guidance_without_a_condition_of_nothing_is_refused():
    x, y = torch.randn(1, 1, 3, 3), torch.ones(1)
    with pytest.raises(ValueError, match="guidance needs the condition of nothing"):
        sample(SMALL, network, x, y, sampler=DDIM(2), guidance=Guidance(2.0))
    for wrong in (
        {"scale": math.nan},
        {"scale": 2, "channels": 0},
        {"scale": 2, "power": 0},
        {"scale": 2, "interval": (2, 1)},
    ):
        with pytest.raises(ValueError, match="guidance"):
            Guidance(**wrong)
    assert hash(Guidance(2, interval=[0.1, 2]))  # as YAML has it


def smooth(x: Tensor, t: Tensor, y: None) -> Tensor:
    return torch.sin(x) * torch.cos(t / 700).view(-1, 1, 1, 1)


KNOWN = torch.rand(1, 2, 6, 4) * 2 - 1
KEEP = torch.zeros(1, 1, 6, 4, dtype=torch.bool)
KEEP[..., :3, :] = True


@pytest.mark.parametrize(("process", "sampler"), [
    (SMALL, Ancestral(10)), (SMALL, DDIM("ddim50")), (SMALL, DPMSolver("uniform12")), (Edm(), Heun(6)),
    (Flow(), Euler(6)),
])  # fmt: skip
def test_what_is_known_is_exact_in_the_end_and_right_in_noise_before(process, sampler):
    seen = []
    noise = draw((200, 2, 6, 4), torch.Generator().manual_seed(0))
    found = sample(process, smooth, noise, sampler=sampler, inpaint=Inpaint(KNOWN, KEEP), callback=seen.append,
                   generator=torch.Generator().manual_seed(1))  # fmt: skip
    assert found[..., :3, :].equal(KNOWN[..., :3, :].expand(200, -1, -1, -1))
    middle = next(p for p in seen if p.level.fraction < 0.6)
    x = middle.x[..., :3, :].float()
    torch.testing.assert_close(x.mean(0), middle.level.alpha * KNOWN[0, :, :3], atol=0.3 * middle.level.sigma, rtol=0)
    assert float(x.std(0).mean()) == pytest.approx(middle.level.sigma, rel=0.05)


def test_the_unknown_follows_the_known_through_the_network():
    def looks(x: Tensor, t: Tensor, y: None) -> Tensor:
        return smooth(x + x.mean((2, 3), keepdim=True), t, y)

    noise = torch.randn(1, 2, 6, 4)
    ends = [sample(SMALL, looks, noise, sampler=DDIM(10), inpaint=Inpaint(KNOWN + shift, KEEP),
                   generator=torch.Generator().manual_seed(0))[..., 3:, :] for shift in (0, 1)]  # fmt: skip
    assert (ends[0] - ends[1]).abs().mean() > 1e-2


@pytest.mark.parametrize(("process", "sampler", "calls"), [
    (SMALL, Ancestral(5), 15), (SMALL, DDIM(5), 15), (Edm(), Heun(3), 15), (Flow(), Euler(4), 12),
])  # fmt: skip
def test_repeats_cost_their_calls_and_keep_the_level(process, sampler, calls):
    count, seen = [], []

    def counted(x: Tensor, t: Tensor, y: None) -> Tensor:
        count.append(float(t[0]))
        return smooth(x, t, y)

    found = sample(process, counted, torch.randn(1, 2, 6, 4), sampler=sampler, inpaint=Inpaint(KNOWN, KEEP, repeats=3),
                   callback=seen.append)  # fmt: skip
    assert len(count) == calls
    assert len(seen) == len(process.levels(sampler.steps)) - 1
    assert found[..., :3, :].equal(KNOWN[..., :3, :])
    assert found.isfinite().all()


def test_going_back_has_the_noise_of_the_level():
    levels = SMALL.levels(10)
    x0, paint = torch.ones(1, 1, 200, 200), Inpaint(KNOWN, KEEP)

    class Fresh:
        def fresh(self, x: Tensor) -> Tensor:
            return torch.randn_like(x)

    there, here = levels[4], levels[5]
    x = here.alpha * x0 + here.sigma * torch.randn_like(x0)
    back = paint.back(x, here, there, Fresh())
    assert float(back.mean()) == pytest.approx(there.alpha, abs=0.02)
    assert float(back.std()) == pytest.approx(there.sigma, rel=0.02)


def test_inpainting_that_does_not_fit_is_refused():
    noise = torch.randn(2, 2, 6, 4)

    def run(known: Tensor = KNOWN, keep: Tensor = KEEP, repeats: int = 1) -> None:
        sample(SMALL, smooth, noise, sampler=DPMSolver(3), inpaint=Inpaint(known, keep, repeats))

    for wrong, message in (({"known": KNOWN[..., 1:]}, "known of shape"), ({"keep": KEEP[:, 0]}, "keep of shape"),
                           ({"keep": KEEP.float()}, "bool is wanted"), ({"repeats": 0}, "repeats 0"),
                           ({"repeats": 2}, "goes by steps before"),
                           ({"known": KNOWN.expand(3, -1, -1, -1)}, "2 or 1")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            run(**wrong)
