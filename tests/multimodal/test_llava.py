"""A LLaVA-1.5 that transformers saved, through our pipeline."""

import json
from pathlib import Path

import pytest
import torch
from multimodal_parts import IMAGE, small_llava
from safetensors.torch import load_file, save_file

from patchloom.multimodal.generate import generate
from patchloom.multimodal.llava import open_llava
from patchloom.multimodal.splice import Sample


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, Path]:
    folder = tmp_path_factory.mktemp("llava")
    return small_llava(folder), folder


def samples() -> list[Sample]:
    torch.manual_seed(1)
    first = Sample(torch.tensor([1, 5, IMAGE, 6, 7]), (torch.randn(3, 28, 28),))
    second = Sample(torch.tensor([1, IMAGE, 8, IMAGE, 9, 4, 3]), (torch.randn(3, 28, 28), torch.randn(3, 28, 28)))
    return [first, second]


def written_out(sample: Sample) -> torch.Tensor:
    """With a placeholder for each of an image's 16 tokens, as transformers wants it."""
    return sample.ids.repeat_interleave(torch.where(sample.ids == IMAGE, 16, 1))


@torch.inference_mode()
def test_logits(saved: tuple[object, Path]) -> None:
    theirs, folder = saved
    ours = open_llava(folder)
    for sample in samples():
        ids = written_out(sample)
        want = theirs(input_ids=ids[None], pixel_values=torch.stack(sample.images)).logits  # type: ignore[operator]
        for given in (sample, sample._replace(ids=ids)):
            got = ours([given]).logits
            assert float((got - want).abs().max() / want.abs().max()) < 1e-5
    batch = ours(samples(), side="left")
    last = batch.logits[0, batch.stream.real[0]]  # type: ignore[index]
    torch.testing.assert_close(last, ours(samples()[:1]).logits[0], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_words(saved: tuple[object, Path]) -> None:
    theirs, folder = saved
    ours = open_llava(folder)
    for sample in samples():
        ids = written_out(sample)[None]
        want = theirs.generate(  # type: ignore[attr-defined]
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=torch.stack(sample.images),
            max_new_tokens=12, do_sample=False,
        )[0, ids.shape[1] :]  # fmt: skip
        want = want[want != 2]
        assert generate(ours, [sample], most=12, stop=(2,))[0].tolist() == want.tolist()


@torch.inference_mode()
@pytest.mark.parametrize("layer", [-1, [-2, 1]])
def test_other_choices_of_features(tmp_path: Path, layer: int | list[int]) -> None:
    theirs = small_llava(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"vision_feature_layer": layer, "vision_feature_select_strategy": "full"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    state = load_file(tmp_path / "model.safetensors")
    if isinstance(layer, list):
        state["multi_modal_projector.linear_1.weight"] = torch.randn(32, 48) * 0.1
        save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    theirs = type(theirs).from_pretrained(tmp_path).eval()
    sample = samples()[0]
    ids = sample.ids.repeat_interleave(torch.where(sample.ids == IMAGE, 17, 1))
    want = theirs(input_ids=ids[None], pixel_values=torch.stack(sample.images)).logits
    got = open_llava(tmp_path)([sample]).logits
    assert float((got - want).abs().max() / want.abs().max()) < 1e-5


@torch.inference_mode()
def test_tied_words_and_older_names(tmp_path: Path) -> None:
    theirs = small_llava(tmp_path, tie_word_embeddings=True)
    old = load_file(tmp_path / "model.safetensors")
    renamed = {k.replace("vision_tower.", "vision_tower.vision_model."): v for k, v in old.items()}
    save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
    sample = samples()[0]
    want = theirs(input_ids=written_out(sample)[None], pixel_values=torch.stack(sample.images)).logits
    got = open_llava(tmp_path)([sample]).logits
    assert float((got - want).abs().max() / want.abs().max()) < 1e-5


def test_what_does_not_fit(saved: tuple[object, Path], tmp_path: Path) -> None:
    _, folder = saved
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError, match="holds no weights"):
        open_llava(tmp_path)
    state = load_file(folder / "model.safetensors")
    save_file({**state, "stray.weight": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"no place for stray\.weight"):
        open_llava(tmp_path)
    name = "vision_tower.encoder.layers.0.self_attn.k_proj.weight"
    save_file({**state, f"model.{name}": state[name].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"another tensor both fill .*mixer\.qkv\.weight"):
        open_llava(tmp_path)
    del state[name]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="these weights do not fit"):
        open_llava(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        open_llava(tmp_path / "nowhere")
