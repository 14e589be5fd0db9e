"""What adapters and token plugins find in MicroDiT, DiMR and LEGO; how these compile."""

import pytest
import torch
from denoiser_parts import awake, batch, small_dimr, small_lego, small_micro_dit

from patchloom.vision.adapters import adapt, adapter, switch
from patchloom.vision.plugins import SeamError, attach, plugin

MODELS = {"microdit": small_micro_dit, "dimr": small_dimr, "lego": small_lego}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("words", ["lora:r=2,targets=all", "diffscaler:r=2", "adaptformer:reduction=8"])
def test_an_adapter_begins_as_nothing_learns_and_comes_off(name, words):
    model = awake(MODELS[name](dropout=0.0)).eval()
    given = batch(model)
    with torch.no_grad():
        before = model.predictions(*given)
    remove = adapt(model, adapter(words))
    own = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for _ in range(2):
        model.zero_grad()
        found = model.predictions(*given)
        sum(out.square().sum() for out in found).backward()
        with torch.no_grad():
            for p in own.values():
                p -= 0.01 * p.grad / p.grad.norm().clamp(min=1e-6)
    assert [n for n, p in own.items() if not p.grad.any()] == []
    with torch.no_grad():
        assert all((a - b).abs().max() > 1e-4 for a, b in zip(model.predictions(*given), before, strict=True))
        switch(model, None)
        assert all(torch.equal(a, b) for a, b in zip(model.predictions(*given), before, strict=True))
    remove()
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["dimr", "lego"])
def test_networks_of_maps_refuse_to_have_fewer_tokens(name):
    with pytest.raises(SeamError, match="needs a full grid, so its tokens cannot become fewer"):
        attach(MODELS[name](), plugin("tome:r=2"))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_compiled_it_computes_the_same(name):
    """One graph without a break; what a back end makes of it is torch's affair."""
    model = awake(MODELS[name]()).eval()
    given = batch(model)
    with torch.inference_mode():
        want = model(*given)
    with torch.no_grad():
        got = torch.compile(model, fullgraph=True, backend="aot_eager")(*given)
    assert torch.allclose(got, want, atol=1e-4)
