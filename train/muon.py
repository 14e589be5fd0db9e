"""Muon: momentum made orthogonal, for matrices; AdamW for everything else."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

STEPS = (3.4445, -4.7750, 2.0315)  # of Newton and Schulz's iteration, as Jordan chose them: quick, to within 0.7 … 1.2


class Muon(Optimizer):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), its steps as large as AdamW's (Liu et al.,
    arXiv 2502.16982), so that AdamW's rates and decays hold.

    Matrices with no side shorter than `least` take the orthogonal factor of their momentum, times 0.2 sqrt(longer
    side). What else there is (tables of a few classes, ways into pixels and out of them, kernels of convolutions,
    biases) takes AdamW's step, at `rest` times the rate. A group with `matrices: False` takes AdamW's throughout, which
    language models' tables of words want. The iteration runs in float32, on matrices of one shape together. Raises
    ValueError for a parameter that is cut over several processes (FSDP), of which no process holds a whole matrix.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        rest: float = 1.0,
        least: int = 64,
        iterations: int = 5,
    ):
        for name, value in {"lr": lr, "weight_decay": weight_decay, "eps": eps}.items():
            if value < 0:
                raise ValueError(f"Muon: {name}={value}: at least 0")
        if not all(0 <= b < 1 for b in (momentum, *betas)):
            raise ValueError(f"Muon: momentum={momentum}, betas={tuple(betas)}: each in [0, 1)")
        if rest <= 0 or least < 1 or iterations < 1:
            raise ValueError(f"Muon: rest={rest} is above 0, least={least} and iterations={iterations} at least 1")
        beta1, beta2 = betas
        super().__init__(params, {
            "lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": (beta1, beta2), "eps": eps,
            "rest": rest, "least": least, "iterations": iterations, "matrices": True,
        })  # fmt: skip

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if hasattr(p, "full_tensor"):
                raise ValueError(
                    f"Muon: a parameter of {tuple(p.shape)} is cut over several processes; use DDP, or AdamW"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            learnt = [p for p in group["params"] if p.grad is not None]
            inner = [p for p in learnt if group["matrices"] and p.ndim == 2 and min(p.shape) >= group["least"]]
            alike = defaultdict(list)
            for p in inner:
                alike[p.shape, p.device, p.dtype].append(p)
            for matrices in alike.values():
                self.turn(matrices, group)
            matrix = {id(p) for p in inner}
            self.plain([p for p in learnt if id(p) not in matrix], group)
        return loss

    def turn(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """Muon's step for matrices of one shape."""
        momentum, lr = group["momentum"], group["lr"]
        gradients = [p.grad for p in matrices]
        means = [self.kept(p, "momentum") for p in matrices]
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        ahead = torch.stack(torch._foreach_lerp(gradients, means, momentum))  # Nesterov's
        steps = orthogonal(ahead.float(), group["iterations"]) * (0.2 * math.sqrt(max(matrices[0].shape)))
        torch._foreach_mul_(matrices, 1 - lr * group["weight_decay"])
        torch._foreach_add_(matrices, list(steps.to(matrices[0].dtype).unbind()), alpha=-lr)

    def plain(self, rest: list[Tensor], group: dict[str, Any]) -> None:
        """AdamW's step."""
        if not rest:
            return
        first, second = ([self.kept(p, name) for p in rest] for name in ("exp_avg", "exp_avg_sq"))
        steps = [self.state[p].setdefault("step", torch.zeros(())) for p in rest]
        beta1, beta2 = group["betas"]
        rate = {"lr": group["lr"] * group["rest"], "weight_decay": group["weight_decay"], "eps": group["eps"]}
        kind = {"amsgrad": False, "maximize": False, "beta1": beta1, "beta2": beta2}
        adamw(rest, [p.grad for p in rest], first, second, [], steps, **kind, **rate)

    def kept(self, p: Tensor, name: str) -> Tensor:
        state = self.state[p]
        if name not in state:
            state[name] = torch.zeros_like(p)
        kept: Tensor = state[name]
        return kept


def orthogonal(x: Tensor, iterations: int = 5) -> Tensor:
    """U V^T of x = U S V^T (n a b), nearly: Newton and Schulz's iteration brings singular values to 0.7 … 1.2.

    Each turn multiplies x from the left by a polynomial of x x'. Where x is long the polynomials alone are multiplied,
    and x comes in at the end: the same within rounding, in about half the time.
    """
    a, b, c = STEPS
    wide = x if x.shape[-2] <= x.shape[-1] else x.mT
    wide = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    long = wide.shape[-1] >= 2 * wide.shape[-2]
    square = wide @ wide.mT
    one = torch.eye(square.shape[-1], dtype=x.dtype, device=x.device)
    whole = one
    for turn in range(iterations):
        factor = a * one + b * square + c * square @ square
        if long:
            whole = factor @ whole
            square = factor @ square @ factor if turn + 1 < iterations else square
        else:
            wide = factor @ wide
            square = wide @ wide.mT if turn + 1 < iterations else square
    wide = whole @ wide if long else wide
    return wide if x.shape[-2] <= x.shape[-1] else wide.mT
