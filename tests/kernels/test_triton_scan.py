"""The selective scan in Triton: by its interpreter on a CPU (in a process of its own, as Triton is told so before it is
imported), compiled for GPUs that need not be there, and, where there is one, on it."""

import itertools
import json
import os
import subprocess
import sys
import warnings

import pytest
import torch

from patchloom.kernels import selective_scan as s6

triton = pytest.importorskip("triton", reason="torch brings Triton on Linux with CUDA alone")

# length, channels, states, groups, reverse, whether there is a state before
QUICK = [(1, 6, 4, 2, False, True), (17, 20, 16, 1, True, False)]  # the second: two chunks, two blocks of channels
SHORT = list(itertools.product([1, 17, 63], [10], [4, 16], [1, 2], [False, True], [False, True]))
LONG = [(196, 10, 4, 1, True, True), (196, 6, 16, 2, False, False), (196, 6, 4, 2, True, False)]
ODD = [(20, 3, 1, 1, True, True), (17, 6, 5, 3, False, True), (9, 3, 48, 1, True, False), (5, 70, 4, 1, False, True)]


def inputs(length, channels, states, groups, given, batch=2):
    g = torch.Generator().manual_seed(0)
    r = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    x = {
        "u": r(batch, length, channels), "delta": r(batch, length, channels),
        "A": -(torch.rand(channels, states, generator=g, dtype=torch.float64) * 4 + 0.1),
        "B": r(batch, length, groups, states), "C": r(batch, length, groups, states),
    }  # fmt: skip
    return {**x, "state": r(batch, channels, states)} if given else x


def run(x, reverse, form):
    """y, the last state and the gradients of a fixed weighing of both."""
    leaves = {k: t.clone().requires_grad_() for k, t in x.items()}
    y, last = s6.selective_scan(**leaves, reverse=reverse, return_state=True, backend=form)
    weights = [torch.linspace(-1, 1, t.numel(), dtype=t.dtype, device=t.device).view_as(t) for t in (y, last)]
    slopes = torch.autograd.grad((y * weights[0]).sum() + (last * weights[1]).sum(), list(leaves.values()))
    return {"y": y.detach(), "last": last.detach(), **dict(zip(leaves, slopes, strict=True))}


def errors(case, dtype=torch.float32, device="cpu", batch=2, form="triton"):
    """How far from the float64 recurrence, in parts of the largest number; by name."""
    *sizes, reverse, given = case
    x = inputs(*sizes, given, batch)
    x = {k: t.to(dtype) if k in ("u", "delta", "B", "C") else t.float() for k, t in x.items()}
    got = run({k: t.to(device) for k, t in x.items()}, reverse, form)
    want = run({k: t.double() for k, t in x.items()}, reverse, "reference")
    scale = {k: t.abs().max().clamp(min=1e-30) for k, t in want.items()}
    return {k: float((got[k].cpu().double() - want[k]).abs().max() / scale[k]) for k in want}


def interpreted(cases):
    """`errors` of each, and what was warned of."""
    child = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__, json.dumps(cases)], capture_output=True, text=True, env=child)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def close(found, cases, tolerance=5e-6):
    assert len(found) == len(cases)
    for case, error in zip(cases, found, strict=True):
        far = {k: e for k, e in error.items() if not e < tolerance}  # nan is far
        assert not far, case


def test_the_kernels_are_the_recurrence():
    close(interpreted(QUICK), QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("cases", [SHORT[:8], SHORT[8:16], SHORT[16:20], SHORT[20:], LONG, ODD])
def test_the_kernels_are_the_recurrence_at_every_size(cases):
    close(interpreted(cases), cases)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_for(capability, tmp_path, monkeypatch):
    """The interpreter takes Python that the compiler does not."""
    from patchloom.kernels import triton_scan as ts

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    u, B = torch.empty(2, 197, 384, device="meta"), torch.empty(2, 197, 1, 16, device="meta")
    launch = ts.Launch(u, B, True)
    fixed = {**launch.shape, "PART": ts.PART, "FIRST": True, "ADJOINT": True, "AHEAD": ts.AHEAD, "FLAT": ts.FLAT}
    numbers = {"length", "channels", "groups", "states", "chunks", "blocks", "size", "parts"}
    for kernel in (ts.ends, ts.borders, ts.walk, ts.back):
        names = kernel.arg_names
        types = {n: "constexpr" if n in fixed else "i32" if n in numbers else "*fp32" for n in names}
        source = triton.compiler.ASTSource(kernel, types, {n: fixed[n] for n in names if n in fixed})
        target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
        assert triton.compile(source, target=target, options={"num_warps": 1}).asm["cubin"]


def test_it_is_refused_where_it_cannot_run():
    x = {k: t.float() for k, t in inputs(5, 6, 4, 1, False).items()}
    with pytest.raises(ValueError, match="on a CUDA device"):
        s6.selective_scan(**x, backend="triton")
    with pytest.raises(ValueError, match="up to 32 bits"):
        s6.selective_scan(**{k: t.double() for k, t in x.items()}, backend="triton")


def test_nothing_imports_triton_before_it_is_needed():
    code = "import sys, patchloom.kernels.selective_scan; print('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def wrong(scan):
    return tuple(1.01 * t for t in s6.reference(scan))


def broken(scan):
    raise RuntimeError("0 active drivers")


@pytest.mark.parametrize(("form", "reason"), [(wrong, "does not compute what it should"), (broken, "0 active drivers")])
def test_one_that_is_wrong_or_does_not_run_is_not_trusted(form, reason, monkeypatch):
    from patchloom.kernels import triton_scan

    monkeypatch.setattr(triton_scan, "interpreted", lambda: True)
    monkeypatch.setattr(s6, "triton", form)
    s6.trusted_on.cache_clear()
    try:
        with pytest.warns(UserWarning, match=f"{reason}.*the plain form runs"):
            assert not s6.trusted_on(torch.device("cpu"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # once is enough
            assert not s6.trusted_on(torch.device("cpu"))
    finally:
        s6.trusted_on.cache_clear()


# -------------------------------------------------------------------------------------------------------------- GPU


@pytest.mark.gpu
@pytest.mark.parametrize("length", [1, 17, 63, 196, 1000])
@pytest.mark.parametrize("reverse", [False, True])
def test_gpu_equals_the_recurrence(length, reverse):
    for channels, states, groups in ((40, 16, 1), (48, 1, 4), (33, 5, 3), (20, 48, 2), (384, 16, 1)):
        case = (length, channels, states, groups, reverse, True)
        close([errors(case, device="cuda")], [case], 2e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gpu_half_precision(dtype):
    """At most twice as far as the recurrence is in that precision."""
    case = (196, 64, 16, 2, False, True)
    got, allowed = (errors(case, dtype, "cuda", form=form) for form in ("triton", "reference"))
    assert all(got[k] <= 2 * allowed[k] + 2e-5 for k in got)


@pytest.mark.gpu
def test_gpu_auto_takes_it_without_a_word():
    s6.trusted_on.cache_clear()
    x = {k: t.float().cuda() for k, t in inputs(100, 64, 16, 1, True).items()}
    u, d, A, B, C, h = x.values()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert s6.form_of("auto", s6.Scan(u, d, A, B, C, h, False)) is s6.triton
    assert s6.form_of("auto", s6.Scan(*(t.double() for t in x.values()), False)) is s6.chunked


@pytest.mark.gpu
def test_gpu_is_the_same_each_time():
    x = {k: t.float().cuda() for k, t in inputs(300, 384, 16, 1, True).items()}
    first, second = (run(x, True, "triton") for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)


if __name__ == "__main__":
    found = [errors(tuple(case), batch=1) for case in json.loads(sys.argv[1])]
    json.dump(found, sys.stdout)
