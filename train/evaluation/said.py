"""Dialogues as messages to a model, and whether what it said is right."""

import re

import torch

from ...data.dialogues import Dialogue
from ...multimodal.prompt import Message
from ...multimodal.splice import Sample


def messages(dialogue: Dialogue, images: int, image_token: str) -> list[Message]:
    """In turn, the system's words first; placeholders stand before the first question where none says where."""
    said: list[Message] = [{"role": "system", "content": dialogue.system}] if dialogue.system else []
    placed = any(image_token in turn.question for turn in dialogue.turns)
    for i, turn in enumerate(dialogue.turns):
        lead = f"{image_token}\n" * images if i == 0 and not placed else ""
        said.append({"role": "user", "content": lead + turn.question})
        said.append({"role": "assistant", "content": turn.answer})
    return said


def to(sample: Sample, device: torch.device) -> Sample:
    labels = None if sample.labels is None else sample.labels.to(device)
    return Sample(sample.ids.to(device), tuple(image.to(device) for image in sample.images), labels)


def is_right(said: str, dialogue: Dialogue) -> bool:
    turn = dialogue.turns[0]
    return bare(said) in {bare(turn.answer), *map(bare, turn.others)}


def bare(text: str) -> str:
    """Without capitals, doubled blanks and a last full stop."""
    return re.sub(r"\s+", " ", text.lower()).strip().removesuffix(".").strip()
