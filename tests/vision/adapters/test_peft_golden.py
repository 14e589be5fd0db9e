"""Every record of peft: a wrapped ViT under its published names, before and after merging; how LoRA may begin."""

import json

import pytest
import torch
from golden import golden
from peft_parts import small
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from patchloom.vision.adapters import adapt, merge
from patchloom.vision.adapters.lora import AdaLora, Corda, Dora, Lora, Olora, Pissa
from patchloom.vision.adapters.lora_data import prepare
from patchloom.vision.adapters.lora_kin import (
    Boft,
    DeLora,
    FourierFt,
    Hra,
    Ia3,
    LnTuning,
    LoHa,
    LoKr,
    Miss,
    Oft,
    Road,
    Vera,
)
from patchloom.vision.adapters.peft_names import Peft
from patchloom.vision.adapters.peft_published import load_wrapped
from patchloom.vision.layers import Linear

MLP, FC2 = ("fc1", "fc2"), ("qkv", "fc2")
EVERYWHERE = ("qkv", "proj", "fc1", "fc2")
PATTERNS = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": True, "lora_bias": True, "rank_pattern": {"fc2": 8},
    "alpha_pattern": {"fc2": 2}, "target_modules": r".*blocks\.\d+\.(mixer\.qkv|ffn\.fc2)",
}  # fmt: skip
ADAPTERS = {
    "lora": Lora(4, 8, targets=(*FC2, "fc1", "convolution")),
    "rslora_patterns": Peft(json.dumps(PATTERNS)),
    "dora": Dora(4, 8, targets=(*FC2, "fc1", "convolution")),
    "adalora": AdaLora(4, 6, 8, targets=FC2),
    "vera": Vera(16, 3, targets=MLP),
    "ia3": Ia3(targets=(*FC2, "fc1")),
    "oft": Oft(16, targets=EVERYWHERE),
    "oft_exact": Oft(16, exact=True, targets=("qkv", "fc1")),
    "coft_shared": Peft(json.dumps({
        "peft_type": "OFT", "r": 4, "oft_block_size": 0, "coft": True, "eps": 0.01, "block_share": True,
        "use_cayley_neumann": False, "target_modules": list(FC2),
    })),
    "boft": Boft(8, targets=("qkv", "fc1")),
    "loha": LoHa(4, 8, targets=(*EVERYWHERE, "convolution")),
    "lokr": LoKr(2, 4, 4, True, targets=(*EVERYWHERE, "convolution")),
    "hra": Hra(4, targets=(*EVERYWHERE, "convolution")),
    "ln_tuning": LnTuning(targets=("norm1", "norm2")),
    "fourierft": FourierFt(64, targets=FC2),
    "delora": DeLora(4, 6, targets=FC2),
    "road": Road("road_2", 16, targets=FC2),
    "miss": Miss(8, targets=MLP),
}  # fmt: skip


def lengths_of_the_record(model: nn.Module) -> None:
    """The record's lengths of columns (a buffer, which it does not hold) are those of timm's weights as they were drawn
    under seed 0, before they were filled."""
    torch.manual_seed(0)
    other = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=10)
    for i, block in enumerate(other.blocks):
        for path, layer in (("mixer.qkv", block.attn.qkv), ("ffn.fc2", block.mlp.fc2)):
            own = model.get_submodule(f"backbone.stages.0.blocks.{i}.{path}")
            own.delora_w_norm["default"] = layer.weight.detach().norm(dim=0)


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_wrapped_model_computes_what_peft_computed(name):
    record = golden.load(f"peft/{name}")
    model, x = small(), record.input()
    bare = list(model.state_dict())
    load_wrapped(model, record.state_dict(), ADAPTERS[name])
    if name == "delora":
        lengths_of_the_record(model)
    with torch.inference_mode():
        record.compare("logits", model(x), 1e-5)
        unmerge = merge(model)
        record.compare("merged_logits", model(x), 1e-5)
        record.compare("merged_weight", model.get_submodule("backbone.stages.0.blocks.0.ffn.fc2").weight, 1e-5)
        assert list(model.state_dict()) == bare
        unmerge()
        record.compare("logits", model(x), 1e-5)


def test_every_record_has_its_test():
    assert {f"peft/{name}" for name in (*ADAPTERS, "initialisations")} == {
        name for name in golden.available() if name.startswith("peft/")
    }


class Two(nn.Module):
    """fc2(gelu(fc1(x))): the record's network."""

    projections = ("fc1", "fc2")

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.adapters = Linear(24, 32), Linear(32, 16), None

    def forward(self, x):
        return self.fc2(nn.functional.gelu(self.fc1(x)))


BEGINNINGS = {
    "pissa": Pissa(4, 8, targets=("all",)),
    "olora": Olora(4, 8, targets=("all",)),
    "corda_ipm": Corda(4, 8, targets=("all",)),
    "corda_kpm": Corda(4, 8, mode="kpm", targets=("all",)),
}


@pytest.mark.parametrize("name", BEGINNINGS)
def test_a_beginning_is_what_peft_begins_with(name):
    record = golden.load("peft/initialisations")
    model, inputs = Two(), record.input()
    model.load_state_dict(record.state_dict())
    weights = {"fc1": model.fc1.weight.detach().clone(), "fc2": model.fc2.weight.detach().clone()}
    adapt(model, BEGINNINGS[name])
    prepare(model, list(inputs["data"]))
    for layer, weight in weights.items():
        peft = model.get_submodule(layer)
        a, b = peft.lora_A["default"].weight.detach(), peft.lora_B["default"].weight.detach()
        adapter = peft.get_delta_weight("default").detach()
        residual = peft.base_layer.weight.detach() + peft.get_delta_weight("start").detach()
        assert torch.equal(peft.base_layer.weight, weight)  # the trunk stays what it is
        tolerance = 1e-5
        record.compare(f"{name}_{layer}_adapter", adapter, tolerance)
        record.compare(f"{name}_{layer}_residual", residual, tolerance)
        record.compare(f"{name}_{layer}_singular", torch.linalg.svdvals(a), tolerance)
        gram = (b.T @ b).abs()
        index = torch.from_numpy(record.arrays[f"{name}_{layer}_gram/index"])
        want = torch.from_numpy(record.arrays[f"{name}_{layer}_gram"]).abs()
        torch.testing.assert_close(gram.flatten()[index], want, rtol=0, atol=tolerance * float(want.max()))
    record.compare("logits", model(inputs["x"]), 1e-5)
