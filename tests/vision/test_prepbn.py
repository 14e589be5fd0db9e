"""Progressive norms: the authors' numbers, the schedule, and what counts as a step."""

import copy

import pytest
import torch
import torch.nn.functional as F
from golden import golden
from torch import nn
from vision_tiny import tiny_classifier

from patchloom.vision.prepbn import Progressive, ProgressiveNorm, RepBatch, RepBN


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_norm_matches_the_original():
    record = golden.load("slab/prepbn")
    norm = Progressive(eps=1e-6).build(8)
    missing, unexpected = norm.load_state_dict(
        {n.removeprefix("norm."): v for n, v in record.state_dict().items()}, strict=False
    )
    assert set(missing) == {"warm", "iter", "total_step"}
    assert not unexpected
    norm.iter.fill_(15_000)
    x = record.input()
    record.compare("evaluation", norm.eval()(x), 1e-5)
    record.compare("training", norm.train()(x), 1e-5)
    record.compare("running_mean", norm.norm2.bn.running_mean, 1e-5)
    record.compare("running_var", norm.norm2.bn.running_var, 1e-5)
    assert int(norm.iter) == 14_999


def test_the_schedule():
    norm, x = Progressive(total_step=4, warm=2, start=0.5).build(8).train(), numbers(4, 6, 8)
    nn.init.normal_(norm.norm1.weight)
    layer = norm.norm1(x)
    batch = F.batch_norm(x.flatten(0, 1), None, None, training=True).view_as(x) + x
    for share in (1.0, 1.0):  # warm: the layer norm alone, no statistics
        torch.testing.assert_close(norm(x), share * layer)
        assert int(norm.norm2.bn.num_batches_tracked) == 0
        assert int(norm.iter) == 4
    for i, share in enumerate((0.5, 0.375, 0.25, 0.125, 0.0, 0.0)):
        torch.testing.assert_close(norm(x), share * layer + (1 - share) * batch)
        assert int(norm.norm2.bn.num_batches_tracked) == i + 1
        assert int(norm.iter) == max(0, 3 - i)
    assert int(norm.warm) == 0


def test_evaluation_is_the_batch_norm_wherever_the_schedule_stands():
    norm, x = Progressive().build(8), numbers(2, 3, 8)
    assert int(norm.iter) == 60_000
    torch.testing.assert_close(norm.eval()(x), norm.norm2(x), rtol=0, atol=0)
    torch.testing.assert_close(norm(x), 2 * x, rtol=1e-5, atol=1e-5)
    assert int(norm.iter) == 60_000


def test_a_schedule_begins_anew_and_refuses_nonsense():
    norm = Progressive().build(8)
    norm.start_(100, 3, 0.7)
    assert (int(norm.total_step), int(norm.iter), int(norm.warm), norm.start) == (100, 100, 3, 0.7)
    for bad in ((0, 0, 1.0), (5, -1, 1.0), (5, 0, 1.5)):
        with pytest.raises(ValueError, match=r"total_step|start"):
            norm.start_(*bad)


def test_counters_are_part_of_the_state():
    norm = Progressive(total_step=10).build(4)
    norm.train()(numbers(2, 3, 4))
    again = Progressive().build(4)
    again.load_state_dict(norm.state_dict())
    assert int(again.iter) == 9
    assert int(again.total_step) == 10
    assert "share" not in norm.state_dict()


def test_checkpointing_counts_a_step_once_and_keeps_gradients():
    torch.manual_seed(0)
    model = tiny_classifier("slab_deit_tiny").train()
    for m in model.modules():
        if isinstance(m, ProgressiveNorm):
            m.start_(2)
    other, x = copy.deepcopy(model), numbers(2, 3, 64, 64)
    other.set_grad_checkpointing()
    for _ in range(3):
        for m in (model, other):
            m.zero_grad()
            m(x).square().mean().backward()
        for (n, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(q.grad, p.grad, msg=n)
        theirs = dict(other.named_buffers())
        counters = {n: int(b) for n, b in model.named_buffers() if n.endswith((".warm", ".iter"))}
        assert counters == {n: int(theirs[n]) for n in counters}


def test_half_precision_and_autocast():
    for spec in (Progressive(), RepBatch()):
        norm, x = spec.build(8).train(), numbers(4, 6, 8)
        norm(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert norm(x.bfloat16()).isfinite().all()
        assert spec.build(8).bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_rep_bn_is_one_scale_and_shift():
    torch.manual_seed(0)
    norm, x = RepBN(8).train(), numbers(4, 6, 8)
    nn.init.normal_(norm.alpha)
    nn.init.normal_(norm.bn.weight)
    norm(x)
    a, b = norm.eval().scale_and_shift()
    torch.testing.assert_close(norm(x), a * x + b)
