import pytest
import torch

from patchloom.kernels import packed
from patchloom.kernels.attend import reference
from patchloom.kernels.packed import attend_packed

LENGTHS = {
    "mixed": ([3, 1, 17, 3, 5], [3, 1, 17, 3, 5]),
    "cross": ([3, 1, 17, 3, 5], [4, 6, 2, 4, 9]),
    "empty": ([0, 3, 2, 0, 3], [4, 3, 0, 0, 3]),
    "equal": ([7, 7], [7, 7]),
    "none": ([0, 0], [0, 3]),
    "nothing": ([], []),
}


def made(ours, theirs, **to):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(sum(n), 2, 8, generator=g).to(**to).requires_grad_() for n in (ours, theirs, theirs)]


def alone(q, k, v, ours, theirs, **options):
    """Each sequence by itself, through the reference."""
    out = [v.new_zeros(0, *v.shape[1:])]
    for x, y, z in zip(q.split(ours), k.split(theirs), v.split(theirs), strict=True):
        x, y, z = (t.transpose(0, 1)[None] for t in (x, y, z))
        out.append(reference(x, y, z, **options)[0].transpose(0, 1))
    return torch.cat(out)


def compare(q, k, v, ours, theirs, **options):
    got = attend_packed(q, k, v, ours, theirs, scale=0.3, **options)
    want = alone(q, k, v, ours, theirs, causal=options["causal"], scale=0.3)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    weight = torch.linspace(-1, 1, got.numel(), device=got.device).view(got.shape)
    for a, b in zip(*(torch.autograd.grad((y * weight).sum() + 0 * sum(x.sum() for x in (q, k, v)), (q, k, v))
                      for y in (got, want)), strict=True):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["auto", "sdpa", "reference"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("case", LENGTHS)
def test_each_sequence_is_as_if_alone(case, causal, backend):
    ours, theirs = LENGTHS[case]
    compare(*made(ours, theirs), ours, theirs, causal=causal, backend=backend)


def test_lengths_as_tensors_and_once():
    q, k, v = made([2, 5], [2, 5])
    once = attend_packed(q, k, v, torch.tensor([0, 2, 7]).diff())
    assert torch.equal(once, attend_packed(q, k, v, [2, 5], torch.tensor([2, 5])))


def test_sequences_of_equal_lengths_share_one_call(monkeypatch):
    calls = []
    monkeypatch.setattr(packed, "attend", lambda q, *a, **o: calls.append(tuple(q.shape)) or reference(q, *a))
    q, k, v = made([3, 1, 3, 3], [3, 1, 3, 3])
    attend_packed(q, k, v, [3, 1, 3, 3])
    assert calls == [(3, 2, 3, 8), (1, 2, 1, 8)]


def test_wrong_lengths():
    q, k, v = made([2, 5], [2, 5])
    for lengths, words in (([2, 4], r"\[2, 4\] of q sum to 6; it holds 7"), ([8, -1], "of q sum to 7")):
        with pytest.raises(ValueError, match=words):
            attend_packed(q, k, v, lengths)
    with pytest.raises(ValueError, match="of k sum to 6"):
        attend_packed(q, k, v, [2, 5], [2, 4])
    with pytest.raises(ValueError, match="q has 2 sequences, k has 1"):
        attend_packed(q, k, v, [2, 5], [7])
    with pytest.raises(ValueError, match="v has 6"):
        attend_packed(q, k, v[:6], [2, 5])
    with pytest.raises(ValueError, match="'flash' is not known"):
        attend_packed(q, k, v, [2, 5], backend="flash")


def test_a_kernel_by_name_that_is_not_there(monkeypatch):
    monkeypatch.setattr(packed, "_reasons", {})
    monkeypatch.setitem(__import__("sys").modules, "xformers", None)
    with pytest.raises(ValueError, match=r"'xformers' cannot be used for packed torch\.float32 on cpu"):
        attend_packed(*made([2], [2]), [2], backend="xformers")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["torch", "xformers"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("case", LENGTHS)
def test_gpu_kernels(case, causal, name):
    if reason := packed.usable(name, torch.device("cuda", 0), torch.bfloat16):
        pytest.skip(reason)
    ours, theirs = LENGTHS[case]
    q, k, v = (x.detach().repeat(1, 1, 4) for x in made(ours, theirs, device="cuda:0", dtype=torch.bfloat16))
    got = packed.PACKED[name](q, k, v, ours, theirs, causal=causal, scale=0.3)
    torch.testing.assert_close(got, alone(q, k, v, ours, theirs, causal=causal, scale=0.3), rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_auto(dtype):
    ours, theirs = LENGTHS["mixed"]
    q, k, v = (x.detach().repeat(1, 1, 4) for x in made(ours, theirs, device="cuda:0", dtype=dtype))
    got = attend_packed(q, k, v, ours)
    torch.testing.assert_close(got, alone(q, k, v, ours, theirs), rtol=2e-2, atol=2e-2)
