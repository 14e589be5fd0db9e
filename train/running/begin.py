"""What is looked at before a run: that its adapter has something to learn, and that a checkpoint is of it."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...vision.adapters import adapter_of, from_words, host, in_words, own_state
from ...vision.adapters.lora_data import needs_data, prepare
from ...vision.adapters.probe import Probe
from ...vision.zoo import adapter_within
from ..learning import outside_heads

SEEN = 256  # images that such adapters as CorDA look at before they learn


def check_learning(model: nn.Module, trainer: L.Trainer) -> None:
    """Raises where an adapter would train nothing of its own, and where a callback would break what it froze."""
    adapter = adapter_of(model)
    if adapter is None:
        return
    if not isinstance(adapter, Probe) and not outside_heads(host(model)):
        raise ValueError(
            f"adapter {in_words(adapter)} would train nothing but the head here: give it places where it learns, or "
            "say adapter: probe"
        )
    averaging = any(isinstance(c, StochasticWeightAveraging) for c in trainer.callbacks)
    norms = [n for n, m in model.named_modules() if isinstance(m, _BatchNorm) and not m.training]
    if averaging and norms:
        raise ValueError(
            f"StochasticWeightAveraging begins the statistics of batch norms anew, and {norms[0]} is frozen below "
            f"adapter {in_words(adapter)}: use model.ema, which leaves them alone"
        )


def begin_as_images_have_it(model: nn.Module, trainer: L.Trainer) -> None:
    """An adapter that begins as images have it, and has not learnt yet, sees the first ones of an epoch."""
    if not needs_data(model) or any(t.count_nonzero() for name, t in own_state(model).items() if ".lora_B." in name):
        return
    data = trainer.datamodule
    loader = trainer.train_dataloader if data is None else data.train_dataloader()
    prepare(host(model), first_images(loader, next(model.parameters()).device))
    if dist.is_available() and dist.is_initialized():  # each process has seen images of its own
        for t in own_state(model).values():
            dist.broadcast(t, 0)


def first_images(loader: Iterable[Any], device: torch.device) -> Iterator[Tensor]:
    """Batches (B, 3, H, W) of the loader until `SEEN` images have come; images of many sizes come one by one."""
    seen = 0
    for batch in loader:
        image = batch
        while isinstance(image, (tuple, list)) and not is_list_of_images(image):  # the first of several views
            image = image[0]
        for each in (one[None] for one in image) if isinstance(image, (tuple, list)) else (image,):
            yield each.to(device)
            seen += len(each)
            if seen >= SEEN:
                return


def is_list_of_images(value: Any) -> bool:
    """Whether it is a list of (3, H, W), as detectors take them."""
    return isinstance(value, (tuple, list)) and all(isinstance(v, Tensor) and v.ndim == 3 for v in value)


def check_adapter(saved: Mapping[str, Any], model: nn.Module) -> None:
    """Raises where the network that a checkpoint describes has another adapter than the model: their tensors are
    others."""
    here, said = adapter_of(model), adapter_within(saved)
    then = None if said is None else from_words(said)
    if then != here:
        names = ["none" if each is None else in_words(each) for each in (then, here)]
        raise ValueError(f"the checkpoint was trained with adapter {names[0]}, the model has {names[1]}: set the same")


def check_classes(saved: list[str], data: list[str]) -> None:
    """Raises where a checkpoint's class names are not the data's, in order: its logits would mean something else."""
    if saved == data:
        return
    missing, extra = sorted(set(saved) - set(data)), sorted(set(data) - set(saved))
    if not missing and not extra:
        what = f"in another order ({', '.join(saved[:3])}, … against {', '.join(data[:3])}, …)"
    else:
        parts = [
            f"{text} {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
            for text, names in (("without", missing), ("with unknown", extra))
            if names
        ]
        what = " and ".join(parts)
    raise ValueError(
        f"the checkpoint knows {len(saved)} classes, the data has {len(data)}, {what}: "
        "use the data that it was trained on"
    )
