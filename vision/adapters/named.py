"""Adapters by name: `lora:r=8` for `Lora(r=8)`, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..spelling import in_words as spelt_in
from ..spelling import spelt

if TYPE_CHECKING:
    from . import Adapter

PACKAGE = __name__.rpartition(".")[0]
ADAPTERS = {  # spelling -> module and dataclass
    "probe": ("probe", "Probe"),
    "lora": ("lora", "Lora"),
    "rslora": ("lora", "RsLora"),
    "dora": ("lora", "Dora"),
    "pissa": ("lora", "Pissa"),
    "olora": ("lora", "Olora"),
    "corda": ("lora", "Corda"),
    "eva": ("lora", "Eva"),
    "adalora": ("lora", "AdaLora"),
    "vera": ("lora_kin", "Vera"),
    "ia3": ("lora_kin", "Ia3"),
    "oft": ("lora_kin", "Oft"),
    "boft": ("lora_kin", "Boft"),
    "loha": ("lora_kin", "LoHa"),
    "lokr": ("lora_kin", "LoKr"),
    "hra": ("lora_kin", "Hra"),
    "ln_tuning": ("lora_kin", "LnTuning"),
    "fourierft": ("lora_kin", "FourierFt"),
    "delora": ("lora_kin", "DeLora"),
    "road": ("lora_kin", "Road"),
    "miss": ("lora_kin", "Miss"),
    "vpt": ("prompts", "Vpt"),
    "prefix": ("prefix", "Prefix"),
    "ntk": ("ntk", "Ntk"),
    "houlsby": ("bottleneck", "Houlsby"),
    "pfeiffer": ("bottleneck", "Pfeiffer"),
    "parallel": ("bottleneck", "Parallel"),
    "adaptformer": ("bottleneck", "AdaptFormer"),
    "conformer": ("convolutional", "Conformer"),
    "convpass": ("convolutional", "Convpass"),
    "soft_moa": ("mixture", "SoftMoa"),
    "dense_moa": ("mixture", "DenseMoa"),
    "mole": ("mole", "Mole"),
    "compacter": ("compacter", "Compacter"),
    "low_rank": ("compacter", "LowRankAdapter"),
    "hyperformer": ("hyperformer", "HyperFormer"),
    "polyhistor": ("polyhistor", "Polyhistor"),
    "polyhistor_lite": ("polyhistor", "PolyhistorLite"),
    "vl_adapter": ("controllers", "VlAdapter"),
    "vl_lora": ("controllers", "VlLora"),
    "hst": ("side", "Hst"),
    "diffscaler": ("affine", "DiffScaler"),
    "ssf": ("affine", "ScaleShift"),
    "bias": ("partial", "BiasTuning"),
    "norm": ("partial", "NormTuning"),
    "s2ft": ("s2ft", "S2FT"),
}


def adapter(text: str) -> Adapter:
    """`"lora:r=8"` -> `Lora(r=8)`: a name, and options `key=value` between commas behind a colon (vision/spelling)."""
    return spelt(text, ADAPTERS, PACKAGE, "adapter")  # type: ignore[no-any-return]


def from_words(chosen: Any) -> Adapter:
    """The adapter that is meant: itself, its spelling, or class_path and init_args, as YAML has it."""
    if isinstance(chosen, str):
        return adapter(chosen)
    if isinstance(chosen, Mapping):
        from ..parts import unplain

        chosen = unplain(chosen)
    if not hasattr(chosen, "place"):
        raise ValueError(f"adapter {chosen!r}: a spelling (lora:r=8) or one of vision/adapters is wanted")
    return chosen  # type: ignore[no-any-return]


def in_words(chosen: Adapter) -> str:
    """`Lora(r=8)` -> `"lora:r=8"`, without what is as by default."""
    return spelt_in(chosen, ADAPTERS, PACKAGE)
