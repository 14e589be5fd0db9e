"""Retention as a token mixer, as ViR has it (https://arxiv.org/abs/2310.19731)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ...kernels.retention import retention, softmax_retention
from ..layers import Linear
from ..tokens import Probe, Tokens

Form = Literal["chunked", "parallel", "recurrent", "softmax"]
FORMS = ("chunked", "parallel", "recurrent", "softmax")


class Retentive(nn.Module):
    """Causal retention with a decay for each head; no rotation, no group norm, no gate.

    chunked, parallel and recurrent are one function of the tokens (in chunks of `chunk`, in one, token by token).
    softmax is another: what the authors' release computes in its parallel mode (see kernels/retention.py).
    """

    needs_grid, offers, projections = False, (), ("qkv", "proj")

    def __init__(self, dim: int, heads: int, form: Form, chunk: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads")
        if form not in FORMS:
            raise ValueError(f"form {form!r} of retention: there are {', '.join(FORMS)}")
        self.heads, self.form, self.chunk = heads, form, chunk
        self.qkv, self.proj = Linear(dim, 3 * dim), Linear(dim, dim)

    def decay(self, device: torch.device) -> Tensor:
        """(h): 1 - 1/32 for the first head to 1 - 1/512 for the last, geometrically."""
        return 1 - torch.linspace(-5, -9, self.heads, device=device).exp2()

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        return self.continued(t.x, None)[0]

    def continued(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What comes of the tokens x (B L C) behind those that `state` (B h d d) stands for, and the state behind
        them."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)  # B L h d
        decay = self.decay(x.device)
        if self.form == "softmax":
            if state is not None:
                raise ValueError("retention with a softmax has no state: stream with form chunked or recurrent")
            return self.proj(softmax_retention(q, k, v, decay).flatten(2)), None
        o, state = retention(q, k, v, decay, state=state, return_state=True,
                             backend="reference" if self.form == "recurrent" else "chunked",
                             chunk=x.shape[1] if self.form == "parallel" else self.chunk)  # fmt: skip
        return self.proj(o.flatten(2)), state


@dataclass(frozen=True)
class Retain:
    """Retention with `heads` heads, computed as `form` says, in chunks of `chunk` tokens."""

    heads: int
    form: Form = "chunked"
    chunk: int = 64

    def build(self, dim: int, index: int) -> nn.Module:
        return Retentive(dim, self.heads, self.form, self.chunk)
