"""ResFormer: the authors' numbers, sizes as the paper counts them, positions that any grid has."""

import pytest
import torch
import torch.nn.functional as F
from golden import golden
from plain import resformer as plain
from recorded import agree, loaded, sizes_are

from patchloom.vision.mixers.local_position import SharedDepthwise
from patchloom.vision.plugins import SeamError
from patchloom.vision.stems.resformer import sines
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model, list_models

FACTS = {  # parameters, GMACs at 224
    "resformer_tiny_patch16": (5_689_192, 1.26),
    "resformer_small_patch16": (21_986_536, 4.61),
    "resformer_base_patch16": (86_431_720, 17.58),
}


@pytest.mark.parametrize("name", ["resformer_tiny_224", "resformer_tiny_160", "resformer_small_128"])
@torch.inference_mode()
def test_matches_the_original(name):
    record = golden.load(f"resformer/{name}")
    model = loaded(name, record)
    blocks, found = model.backbone.stages[0].blocks, {}
    blocks[0].mixer.register_forward_hook(lambda m, x, y: found.update({"block0.attn": y}))
    blocks[-1].register_forward_hook(lambda m, x, y: found.update(blocks=y.x))
    x = record.input()
    found["logits"] = model(x)
    found["pos_embed"] = F.pad(model.backbone.stem.position.term((x.shape[2] // 16, x.shape[3] // 16)), (0, 0, 1, 0))
    agree(record, found)
    assert create_model(name, device="meta").default_cfg["input_size"] == (3, *x.shape[2:])


def test_sizes_are_the_papers():
    assert set(list_models("resformer*")) == set(FACTS)
    sizes_are(FACTS)


@torch.inference_mode()
def test_is_the_plain_network():
    torch.manual_seed(0)
    theirs = plain.build().eval()
    ours = create_model(plain.VARIANT).eval()
    assert not load_published(ours, theirs.state_dict()).fresh
    x = torch.randn(2, 3, 96, 96)
    want = theirs(x)
    torch.testing.assert_close(ours(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def test_one_convolution_of_all_heads_is_that_of_each():
    torch.manual_seed(0)
    conv, x = SharedDepthwise(8), torch.randn(2, 24, 5, 7)
    assert not conv(x).any()  # it begins as zero
    torch.nn.init.normal_(conv.weight)
    torch.nn.init.normal_(conv.bias)
    each = [F.conv2d(h, conv.weight, conv.bias, padding=1, groups=8) for h in x.split(8, 1)]
    torch.testing.assert_close(conv(x), torch.cat(each, 1))


def test_an_oblong_grid_has_codes_of_its_own_height_and_width():
    code = torch.from_numpy(sines(4, 6, 16))
    rows, columns = code[..., :8], code[..., 8:]
    assert torch.equal(rows, rows[:, :1].expand_as(rows))
    assert torch.equal(columns, columns[:1].expand_as(columns))
    assert torch.equal(rows[:, 0], torch.from_numpy(sines(4, 4, 16))[:, 0, :8])
    assert torch.equal(columns[0], torch.from_numpy(sines(6, 6, 16))[0, :, 8:])


@pytest.mark.parametrize("size", [(97, 131), (160, 288), (64, 64), (16, 16)])
@torch.inference_mode()
def test_takes_any_size(size):
    model = create_model("resformer_tiny_patch16", num_classes=5).eval()
    assert model(torch.randn(1, 3, *size)).isfinite().all()


def test_what_the_authors_leave_undecayed():
    model = create_model("resformer_tiny_patch16", device="meta")
    kept = model.no_weight_decay()
    assert len(kept) == 1 + 2 + 2 * 12
    assert {n for n in kept if "mixer" not in n} == {
        "backbone.stem.position.tokens.0", "backbone.stem.position.conv.weight", "backbone.stem.position.conv.bias"
    }  # fmt: skip


def test_its_tokens_cannot_be_merged():
    with pytest.raises(SeamError, match="needs a full grid"):
        create_model("resformer_tiny_patch16", device="meta", tokens="tome:r=4")
