"""Dialogues about picture files: LLaVA's JSON, VQA's pairs of files, COCO's captions, and JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from PIL import Image

from .dialogues import Dialogue, Dialogues
from .findings import OnError
from .folders import existing
from .images import Augment
from .questions import CAPTION, Turn
from .read import read_image
from .splits import Splits, portion

PLACE = "<image>"  # stands for a picture in what is said
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
VQA_NAME = "COCO_{subtype}_{image_id:012}.jpg"


class Entry(NamedTuple):
    """A dialogue, and the files of its pictures as the annotations name them."""

    images: tuple[str, ...]
    dialogue: Dialogue


def read_dialogues(file: str | Path, annotations: str | Path | None = None) -> list[Entry]:
    """What a file says, by its content:

    - LLaVA's JSON: a list of {"id", "image": a name or several, or none, "conversations": [{"from", "value"}, …]}
    - VQA: {"questions": [{"question_id", "image_id", "question"}]}, and `annotations` beside it with the answers;
      without it the answers are empty
    - COCO's captions: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
    - JSON lines: objects as LLaVA's, or {"image", "question", "answer"} (or "answers"), or {"image", "captions"}

    Raises ValueError that names file and place.
    """
    path = existing(file)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [entry_of(each, f"{path}:{line}") for line, each in lines(text, path)]
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: no JSON ({error}); JSON lines end in .jsonl") from error
    if isinstance(content, list):
        return [entry_of(each, f"{path}, entry {i}") for i, each in enumerate(content)]
    if isinstance(content, dict) and "questions" in content:
        return vqa(content, path, annotations)
    if isinstance(content, dict) and "annotations" in content and "images" in content:
        return captions(content, path)
    raise ValueError(f"{path}: neither a list of dialogues (LLaVA), nor questions (VQA), nor captions (COCO)")


def lines(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: no JSON ({error.msg})") from error


def entry_of(found: Any, place: str) -> Entry:
    """One dialogue of LLaVA's JSON or of a line."""
    if not isinstance(found, Mapping):
        raise ValueError(f"{place}: a {type(found).__name__}, where an object with image and what is said is due")
    image = found.get("image", found.get("images", ()))
    names = (image,) if isinstance(image, str) else tuple(image or ())
    name = str(found.get("id", found.get("question_id", "")))
    said = found.get("conversations", found.get("messages"))
    if said is not None:
        turns, system = turns_of(said, place)
    elif "captions" in found:
        turns, system = caption_turns(found["captions"], place), ""
    elif "question" in found and ("answer" in found or "answers" in found):
        turns, system = (answered(found["question"], found.get("answers", found.get("answer")), place),), ""
    else:
        raise ValueError(f"{place}: has {', '.join(found)}; conversations, question and answer, or captions are due")
    return Entry(names, Dialogue(turns, system, name))


def turns_of(said: Any, place: str) -> tuple[tuple[Turn, ...], str]:
    """What people and the model say in turn, as questions and answers, and what the system says before."""
    system, turns, question = "", list[Turn](), None
    for message in said:
        role = ROLES.get(str(message.get("from", message.get("role"))))
        value = message.get("value", message.get("content"))
        if role is None or not isinstance(value, str):
            raise ValueError(f"{place}: a message {dict(message)!r}: from human or gpt, with a value, is due")
        if role == "system" and not turns:
            system = value
        elif role == "user" and question is None:
            question = value
        elif role == "assistant" and question is not None:
            turns.append(Turn(question, value))
            question = None
        else:
            raise ValueError(f"{place}: message {value[:40]!r} of {role} is out of turn: human and gpt alternate")
    if not turns or question is not None:
        raise ValueError(f"{place}: the dialogue {'ends with a question' if turns else 'has no answer'}")
    return tuple(turns), system


def answered(question: str, answers: Any, place: str) -> Turn:
    """The answer most often given is learned, all count as right."""
    given = [answers] if isinstance(answers, str | int | float) else list(answers or ())
    words = [str(a["answer"] if isinstance(a, Mapping) else a) for a in given]
    if not words:
        raise ValueError(f"{place}: question {question!r} has no answer")
    return Turn(question, max(words, key=words.count), others=tuple(words) if len(words) > 1 else ())


def caption_turns(said: Any, place: str) -> tuple[Turn, ...]:
    words = [str(each).strip() for each in ([said] if isinstance(said, str) else said)]
    if not words:
        raise ValueError(f"{place}: no captions")
    return tuple(Turn(CAPTION, word, "", tuple(words)) for word in words)


def vqa(content: Mapping[str, Any], path: Path, annotations: str | Path | None) -> list[Entry]:
    """VQAv2's files; the picture is the one that `data_subtype` and `image_id` name, as COCO names its own."""
    by_question: dict[Any, Any] = {}
    if annotations is not None:
        other = json.loads(existing(annotations).read_text(encoding="utf-8"))
        by_question = {a["question_id"]: a for a in other["annotations"]}
    subtype, found = content.get("data_subtype", "train2014"), []
    for i, q in enumerate(content["questions"]):
        place = f"{path}, question {i}"
        try:
            number, asked = q["question_id"], q["question"]
            image = q.get("image") or VQA_NAME.format(subtype=subtype, image_id=int(q["image_id"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{place}: question_id, image_id and question are due ({error})") from error
        if annotations is None:
            turn = Turn(asked, "")
        elif number not in by_question:
            raise ValueError(f"{place}: question_id {number} has no answer in {annotations}")
        else:
            truth = by_question[number]
            turn = answered(asked, truth.get("answers"), place)
            turn = turn._replace(
                answer=truth.get("multiple_choice_answer", turn.answer), about=truth.get("answer_type", "")
            )
        found.append(Entry((image,), Dialogue((turn,), id=str(number))))
    return found


def captions(content: Mapping[str, Any], path: Path) -> list[Entry]:
    """COCO's: the captions of a picture are the answers to one question."""
    names = {image["id"]: image["file_name"] for image in content["images"]}
    said: dict[Any, list[str]] = {}
    for i, each in enumerate(content["annotations"]):
        if each.get("image_id") not in names or "caption" not in each:
            raise ValueError(f"{path}, annotation {i}: a caption, and the image_id of a listed picture, are due")
        said.setdefault(each["image_id"], []).append(each["caption"])
    return [
        Entry((names[number],), Dialogue(caption_turns(words, f"{path}, image {number}"), id=str(number)))
        for number, words in said.items()
    ]


def whole(entries: Iterable[Entry], most: int) -> list[Entry]:
    """Dialogues of up to `most` questions, of those that are on the same pictures and say nothing of the system."""
    groups: dict[tuple[tuple[str, ...], str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.images, entry.dialogue.system), []).append(entry)
    made = []
    for (images, system), group in groups.items():
        turns = [turn for entry in group for turn in entry.dialogue.turns]
        for i in range(0, len(turns), most):
            made.append(Entry(images, Dialogue(tuple(turns[i : i + most]), system, group[0].dialogue.id)))
    return made


class SpokenFiles:
    """Entries with the folder of their pictures. In training a dialogue's captions (all answers to one question) are
    told one an epoch; `prompt` is what becomes of a question, `{}` in it."""

    classes: ClassVar[list[str]] = []
    steady = True

    def __init__(self, entries: Sequence[Entry], folder: Path, prompt: str, train: bool) -> None:
        self.entries, self.folder, self.prompt, self.train = list(entries), folder, prompt, train

    def __len__(self) -> int:
        return len(self.entries)

    def load(self, index: int, epoch: int = 0) -> tuple[tuple[Image.Image, ...], Dialogue]:
        entry = self.entries[index]
        turns = entry.dialogue.turns
        if len(turns) > 1 and len({turn.question for turn in turns}) == 1:
            turns = (turns[(epoch + index) % len(turns)],)
        turns = turns if self.train else turns[:1]
        asked = tuple(turn._replace(question=self.asked(turn.question)) for turn in turns)
        return tuple(read_image(self.folder / name) for name in entry.images), entry.dialogue._replace(turns=asked)

    def asked(self, question: str) -> str:
        return self.prompt.replace("{}", question)  # and not format: it may hold other braces

    def name(self, index: int) -> str:
        return str(self.folder / self.entries[index].images[0]) if self.entries[index].images else f"[{index}]"

    def texts(self) -> Iterator[str]:
        for entry in self.entries:
            for turn in entry.dialogue.turns:
                yield f"{self.asked(turn.question)} {turn.answer}"


class DialogueFiles(Dialogues):
    """Dialogues about picture files (see `read_dialogues`).

    root           where the files below, and the pictures, are looked for
    train, val, test   files of dialogues; of VQA "questions.json+annotations.json". Without val a part of train is
                   held out, without test it is val
    images         the folder of the pictures below root
    turns          training asks up to so many questions of a picture in one dialogue
    prompt         what becomes of a question, `{}` in it
    val_fraction   of the pictures of train, chosen by the hash of their names
    """

    def __init__(
        self,
        root: str,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        images: str = ".",
        turns: int = 1,
        prompt: str = "{}",
        val_fraction: float = 0.1,
        batch_size: int = 32,
        workers: int = 2,
        seed: int = 0,
        augment: Augment = None,
        preprocessing: dict[str, Any] | None = None,
        on_error: OnError = "stop",
        keep: bool = False,
    ) -> None:
        super().__init__(batch_size, workers, seed, augment, preprocessing, on_error, keep)
        if prompt.count("{}") != 1:
            raise ValueError(f"prompt = {prompt!r}: it holds {{}} once, where the question goes")
        if turns < 1:
            raise ValueError(f"turns = {turns}: at least one question is asked of a picture")
        self.root, self.images, self.turns, self.prompt = root, images, turns, prompt
        self.files, self.val_fraction = {"train": train, "val": val, "test": test}, val_fraction

    def read(self) -> Splits:
        root = existing(self.root)
        found = {split: self._entries(root, file) for split, file in self.files.items() if file is not None}
        if not found:
            raise ValueError(f"{self.root}: no file of dialogues is named (train, val, test)")
        notes: tuple[str, ...] = ()
        if "train" in found and "val" not in found and self.val_fraction:
            found["train"], found["val"] = held_out(found["train"], self.val_fraction)
            notes = (f"{len(found['val'])} dialogues of {self.root} are held out for validation, by their pictures",)
        if "train" in found:
            found["train"] = whole(found["train"], self.turns) if self.turns > 1 else found["train"]
        made = {split: SpokenFiles(e, root / self.images, self.prompt, split == "train") for split, e in found.items()}
        return Splits.of([], made, notes=notes)

    def _entries(self, root: Path, file: str) -> list[Entry]:
        name, _, annotations = file.partition("+")
        entries = read_dialogues(root / name, root / annotations if annotations else None)
        if not entries:
            raise ValueError(f"{root / name}: holds no dialogue")
        return entries


def held_out(entries: Sequence[Entry], share: float) -> tuple[list[Entry], list[Entry]]:
    """(the rest, a share of them), by the hash of the pictures' names: all that is said of a picture stays together."""
    names = sorted({entry.images for entry in entries})
    held, _ = portion(["/".join(name) for name in names], [0] * len(names), share)
    chosen = {names[i] for i in held}
    return [e for e in entries if e.images not in chosen], [e for e in entries if e.images in chosen]
