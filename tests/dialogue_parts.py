"""Small talkers, pictures that are talked about, and runs of both."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from patchloom.data.dialogue_files import DialogueFiles
from patchloom.multimodal.connectors import Project
from patchloom.multimodal.fresh import language
from patchloom.multimodal.prompt import Template
from patchloom.multimodal.tower import Tower
from patchloom.multimodal.vlm import VisionLanguage
from patchloom.train.converse import Converse
from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.mixers.attention import Global
from patchloom.vision.position import Position
from patchloom.vision.stem import Patchify

SHORT = Template("{}\n", "{}", "\n", "{}", "</s>")
SEEN = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
INKS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (240, 240, 240)}


def small_vlm(context: int = 128, vocabulary: int = 320, **settings: Any) -> VisionLanguage:
    """A tower of four tokens an image, and a LLaMA of two layers of 32 channels."""
    torch.manual_seed(0)
    tower = Tower(Backbone([Stage(Global(2), 16, 1)], Patchify(8, None, position=Position((2, 2)))))
    decoder = language(
        {
            "model_type": "llama", "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
            "max_position_embeddings": context, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **settings,
        }
    )  # fmt: skip
    return VisionLanguage(tower, Project(2), decoder, 3)


def talking(model: VisionLanguage | None = None, lr: float = 3e-3, **options: Any) -> Converse:
    made = small_vlm() if model is None else model
    torch.manual_seed(0)
    given = {"tokenizer": "learn:300", "template": SHORT, "most": 6, **options}
    return Converse(made, optimizer=lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=0.0), **given)


def save_talk(folder: Path) -> Path:
    """Plain pictures, and questions on their colours."""
    folder.mkdir(parents=True, exist_ok=True)
    said = []
    for name, ink in INKS.items():
        Image.new("RGB", (20, 18), ink).save(folder / f"{name}.png")
        said.append({"image": f"{name}.png", "question": "what colour is it?", "answer": name})
        said.append({"image": f"{name}.png", "question": "is it red?", "answer": "yes" if name == "red" else "no"})
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, said)))
    return folder


def talk(folder: Path, **options: Any) -> DialogueFiles:
    given = {"train": "train.jsonl", "val": "train.jsonl", "batch_size": 4, "workers": 0, "preprocessing": SEEN}
    return DialogueFiles(str(save_talk(folder)), **given | options)
