"""From messages to samples: templates, placeholders, and which tokens of an answer are learned."""

import pytest
import torch
from multimodal_parts import small_tokenizer

from patchloom.multimodal.prompt import Prompter, Template
from patchloom.multimodal.splice import IGNORED

CHATML = (
    "{% for m in messages %}{{ m.role }} : {{ m.content }} </s>{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)
LOSES = "{% for m in messages %}USER : {{ m.content.replace('<image>', '') }}{% endfor %}"
REWRITES = "{{ messages | length }} {% for m in messages %}{{ m.content }}{% endfor %}"
PICTURE = torch.zeros(3, 8, 8)


def words(prompter: Prompter, ids: torch.Tensor) -> list[str]:
    return prompter.tokenizer.convert_ids_to_tokens(ids.tolist())  # type: ignore[no-any-return]


def test_a_question() -> None:
    prompter = Prompter(small_tokenizer())
    sample = prompter.question("what is this ?", [PICTURE])
    assert words(prompter, sample.ids) == ["<s>", "USER", ":", "<image>", "what", "is", "this", "?", "ASSISTANT", ":"]
    assert sample.labels is None
    assert len(sample.images) == 1
    twice = prompter.question("what is <image> and <image> ?", [PICTURE] * 2)
    assert words(prompter, twice.ids)[3:8] == ["what", "is", "<image>", "and", "<image>"]
    assert words(prompter, prompter.question("what is this ?").ids)[:4] == ["<s>", "USER", ":", "what"]


@pytest.mark.parametrize("template", [None, CHATML])
def test_answers_are_learned_token_by_token(template: str | None) -> None:
    prompter = Prompter(small_tokenizer(template))
    said = [
        {"role": "user", "content": "<image> what is this ?"}, {"role": "assistant", "content": "a red cat"},
        {"role": "user", "content": "a dog ?"}, {"role": "assistant", "content": "two"},
    ]  # fmt: skip
    sample = prompter.sample(said, [PICTURE], learn=True)
    assert sample.labels is not None
    learned = sample.labels != IGNORED
    assert torch.equal(sample.labels[learned], sample.ids[learned])
    assert words(prompter, sample.ids[learned]) == ["a", "red", "cat", "</s>", "two", "</s>"]
    asked = prompter.sample(said[:1], [PICTURE])
    assert torch.equal(sample.ids[: len(asked.ids)], asked.ids)
    assert not learned[: len(asked.ids)].any()
    if template is not None:
        assert prompter.template is None
        assert words(prompter, sample.ids).count("<s>") == 1


def test_a_template_of_ones_own() -> None:
    prompter = Prompter(
        small_tokenizer(CHATML), template=Template(system="{} ", user="this {} ", assistant="?", answer=" {}", end="")
    )
    assert prompter.text([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]) == "a this b ?"


@pytest.mark.parametrize(
    ("template", "text", "images", "message"),
    [
        (None, "<image> <image> what", 1, "2 placeholders '<image>' for 1 images"),
        (None, "what <image>", 0, "1 placeholders '<image>' for 0 images"),
        (LOSES, "<image> what", 1, "the chat template wrote 0 of 1 image tokens"),
    ],
)
def test_placeholders_that_do_not_fit(template: str | None, text: str, images: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prompter(small_tokenizer(template)).sample([{"role": "user", "content": text}], [PICTURE] * images)


def test_other_wrong_input() -> None:
    with pytest.raises(ValueError, match="image token '<picture> here' is 4 tokens"):
        Prompter(small_tokenizer(), "<picture> here")
    with pytest.raises(ValueError, match="a prompt of 10 tokens is longer than the context of 9"):
        Prompter(small_tokenizer(), context=9).question("what is this ?", [PICTURE])
    with pytest.raises(ValueError, match="nothing to learn"):
        Prompter(small_tokenizer()).sample([{"role": "user", "content": "a"}], learn=True)
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "two"}]
    with pytest.raises(ValueError, match="writes what came before anew"):
        Prompter(small_tokenizer(REWRITES)).sample(said, learn=True)
