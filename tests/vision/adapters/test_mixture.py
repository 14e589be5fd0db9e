"""Soft and dense mixtures of bottlenecks."""

import pytest
import torch
from adapter_golden import layer, of, run
from golden import golden

from patchloom.vision.adapters import adapter
from patchloom.vision.adapters.bottleneck import bottleneck
from patchloom.vision.adapters.mixture import DenseMixture, SoftMixture
from patchloom.vision.tokens import Tokens

BODY = {"linear_downsample": "down", "linear_upsample": "up", "adapter_down": "down", "adapter_up": "up"}


def names(seam: str, theirs: str) -> dict[str, str]:
    experts = {f"{theirs}.moa.{i}.{n}": f"{seam}.body.experts.{i}.{o}" for i in range(3) for n, o in BODY.items()}
    return {**experts, f"{theirs}.slot_params": f"{seam}.body.phi", f"{theirs}.scale": f"{seam}.body.scale"}


BOTH = {**names("on_mixer", "moa_mhsa"), **names("around_ffn", "moa_ffn"),
        "router_mhsa.ff": "on_mixer.body.router", "router_ffn.ff": "around_ffn.body.router"}  # fmt: skip
FFN = {**names("around_ffn", "moa"), "router.ff": "around_ffn.body.router"}


@pytest.mark.parametrize(
    ("output", "spelling", "called"),
    [
        ("soft_pfeiffer_ffn", "soft_moa:act=gelu,slots=2", FFN),
        ("soft_houlsby_normalized", "soft_moa:act=gelu,slots=2,normalize=true,where=both", BOTH),
        ("soft_convpass", "soft_moa:act=quick_gelu,twice=true,slots=2,where=both", BOTH),
        ("dense_pfeiffer_ffn", "dense_moa:act=gelu", FFN),
        ("dense_houlsby", "dense_moa:act=gelu,where=both", BOTH),
    ],
)
def test_layers_of_ast_are_the_originals(output, spelling, called):
    record = golden.load("adapters/ast_mixture")
    state = {n: v for n, v in of(record, output).items() if ".adapter_conv." not in n}  # whose result nobody reads
    block = layer(f"{spelling},experts=3,reduction=8", state, called)
    record.compare(output, run(block, record.input()), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixtures_are_the_sums_that_they_say(dtype):
    torch.manual_seed(0)
    experts = [bottleneck(8, 4, ("gelu",)) for _ in range(3)]
    for e in experts:
        torch.nn.init.normal_(e.up.weight)
    soft, dense = SoftMixture(8, experts, 2, False).to(dtype), DenseMixture(8, experts).to(dtype)
    x = torch.randn(2, 5, 8, dtype=dtype)
    with torch.no_grad():
        logits = torch.einsum("bnd,dep->bnep", x, soft.phi).float()
        slots = torch.einsum("bnep,bnd->bepd", logits.softmax(1).to(dtype), x)
        said = torch.stack([e(Tokens(slots[:, i], None)) for i, e in enumerate(experts)], 1)
        want = torch.einsum("bnep,bepd->bnd", logits.flatten(2).softmax(-1).view_as(logits).to(dtype), said)
        tolerance = {torch.float32: 1e-6, torch.bfloat16: 3e-2}[dtype]
        torch.testing.assert_close(soft(Tokens(x, None)), want, rtol=tolerance, atol=tolerance)
        weights = dense.router(x).float().softmax(-1).to(dtype)
        want = sum(weights[..., i : i + 1] * e(Tokens(x, None)) for i, e in enumerate(experts))
        torch.testing.assert_close(dense(Tokens(x, None)), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("text", ["dense_moa:experts=1", "soft_moa:slots=0"])
def test_settings_that_fit_no_model_say_so(text):
    with pytest.raises(ValueError, match=text.partition(":")[2]):
        adapter(text)
