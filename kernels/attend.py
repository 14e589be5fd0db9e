"""softmax(scale q k' + bias) v: one signature, several back ends, chosen by argument or by `with backend(name):`.

Shapes: q (B h N d), k and v (B h M d), bias broadcastable to (B h N M); the result is (B h N d).

- A boolean bias is a mask, True = may attend; a floating one is added to the scaled scores and receives a gradient.
- A row in which nothing may be attended to gives 0, and passes no gradient, in every back end; so does M = 0.
- `causal` counts from the end, as decoding with a cache does: query i sees keys j <= i + M - N. With M < N the first
  N - M queries see nothing. (torch's `is_causal` counts from the start; the two agree where N = M.)
- `dropout` zeroes weights after the softmax and scales the rest by 1 / (1 - dropout). It is always on: pass 0 in
  evaluation. Masks come from torch's generator of the device; no two back ends draw the same one.
- Under autocast the result has autocast's type in every back end.

What `auto` takes: on a CPU torch's fused kernel, or `composed` where a floating bias makes that one slow; elsewhere the
first of `ORDER` that passes a small forward and backward, tried once a device and dtype. A fused kernel never sees an
empty row where it might answer NaN: the row is opened before it and its result set to 0 behind it.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

Back = Callable[..., Tensor]
_chosen: ContextVar[str] = ContextVar("patchloom_attend", default="auto")
_reasons: dict[tuple[str, torch.device, torch.dtype], str] = {}  # why a back end cannot be used, "" where it can
_auto: dict[tuple[torch.device, torch.dtype], str] = {}
ORDER = ("sdpa", "xformers", "reference")
COMPOSED = range(1 << 14, 1 << 25)  # scores (B h N M) that `composed` is for: 64 kB to 128 MiB


def reference(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, causal: bool = False,
              scale: float | None = None, dropout: float = 0.0) -> Tensor:  # fmt: skip
    """Defines the operation: every step in float32 (float64 for float64), whatever the types of q, k and v."""
    device = q.device.type
    mixed = device != "meta" and torch.is_autocast_enabled(device)
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = torch.get_autocast_dtype(device) if mixed and wide == torch.float32 else v.dtype
    with torch.autocast(device if mixed else "cpu", enabled=False):
        score = q.to(wide) @ k.to(wide).mT * (q.shape[-1] ** -0.5 if scale is None else scale)  # B h N M
        bias = with_causal(bias, q.shape[-2], k.shape[-2], q.device) if causal else bias
        if bias is not None:
            score = score.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else score + bias
        empty = (score == -torch.inf).all(-1, keepdim=True)
        weight = score.masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0)
        return (F.dropout(weight, dropout) @ v.to(wide)).to(out)


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, causal: bool = False,
         scale: float | None = None, dropout: float = 0.0) -> Tensor:  # fmt: skip
    """torch's scaled_dot_product_attention, whose CPU kernels (torch >= 2.10) leave empty rows at 0 by themselves."""
    n, m = q.shape[-2], k.shape[-2]
    if causal and (bias is not None or n != m):
        causal, bias = False, with_causal(bias, n, m, q.device)
    if bias is None:
        return F.scaled_dot_product_attention(q, k, v, None, dropout, causal, scale=scale)
    if bias.dim() < 4:
        bias = bias[(None,) * (4 - bias.dim())]  # the fused CPU kernel takes no three dimensions
    if bias.dtype != torch.bool:
        if q.is_cpu and dropout == 0 and composable(q, k, bias):
            return composed(q, k, v, bias, q.shape[-1] ** -0.5 if scale is None else scale)
        if bias.dtype != q.dtype:
            bias = bias.to(q.dtype)
    if q.is_cpu:
        return F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=scale)
    bias, empty = open_rows(bias)
    return F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=scale).masked_fill(empty, 0)


def composable(q: Tensor, k: Tensor, bias: Tensor) -> bool:
    """Whether `composed` applies and pays: eager mode, scores that fit, and no row of the bias hides every key."""
    if torch.compiler.is_compiling() or q.numel() * k.shape[-2] // q.shape[-1] not in COMPOSED:
        return False
    if q.dim() != 4 or q.shape[:2] != k.shape[:2]:
        return False
    return bias.detach().amax(-1).amin().item() != -torch.inf


def composed(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """The same in four calls, for a floating bias without empty rows on a CPU; half precision is widened to float32.

    torch's fused CPU kernel takes 1.3 to 2 times as long with a bias, and none with a bias that wants its gradient: it
    then computes as this does, with more passes over the scores to look for empty rows.
    """
    if torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            y = composed(q, k, v, bias, scale)
        return y.to(torch.get_autocast_dtype("cpu")) if y.dtype == torch.float32 else y
    if q.dtype in (torch.bfloat16, torch.float16):
        return composed(q.float(), k.float(), v.float(), bias, scale).to(v.dtype)
    (b, h, n, d), m = q.shape, k.shape[2]
    q, k, v = q.reshape(b * h, n, d), k.reshape(b * h, m, d), v.reshape(b * h, m, v.shape[-1])
    score = torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=scale)  # B*h N M
    score = score.view(b, h, n, m).add_(bias).view(b * h, n, m)
    return torch.bmm(score.softmax(-1), v).view(b, h, n, -1)


def xformers(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, causal: bool = False,
             scale: float | None = None, dropout: float = 0.0) -> Tensor:  # fmt: skip
    """xformers' memory_efficient_attention. Its bias is B h N M, expanded only where no gradient flows, with rows that
    start at multiples of eight elements."""
    from xformers.ops import memory_efficient_attention
    from xformers.ops.fmha.attn_bias import LowerTriangularMask

    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"back end 'xformers' takes no {q.dtype} q; reference and sdpa do")
    n, m = q.shape[-2], k.shape[-2]
    rows = tuple(x.transpose(1, 2) for x in (q, k, v))  # B N h d
    if causal and bias is None and n == m:
        y = memory_efficient_attention(*rows, attn_bias=LowerTriangularMask(), p=dropout, scale=scale)
        return y.transpose(1, 2)  # type: ignore[no-any-return]
    bias = with_causal(bias, n, m, q.device) if causal else bias
    if bias is None:
        y = memory_efficient_attention(*rows, p=dropout, scale=scale)
        return y.transpose(1, 2)  # type: ignore[no-any-return]
    bias, empty = open_rows(bias)
    if bias.dtype == torch.bool:
        bias = torch.zeros(bias.shape, dtype=q.dtype, device=q.device).masked_fill(~bias, -torch.inf)
    wide = F.pad(bias.to(q.dtype).expand(*bias.shape[:-1], m), (0, -m % 8))
    wide = wide.expand(*q.shape[:2], n, wide.shape[-1])
    if wide.requires_grad:
        wide = wide.contiguous()
    y = memory_efficient_attention(*rows, attn_bias=wide[..., :m], p=dropout, scale=scale)
    return y.transpose(1, 2).masked_fill(empty, 0)  # type: ignore[no-any-return]


def with_causal(bias: Tensor | None, n: int, m: int, device: torch.device) -> Tensor:
    """`bias`, with key j hidden from query i where j > i + m - n."""
    seen = torch.ones(n, m, dtype=torch.bool, device=device).tril(m - n)
    if bias is None:
        return seen
    return bias & seen if bias.dtype == torch.bool else bias.masked_fill(~seen, -torch.inf)


def open_rows(bias: Tensor) -> tuple[Tensor, Tensor]:
    """`bias` with rows that hide every key opened (a kernel may give NaN for them), and where those are (... N 1)."""
    if bias.dtype == torch.bool:
        empty = ~bias.any(-1, keepdim=True)
        return bias | empty, empty
    empty = (bias == -torch.inf).all(-1, keepdim=True)
    return bias.masked_fill(empty, 0), empty


BACKENDS: dict[str, Back] = {"reference": reference, "sdpa": sdpa, "xformers": xformers}


def usable(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Why back end `name` cannot be used there, or "": one small forward and backward against the reference, kept."""
    key = name, device, dtype
    if key not in _reasons:
        _reasons[key] = probe_against(BACKENDS[name], reference, (1, 2, 16, 32), device, dtype)
    return _reasons[key]


def probe_against(back: Back, truth: Back, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> str:
    """Why back(q, k, v), all of `shape`, fails or differs from truth(q, k, v), in value or gradient; "" if neither."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def run(function: Back) -> tuple[Tensor, ...]:
        ramp = torch.linspace(-1, 1, math.prod(shape), dtype=wide, device=device).view(shape)
        q, k, v = ((ramp * (5 + i)).sin().to(dtype).requires_grad_() for i in range(3))
        y = function(q, k, v)
        return y, *torch.autograd.grad(y.to(wide).square().sum(), (q, k, v))

    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            pairs = [(x.detach(), y.detach()) for x, y in zip(run(back), run(truth), strict=True)]
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except (ImportError, OSError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
    far = max(float((got - want).abs().max() / want.abs().max()) for got, want in pairs)
    return "" if far < (1e-3 if dtype in (torch.float32, torch.float64) else 5e-2) else f"off by {far:.1e} in a trial"


def automatic(device: torch.device, dtype: torch.dtype) -> str:
    """The first of ORDER that works there; of those before it, an installed one that does not is warned about, once."""
    key = device, dtype
    if key not in _auto:
        for name in ORDER:
            reason = usable(name, device, dtype)
            if not reason:
                break
            if not reason.endswith("is not installed"):
                warnings.warn(f"attention: back end {name!r} left out for {dtype} on {device}: {reason}", stacklevel=4)
        else:
            raise ValueError(f"no attention back end works for {dtype} on {device}; the last one: {reason}")
        _auto[key] = name
    return _auto[key]


def current() -> str:
    """The back end that `with backend(name):` chose."""
    return _chosen.get()


if tuple(int(x) for x in torch.__version__.split(".")[:2]) < (2, 14):  # 2.10 cannot trace ContextVar.get, 2.14 can
    torch.compiler.assume_constant_result(current)  # type: ignore[no-untyped-call]  # graphs keep the choice they saw


def known(name: str) -> str:
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"attention back end {name!r} is not known; there are auto, {', '.join(BACKENDS)}")
    return name


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Within it, `attend(..., backend="auto")` uses `name`; it nests, and each thread and task has its own."""
    token = _chosen.set(known(name))
    try:
        yield
    finally:
        _chosen.reset(token)


def resolve(name: str, q: Tensor) -> str:
    """The back end for `name`: one asked for by name works on q's device and dtype, or this raises. While a graph is
    being traced nothing is tried: auto is sdpa, and a name is taken at its word."""
    if torch.compiler.is_compiling() or q.is_meta:
        return "sdpa" if name == "auto" else name
    if name == "auto":
        return automatic(q.device, q.dtype)
    if reason := usable(name, q.device, q.dtype):
        raise ValueError(f"attention back end {name!r} cannot be used for {q.dtype} on {q.device}: {reason}")
    return name


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """softmax(scale q k' + bias) v, (B h N d); `scale` is d ** -0.5 unless given. See the module for the rules."""
    name = current() if backend == "auto" else known(backend)
    if name == "auto" and q.is_cpu:
        if bias is None and not causal:
            return F.scaled_dot_product_attention(q, k, v, None, dropout, scale=scale)
        return sdpa(q, k, v, bias, causal=causal, scale=scale, dropout=dropout)
    return BACKENDS[resolve(name, q)](q, k, v, bias, causal=causal, scale=scale, dropout=dropout)


def __getattr__(name: str) -> Callable[..., Tensor]:
    """`attend_packed` is one of this file's doors; its forms stand in packed.py, which imports this file."""
    if name == "attend_packed":
        from .packed import attend_packed

        return attend_packed
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
