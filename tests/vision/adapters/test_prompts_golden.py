"""VPT and AdaptFormer's prompts: the records of the authors' code under its own names."""

import pytest
import torch
from adapter_golden import small_vit
from golden import golden
from recorded import agree, captured
from torch import nn

from patchloom.vision.adapters import adapt
from patchloom.vision.adapters.prompts import Vpt
from patchloom.vision.families.swin import swin
from patchloom.vision.model import Classifier
from patchloom.vision.weights import load_published


def vit(record: golden.Record) -> Classifier:
    c = record.meta["config"]
    return small_vit(c.get("num_layers") or c["depth"], c["img_size"])


def swin_of(record: golden.Record) -> Classifier:
    c = record.meta["config"]
    network = swin(c["embed_dim"], tuple(c["depths"]), tuple(c["num_heads"]), c["window_size"], c["img_size"])
    model = Classifier(network.backbone(3, 0.0), c["num_classes"], network.head, img_size=network.size)
    model.family = network.family
    return model


def loaded(model: Classifier, chosen: Vpt, record: golden.Record) -> nn.Module:
    """The model with the record's weights, every one of which finds its place."""
    adapt(model, chosen)
    report = load_published(model.eval(), record.state_dict())
    assert not report.fresh
    assert not report.dropped
    assert not report.resized
    assert sum(p.numel() for p in model.parameters()) == record.meta["parameters"]
    return model


def setting(record: golden.Record) -> Vpt:
    p = record.meta["config"]["prompt"]
    return Vpt(p["NUM_TOKENS"], p.get("DEEP", False), p.get("PROJECT"))


@pytest.mark.parametrize("variant", ["vit_shallow", "vit_deep", "vit_deep_project"])
def test_a_vit(variant):
    record = golden.load(f"vpt/{variant}")
    model = loaded(vit(record), setting(record), record)
    agree(record, captured(model, record.input(), {"tokens": "norm"}))


@pytest.mark.parametrize("variant", ["swin_shallow", "swin_deep"])
def test_swin(variant):
    """Whose stages are compared behind the step to the next one."""
    record = golden.load(f"vpt/{variant}")
    model = loaded(swin_of(record), setting(record), record)
    places = {f"stage{i}": f"backbone.stages.{i}.down" for i in (1, 2, 3)} | {"stage4": "backbone.stages.3.blocks.1"}
    agree(record, captured(model, record.input(), places))


def test_adaptformer():
    """Prompts before the class token, which AdaptFormer's code takes away behind each block and puts in again."""
    record = golden.load("adapters/adaptformer_vpt")
    model = loaded(vit(record), Vpt(record.meta["config"]["tuning"]["vpt_num"], front=True), record)
    agree(record, captured(model, record.input(), {"tokens": "backbone.stages.0.blocks.2"}))


@torch.inference_mode()
def test_windows_meet_the_prompts_of_their_own_image():
    """Which they do not in the authors' code, where the answer depends on the batch."""
    record = golden.load("vpt/swin_shallow")
    model = loaded(swin_of(record), setting(record), record)
    other = golden.noise((1, 3, 224, 224), 1)
    together = model(torch.cat([record.input(), other]))
    record.compare("logits", together[:1], 1e-5)
    torch.testing.assert_close(together[1:], model(other), rtol=1e-5, atol=1e-5)
