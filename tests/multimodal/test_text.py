"""Text encoders: those of transformers give what transformers gives, small ones are made here, none is trained."""

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from patchloom.multimodal.text import TextEncoder

transformers = pytest.importorskip("transformers")
CAPTIONS = ["a red circle left of a blue square", "a star", "a blue square above a red circle"]
SMALL = "words:width=32,depth=1,heads=2"


def tokenizer(folder: Path, kind: str) -> None:
    """A tokenizer of whole words, closed as those of each kind are."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = sorted({w for c in CAPTIONS for w in c.split()})
    begin, end = {"bert": ("[CLS]", "[SEP]"), "clip": ("<start>", "<end>"), "t5": ("", "</s>")}[kind]
    names = ["<pad>", "<unk>", *filter(None, (begin, end)), *words]
    made = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [(name, names.index(name)) for name in (begin, end) if name]
    made.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}".strip(), pair=None, special_tokens=marks
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", eos_token=end, model_max_length=32
    ).save_pretrained(folder)


def encoder(folder: Path, kind: str) -> nn.Module:
    """A small random network of a kind, saved to `folder` with its tokenizer; what transformers loads of it."""
    torch.manual_seed(0)
    if kind == "t5":
        config = transformers.T5Config(
            vocab_size=20, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
        transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
        kept = transformers.T5EncoderModel.from_pretrained(folder)
    elif kind == "clip":
        text = {"vocab_size": 20, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "max_position_embeddings": 24, "eos_token_id": 3}  # fmt: skip
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                  "image_size": 16, "patch_size": 8}  # fmt: skip
        transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
        kept = transformers.CLIPTextModel.from_pretrained(folder)
    else:
        config = transformers.BertConfig(
            vocab_size=20, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
        )
        kept = transformers.BertModel(config)
        kept.save_pretrained(folder)
    tokenizer(folder, kind)
    return kept.eval()


@pytest.mark.parametrize("kind", ["bert", "clip", "t5"])
def test_equals_transformers(tmp_path: Path, kind: str) -> None:
    """CLIP's and T5's whole models are saved: of both the text encoder alone is taken."""
    theirs = encoder(tmp_path, kind)
    ours = TextEncoder(str(tmp_path), length=12)
    states, mask = ours.encode(CAPTIONS)
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path)(
        CAPTIONS, padding="max_length", max_length=12, return_tensors="pt"
    )
    with torch.no_grad():
        expected = theirs(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
    assert states.shape == (3, *ours.text) == (3, 12, 32)
    assert torch.equal(mask, tokens["attention_mask"].bool())
    torch.testing.assert_close(states[mask], expected[mask])
    torch.testing.assert_close(states, expected)
    assert not states.requires_grad
    assert len(ours.digest) == 64


def test_it_is_no_part_of_the_network_that_it_serves() -> None:
    class Trained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text, self.layer = TextEncoder(SMALL, 8), nn.Linear(2, 2)

    host = Trained()
    assert set(host.state_dict()) == {"layer.weight", "layer.bias"}
    assert len(list(host.parameters())) == 2
    assert not any(p.requires_grad for p in host.text.network.parameters())
    host.train()
    assert not host.text.network.training
    host.to(torch.float64)  # moves with its host
    assert next(host.text.network.parameters()).dtype == torch.float64
    assert host.text.encode(["a star"])[0].dtype == torch.float32
    host.load_state_dict(Trained().state_dict())


def test_a_made_one_is_the_same_everywhere() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    a, b = TextEncoder(SMALL, 8), TextEncoder(SMALL, 16)
    assert torch.equal(torch.get_rng_state(), before)  # the run's own draws do not move
    assert a.digest == b.digest != TextEncoder(SMALL + ",seed=1", 8).digest
    again = TextEncoder(**a.arguments())
    assert torch.equal(a.encode(CAPTIONS[1:2])[0], again.encode(CAPTIONS[1:2])[0])
    assert a.tokens(["A Star!"]) == a.tokens(["a star !"]) != a.tokens(["a star"])


def near(x: Tensor, y: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(x, y, dim=-1))


def test_a_made_one_tells_words_and_places_apart() -> None:
    states, mask = TextEncoder(SMALL, 12).encode(CAPTIONS)
    assert mask.sum(1).tolist() == [10, 4, 9]
    assert near(states[0, 2], states[0, 7]) < 0.9  # red, blue
    assert near(states[0, 1], states[0, 6]) < 0.97  # the same word, "a", at two places
    assert near(states[0, 1], states[2, 1]) > 0.9  # the same word at the same place


def test_answers_are_kept_and_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    text = TextEncoder(SMALL, 12)
    alone = [text.embed([c])[0][0] for c in CAPTIONS]
    seen: list[int] = []
    embed = text.embed
    monkeypatch.setattr(text, "embed", lambda captions: seen.append(len(captions)) or embed(captions))
    for order in ([0, 1, 0, 2], [2, 2, 1], [0]):
        states, _ = text.encode([CAPTIONS[i] for i in order])
        for row, i in zip(states, order, strict=True):
            torch.testing.assert_close(row, alone[i], rtol=1e-5, atol=1e-6)
    assert seen == [3]
    text.most = 1
    text.encode(CAPTIONS)
    assert list(text.kept) == CAPTIONS[-1:]


def test_long_captions_are_cut_and_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    text = TextEncoder(SMALL, 6)
    with caplog.at_level(logging.WARNING, "patchloom.text"):
        _, mask = text.encode(CAPTIONS)
        text.encode([CAPTIONS[0] + " again"])
    assert mask.sum(1).tolist() == [6, 4, 6]
    assert len(caplog.records) == 1
    assert "the first of 10: 'a red circle" in caplog.records[0].getMessage()


def test_nothing_is_encoded_as_nothing() -> None:
    states, mask = TextEncoder(SMALL, 6).encode([])
    assert states.shape == (0, 6, 32)
    assert mask.shape == (0, 6)
    assert TextEncoder(SMALL, 6).encode([""])[1].sum() == 2  # what begins and what ends it


def test_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no text encoder '.*nowhere'.*words:width"):
        TextEncoder(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"'size=3' is none of width=N, depth=N"):
        TextEncoder("words:size=3")
    with pytest.raises(ValueError, match="width is a multiple of heads"):
        TextEncoder("words:width=30,heads=4")
    with pytest.raises(ValueError, match="positions for 512 tokens"):
        TextEncoder(SMALL, 513)
    with pytest.raises(ValueError, match="a list of strings"):
        TextEncoder(SMALL, 6).encode("a star")
    with pytest.raises(ValueError, match="at least one token"):
        TextEncoder(SMALL, 0)
