"""Any method of peft's that changes layers, by peft's own settings."""

import json
from dataclasses import dataclass
from typing import Any

from torch import nn

from . import HEADS, AdapterError, Put
from .lora_house import House, library, quietly, tuned
from .lora_targets import called


@dataclass(frozen=True)
class Peft(House):
    """Any settings of peft's that change layers, as JSON; its targets are found as peft finds them."""

    settings_json: str

    def settings(self) -> dict[str, Any]:
        return json.loads(self.settings_json)  # type: ignore[no-any-return]

    def whole(self) -> Any:
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

        settings = self.settings()
        kind = settings.pop("peft_type")
        known = library().PEFT_TYPE_TO_CONFIG_MAPPING
        if kind not in known:
            raise AdapterError(
                f"peft {library().__version__} knows no method {kind!r}; it has {', '.join(sorted(known))}"
            )
        try:
            config = quietly(known[kind], **settings)
        except (TypeError, ValueError) as error:
            raise AdapterError(f"peft refuses these settings of {kind}: {error}") from error
        tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(config.peft_type)
        if tuner is None or config.is_prompt_learning or (tuner.uses_shared_state and kind != "VERA"):
            raise AdapterError(
                f"peft's {kind} is more than layers around a model's layers, so it has no place in this one"
            )
        return config

    def place(self, model: nn.Module) -> list[Put]:
        config = self.whole()
        layers = meant(model, config)
        config.modules_to_save = None  # heads are the adapter's own anyway
        found = tuned(layers, config, f"the {config.peft_type.value} of peft")
        return [Put(path.rpartition(".")[0], path.rpartition(".")[2], layer) for path, layer in found.items()]


def meant(model: nn.Module, config: Any) -> dict[str, nn.Module]:
    """The layers of the bare model that peft's settings name; heads aside, which peft calls `modules_to_save`."""
    from peft.tuners.tuners_utils import check_target_module_exists

    out = tuple(f"{h}." for h in HEADS)
    every = {p: m for p, m in model.named_modules() if p and not f"{p}.".startswith(out)}
    layers = {path: m for path, m in every.items() if check_target_module_exists(config, path)}
    if not layers:
        last = sorted({p.rpartition(".")[2] for p, m in every.items() if isinstance(m, nn.Linear | nn.Conv2d)})
        raise AdapterError(f"{called(model)}: no layer is called {config.target_modules}; there are {', '.join(last)}")
    return layers
