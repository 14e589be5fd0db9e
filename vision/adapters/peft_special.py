"""Layers of the LoRA house that peft does not have, as the plain ones of peft's that compute the same.

Parts of a fused layer are the whole, whose B is zero in the other rows; a LoRA with its beginning subtracted (PiSSA and
its kin) is one of twice the rank.
"""

from typing import Any

import torch
from torch import Tensor, nn

from . import AdapterError, in_words
from .lora import START, Lora
from .lora_house import NAME, House
from .lora_kin import Ia3
from .lora_split import Rows, Split

LORA = ("lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector")


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that the adapter of the house has in the model, by path."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        inner = any(path.startswith(f"{p}.") for p in found)
        if isinstance(module, (BaseTunerLayer, Split)) and not inner:
            found[path] = module
    return found


def is_special(layer: Any) -> bool:
    return isinstance(layer, Split) or START in getattr(layer, "lora_A", ())


def packed(path: str, layer: Any, adapter: House) -> dict[str, Tensor]:
    """The tensors of the plain layer of peft's that computes what this one does."""
    if not isinstance(layer, Split):
        return doubled(layer)
    parts = {p: m for p in layer.rows if not isinstance(m := getattr(layer, p), Rows)}
    if isinstance(adapter, Ia3):
        whole = torch.ones_like(layer.weight[:, :1])
        for part, m in parts.items():
            whole[slice(*layer.rows[part])] = m.ia3_l[NAME].detach()
        return {"ia3_l": whole}
    if not isinstance(adapter, Lora):
        raise AdapterError(
            f"{path}: peft's format has no {', '.join(parts)} of it for {in_words(adapter)}; adapt the whole"
        )
    each = {part: doubled(m) for part, m in parts.items()}
    rank = sum(t["lora_A.weight"].shape[0] for t in each.values())
    made = {"lora_A.weight": torch.cat([t["lora_A.weight"] for t in each.values()])}
    made["lora_B.weight"], at = layer.weight.detach().new_zeros(layer.out_features, rank), 0
    if adapter.bias:
        made["lora_B.bias"] = layer.weight.detach().new_zeros(layer.out_features)
    if adapter.dora:
        made["lora_magnitude_vector"] = torch.linalg.norm(layer.weight.detach(), dim=1)
    for part, tensors in each.items():
        rows, b = slice(*layer.rows[part]), tensors["lora_B.weight"]
        made["lora_B.weight"][rows, at : at + b.shape[1]] = b
        at += b.shape[1]
        for name in set(LORA[2:]) & set(tensors):
            made[name][rows] = tensors[name]
    return made


def doubled(layer: Any) -> dict[str, Tensor]:
    """A, B and what else a LoRA layer has, with what it began as, if that is subtracted, behind them."""
    a, b = layer.lora_A[NAME].weight.detach(), layer.lora_B[NAME].weight.detach()
    if START in layer.lora_A:
        a = torch.cat([a, layer.lora_A[START].weight.detach()])
        b = torch.cat([b, -layer.lora_B[START].weight.detach()], 1)
    made = {"lora_A.weight": a, "lora_B.weight": b}
    if layer.lora_B[NAME].bias is not None:
        made["lora_B.bias"] = layer.lora_B[NAME].bias.detach()
    if NAME in layer.lora_magnitude_vector:
        made["lora_magnitude_vector"] = layer.lora_magnitude_vector[NAME].weight.detach()
    return made


@torch.no_grad()
def unpack(path: str, layer: Any, tensors: dict[str, Tensor]) -> None:
    """The inverse of `packed`."""
    want = {"ia3_l"} if "ia3_l" in tensors else {"lora_A.weight", "lora_B.weight"}
    if missing := want - set(tensors):
        raise AdapterError(f"the adapter's file lacks {path}.{min(missing)}")
    rows = {p: slice(*r) for p, r in layer.rows.items()} if isinstance(layer, Split) else {"": slice(None)}
    adapted = {p: getattr(layer, p) if p else layer for p in rows}
    at = 0
    for part, m in adapted.items():
        if isinstance(m, Rows):
            continue
        if "ia3_l" in tensors:
            fill(f"{path}.ia3_l", m.ia3_l[NAME], tensors["ia3_l"][rows[part]])
            continue
        names = [NAME, START] if START in m.lora_A else [NAME]
        for name in names:
            r, sign = m.r[name], -1 if name == START else 1
            fill(f"{path}.lora_A", m.lora_A[name].weight, tensors["lora_A.weight"][at : at + r])
            fill(f"{path}.lora_B", m.lora_B[name].weight, sign * tensors["lora_B.weight"][rows[part], at : at + r])
            at += r
        if m.lora_B[NAME].bias is not None:
            fill(f"{path}.lora_B.bias", m.lora_B[NAME].bias, tensors["lora_B.bias"][rows[part]])
        if NAME in m.lora_magnitude_vector:
            own = m.lora_magnitude_vector[NAME].weight
            fill(f"{path}.lora_magnitude_vector", own, tensors["lora_magnitude_vector"][rows[part]])


def fill(name: str, own: Tensor, value: Tensor) -> None:
    if own.shape != value.shape:
        raise AdapterError(
            f"{name} of the adapter's file has shape {tuple(value.shape)}, where it is {tuple(own.shape)} here"
        )
    with torch.no_grad():
        own.copy_(value)


def differ(expected: set[str], given: set[str]) -> None:
    if missing := sorted(expected - given):
        raise AdapterError(f"the adapter's file lacks {missing[0]}")
    if more := sorted(given - expected):
        raise AdapterError(f"the adapter's file has {more[0]}, for which there is no place")
