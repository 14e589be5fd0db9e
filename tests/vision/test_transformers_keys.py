"""transformers' own models, randomly initialised: their tensors under the published names give their logits."""

import pytest
import torch

from patchloom.vision.download import open_file
from patchloom.vision.families.transformers_keys import family_of, to_published
from patchloom.vision.weights import load_published
from patchloom.vision.zoo import create_model

# our variant, transformers' classes, what its configuration changes (eps: the authors' and timm's, 1e-12 by default)
CASES = {
    "swin_tiny": ("SwinConfig", "SwinForImageClassification", {}),
    "convnext_tiny": ("ConvNextConfig", "ConvNextForImageClassification", {}),
    "poolformer_s12": ("PoolFormerConfig", "PoolFormerForImageClassification", {}),
    "vit_tiny_patch16_224": (
        "ViTConfig",
        "ViTForImageClassification",
        {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "layer_norm_eps": 1e-6},
    ),
    "deit_tiny_distilled_patch16_224": (
        "DeiTConfig",
        "DeiTForImageClassificationWithTeacher",
        {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "layer_norm_eps": 1e-6},
    ),
}


def theirs(variant):
    transformers = pytest.importorskip("transformers", reason="transformers is not a dependency of this part")
    config, model, other = CASES[variant]
    torch.manual_seed(0)
    net = getattr(transformers, model)(getattr(transformers, config)(num_labels=1000, **other)).eval()
    with torch.no_grad():
        for p in net.parameters():  # zeros and ones hide a wrong name
            p.copy_(torch.randn_like(p) * 0.05 + (1 if p.ndim == 1 and p.mean() > 0.5 else 0))
    return net


@pytest.mark.parametrize("variant", CASES)
def test_same_logits(variant, tmp_path):
    """By way of the file: transformers 5 has other names in memory, and writes the published ones."""
    net = theirs(variant)
    net.save_pretrained(tmp_path)
    ours = create_model(variant).eval()
    report = load_published(ours, open_file(tmp_path / "model.safetensors"))
    assert report.fresh == []
    x = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        want, got = net(pixel_values=x).logits, ours(x)
    assert want.std() > 0.05
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def vit(prefix=""):
    """One layer of a ViT under transformers' names."""
    block = f"{prefix}encoder.layer.0."
    shapes = {
        **{f"{block}attention.attention.{part}.weight": (4, 4) for part in ("query", "key", "value")},
        **{f"{block}attention.attention.{part}.bias": (4,) for part in ("query", "key", "value")},
        f"{block}layernorm_before.weight": (4,),
        f"{prefix}embeddings.cls_token": (1, 1, 4),
    }
    return {name: torch.randn(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("prefix", ["", "vit.", "deit."])
def test_query_key_and_value_are_stacked_in_this_order(prefix):
    state = vit(prefix)
    published = to_published(family_of(state), state)
    block = f"{prefix}encoder.layer.0.attention.attention."
    for kind in ("weight", "bias"):
        parts = published[f"blocks.0.attn.qkv.{kind}"].chunk(3)
        for part, name in zip(parts, ("query", "key", "value"), strict=True):
            assert torch.equal(part, state[f"{block}{name}.{kind}"])
    assert set(published) == {
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.qkv.bias",
        "blocks.0.norm1.weight",
        "cls_token",
    }


def test_a_stranger_and_a_missing_part_are_named():
    state = vit()
    with pytest.raises(ValueError, match=r"embeddings.stranger .* is no tensor of transformers' vit"):
        to_published("vit", {**state, "embeddings.stranger": torch.zeros(1)})
    del state["encoder.layer.0.attention.attention.key.bias"]
    with pytest.raises(
        ValueError, match=r"blocks.0.attn.qkv.bias needs query, key and value; there is only query and value"
    ):
        to_published("vit", state)
    assert family_of({"blocks.0.norm1.weight": torch.zeros(1)}) is None
