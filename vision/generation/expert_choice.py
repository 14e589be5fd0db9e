"""An MLP of experts that choose their tokens, https://arxiv.org/abs/2202.09368."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Linear
from ..tokens import flat


class ExpertChoice(nn.Module):
    """The sum over the experts that chose a token of p W2 gelu(W1 x); 0 for a token that none chose.

    p = softmax(gate x) over the experts, and each expert takes the int(capacity N / experts) tokens of an image for
    which its p is largest: all experts have the same work, and no loss is needed to balance them. Which tokens are
    taken depends on all N of them. Channels C -> hidden -> C, no biases.
    """

    projections = ("gate",)

    def __init__(self, dim: int, hidden: int, experts: int = 8, capacity: float = 2.0):
        super().__init__()
        if not 0 < capacity <= experts:
            raise ValueError(f"capacity {capacity} of {experts} experts: between 0 and their number is wanted")
        self.experts, self.capacity = experts, capacity
        self.gate = Linear(dim, experts, bias=False)
        self.w1 = nn.Parameter(nn.init.trunc_normal_(torch.empty(experts, dim, hidden), std=0.02))
        self.w2 = nn.Parameter(nn.init.trunc_normal_(torch.empty(experts, hidden, dim), std=0.02))

    def forward(self, x: Tensor) -> Tensor:  # B N C
        b, n, c = x.shape
        gate = self.gate(x)
        shares = gate.softmax(-1, dtype=torch.promote_types(gate.dtype, torch.float32)).mT  # B E N
        p, at = shares.topk(int(self.capacity * n / self.experts))  # B E K
        taken = flat(at.flatten(1), n).view(b, self.experts, -1).transpose(0, 1).flatten()  # E*B*K among B*N
        chosen = x.reshape(b * n, c).index_select(0, taken).view(self.experts, -1, c)
        y = torch.bmm(F.gelu(torch.bmm(chosen, self.w1)), self.w2)  # E B*K C
        y = y * p.transpose(0, 1).reshape(self.experts, -1, 1).to(y.dtype)
        return y.new_zeros(b * n, c).index_add(0, taken, y.flatten(0, 1)).view(b, n, c)  # type: ignore[no-any-return]
