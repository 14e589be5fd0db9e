"""SAM's image encoders: their sizes, and their attention against the definition. Their record is that of the clustered
encoder: tests/vision/plugins/test_clustering.py."""

import pytest
import torch

from patchloom.vision.mixers.decomposed import DecomposedAttention
from patchloom.vision.tokens import Tokens
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model, model_info


@pytest.mark.parametrize(("name", "count"), [("b", 89_670_912), ("l", 308_278_272), ("h", 637_026_048)])
def test_sizes_are_the_published_ones(name, count):
    info = model_info(f"sam_vit_{name}")
    assert info.parameters == info.trainable == count


def filled(mixer: DecomposedAttention) -> DecomposedAttention:
    with torch.no_grad():
        for p in mixer.parameters():
            p.normal_()
    return mixer.eval()


@torch.inference_mode()
def test_attention_is_the_definition():
    torch.manual_seed(0)
    mixer = filled(DecomposedAttention(8, 2, None, (3, 5)))
    x = torch.randn(2, 15, 8)
    q, k, v = mixer.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    score = q @ k.mT / 2
    for i in range(15):
        for j in range(15):
            dy, dx = i // 5 - j // 5, i % 5 - j % 5
            score[:, :, i, j] += q[:, :, i] @ (mixer.rows[dy + 2] + mixer.columns[dx + 4])
    want = mixer.proj((score.softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(Tokens(x, (3, 5))), want, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_windows_are_padded_with_zeros_that_take_part():
    torch.manual_seed(0)
    mixer = filled(DecomposedAttention(8, 2, 4, (4, 4)))
    m = torch.randn(1, 5, 7, 8)
    got = mixer(Tokens(m.flatten(1, 2), (5, 7))).unflatten(1, (5, 7))
    whole = filled(DecomposedAttention(8, 2, None, (4, 4)))
    whole.load_state_dict(mixer.state_dict())
    padded = torch.nn.functional.pad(m, (0, 0, 0, 1, 0, 3))
    for y in (0, 4):
        for x in (0, 4):
            part = padded[:, y : y + 4, x : x + 4]
            want = whole(Tokens(part.flatten(1, 2), (4, 4))).unflatten(1, (4, 4))
            here = got[:, y : y + 4, x : x + 4]
            torch.testing.assert_close(here, want[:, : here.shape[1], : here.shape[2]], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_published_file_fits_at_another_size():
    small = create_model("sam_vit_b", img_size=64)
    b = small.backbone.stages[0].blocks
    assert b[0].mixer.rows.shape == (27, 64)
    assert b[2].mixer.rows.shape == (7, 64)
    theirs = {"pos_embed": torch.randn(1, 64, 64, 768)}
    for i in range(12):
        side = 127 if i in (2, 5, 8, 11) else 27
        theirs |= {f"blocks.{i}.attn.rel_pos_{a}": torch.randn(side, 64) for a in "hw"}
        for name in ("attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2", "norm1", "norm2"):
            ours = b[i].get_submodule(name.replace("attn", "mixer").replace("mlp.lin", "ffn.fc"))
            theirs |= {f"blocks.{i}.{name}.{k}": torch.randn_like(p) for k, p in ours.named_parameters()}
    conv, neck = small.backbone.stem.convolution.conv, small.backbone.stages[1]
    theirs |= {f"patch_embed.proj.{k}": torch.randn_like(p) for k, p in conv.named_parameters()}
    parts = neck.down.convolution.conv, neck.down.convolution.norm, neck.blocks[0].mixer.conv, neck.blocks[0].norm
    theirs |= {f"neck.{i}.{k}": torch.randn_like(p) for i, m in enumerate(parts) for k, p in m.named_parameters()}
    file = {f"image_encoder.{k}": v for k, v in theirs.items()} | {"mask_decoder.iou_token.weight": torch.zeros(1, 256)}
    report = load_published(small, file)
    assert report.dropped == ["mask_decoder.iou_token.weight"]
    assert not report.fresh
    assert len(report.resized) == 9
