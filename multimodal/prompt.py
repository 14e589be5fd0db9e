"""Words to samples: chat templates and tokenisers of transformers, placeholders counted, answers to be learned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .splice import Sample
from .stream import IGNORED

Message = Mapping[str, str]  # {"role": "user", "content": "<image>\nWhat is this?"}


@dataclass(frozen=True)
class Template:
    """How a conversation is written for a model whose tokeniser brings no template; `{}` stands for what is said. The
    default is LLaVA-1.5's (vicuna's) without the system's words."""

    system: str = "{} "
    user: str = "USER: {} "
    assistant: str = "ASSISTANT:"
    answer: str = " {}"
    end: str = "</s>"

    def __call__(self, messages: Sequence[Message], ask: bool) -> str:
        text = ""
        for m in messages:
            said = m["content"]
            if m["role"] == "assistant":
                text += self.assistant + self.answer.format(said) + self.end
            else:
                text += (self.system if m["role"] == "system" else self.user).format(said)
        return text + (self.assistant if ask else "")


class Prompter:
    """Messages and images -> Sample.

    tokenizer: one of transformers. image_token: the word that stands for an image; its id is `image_id`.
    context: the longest prompt in tokens before images are put in, None: the caller checks (VisionLanguage does).
    template: None: the tokeniser's own where it has one, else `Template()`.
    """

    def __init__(self, tokenizer: Any, image_token: str = "<image>", *, context: int | None = None,
                 template: Template | None = None):  # fmt: skip
        self.tokenizer, self.image_token, self.context = tokenizer, image_token, context
        self.template = Template() if template is None and not getattr(tokenizer, "chat_template", None) else template
        ids = tokenizer(image_token, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ValueError(f"image token {image_token!r} is {len(ids)} tokens to this tokeniser; make it one: "
                             "tokenizer.add_special_tokens({'additional_special_tokens': [...]})")  # fmt: skip
        self.image_id: int = ids[0]

    def text(self, messages: Sequence[Message], ask: bool = True) -> str:
        """The conversation as the model reads it; `ask`: an answer is to follow."""
        if self.template is not None:
            return self.template(messages, ask)
        said = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask)
        return str(said)

    def question(self, text: str, images: Sequence[Tensor] = ()) -> Sample:
        """One question about the images, which stand before it unless it says where."""
        if images and self.image_token not in text:
            text = "\n".join([self.image_token] * len(images) + [text])
        return self.sample([{"role": "user", "content": text}], images)

    def sample(self, messages: Sequence[Message], images: Sequence[Tensor] = (), learn: bool = False) -> Sample:
        """The conversation as a Sample; `learn`: what the assistant says, and the end of it, has labels. Raises
        ValueError where the template lost a placeholder, where there are more or fewer placeholders than images, and
        where the text alone is longer than the context."""
        said = sum(m["content"].count(self.image_token) for m in messages)
        text = self.text(messages, ask=not learn)
        if text.count(self.image_token) != said:
            raise ValueError(f"the chat template wrote {text.count(self.image_token)} of {said} image tokens "
                             f"{self.image_token!r}: one that keeps the content of messages is wanted")  # fmt: skip
        if said != len(images):
            raise ValueError(f"{said} placeholders {self.image_token!r} for {len(images)} images: one for each is due")
        ids, labels = self.labelled(messages) if learn else (self.tokens(text), None)
        if self.context is not None and len(ids) > self.context:
            raise ValueError(f"a prompt of {len(ids)} tokens is longer than the context of {self.context}")
        return Sample(ids, tuple(images), labels)

    def tokens(self, text: str) -> Tensor:
        """(L)"""
        return torch.tensor(self.encoded(text)["input_ids"], dtype=torch.long)

    def encoded(self, text: str, offsets: bool = False) -> Any:
        """What the tokeniser makes of it, without another beginning where the text has one."""
        begin = getattr(self.tokenizer, "bos_token", None)
        special = not (begin and text.startswith(begin))
        return self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=offsets)

    def labelled(self, messages: Sequence[Message]) -> tuple[Tensor, Tensor]:
        """(ids, labels): of the text's tokens those are learned that lie wholly in what an assistant's turn adds to it.
        Raises ValueError where the text with a turn does not begin with the text before it, since then nobody could say
        which tokens are whose."""
        if not self.tokenizer.is_fast:
            raise ValueError(f"{type(self.tokenizer).__name__} does not say where its tokens stand in the text; labels "
                             "want a fast tokeniser")  # fmt: skip
        spans, text = [], self.text(messages, False)
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            asked, answered = self.text(messages[:i], True), self.text(messages[: i + 1], False)
            if not (answered.startswith(asked) and text.startswith(answered)):
                raise ValueError(f"message {i}: the chat template writes what came before anew, so the answer's tokens "
                                 "cannot be told from the question's")  # fmt: skip
            spans.append((len(asked), len(answered)))
        if not spans:
            raise ValueError("no message of an assistant: there is nothing to learn")
        found = self.encoded(text, offsets=True)
        ids = torch.tensor(found["input_ids"], dtype=torch.long)
        learned = [a < b and any(first <= a and b <= end for first, end in spans) for a, b in found["offset_mapping"]]
        return ids, ids.masked_fill(~torch.tensor(learned), IGNORED)
