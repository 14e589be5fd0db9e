"""The chat tab: questions about a picture, answered word by word."""

from collections.abc import Iterator
from typing import Any

from ...multimodal.generate import Greedy, Sampled
from ...multimodal.prompt import Message
from .limits import Clock, Limits, Refused, number, words
from .shelf import Shelf
from .uploads import Upload


def talk(
    shelf: Shelf, limits: Limits, upload: Upload, model: Any, question: Any, before: list[Message] | None = None, *,
    temperature: Any = 0.0,
) -> Iterator[str]:  # fmt: skip
    """The answer so far, longer each time. `before`: what was said about the same picture; `temperature` 0 takes the
    likeliest word."""
    asked = words(question, "the question", limits.text)
    warmth = number(temperature, "the temperature", 0, 2)
    before = list(before or [])
    if len(before) >= 2 * limits.turns:
        raise Refused(f"{limits.turns} questions about one picture are enough here: start a new conversation")
    clock = Clock(limits.seconds)
    with shelf.borrowed(model, clock, "chat") as talker, clock.watching(talker.vlm):
        token = talker.prompter.image_token  # a visitor's own would stand for a picture that is not there
        said = [*before, {"role": "user", "content": asked}]
        said = [{**message, "content": message["content"].replace(token, "")} for message in said]
        choose = Sampled(warmth, top_p=0.95) if warmth else Greedy()
        answer = ""
        for piece in talker.stream(said, [upload.picture], most=min(talker.most, limits.words), choose=choose):
            answer += piece
            if answer.strip():
                yield answer.strip()
        if not answer.strip():
            yield "(no words)"
