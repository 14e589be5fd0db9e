"""Which prediction stands for which target: the assignment of least cost (Hungarian matching)."""

import torch
from torch import Tensor


@torch.no_grad()
def assign(cost: Tensor) -> tuple[Tensor, Tensor]:
    """cost (N n), of N predictions and n targets -> (rows, columns), each (min(N, n)), sorted by row. What is not a
    finite number counts as dearer than anything."""
    from scipy.optimize import linear_sum_assignment

    worst = torch.finfo(torch.float32).max / 1e6
    rows, columns = linear_sum_assignment(cost.float().nan_to_num(worst, worst, -worst).cpu().numpy())
    return torch.from_numpy(rows).to(cost.device), torch.from_numpy(columns).to(cost.device)


def mean_over_workers(count: float, device: torch.device) -> float:
    """A number of targets, averaged over the processes that train together; at least 1."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        total = torch.tensor(float(count), device=device)
        torch.distributed.all_reduce(total)
        count = total.item() / torch.distributed.get_world_size()
    return max(count, 1.0)
