"""The packaged recipes of models that talk train a shrunk step, answer, and go on where they stopped."""

import json
from pathlib import Path

import pytest
import torch
from dialogue_parts import save_talk
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from patchloom.multimodal.words import learned
from patchloom.train.cli import main
from patchloom.train.running import checkpoint
from patchloom.train.running.recipes import recipes

RECIPES = {r.name: r.file for r in recipes() if "train.converse.Converse" in Path(r.file).read_text()}
EXPECTED = {
    "shapes/vlm", "daquar/vlm", "flickr8k/captions", "llava/stage1", "llava/stage2_lora", "llava/stage2_mole"
}  # fmt: skip
STEPS = ["--data.batch_size", "2", "--data.workers", "0", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu",
         "--trainer.precision", "32-true", "--trainer.limit_val_batches", "1", "--trainer.limit_test_batches", "1",
         "--trainer.limit_train_batches", "2", "--checkpoints.monitor", "val/loss"]  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """What recipes train on, and small files that stand for CLIP and Vicuna."""
    root = tmp_path_factory.mktemp("places")
    talk = save_talk(root / "images")
    said = [json.loads(line) for line in (talk / "train.jsonl").read_text().splitlines()]
    for name in ("vqa_train.jsonl", "vqa_test.jsonl"):
        (talk / name).write_text("\n".join(map(json.dumps, said)))
    captions = [{"image": e["image"], "captions": [f"a {e['answer']} wall", "a wall"]} for e in said]
    for name in ("captions_train.jsonl", "captions_test.jsonl"):
        (talk / name).write_text("\n".join(map(json.dumps, captions)))
    turns = lambda e: [{"from": "human", "value": "<image>\n" + e["question"]}, {"from": "gpt", "value": e["answer"]}]  # noqa: E731
    llava = json.dumps([{"id": str(i), "image": e["image"], "conversations": turns(e)} for i, e in enumerate(said)])
    for folder in (root, talk):  # the first stage names the folder of its pictures, the second does not
        for name in ("blip_laion_cc_sbu_558k.json", "llava_v1_5_mix665k.json"):
            (folder / name).write_text(llava)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(image_size=336, patch_size=112, **sizes)).save_pretrained(root / "clip")
    LlamaForCausalLM(LlamaConfig(vocab_size=320, max_position_embeddings=256, **sizes)).save_pretrained(root / "lm")
    learned([f"{e['question']} {e['answer']}" for e in said], 300).save_pretrained(root / "lm")
    return root


def command(name: str, places: Path) -> list[str]:
    lines = ["-c", name, *STEPS]
    if name == "shapes/vlm":
        return [*lines, "--data.train_length", "8", "--data.val_length", "4", "--data.test_length", "4"]
    if name == "llava/stage1":
        parts = {
            "tower.init_args.model.init_args.name": "clip", "decoder.init_args.name": "lm",
        }  # fmt: skip
        for key, folder in parts.items():
            lines += [f"--model.model.init_args.{key}", str(places / folder)]
        lines += ["--model.model.image_token", "3", "--model.tokenizer", str(places / "lm")]
        return [*lines, "--data.root", str(places), "--data.val_fraction", "0.3"]
    if name.startswith("llava"):
        run = str(next((places / "runs" / "llava" / "stage1").iterdir()))
        lines += ["--model.model.spec", run, "--model.tokenizer", run, "--data.val_fraction", "0.3"]
        lines += ["--model.adapter", "lora:r=2" if name.endswith("lora") else "mole:experts=2,r=2,alpha=4"]
        lines += ["--model.pack", "128"]
    return [*lines, "--data.root", str(places / "images")]


def test_the_recipes_are_these():
    assert set(RECIPES) == EXPECTED


@pytest.mark.parametrize("name", ["llava/stage1", *sorted(EXPECTED - {"llava/stage1"})])
def test_a_recipe_trains_a_step_and_talks(name, places, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(places)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["fit", *command(name, places), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    run = Path(said["run"])
    assert checkpoint.read(run / "last.ckpt")["global_step"] in (1, 2)  # of daquar two dialogues are left
    assert (run / "predictions.png").is_file()
    numbers = said.get("test", said["validation"])
    assert {"exact", "loss"} <= {key.rpartition("/")[2] for key in numbers}
    picture = ["--image", str(places / "images" / "red.png"), "--question", "what colour is it?", "--json"]
    assert main(["chat", str(run), "--device", "cpu", "--most", "3", *picture]) == 0
    assert isinstance(json.loads(capsys.readouterr().out)["answer"], str)
    if name.startswith("llava/stage2"):
        assert Path(said["adapter"], "adapter_config.json").is_file()


def test_a_run_goes_on_as_if_it_had_not_stopped(places, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = ["fit", "-c", "shapes/vlm", *STEPS, "--data.train_length", "4", "--data.val_length", "4", "--test", "false",
             "--model.schedule", "patchloom.train.optim.Constant", "--model.schedule.warmup_steps", "0"]  # fmt: skip
    assert main([*lines, "--trainer.max_epochs", "2", "--json"]) == 0
    whole = Path(json.loads(capsys.readouterr().out)["run"])
    assert main([*lines, "--json"]) == 0
    half = Path(json.loads(capsys.readouterr().out)["run"])
    assert main(["fit", "--resume", str(half), "--trainer.max_epochs", "2", "--json"]) == 0
    one, other = (checkpoint.read(run / "last.ckpt") for run in (whole, half))
    assert one["global_step"] == other["global_step"] == 4
    assert one["patchloom"]["tokenizer"] == other["patchloom"]["tokenizer"]
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
    assert main(["fit", "--resume", str(half), "--trainer.max_epochs", "3", "--model.tokenizer", "learn:300"]) == 1
    assert "was trained with tokenizer 'learn:640', now it is 'learn:300'" in capsys.readouterr().err


def test_validate_and_test_of_a_run(places, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *command("shapes/vlm", places), "--json"]) == 0
    run = json.loads(capsys.readouterr().out)
    assert main(["test", run["run"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["test"] == pytest.approx(run["test"])
