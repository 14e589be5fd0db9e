"""MicroDiT: the authors' numbers, whole, guided and masked, through the rules of their files; sizes as published."""

from functools import partial

import pytest
import torch
from golden import golden

from patchloom.vision.generation import micro_dit
from patchloom.vision.generation.micro_dit import lowest
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model, model_info

PLACES = {
    "time_embedding": "time_embedding", "caption_tokens": "caption_block", "pooled_caption": "pooled",
    "mixer_block0": "patch_mixer.0", "moe_mlp_mixer1": "patch_mixer.1.ffn", "first_block": "blocks.0",
    "moe_mlp_block1": "blocks.1.ffn",
}  # fmt: skip

# Eight blocks of 1,024-long sums lie before it, each of which a processor without 512-bit units rounds by 2e-6 (1.02e-5
# there); in float64 it is the record's within 2e-6, see below.
LOOSER = {("microdit_xl_2", "moe_mlp_block1"): 3e-5}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["microdit_tiny_2", "microdit_xl_2"])
@torch.inference_mode()
def test_the_network_is_the_record_s(name, monkeypatch):
    monkeypatch.setattr(micro_dit, "initialise", lambda model: None)  # it is filled anyway, and this is quicker
    record = golden.load(f"micro_diffusion/{name}")
    model = create_model(name).eval()
    report = load_published(model, record.state_dict())
    assert not report.fresh
    assert not report.resized
    given = record.input()
    x, t, y = given["x"], given["t"], given["y"].squeeze(1)
    found = {}

    def keep(_, __, out, output):
        found[output] = out if isinstance(out, torch.Tensor) else out.x

    hooks = [model.get_submodule(p).register_forward_hook(partial(keep, output=o)) for o, p in PLACES.items()]
    found["output"] = model(x, t, y)
    for hook in hooks:
        hook.remove()
    both = model(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, model.null(y)]))  # guidance, in one pass
    found["cfg5"] = both[1:] + 5 * (both[:1] - both[1:])
    kept, there = lowest(given["mask_noise"], 0.75)
    found["masked_output"], found["mask"] = model.predict(x, t, y, kept)[-1], (~there).float()
    assert set(found) == set(record.meta["outputs"])
    for output, value in found.items():
        record.compare(output, value, LOOSER.get((name, output), 1e-5))


@pytest.mark.slow
@torch.inference_mode()
def test_where_float32_rounds_float64_is_the_record_s(monkeypatch):
    monkeypatch.setattr(micro_dit, "initialise", lambda model: None)
    record = golden.load("micro_diffusion/microdit_xl_2")
    model = create_model("microdit_xl_2").eval()
    load_published(model, record.state_dict())
    model.blocks = model.blocks[:2]
    found = {}
    model.blocks[1].ffn.register_forward_hook(lambda _, __, out: found.setdefault("moe_mlp_block1", out))
    given = {k: v.double() for k, v in record.input().items()}
    model.double()(given["x"], given["t"], given["y"].squeeze(1))
    record.compare("moe_mlp_block1", found["moe_mlp_block1"], 3e-6)


def test_sizes_are_the_published_ones():
    counts = {"microdit_tiny_2": 200_692_752, "microdit_xl_2": 1_165_442_320, "microdit_xl_2_512": 1_165_442_320,
              "microdit_xl_2_512_16ch": 1_165_540_672}  # fmt: skip
    for name, count in counts.items():
        assert sum(p.numel() for p in create_model(name, device="meta").parameters()) == count, name
    info = model_info("microdit_tiny_2")
    assert info.parameters == info.trainable == counts[info.name]
    assert create_model("microdit_xl_2_512", device="meta").size == (64, 64)


def test_deeper_blocks_are_wider_inside():
    model = create_model("microdit_xl_2", device="meta")
    widths = [b.mixer.proj.in_features for b in model.blocks]
    assert widths == [512, *[640] * 6, *[768] * 7, *[896] * 7, *[1024] * 7]
    hidden = [f"E{b.ffn.w1.shape[-1]}" if hasattr(b.ffn, "gate") else f"{b.ffn.fc1.out_features}" for b in model.blocks]
    want = (512, "E768", 768, "E1024", 768, "E1280", 1024, "E1536", 1280, "E1792", 1280, "E2048", 1536, "E2304", 1792,
            "E2560", 1792, "E2816", 2048, "E3072", 2304, "E3328", 2304, "E3584", 2560, "E3840", 2816, 2816)  # fmt: skip
    assert hidden == [str(n) for n in want]


def test_a_file_s_places_may_be_those_of_another_size_and_nothing_else():
    names = ("dim", "depth", "head", "mixer", "size", "text")
    small = dict(zip(names, (64, 2, 16, (2, 64), (8, 8), (5, 12)), strict=True))
    model = micro_dit.MicroDiT(**small)
    table, zeros = model.stem.position.table, torch.zeros(1, 1, 16)
    assert torch.equal(micro_dit.as_computed("pos_embed", table.bfloat16(), model), table.bfloat16())
    assert torch.equal(micro_dit.as_computed("pos_embed", table + 0.1, model), table)  # is compared, and found another
    assert torch.equal(micro_dit.as_computed("mask_token", zeros + 1, model), zeros)
    assert micro_dit.as_computed("pos_embed", torch.zeros(1, 64, 64), model) is None
