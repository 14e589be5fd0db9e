"""Tokenisers: learned from the texts of a data set, kept in a checkpoint as plain values, or opened by name."""

from collections.abc import Iterable, Mapping
from typing import Any

PAD, BEGIN, END, IMAGE = SPECIAL = ("<pad>", "<s>", "</s>", "<image>")  # ids 0 to 3 of a learned one
BYTES = 256


def learned(texts: Iterable[str], size: int) -> Any:
    """A tokeniser of transformers with up to `size` tokens: pairs of bytes joined, the commonest first (byte-level BPE,
    https://arxiv.org/abs/1508.07909). Every text can be written with it. Offline, and the same for the same texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    least = BYTES + len(SPECIAL)
    if size < least:
        raise ValueError(f"a vocabulary of {size} tokens: {BYTES} bytes and {', '.join(SPECIAL)} alone are {least}")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return fast(made, {"pad_token": PAD, "bos_token": BEGIN, "eos_token": END, "additional_special_tokens": [IMAGE]})


def fast(made: Any, special: Mapping[str, Any], template: str | None = None) -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False, **special)
    tokenizer.chat_template = template
    return tokenizer


def plain_words(tokenizer: Any) -> dict[str, Any]:
    """A fast tokeniser as plain values, for `from_plain`."""
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} cannot be written into a checkpoint; take a fast tokeniser")
    special = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    others = [str(t) for t in tokenizer.all_special_tokens if str(t) not in special.values()]
    return {
        "json": tokenizer.backend_tokenizer.to_str(),
        "special": {**special, "additional_special_tokens": others},
        "template": getattr(tokenizer, "chat_template", None),
    }


def from_plain(words: Mapping[str, Any]) -> Any:
    from tokenizers import Tokenizer

    return fast(Tokenizer.from_str(words["json"]), words["special"], words["template"])


def open_tokenizer(name: str, image_token: str = IMAGE) -> Any:
    """One of transformers by local path or name; it gets the image token as one of its own where it lacks it."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(f"no tokeniser {name!r}: {first}; learn:SIZE makes one of what is said") from error
    if len(tokenizer(image_token, add_special_tokens=False)["input_ids"]) != 1:
        tokenizer.add_special_tokens({"additional_special_tokens": [image_token]})
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
