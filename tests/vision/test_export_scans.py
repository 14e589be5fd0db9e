"""The families of linear time as one file for every image size: torch.export with open height and width, and the ONNX
file that comes of it in onnxruntime, at sizes that it was not made with."""

from dataclasses import replace

import onnxruntime
import pytest
import torch
from vision_tiny import tiny

from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.mixers.linear import LinearAttention
from patchloom.vision.mixers.retention import Retain
from patchloom.vision.mixers.scanned import Scanned
from patchloom.vision.model import Classifier
from patchloom.vision.orders import Order
from patchloom.vision.stem import Patchify
from patchloom.vision.zoo import VARIANTS

MADE_WITH, OTHERS = (64, 96), ((96, 64), (131, 97), (224, 224))  # 224: where position tables are not resized


def small(name, stages=None):
    """The tiny form of a variant, all of it or its first stages with a block each."""
    network = tiny(VARIANTS[name])
    if stages is not None:
        network = replace(network, stages=tuple(s.first() for s in network.stages[:stages]))
    torch.manual_seed(0)
    model = Classifier(network.backbone(3, 0.0), 5, network.head, img_size=network.size).eval()
    return disturbed(model)


@torch.no_grad()
def disturbed(model):
    for p in model.parameters():  # so that nothing is hidden by a zero
        p.add_(torch.randn_like(p) * 0.05)
    return model.requires_grad_(False)


def exported(model, open_sizes=True):
    side = [torch.export.Dim(n, min=33, max=4096) for n in ("height", "width")]
    shapes = ({2: side[0], 3: side[1]},) if open_sizes else None
    return torch.export.export(model, (torch.randn(2, 3, *MADE_WITH),), dynamic_shapes=shapes)


def agrees(model, program, sizes):
    onnx = torch.onnx.export(program, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(onnx.model_proto.SerializeToString())
    (image,) = session.get_inputs()
    for size in sizes:
        x = torch.randn(2, 3, *size)
        want = model(x)
        error = want.abs().max() * 1e-4
        assert (program.module()(x) - want).abs().max() < error, size
        assert (torch.from_numpy(session.run(None, {image.name: x.numpy()})[0]) - want).abs().max() < error, size


@pytest.mark.parametrize(("name", "stages"), [
    ("vir_small_patch16_224", 1),
    *(
        pytest.param(name, stages, marks=pytest.mark.slow)
        for name, stages in (("vim_tiny", 1), ("vmamba_tiny_s1l8", 2), ("vssd_tiny", 4), ("plainmamba_l1", 1))
    ),
    *(
        pytest.param(name, None, marks=pytest.mark.slow)
        for name in ("vim_tiny", "vim_tiny_stride8", "vmamba_tiny_s1l8", "vmamba_vanilla_tiny", "vssd_tiny",
                     "plainmamba_l1", "vir_small_patch16_224", "vir_small_patch16_224_softmax")
    ),
])  # fmt: skip
def test_one_file_serves_every_size(name, stages):
    model = small(name, stages)
    agrees(model, exported(model), OTHERS)


def of_mixer(mixer):
    torch.manual_seed(0)
    return disturbed(Classifier(Backbone([Stage(mixer, 16, 1)], Patchify(16)), 5).eval())


@pytest.mark.parametrize("mixer", [LinearAttention(2), LinearAttention(2, "hedgehog", causal=True)])
def test_mixers_in_the_order_of_the_sequence_take_every_size(mixer):
    model = of_mixer(mixer)
    agrees(model, exported(model), OTHERS)


@pytest.mark.parametrize("kind", ["zigzag", pytest.param("window", marks=pytest.mark.slow)])
def test_orders_from_tables_are_exported_at_their_size(kind):
    model = of_mixer(Scanned(Retain(2, "softmax"), Order(kind, both=True)))
    agrees(model, exported(model, open_sizes=False), [MADE_WITH])
