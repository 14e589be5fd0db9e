"""LLaVA-1.5, https://arxiv.org/abs/2310.03744, from a folder that transformers saved."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..vision.backbone import Backbone
from .clip import DROPPED, KEYS, clip
from .connectors import Project
from .decoder import decoder
from .tower import Tower
from .vlm import VisionLanguage

TOWER, MODEL = r"(?:model\.)?vision_tower\.(?:vision_model\.)?", "decoder.lm."
RULES = (  # theirs, of any release -> ours
    *((TOWER + theirs, "tower.backbone." + ours) for theirs, ours in KEYS),
    (r"(?:model\.)?multi_modal_projector\.linear_1\.(weight|bias)", r"connector.layers.0.\1"),
    (r"(?:model\.)?multi_modal_projector\.linear_2\.(weight|bias)", r"connector.layers.1.\1"),
    (r"language_model\.(lm_head\..*|model\..*)", MODEL + r"\1"),
    (r"model\.language_model\.(.*)", MODEL + r"model.\1"),
    (r"lm_head\.(.*)", MODEL + r"lm_head.\1"),
)
VISION = r"(?:vision_model\.)?"
LEFT_OUT = (*(TOWER + name for name in DROPPED), r".*\.rotary_emb\.inv_freq")


def llava(config: Any, dtype: torch.dtype | None = None) -> VisionLanguage:
    """A LLaVA with fresh weights, of a `LlavaConfig`."""
    if config.vision_feature_select_strategy not in ("default", "full"):
        raise ValueError(f"vision_feature_select_strategy {config.vision_feature_select_strategy!r}: default or full")
    layers = config.vision_feature_layer
    levels = [block(i) for i in ([layers] if isinstance(layers, int) else layers)]
    tower = Tower(clip(config.vision_config), levels, special=config.vision_feature_select_strategy == "full")
    connector = Project(2, config.projector_hidden_act, config.multimodal_projector_bias)
    image_token = getattr(config, "image_token_id", None)
    image_token = config.image_token_index if image_token is None else image_token
    model = VisionLanguage(tower, connector, decoder(config.text_config), image_token)
    return model if dtype is None else model.to(dtype)


def block(state: int) -> int:
    """transformers counts hidden states from the embeddings on, we count blocks; from the end both count alike."""
    if state == 0:
        raise ValueError("vision_feature_layer 0 is the embeddings, before any block; 1 or more, or negative, is read")
    return state - 1 if state > 0 else state


def open_llava(folder: str | Path, dtype: torch.dtype | None = None) -> VisionLanguage:
    """The model in a folder as `LlavaForConditionalGeneration.save_pretrained` writes it (the files of llava-hf), in
    evaluation mode; dtype None: the file's. Every tensor must find its place. Raises ValueError where one does not, and
    FileNotFoundError where there is no such folder."""
    from transformers import AutoConfig

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json: a folder that transformers saved is wanted")
    config: Any = AutoConfig.from_pretrained(folder)
    if config.model_type != "llava":
        raise ValueError(f"{folder} holds a {config.model_type!r}; open_llava opens a 'llava'")
    state = read_folder(folder)
    model = llava(config, dtype or next(iter(state.values())).dtype)
    load(model, state)
    return model.eval()


def open_clip(name: str) -> Backbone:
    """CLIP's image encoder by local path or name of transformers, to be a tower of."""
    from transformers import CLIPVisionModel

    theirs = CLIPVisionModel.from_pretrained(name)
    made = clip(theirs.config)
    load(made, theirs.state_dict(), [(VISION + a, b) for a, b in KEYS], [VISION + a for a in DROPPED])
    return made


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder's files, safetensors or, where there are none, pickles of tensors alone."""
    from safetensors.torch import load_file

    if files := sorted(folder.glob("*.safetensors")):
        return {name: value for file in files for name, value in load_file(file).items()}
    if files := sorted(folder.glob("pytorch_model*.bin")):
        return {n: v for file in files for n, v in torch.load(file, map_location="cpu", weights_only=True).items()}
    raise ValueError(f"{folder} holds no weights: no *.safetensors and no pytorch_model*.bin")


def load(model: nn.Module, state: Mapping[str, Tensor], rules: Sequence[tuple[str, str]] = RULES,
         left_out: Sequence[str] = LEFT_OUT, stays: Sequence[str] = ()) -> None:  # fmt: skip
    """Copies `state` into the model under the names that the rules make of its own, `name[2/3]` being the second of a
    tensor's three equal parts. Strict: raises ValueError, and changes nothing, where a name has no rule, two fill the
    same, a shape differs or a tensor of ours stays empty that is none of `stays`, which may."""
    own = model.state_dict()
    parts: dict[str, dict[int, Tensor]] = {}
    problems = []
    for name, value in state.items():
        if any(re.fullmatch(pattern, name) for pattern in left_out):
            continue
        ours = next((m.expand(to) for pattern, to in rules if (m := re.fullmatch(pattern, name))), None)
        split = re.fullmatch(r"(.*)\[(\d)/\d\]", ours or "")
        target, part = (split[1], int(split[2])) if split else (ours or "", 1)
        if target not in own:
            problems.append(f"no place for {name} {tuple(value.shape)}")
        elif part in parts.setdefault(target, {}):
            problems.append(f"{name} and another tensor both fill {ours}")
        else:
            parts[target][part] = value
    filled = {}
    for name, pieces in parts.items():
        value = torch.cat([pieces[i] for i in sorted(pieces)]) if len(pieces) > 1 else pieces[min(pieces)]
        if value.shape != own[name].shape and value.numel() == own[name].numel() and value.ndim < own[name].ndim:
            value = value.view(own[name].shape)  # tokens and tables have a batch dimension of 1 here
        if value.shape != own[name].shape:
            problems.append(f"{name} is {tuple(value.shape)}, {tuple(own[name].shape)} is wanted")
        filled[name] = value
    shared = {value.data_ptr() for name, value in own.items() if name in filled}
    empty = [n for n, v in own.items() if n not in filled and v.data_ptr() not in shared]
    problems += [f"nothing fills {n}" for n in empty if not any(re.fullmatch(pattern, n) for pattern in stays)]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"these weights do not fit: {'; '.join(problems[:3])}{more}")
    with torch.no_grad():
        for name, value in filled.items():
            own[name].copy_(value)
