"""`Converse`: which tokens are learned, which parts learn, packing, adapters, and what it is judged by."""

import lightning as L
import pytest
import torch
from dialogue_parts import SHORT, small_vlm, talk, talking
from generation_parts import fit
from PIL import Image

from patchloom.data.dialogues import Dialogue
from patchloom.data.questions import Turn
from patchloom.multimodal.ep_alm import EpAlm, Levels, Percept
from patchloom.multimodal.stream import IGNORED
from patchloom.multimodal.vlm import targets
from patchloom.train.converse import Converse
from patchloom.train.evaluation.said import bare, is_right, messages
from patchloom.train.saved.talker import load_talker
from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.mixers.attention import Global
from patchloom.vision.model import Classifier
from patchloom.vision.position import Position
from patchloom.vision.stem import Patchify


def one_step(module: Converse, data, folder, **options) -> L.Trainer:
    return fit(module, data, folder, **{"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0, **options})


def ready(folder, **options) -> tuple[Converse, tuple]:
    """A module that speaks, and a batch of dialogues of two turns."""
    module, data = talking(**options), talk(folder, turns=2)
    one_step(module, data, folder)
    return module, next(iter(data.train_dataloader()))


@pytest.mark.parametrize("packed", [False, True])
def test_the_answers_and_their_ends_are_learned_token_by_token(packed, tmp_path):
    module, batch = ready(tmp_path)
    samples = module.samples(batch)
    rows = [[0, 1], [2, 3]] if packed else None
    stream = module.model.splice(samples, rows=rows)
    target = targets(stream)
    ids = {tuple(s.ids.tolist()) for s in samples}
    assert len(ids) == 4
    words = module.tokenizer
    for row, order in enumerate(rows or [[i] for i in range(4)]):
        learned = [int(t) for t in target[row] if t != IGNORED]
        expected = "".join(turn.answer + "</s>" for i in order for turn in batch[1][i].turns)
        assert words.decode(learned) == expected
        assert not bool(((target[row] != IGNORED) & (stream.image[row] > 0))[:-1].any())  # an image answers nothing
    for sample, dialogue in zip(samples, batch[1], strict=True):
        assert words.decode(sample.ids) == "<image>\n" + "".join(
            f"{t.question}\n{t.answer}</s>" for t in dialogue.turns
        )
        wrong = sample.labels[sample.labels != IGNORED]
        assert torch.equal(wrong, sample.ids[sample.labels != IGNORED])


def test_the_loss_is_the_mean_over_learned_tokens_packed_or_not(tmp_path):
    module, batch = ready(tmp_path)
    samples = module.samples(batch)
    lengths = [module.length(s) for s in samples]
    answer = module.model(samples)
    assert answer.logits.shape[1] == max(lengths)
    learned = answer.target != IGNORED
    by_hand = -answer.logits.float().log_softmax(-1)[learned].gather(-1, answer.target[learned][:, None]).mean()
    plain = module.model.loss(samples)
    torch.testing.assert_close(plain, by_hand)
    torch.testing.assert_close(module.model.loss(samples, rows=[[3, 0], [1, 2]]), plain, rtol=1e-5, atol=1e-6)


def test_packing_leaves_less_padding(tmp_path):
    module, data = talking(pack=128), talk(tmp_path, turns=2)
    trainer = one_step(module, data, tmp_path)
    assert trainer.callback_metrics["train/real"] == 1  # all four in one row
    assert torch.isfinite(trainer.callback_metrics["train/loss"])


@pytest.mark.parametrize(
    ("learns", "adapter", "moves"),
    [
        (("connector",), None, {"connector"}),
        (("connector", "decoder"), None, {"connector", "decoder"}),
        (("tower", "connector", "decoder"), None, {"tower", "connector", "decoder"}),
        (("connector", "decoder"), "lora:r=4", {"connector", "decoder"}),
        (("decoder",), "mole:experts=2,r=4,alpha=8", {"decoder"}),
    ],
)
def test_what_learns_moves_and_nothing_else(learns, adapter, moves, tmp_path):
    module, data = talking(learns=learns, adapter=adapter), talk(tmp_path)
    before = {k: p.detach().clone() for k, p in module.model.named_parameters()}
    one_step(module, data, tmp_path, limit_train_batches=2)
    moved = {k for k, p in module.model.named_parameters() if not torch.equal(p, before[k])}
    assert {k.partition(".")[0] for k in moved} == moves
    assert moved <= {k for k, p in module.model.named_parameters() if p.requires_grad}
    if adapter is not None:
        assert all("down" in k or "up" in k or "router" in k or "lora" in k for k in moved if k.startswith("decoder"))
        assert not any(k.endswith("base.weight") for k in moved)


def test_ep_alm_learns_and_talks(tmp_path):
    stem = Patchify(8, None, position=Position((2, 2), special=1))
    eye = Levels(Classifier(Backbone([Stage(Global(2), 16, 2)], stem), 0, img_size=16), (-2, -1))
    module = talking(EpAlm(eye, small_vlm().decoder, 3, Percept(0, 2, prompt=2)), learns=("connector",))
    before = {k: p.detach().clone() for k, p in module.model.named_parameters()}
    trainer = fit(module, talk(tmp_path, turns=1), tmp_path, max_epochs=1)
    moved = {k.partition(".")[0] for k, p in module.model.named_parameters() if not torch.equal(p, before[k])}
    assert moved == {"connector", "prompt"}
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    talker = load_talker(tmp_path / "it.ckpt", device="cpu")
    assert isinstance(talker.vlm, EpAlm)
    for a, b in zip(talker.vlm.parameters(), module.model.parameters(), strict=True):
        assert torch.equal(a, b.cpu())
    talker.answer("what colour is it?", [Image.new("RGB", (20, 18), "red")])


def test_what_is_frozen_stays_in_evaluation_mode():
    module = talking(learns=("connector",)).train()
    assert module.model.connector.training
    assert not any(m.training for m in (*module.model.tower.modules(), *module.model.decoder.modules()))


def test_it_learns_to_answer_and_says_how_often_it_is_right(tmp_path):
    module, data = talking(lr=1e-2), talk(tmp_path, turns=1)
    trainer = fit(module, data, tmp_path, max_epochs=40, check_val_every_n_epoch=40)
    assert trainer.losses[-1] < 0.1 * trainer.losses[0]
    assert trainer.callback_metrics["val/exact"] == 1
    assert trainer.callback_metrics["val/loss"] < 0.3


def test_checkpointing_changes_no_gradient(tmp_path):
    module, batch = ready(tmp_path)
    found = []
    for on in (False, True):
        module.model.set_grad_checkpointing(on)
        module.model.zero_grad()
        module.model.loss(module.samples(batch)).backward()
        found.append([p.grad.clone() for p in module.model.parameters() if p.grad is not None])
    torch.testing.assert_close(found[0], found[1])


def test_bfloat16_trains_and_answers(tmp_path):
    module, data = talking(checkpointing=True), talk(tmp_path)
    trainer = fit(module, data, tmp_path, max_epochs=1, precision="bf16-mixed")
    assert torch.isfinite(trainer.callback_metrics["val/loss"])
    assert all(p.dtype == torch.float32 for p in module.model.parameters())


def test_tiles_of_any_size(tmp_path):
    module, data = talking(tiles=4), talk(tmp_path, keep=True)
    one_step(module, data, tmp_path)
    wide = (torch.zeros(3, 16, 40),)
    sample = module.fitting(wide, Dialogue((Turn("what is it?", "grey"),)))
    tiles = sample.images[0].shape[0]
    assert tiles > 2
    assert module.length(sample) == len(sample.ids) - 1 + 4 * tiles
    assert module.model.splice([sample]).x.shape[1] == module.length(sample)


def test_a_dialogue_that_is_too_long_loses_its_last_turns(tmp_path, caplog):
    module, data = talking(small_vlm(context=40)), talk(tmp_path)
    one_step(module, data, tmp_path)
    long = Dialogue(tuple(Turn("what colour is it?", "red") for _ in range(9)), id="the long one")
    image = (torch.zeros(3, 16, 16),)
    sample = module.fitting(image, long)
    assert module.length(sample) <= 40
    whole = module.tokenizer.decode(sample.ids)
    assert 0 < whole.count("red</s>") < 9
    assert whole.endswith("red</s>")
    assert "'the long one'" in caplog.text
    with pytest.raises(ValueError, match=r"first answer of dialogue 'x' is at token .* beyond the context of 40"):
        module.fitting(image * 12, Dialogue((Turn("what?", "red"),), id="x"))


def test_placeholders_may_stand_anywhere_and_systems_speak_first():
    turns = (Turn("compare <image> with <image>", "same"), Turn("sure?", "yes"))
    said = messages(Dialogue(turns, system="be brief"), 2, "<image>")
    assert [m["content"] for m in said] == ["be brief", "compare <image> with <image>", "same", "sure?", "yes"]
    said = messages(Dialogue((Turn("what?", "red"),)), 2, "<image>")
    assert said[0]["content"] == "<image>\n<image>\nwhat?"


def test_what_counts_as_right():
    dialogue = Dialogue((Turn("what?", "two dogs", others=("dogs",)),))
    assert bare("  Two  dogs. ") == "two dogs"
    assert [is_right(said, dialogue) for said in ("Two dogs.", "dogs", "two dog", "")] == [True, True, False, False]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"learns": ()}, "learns=\\(\\)"),
        ({"learns": ("eye",)}, "a list of tower, connector, decoder"),
        ({"learns": ("connector",), "adapter": "lora:r=4"}, "learns in the decoder: name it in learns"),
        ({"adapter": "lora:r=4,init=corda"}, "leave its init out"),
    ],
)
def test_settings_that_cannot_be(options, said):
    with pytest.raises(ValueError, match=said):
        talking(**options)


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ({"vocabulary": 280}, {"tokenizer": "learn:300"}, "the decoder 280: give it a vocab_size of"),
        ({}, {"tokenizer": "learn:100"}, "256 bytes and .* alone are 260"),
        ({}, {"tokenizer": "learn:many"}, "learn:SIZE with a number"),
        ({}, {"tokenizer": "no/such/folder"}, "no tokeniser 'no/such/folder'"),
        ({}, {"image_token": "<s>"}, "<s> is token 1 to the tokeniser, model.image_token is 3"),
    ],
)
def test_tokenisers_that_do_not_fit(model, options, said, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    module = talking(small_vlm(**model), **options)
    with pytest.raises((ValueError, OSError), match=said):
        one_step(module, talk(tmp_path), tmp_path)


def test_it_wants_a_model_that_speaks():
    with pytest.raises(ValueError, match="Linear does not speak"):
        Converse(torch.nn.Linear(2, 2), template=SHORT)
