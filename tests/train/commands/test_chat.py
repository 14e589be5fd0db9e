"""`patchloom chat`: answers of a run, as they stream, in JSON, and what it refuses; resuming and loading such runs."""

import io
import json

import pytest
import torch
from dialogue_parts import save_talk, talk, talking
from generation_parts import fit
from multimodal_parts import small_llava
from PIL import Image

from patchloom.multimodal.words import learned
from patchloom.train.cli import main
from patchloom.train.ema import Ema
from patchloom.train.running import checkpoint
from patchloom.train.saved.talker import load_talker


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A checkpoint of a talker that knows colours, and the pictures."""
    folder = tmp_path_factory.mktemp("talk")
    module, data = talking(lr=1e-2, ema=Ema(0.9)), talk(folder, turns=1)
    trainer = fit(module, data, folder, max_epochs=25, limit_val_batches=0)
    trainer.save_checkpoint(folder / "raw.ckpt")
    content = torch.load(folder / "raw.ckpt", weights_only=True)
    checkpoint.save(content, folder / "last.ckpt")
    return folder


def chat(capsys, run, *words: str, status: int = 0):
    assert main(["chat", str(run / "last.ckpt"), "--device", "cpu", *words]) == status
    return capsys.readouterr()


def ask(run, name: str, *more: str) -> list[str]:
    return ["--image", str(run / f"{name}.png"), "--question", "what colour is it?", *more]


def test_it_answers_one_question_in_json(run, capsys):
    for name in ("red", "green", "blue", "white"):
        said = json.loads(chat(capsys, run, *ask(run, name, "--json")).out)
        assert said["answer"] == name
        assert said["question"] == "what colour is it?"
        assert said["images"] == [str(run / f"{name}.png")]
        assert said["tokens"] >= 1
        assert said["seconds"] > 0


def test_what_streams_is_the_answer(run, capsys):
    assert chat(capsys, run, *ask(run, "blue")).out == "blue\n"
    talker = load_talker(run / "last.ckpt", device="cpu")
    picture = Image.open(run / "blue.png").convert("RGB")
    pieces = list(talker.stream([{"role": "user", "content": "what colour is it?"}], [picture]))
    assert "".join(pieces) == "blue"
    assert talker.answer("what colour is it?", [picture]) == "blue"
    both = [("what colour is it?", [picture]), ("is it red?", [picture])] * 2
    assert list(talker.answers(both, batch=3)) == ["blue", "no"] * 2


def test_a_talk_goes_on_line_by_line(run, capsys, monkeypatch):
    lines = [
        "what colour is it?",
        "is it red?",
        "/new",
        f"/image {run / 'red.png'}",
        "what colour is it?",
        "/quit",
        "unheard",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    said = chat(capsys, run, "--image", str(run / "white.png")).out.splitlines()
    assert len(said) == 3
    assert said[0] == "white"
    assert said[2] == "red"


def test_words_may_be_drawn_by_a_seed(run, capsys):
    drawn = [
        chat(capsys, run, *ask(run, "red", "--temperature", "5", "--seed", seed)).out for seed in ("1", "1", "2", "3")
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


def test_plugins_that_change_nothing(run, capsys):
    assert chat(capsys, run, *ask(run, "green", "--plugin", "fastv:k=1,r=0")).out == "green\n"
    assert chat(capsys, run, *ask(run, "green", "--precision", "bfloat16")).out == "green\n"
    assert chat(capsys, run, *ask(run, "green", "--tokens", "none")).out == "green\n"
    error = chat(capsys, run, *ask(run, "green", "--tokens", "dynamicvit:keep=0.5,at=0"), status=1).err
    assert "parameters of its own" in error


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--json"], 2, "--json answers one question: give it by --question"),
        (["--question", "x", "--top-k", "3"], 2, "want --temperature"),
        (["--image", "none.png", "--question", "x"], 1, "none.png"),
        (["--question", "what is in <image> and <image>?", "--image", "{red}"], 1, "2 placeholders '<image>' for 1 im"),
        (["--question", "is there <image>?"], 1, "1 placeholders '<image>' for 0 images"),
        (["--image", "{red}", "--question", "what? " * 90], 1, "is longer than the context of 128"),
        (["--image", "{broken}", "--question", "x"], 1, "broken.png"),
    ],
)
def test_wrong_input_is_one_line(words, status, said, run, capsys):
    (run / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    places = {"{red}": str(run / "red.png"), "{broken}": str(run / "broken.png")}
    error = chat(capsys, run, *[places.get(w, w) for w in words], status=status).err
    assert said in error
    assert len(error.splitlines()) == 1


def test_other_runs_do_not_talk(tmp_path, capsys):
    from patchloom.vision.zoo import create_model

    model = create_model("cct_2_3x2_32")
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    head = checkpoint.header(model, ["a"] * 10, checkpoint.preprocessing_of(model))
    checkpoint.save({"patchloom": head, "state_dict": state}, tmp_path / "last.ckpt")
    assert main(["chat", str(tmp_path), "--question", "x"]) == 1
    assert "does not talk" in capsys.readouterr().err
    assert main(["chat", str(tmp_path / "nowhere"), "--question", "x"]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_other_commands_say_that_it_talks(run, capsys):
    file = str(run / "last.ckpt")
    assert main(["predict", file, str(run / "red.png"), "--device", "cpu"]) == 1
    assert f"{file} talks, it names no classes: patchloom chat {file}" in capsys.readouterr().err
    assert main(["validate", file, "--data", str(run)]) == 2
    assert f"{file} talks: patchloom chat asks it" in capsys.readouterr().err


def test_the_average_and_the_weights_themselves(run):
    averaged, raw = (load_talker(run / "last.ckpt", device="cpu", ema=ema).vlm.state_dict() for ema in (True, False))
    content = checkpoint.read(run / "last.ckpt")["state_dict"]
    name = "connector.layers.0.weight"
    assert torch.equal(averaged[name], content[f"ema.module.{name}"])
    assert torch.equal(raw[name], content[f"model.{name}"])
    assert not torch.equal(averaged[name], raw[name])


def test_a_folder_of_transformers_talks_too(tmp_path, capsys):
    small_llava(tmp_path, vocab_size=320, max_position_embeddings=128)
    config = json.loads((tmp_path / "config.json").read_text())
    words = learned(["what is this? a cat. USER: ASSISTANT:"] * 3, 280)
    words.save_pretrained(tmp_path)
    config["image_token_index"] = config["image_token_id"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    eye = {"crop_size": {"height": 28, "width": 28}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(eye))
    save_talk(tmp_path / "pictures")
    words = ["--image", str(tmp_path / "pictures" / "red.png"), "--question", "what is this?", "--most", "4", "--json"]
    assert main(["chat", str(tmp_path), "--device", "cpu", *words]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] >= 0
