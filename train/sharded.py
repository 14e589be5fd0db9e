"""`--trainer.strategy fsdp2`: weights, their average, gradients and optimiser states in parts, one for each process."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from ..vision.block import Seams


class Sharded(ModelParallelStrategy):
    """Torch's FSDP2 under Lightning's own strategy for it: over all processes, one whole checkpoint as every run has.

    The module says in `configure_model` what is put in parts (`shard`).
    """

    def __init__(
        self, process_group_backend: str | None = None, timeout: timedelta | None = default_pg_timeout
    ) -> None:
        super().__init__(
            tensor_parallel_size=1, save_distributed_checkpoint=False, process_group_backend=process_group_backend,
            timeout=timeout,
        )  # fmt: skip

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_processes * self.num_nodes
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        content = super().load_checkpoint(checkpoint_path, weights_only)
        assert self.model is not None
        return {**content, "state_dict": self.model.state_dict()}  # Lightning takes it out; modules look at its names


StrategyRegistry.register("fsdp2", Sharded, "fully sharded data parallel training by torch's FSDP2")


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Puts a model in parts, block by block: the weights of one block are whole for as long as it computes. `forwards`
    of the model: its methods that compute as `forward` does, and are called in its place."""
    if isinstance(model, FSDPModule):
        return
    for block in blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for name in getattr(model, "forwards", ()):
        register_fsdp_forward_method(model, name)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The outermost blocks (`Seams`) of a model."""
    found: list[nn.Module] = []
    for part in model.children():
        found += [part] if isinstance(part, Seams) else blocks(part)
    return found


@torch.inference_mode(False)  # what is gathered stays in use when the training goes on
def gather(model: nn.Module, whole: bool) -> None:
    """Makes a model in parts whole, with the buffers of the first process, and puts it in parts again.

    Processes that judge unlike numbers of batches cannot gather weights in every forward pass: they would wait for one
    another. Nothing is done to a model that is not in parts.
    """
    parts = [part for part in model.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(not whole, recurse=False)
        if whole:
            part.unshard()
        else:
            part.reshard()
    if parts and whole:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
