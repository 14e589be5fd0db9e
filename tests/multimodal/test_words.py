"""Tokenisers learned from texts, and kept as plain values; networks as recipes spell them."""

import pytest
import torch

from patchloom.multimodal.fresh import language, small_tower
from patchloom.multimodal.prompt import Prompter, Template
from patchloom.multimodal.words import SPECIAL, from_plain, learned, open_tokenizer, plain_words

TEXTS = ["what colour is the star?\nred", "how many red stars are there?\n12"] * 40


def test_words_of_the_texts_are_one_token_each_and_every_text_can_be_written():
    made = learned(TEXTS, 320)
    assert [made.convert_tokens_to_ids(word) for word in SPECIAL] == [0, 1, 2, 3]
    assert len(made("what colour is the star?\nred")["input_ids"]) == 8
    for text in ("ÄΩ — 東", " two  blanks ", "a\nb", "<image> and more"):
        assert made.decode(made(text, add_special_tokens=False)["input_ids"]) == text
    assert len(made.get_vocab()) <= 320
    assert learned(TEXTS, 320).get_vocab() == made.get_vocab()
    with pytest.raises(ValueError, match="a vocabulary of 200 tokens"):
        learned(TEXTS, 200)


def test_plain_values_make_the_same_tokeniser():
    made = learned(TEXTS, 320)
    made.chat_template = "{{ messages }}"
    again = from_plain(plain_words(made))
    for text in (*TEXTS[:2], "<image>\nÄ</s>"):
        assert again(text)["input_ids"] == made(text)["input_ids"]
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "chat_template", "all_special_ids")
    assert all(getattr(again, name) == getattr(made, name) for name in names)
    assert again.decode(again("red</s>")["input_ids"], skip_special_tokens=True) == "red"


def test_one_of_transformers_gets_an_image_token(tmp_path, monkeypatch):
    learned(TEXTS, 320).save_pretrained(tmp_path)
    opened = open_tokenizer(str(tmp_path))
    assert Prompter(opened, template=Template()).image_id == 3
    other = open_tokenizer(str(tmp_path), "<picture>")
    assert other("<picture>", add_special_tokens=False)["input_ids"] == [len(other) - 1]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"no tokeniser .no/such/folder.*learn:SIZE"):
        open_tokenizer("no/such/folder")


def test_language_models_as_settings():
    settings = {
        "model_type": "llama", "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2
    }  # fmt: skip
    made = language(settings)
    assert (made.depth, made.width, made.vocabulary) == (2, 16, 50)
    with pytest.raises(ValueError, match="llama has no setting 'hiden_size'; did you mean hidden_size"):
        language({**settings, "hiden_size": 16})
    with pytest.raises(ValueError, match="model_type 'bert': there are llama"):
        language({"model_type": "bert"})


def test_a_small_tower_sees_tokens_of_eight_pixels():
    tower = small_tower((32, 48), 32, 2, 4).eval()
    assert tower(torch.zeros(1, 3, 32, 48)).x.shape == (1, 24, 32)
    assert tower(torch.zeros(2, 3, 40, 33)).x.shape == (2, 25, 32)
