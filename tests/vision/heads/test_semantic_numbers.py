"""UPerNet and Semantic FPN: published sizes, and what transformers and the paper compute."""

import re

import pytest
import torch
import torch.nn.functional as F
from semantic_parts import CLASSES, Maps, semantic_fpn, stirred

from patchloom.vision.heads.semantic import SemanticFpn, UPerNet
from patchloom.vision.zoo import create_model


@pytest.mark.parametrize(
    ("name", "millions"),
    [("swin_tiny", 59.94), ("convnext_tiny", 60.24), ("vmamba_tiny_s1l8", 61.9), ("vit_comer_seg_tiny", 38.7)],
)
def test_upernet_has_the_published_size(name, millions):
    """With 150 classes and the auxiliary head."""
    with torch.device("meta"):
        model = UPerNet(create_model(name, features_only=True), 150)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_semantic_fpn_has_the_published_size():
    with torch.device("meta"):
        model = SemanticFpn(create_model("poolformer_s12", features_only=True, dense=True), 150)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(15.7, abs=0.06)


RENAMED = (  # transformers' names of a head -> ours
    (r"psp_modules\.(\d)\.1\.", r"pool.each.\1."),
    (r"^bottleneck\.", "pool.mix."),
    (r"^fpn_bottleneck\.", "mix."),
    (r"^lateral_convs\.", "lateral."),
    (r"^fpn_convs\.", "output."),
    (r"^convs\.0\.", "conv."),
    (r"\.conv\.(\w+)$", r".0.conv.\1"),
    (r"\.batch_norm\.", ".0.norm."),
    (r"^classifier\.", "classify.conv."),
)


def renamed(state):
    found = {}
    for name, value in state.items():
        for theirs, ours in RENAMED:
            name = re.sub(theirs, ours, name)
        found[name] = value
    return found


@torch.inference_mode()
def test_upernet_computes_what_transformers_does():
    transformers = pytest.importorskip("transformers", reason="transformers is not a dependency of this part")
    from transformers.models.upernet import modeling_upernet as theirs

    backbone = Maps()
    config = transformers.UperNetConfig(backbone_config=transformers.SwinConfig(), hidden_size=16, num_labels=CLASSES,
                                        auxiliary_channels=8)  # fmt: skip
    model = UPerNet(backbone, CLASSES, 16, auxiliary=8).eval()
    for ours, head in (
        (model.head, theirs.UperNetHead(config, backbone.channels)),
        (model.auxiliary, theirs.UperNetFCNHead(config, backbone.channels)),
    ):
        torch.manual_seed(0)
        ours.load_state_dict(renamed(stirred(head).state_dict()))
        want = head(backbone.maps)
        assert want.std() > 0.05
        torch.testing.assert_close(ours(backbone.maps), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
    whole = F.interpolate(model.head(backbone.maps), (64, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model(torch.zeros(2, 3, 64, 96)), whole)


@torch.inference_mode()
def test_semantic_fpn_is_the_paper_s_sum():
    """Convolution and doubling until the finest size, one convolution without doubling there; then the sum."""
    torch.manual_seed(0)
    backbone = Maps()
    model = stirred(semantic_fpn(backbone))
    assert [len(r.convs) for r in model.head.rise] == [1, 1, 2, 3]
    total = 0
    for level, (m, rise) in enumerate(zip(model.head.pyramid(backbone.maps), model.head.rise, strict=True)):
        for conv in rise.convs:
            m = F.relu(F.group_norm(conv.conv(m), 8, conv.norm.weight, conv.norm.bias))
            m = F.interpolate(m, scale_factor=2, mode="bilinear", align_corners=False) if level else m
        total = total + m
    want = model.head.classify.conv(total)
    torch.testing.assert_close(model.head(backbone.maps), want, rtol=1e-5, atol=1e-5)
