"""LoRA on query and value as for spectrograms (https://github.com/umbertocappellazzo/PETL_AST): its RANK is a rate of
reduction, so the rank is round(C / RANK) and the scale ALPHA / RANK."""

import torch
from adapter_golden import of
from golden import golden

from patchloom.vision.adapters import adapt, adapter
from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.mixers.attention import Global
from patchloom.vision.model import Classifier
from patchloom.vision.tokens import Tokens


@torch.inference_mode()
def test_lora_on_query_and_value_is_the_originals():
    record = golden.load("adapters/ast_attention")
    state, config = of(record, "lora"), record.meta["config"]
    dim, rate, alpha = (config[n] for n in ("hidden_size", "lora_RANK", "lora_ALPHA"))
    rank = round(dim / rate)
    model = Classifier(Backbone([Stage(Global(config["heads"]), dim, 1)]), 0).eval()
    mixer = model.backbone.stages[0].blocks[0].mixer
    for kind in ("weight", "bias"):
        parts = [state[f"{n}.{kind}"] for n in ("query", "key", "value")]
        getattr(mixer.qkv, kind).copy_(torch.cat(parts))
    mixer.proj.weight.copy_(torch.eye(dim))  # the record ends before it
    adapt(model, adapter(f"lora:r={rank},alpha={alpha / rate * rank:g},targets=q+v"))
    for part in "qv":
        layer = getattr(mixer.qkv, part)
        layer.lora_A["default"].weight.copy_(state[f"lora_down_{part}.weight"])
        layer.lora_B["default"].weight.copy_(state[f"lora_up_{part}.weight"])
    record.compare("lora", mixer(Tokens(record.input(), None)), 1e-5)
