"""eP-ALM against what its authors' code computes, and in a pipeline of our own."""

from typing import Any

import pytest
import torch
from golden import golden
from multimodal_parts import IMAGE, LLAMA, small_decoder
from torch import nn
from transformers import LlamaConfig, OPTConfig

from patchloom.multimodal.decoder import decoder
from patchloom.multimodal.ep_alm import NAMES, EpAlm, Levels, Percept
from patchloom.multimodal.generate import generate
from patchloom.multimodal.llava import load
from patchloom.multimodal.splice import Sample
from patchloom.multimodal.stream import Stream
from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.description import describe, rebuild
from patchloom.vision.heads.classification import Head
from patchloom.vision.mixers.attention import Global
from patchloom.vision.mixers.pool import Pool
from patchloom.vision.model import Classifier
from patchloom.vision.position import Position
from patchloom.vision.stem import Patchify


class Recorded(Levels):
    """Stands for the record's vision encoder."""

    def __init__(self, dims: list[int]):
        nn.Module.__init__(self)
        self.dims, self.dim, self.in_chans = dims, dims[0], 3


@torch.inference_mode()
@pytest.mark.parametrize("name", ["opt_tiny", "opt_tiny_shared_post_ln"])
@pytest.mark.parametrize("prompted", [True, False])
def test_record(name: str, prompted: bool) -> None:
    record = golden.load(f"ep_alm/{name}")
    c, x, state = record.meta["config"], record.input(), record.state_dict()
    known = OPTConfig().to_dict()
    percept = Percept(c["start_layer_idx"], c["end_layer_idx"], c["text_step"], c["shared_connector"],
                      c["prompt_len"] if prompted else 0, leak=True)  # fmt: skip
    lm = decoder(OPTConfig(**{k: v for k, v in c.items() if k in known}))
    model = EpAlm(Recorded([c["vision_width"]] * c["levels"]), lm, 49, percept).eval()
    if not prompted:
        del state["prompt.weight"]
    load(model, state, NAMES, ())
    levels = model.connected([f[:, 0] for f in x["features"]])
    record.compare("prefix", levels.transpose(0, 1)[:, :, None], 1e-5)
    ids = x["ids"]
    text = Stream(lm.embed(ids), torch.arange(ids.shape[1]).expand(len(ids), -1), torch.zeros_like(ids))
    out = lm(model.with_levels(text, levels))
    record.compare("hidden" if prompted else "hidden_no_prompt", out.x, 1e-5)
    for seams in lm.seams:
        seams.before_block = None
    record.compare("text_only", lm(text).x, 1e-5)


def made(levels: tuple[int, ...] = (-2, -1), tower: Any = None, **options: Any) -> EpAlm:
    torch.manual_seed(0)
    if tower is None:
        stem = Patchify(8, None, position=Position((4, 4), special=1))
        tower = Classifier(Backbone([Stage(Global(2), 16, 3)], stem), 0, Head(pool="token"), img_size=32)
    return EpAlm(Levels(tower, levels), small_decoder(layers=5), IMAGE, Percept(1, 4, **options)).eval()


def asked(*lengths: int, size: tuple[int, int] = (32, 40)) -> list[Sample]:
    found = []
    for n in lengths:
        ids = torch.randint(3, 90, (n,))
        found.append(Sample(torch.cat([ids[:1], torch.tensor([IMAGE]), ids[1:]]), (torch.randn(3, *size),),
                            torch.cat([ids[:1], torch.tensor([-100]), ids[1:]])))  # fmt: skip
    return found


@torch.inference_mode()
@pytest.mark.parametrize("options", [{}, {"prompt": 0}, {"deep": True, "shared": True}, {"leak": True}, {"step": 2}])
def test_rows_of_a_batch_are_as_if_alone_and_a_cache_changes_nothing(options: dict[str, Any]) -> None:
    model, samples = made(**options), asked(7, 4)
    for side in ("left", "right"):
        both = model(samples, side=side)
        for i, sample in enumerate(samples):
            one = model([sample])
            mine = both.logits[i] if both.stream.real is None else both.logits[i][both.stream.real[i]]
            torch.testing.assert_close(mine, one.logits[0], rtol=1e-4, atol=1e-4)
    words = generate(model, samples, most=4, choose=lambda logits: logits[:, :IMAGE].argmax(-1))
    for sample, said in zip(samples, words, strict=True):
        ids = sample.ids
        for word in said if not options.get("leak") else said[:1]:  # what leaks looks at every new word again
            assert int(model([Sample(ids, sample.images)]).logits[0, -1, :IMAGE].argmax()) == int(word)
            ids = torch.cat([ids, word[None]])


@torch.inference_mode()
def test_the_image_is_seen_and_the_first_layers_do_not_know_it() -> None:
    model, (a,) = made(), asked(6)
    b = a._replace(images=(torch.randn(3, 24, 56),))
    assert not torch.allclose(model([a]).logits, model([b]).logits, atol=1e-3)
    blind = made()
    for seams in blind.decoder.seams[1:]:
        seams.before_block = None
    torch.testing.assert_close(blind([a]).logits, blind([b]).logits)
    assert model([a]).logits.shape[1] == 6 + 10 + 1  # prompt and image stand before the text


@torch.inference_mode()
def test_without_the_leak_no_word_looks_ahead() -> None:
    (a,) = asked(8)
    late = a._replace(ids=torch.cat([a.ids[:-1], a.ids[-1:] % 80 + 3]))
    for leak in (False, True):
        model = made(leak=leak)
        same = torch.allclose(model([a]).logits[:, 1:-1], model([late]).logits[:, 1:-1], atol=1e-5)
        assert same is not leak


@pytest.mark.parametrize("saved", [False, True])
def test_connector_and_prompt_learn_alone(saved: bool) -> None:
    model, samples = made(deep=True), asked(7, 4)
    model.train()
    assert not model.decoder.training
    model.set_grad_checkpointing(saved)
    own = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {n.split(".")[0] for n in own} == {"connector", "prompt"}
    optimizer = torch.optim.SGD(own.values(), 1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        model.loss(samples).backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in own.values())
        optimizer.step()


@torch.inference_mode()
def test_a_checkpoint_says_what_it_is_made_of() -> None:
    model, samples = made(deep=True), asked(5)
    again = rebuild(describe(model)).eval()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(samples).logits, model(samples).logits)
    assert again.count((32, 40)) == 0  # tokens of the context


@torch.inference_mode()
def test_any_backbone_is_an_eye() -> None:
    pyramid = Classifier(Backbone([Stage(Pool(3), 8, 1), Stage(Pool(3), 16, 1)]), 0, img_size=32)
    model = made((0, 1), pyramid)
    assert [layer.in_features for layer in model.connector] == [8, 16]
    assert model(asked(5, size=(33, 47))).logits.isfinite().all()
    with pytest.raises(ValueError, match=r"\[8, 16\] channels cannot share"):
        made((0, 1), pyramid, shared=True)


def test_levels_share_the_layers() -> None:
    at = [Percept(19, 31).level(i, 6) for i in range(32)]
    assert at[19:31] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert at[:19] == [None] * 19
    assert at[31] is None
    assert [Percept(3, 8).level(i, 2) for i in range(3, 8)] == [0, 0, 1, 1, 1]
    assert [Percept(0, 4, 2).level(i, 2) for i in range(4)] == [0, None, 1, None]


def test_what_cannot_be() -> None:
    model, (sample,) = made(), asked(5)
    with pytest.raises(ValueError, match="sample 0 has 2 images"):
        model([sample._replace(images=sample.images * 2)])
    with pytest.raises(ValueError, match="no tiles"):
        model([sample._replace(images=(torch.randn(2, 3, 32, 32),))])
    with pytest.raises(ValueError, match="cannot be packed"):
        model([sample, sample], rows=[[0, 1]])
    with pytest.raises(ValueError, match="end=9: this decoder has 5 layers"):
        EpAlm(model.tower, small_decoder(layers=5), IMAGE, Percept(1, 9))
    with pytest.raises(ValueError, match=r"start=4, end=2"):
        Percept(4, 2)
    text = Stream(torch.randn(1, 6, 32), torch.arange(6)[None], torch.zeros(1, 6, dtype=torch.long))
    with pytest.raises(ValueError, match="no image comes"):
        model.decoder(text)
    short = decoder(LlamaConfig(**{**LLAMA, "num_hidden_layers": 5, "max_position_embeddings": 8}))
    with pytest.raises(ValueError, match="longer than the context of 8"):
        EpAlm(made().tower, short, IMAGE, Percept(1, 4))(asked(9))
