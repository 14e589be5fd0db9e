import math

import pytest
import timm
import torch
from classify_parts import Noisy
from torch import nn

from patchloom.train.ema import Average, Ema
from patchloom.train.optim import Constant, Cosine, Poly, Steps, build_optimizer, layers, parameter_groups


def rates(model, decay):
    """name -> (lr_scale, weight decay set to 0)"""
    groups, names = parameter_groups(model, decay), {id(p): n for n, p in model.named_parameters()}
    return {names[id(p)]: (g["lr_scale"], g.get("weight_decay") == 0) for g in groups for p in g["params"]}


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "convnext_atto",
        "swin_tiny_patch4_window7_224",
        "deit_tiny_distilled_patch16_224",
        "regnety_002",
        "resnet18",
    ],
)
def test_groups_are_timms(name):
    from timm.optim import param_groups_layer_decay

    with torch.device("meta"):
        model = timm.create_model(name)
    names = {id(p): n for n, p in model.named_parameters()}
    theirs = param_groups_layer_decay(
        model, 0.05, model.no_weight_decay() if hasattr(model, "no_weight_decay") else (), layer_decay=0.7
    )
    expected = {names[id(p)]: (g["lr_scale"], g["weight_decay"] == 0) for g in theirs for p in g["params"]}
    assert rates(model, 0.7) == expected


def test_beits_numbers():
    """decay^(L + 1 - i): the embedding i = 0, block j i = j + 1, the head and last norm 1 (microsoft/unilm,
    beit/optim_factory.py)."""
    with torch.device("meta"):
        scale = rates(timm.create_model("vit_base_patch16_224"), 0.65)
    assert scale["patch_embed.proj.weight"][0] == pytest.approx(0.65**13)
    assert [scale[f"blocks.{j}.mlp.fc1.weight"][0] for j in range(12)] == pytest.approx(
        [0.65 ** (12 - j) for j in range(12)]
    )
    assert scale["head.weight"] == (1.0, False)
    assert scale["head.bias"] == (1.0, True)
    assert scale["pos_embed"][1]
    assert scale["cls_token"][1]


class Depth27(nn.Module):
    """ConvNeXt's own grouping for its 3, 3, 27, 3 models, as a matcher in timm's form."""

    def __init__(self):
        super().__init__()

        def blocks(n):
            return nn.ModuleList(nn.Linear(2, 2) for _ in range(n))

        self.downsample_layers, self.stages = blocks(4), nn.ModuleList(blocks(n) for n in (3, 3, 27, 3))
        self.norm, self.head = nn.LayerNorm(2), nn.Linear(2, 2)

    def group_matcher(self, coarse=False):
        third = [(rf"stages\.2\.({'|'.join(str(b) for b in range(3 * k, 3 * k + 3))})\.()", k) for k in range(9)]
        return {
            "stem": r"downsample_layers\.0",
            "first": r"stages\.0",
            "second": r"downsample_layers\.1|stages\.1",
            "third": [
                (r"downsample_layers\.2", (-1,)),
                *((p.replace("(", "(?:", 1).replace("()", ""), (k,)) for p, k in third),
            ],
            "fourth": r"downsample_layers\.3|stages\.3",
        }


def test_convnexts_twelve_groups():
    """shared/systems/convnext.md: rate of group g is decay^(13 - g), block b of the third stage in group 3 + b // 3
    from its down-sampling on."""
    layer = layers(Depth27())
    assert [
        layer[f"{n}.weight"]
        for n in ("downsample_layers.0", "stages.0.2", "downsample_layers.1", "stages.1.0", "downsample_layers.2")
    ] == [0, 1, 2, 2, 3]
    assert [layer[f"stages.2.{b}.weight"] for b in range(27)] == [4 + b // 3 for b in range(27)]
    assert layer["head.weight"] == layer["norm.weight"] == max(layer.values())
    scale = rates(Depth27(), 0.8)
    assert scale["head.weight"][0] == 1.0
    assert scale["stages.3.0.weight"][0] == pytest.approx(0.8)


def test_every_parameter_once_and_frozen_ones_left_out():
    model = Noisy()
    model.stem[0].weight.requires_grad_(False)
    scale = rates(model, 0.5)
    assert set(scale) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert scale["head.weight"] == (1.0, False)
    assert scale["head.bias"] == (1.0, True)
    assert scale["stem.0.bias"] == (0.5, True)
    assert rates(Noisy(), None)["stem.0.weight"] == (1.0, True)  # a pattern of no_weight_decay()
    with pytest.raises(ValueError, match="all are frozen"):
        parameter_groups(model.requires_grad_(False))


def test_the_optimiser_gets_its_own_rate_and_decay():
    optimizer = build_optimizer(lambda g: torch.optim.AdamW(g, lr=0.1, weight_decay=0.3), Noisy(), 0.5)
    seen = {(round(g["lr"], 6), g["weight_decay"]) for g in optimizer.param_groups}
    assert seen == {(0.1, 0.3), (0.1, 0.0), (0.05, 0.0)}


def test_layer_decay_needs_a_matcher_and_a_sensible_number():
    with pytest.raises(ValueError, match="Linear has no group_matcher"):
        parameter_groups(nn.Linear(2, 2), 0.7)
    with pytest.raises(ValueError, match=r"layer_decay=1.5: give a number in \(0, 1\]"):
        parameter_groups(Noisy(), 1.5)


def run(schedule, steps, epoch_steps=10.0, scale=1.0, lr=0.1):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    optimizer.param_groups[0]["lr"] *= scale
    scheduler, seen = schedule.build(optimizer, steps, epoch_steps), []
    for _ in range(int(steps)):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_cosine_is_its_formula():
    seen = run(Cosine(min_lr=0.01, warmup_epochs=2, warmup_lr=0.001, cooldown_epochs=1), 70)
    assert seen[:20] == pytest.approx([0.001 + (0.1 - 0.001) * i / 20 for i in range(20)])
    assert seen[20:60] == pytest.approx([0.01 + 0.09 * (1 + math.cos(math.pi * i / 40)) / 2 for i in range(40)])
    assert seen[60:] == pytest.approx([0.01] * 10)
    assert run(Cosine(min_lr=0.01, warmup_steps=5), 20, scale=0.5) == pytest.approx(
        [0.5 * x for x in run(Cosine(min_lr=0.01, warmup_steps=5), 20)]
    )


def test_constant_and_what_does_not_fit():
    assert run(Constant(warmup_steps=2, warmup_lr=0.0), 4) == pytest.approx([0.0, 0.05, 0.1, 0.1])
    with pytest.raises(ValueError, match="exclude each other"):
        Cosine(warmup_epochs=1, warmup_steps=3)
    with pytest.raises(ValueError, match="needs the end of the run"):
        Cosine().build(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1), math.inf, 10)


def test_steps_fall_at_shares_of_the_whole_run():
    seen = run(Steps(at=(0.5, 0.75), factor=0.1, warmup_steps=4, warmup_lr=0.0), 20)
    assert seen == pytest.approx([0.025 * i for i in range(4)] + [0.1] * 6 + [0.01] * 5 + [0.001] * 5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        Steps(at=(27, 33))
    with pytest.raises(ValueError, match="schedule Steps needs the end of the run"):
        Steps().build(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1), math.inf, 10)


def test_poly_is_its_formula():
    assert run(Poly(0.9, min_lr=0.01), 10) == pytest.approx([0.01 + 0.09 * (1 - i / 10) ** 0.9 for i in range(10)])
    assert run(Poly(1.0, warmup_steps=2, warmup_lr=0.0), 6) == pytest.approx([0, 0.05, 0.1, 0.075, 0.05, 0.025])
    with pytest.raises(ValueError, match="power=0"):
        Poly(0)


def test_a_trial_shorter_than_its_warm_up(caplog):
    assert run(Cosine(min_lr=0.0, warmup_epochs=2, warmup_lr=0.0), 4) == pytest.approx([0.0, 0.05, 0.1, 0.05])
    assert "20 warm-up steps do not fit a run of 4: 2 instead" in caplog.text


def test_the_average_is_the_recurrence():
    model = Noisy()
    average, expected = Average(model, Ema(0.9)), {k: v.clone() for k, v in model.state_dict().items()}
    for step in range(1, 30):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
            model.stem[1].running_mean.add_(1)
            model.stem[1].num_batches_tracked.add_(1)
        average.update(model, step)
        d = min(0.9, (1 + step) / (10 + step))
        for k, v in model.state_dict().items():
            expected[k] = d * expected[k] + (1 - d) * v if v.is_floating_point() else v.clone()
    assert (1 + 29) / (10 + 29) < 0.9  # still warming up at the end
    for k, v in average.module.state_dict().items():
        torch.testing.assert_close(v, expected[k], msg=k)
    assert not any(p.requires_grad for p in average.parameters())


def test_the_average_refuses_half_precision():
    with pytest.raises(ValueError, match="use precision bf16-mixed"):
        Average(Noisy().to(torch.bfloat16), Ema())
    with pytest.raises(ValueError, match=r"ema\.decay=1\.0"):
        Average(Noisy(), Ema(decay=1.0))
